"""Masks and the closed lines around them, in pixels: outlines that enclose exactly a mask, and what lines enclose.

Pixel centres have whole coordinates. An outline passes half-way between the centres of a mask's pixels and those
outside, a hundredth of a pixel nearer to the former: programs that round to whole pixels then find the same mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from skimage.measure import find_contours

from medseg.boxes import box_around

Points = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Array = npt.NDArray[Any]

ON_LINE = 0.01  # a centre nearer than this to a line, in pixels, lies on it
_LEVEL = 0.51  # where a line passes between a centre inside (1) and one outside (0)
_BLOCK = 8192  # edges looked at in one step


def outlines(mask: Mask) -> list[Points]:
    """Return closed lines, each (n, 2), that together enclose exactly the pixels of a mask.

    One line for each piece (pixels that touch by corners alone are two pieces). A piece with holes is one line too:
    a slit to and fro leads to each hole (a keyhole), for many programs fill a hole that is a line of its own. No
    point lies on the straight line between its neighbours; the first point is not repeated at the end.

    Parameters
    ----------
    mask : (columns, rows) array of bool
        The mask.
    """
    box = box_around(mask)
    if box is None:
        return []
    rings = [ring[:-1] for ring in find_contours(np.pad(mask[box], 1).astype(np.float64), _LEVEL)]
    corner = np.array([span.start - 1 for span in box])
    return [_without_straights(ring) + corner for ring in _keyholed(rings)]


def enclosed(rings: Sequence[Points], planes: Sequence[int], shape: tuple[int, int, int]) -> tuple[Mask, Array]:
    """Return the pixels that closed lines enclose in a stack of planes: a box of (planes, columns, rows), its corner.

    A pixel is enclosed if a ray from its centre crosses the lines of its plane an odd number of times: so keyholes,
    holes that are lines of their own, and islands in holes all come out right; where two islands overlap there is
    a hole. A centre on a line (within 0.01 pixel) is enclosed, whichever side is inside: so the result is the same in
    all stored orders of a grid, and lines that pass through the centres of a mask's outermost pixels, as OpenCV
    draws them, enclose that mask, down to a single point.

    Parameters
    ----------
    rings : sequence of (n, 2) arrays
        Points of each line in pixels.
    planes : sequence of int
        The plane of each line, 0 to `shape[0] - 1`.
    shape : three ints
        Planes, columns and rows; what lies outside is left out.
    """
    corner = np.zeros(3, np.intp)
    if not rings:
        return np.zeros((0, 0, 0), np.bool_), corner
    points = np.concatenate(rings)
    size = np.array(shape)
    low = np.floor(np.concatenate([[min(planes)], points.min(axis=0)])).clip(0, size)
    high = np.ceil(np.concatenate([[max(planes)], points.max(axis=0)])).clip(-1, size - 1)
    corner = low.astype(np.intp)
    extent = (high - low + 1).clip(0).astype(np.intp)
    box = np.zeros(extent, np.uint8)
    line = np.zeros(extent, np.bool_)
    if not box.size:
        return line, corner
    edges = _edges([ring - corner[1:] for ring in rings], np.asarray(planes) - corner[0])
    for start in range(0, len(edges), _BLOCK):
        part = edges[start : start + _BLOCK]
        _turn_over(box, part)
        _draw(line, part)
    filled = np.bitwise_xor.accumulate(box, axis=1).view(np.bool_)
    return filled | line, corner


def _keyholed(rings: list[Points]) -> list[Points]:
    """Return the rings of pieces, each with those of its holes joined to it by slits.

    A slit runs from the top of a hole between two rows of pixels to the first line on its left. That line is of
    the piece itself or of a hole that starts higher or further left, so no two holes wait for one another.
    """
    inner = [_area(ring) > 0 for ring in rings]  # find_contours has the mask always on the same side
    if not any(inner):
        return rings
    points = np.concatenate(rings)
    ends = np.cumsum([len(ring) for ring in rings])
    starts = ends - [len(ring) for ring in rings]
    after = np.arange(1, len(points) + 1)
    after[ends - 1] = starts
    lattice = np.rint(points * 2).astype(int)
    node_at = {(x, y): node for node, (x, y) in enumerate(lattice.tolist())}
    tops = [start + int(np.lexsort(lattice[start:end].T)[0]) for start, end in zip(starts, ends, strict=True)]
    following, origin = after.tolist(), list(range(len(points)))
    for top, hole in zip(tops, inner, strict=True):
        if hole:
            _slit(top, _left_of(lattice[top], node_at), following, origin)
    return [points[_walk(start, following, origin)] for start, hole in zip(starts, inner, strict=True) if not hole]


def _area(ring: Points) -> float:
    x, y = (ring - ring[0]).T
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


def _left_of(top: Array, node_at: dict[tuple[int, int], int]) -> int:
    """Return the point of a line that is seen first from the top of a hole, to the left; in half pixels."""
    x, y = top.tolist()
    while True:
        x -= 2
        for seen in ((x + 1, y - 1), (x, y)):
            if seen in node_at:
                return node_at[seen]


def _slit(hole: int, line: int, following: list[int], origin: list[int]) -> None:
    """Join the ring through point `hole` to the line through point `line`, which gain a twin each."""
    hole_twin, line_twin = len(origin), len(origin) + 1
    origin += [origin[hole], origin[line]]
    following += [following[hole], following[line]]
    following[line], following[hole] = hole_twin, line_twin


def _walk(start: int, following: list[int], origin: list[int]) -> list[int]:
    found, node = [origin[start]], following[start]
    while node != start:
        found.append(origin[node])
        node = following[node]
    return found


def _without_straights(ring: Points) -> Points:
    """Return a ring without the points between which it goes straight on, as seen on the grid of half pixels."""
    lattice = np.rint(ring * 2)
    before, after = lattice - np.roll(lattice, 1, axis=0), np.roll(lattice, -1, axis=0) - lattice
    straight = (before[:, 0] * after[:, 1] == before[:, 1] * after[:, 0]) & ((before * after).sum(axis=1) > 0)
    kept: Points = ring[~straight]
    return kept


def _edges(rings: Sequence[Points], planes: Array) -> Array:
    """Return the edges as columns x0, y0, x1, y1, plane, with y0 <= y1: to and fro, an edge is the same numbers."""
    rounded = [ring.round(6) for ring in rings]
    tails = np.concatenate(rounded)
    heads = np.concatenate([np.roll(ring, -1, axis=0) for ring in rounded])
    plane = np.repeat(planes, [len(ring) for ring in rings])[:, None]
    upwards = (tails[:, 1] < heads[:, 1]) | ((tails[:, 1] == heads[:, 1]) & (tails[:, 0] < heads[:, 0]))
    edges: Array = np.where(upwards[:, None], np.hstack([tails, heads, plane]), np.hstack([heads, tails, plane]))
    return edges


def _turn_over(box: Array, edges: Array) -> None:
    """Flip the pixel right of each crossing of an edge with a row; sums along the row are then 1 inside."""
    _, columns, rows = box.shape
    first, stop = (np.ceil(edges[:, end]).clip(0, rows).astype(np.intp) for end in (1, 3))
    edge, y = _steps(first, stop)
    column = np.ceil(_between(edges[edge], y, along=1)).clip(0, columns).astype(np.intp)
    seen = column < columns
    flat = np.ravel_multi_index((edges[edge[seen], 4].astype(np.intp), column[seen], y[seen]), box.shape)
    np.bitwise_xor.at(box.reshape(-1), flat, np.uint8(1))


def _draw(line: Mask, edges: Array) -> None:
    """Mark the pixels whose centres lie on an edge; looked for along the axis on which the edge is longer."""
    steep = np.abs(edges[:, 3] - edges[:, 1]) >= np.abs(edges[:, 2] - edges[:, 0])
    for along, part in ((1, edges[steep]), (0, edges[~steep])):
        across = 1 - along
        ends = np.sort(part[:, [along, along + 2]], axis=1)
        first = np.ceil(ends[:, 0] - ON_LINE).clip(0, line.shape[1 + along]).astype(np.intp)
        stop = np.floor(ends[:, 1] + ON_LINE + 1).clip(0, line.shape[1 + along]).astype(np.intp)
        edge, position = _steps(first, stop)
        other = _between(part[edge], position.clip(ends[edge, 0], ends[edge, 1]), along=along)
        nearest = np.rint(other)
        hit = (np.abs(other - nearest) <= ON_LINE) & (nearest >= 0) & (nearest < line.shape[1 + across])
        index: list[Array] = [part[edge[hit], 4].astype(np.intp)] * 3
        index[1 + along], index[1 + across] = position[hit], nearest[hit].astype(np.intp)
        line[tuple(index)] = True


def _steps(first: Array, stop: Array) -> tuple[Array, Array]:
    """Return the whole numbers from `first` to `stop` of each edge, all in one row, with the numbers of the edges."""
    count = (stop - first).clip(0)
    edge = np.repeat(np.arange(len(count)), count)
    return edge, np.arange(len(edge)) - (np.cumsum(count) - count)[edge] + first[edge]


def _between(edges: Array, position: Array, *, along: int) -> Array:
    """Return where edges pass `position` on axis `along`: the coordinate on the other axis."""
    a0, b0, a1, b1 = (edges[:, column] for column in (along, 1 - along, along + 2, 3 - along))
    length = np.where(a1 == a0, 1.0, a1 - a0)  # an edge without length, from a point to itself, has b1 == b0
    found: Array = b0 + (position - a0) * ((b1 - b0) / length)
    return found
