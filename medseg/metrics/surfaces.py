"""Where the surface of each label of a label map lies, by two definitions.

`voxels`: the voxels of the label with a face neighbour outside it, each counting one (MONAI, medpy, SimpleITK).
`elements`: the corners between voxels whose 2 x 2 x 2 voxels lie partly in the label, each counting the area in mm² (in
2D: the length in mm) of the surface that marching cubes draws between them (Nikolov et al., JMIR 23(7):e26151, 2021;
Lorensen and Cline, SIGGRAPH 1987). Outside the grid there is no label.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from medseg.boxes import box_around
from medseg.metrics.nearest import Floats, Points

Kind = Literal["voxels", "elements"]
Labels = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True, eq=False)
class Surface:
    """Points (n, axes) of one label's surface, as indices of the grid, and what each counts (None: one)."""

    points: Points
    sizes: Floats | None


def surfaces(labels: Labels, spacing: Sequence[float], kind: Kind = "voxels") -> dict[int, Surface]:
    """Return the surface of each label that is present; 0 is background.

    One look at the box around all labels, whose cost does not grow with their number; then work on surface voxels
    alone. Memory: about five times the box.

    Parameters
    ----------
    labels : array of int with 1 to 3 axes
        A label map.
    spacing : sequence of float
        Voxel size in mm along each axis; `elements` count their area by it.
    kind : 'voxels' or 'elements'
        The definition.
    """
    box = box_around(labels)
    if box is None:
        return {}
    padded = np.pad(labels[box], 1)
    inside = tuple(slice(1, -1) for _ in box)
    centre = padded[inside]
    border = np.zeros(centre.shape, bool)
    for axis in range(labels.ndim):
        for step in (slice(None, -2), slice(2, None)):
            border |= centre != padded[tuple(step if a == axis else slice(1, -1) for a in range(labels.ndim))]
    border &= centre != 0
    at = np.flatnonzero(border)
    values = centre[np.unravel_index(at, centre.shape)]
    order = np.argsort(values, kind="stable")
    present, starts = np.unique(values[order], return_index=True)
    low = np.array([part.start for part in box])
    found = {}
    for value, own in zip(present.tolist(), np.split(at[order], starts[1:]), strict=True):
        points: Points = np.stack(np.unravel_index(own, centre.shape), axis=1)
        sizes: Floats | None = None
        if kind == "elements":
            points, sizes = _elements(padded, value, points, spacing)
        found[value] = Surface(points + low, sizes)
    return found


def _elements(padded: Labels, value: int, voxels: Points, spacing: Sequence[float]) -> tuple[Points, Floats]:
    """Return the elements of one label and their sizes: corner c lies between voxels c - 1 and c along each axis."""
    axes = padded.ndim
    start = voxels.min(axis=0)
    shape = voxels.max(axis=0) - start + 2
    touched = np.zeros(shape, bool)
    corners = list(product((0, 1), repeat=axes))
    for corner in corners:
        touched[tuple((voxels - start + corner).T)] = True
    points = np.argwhere(touched) + start  # all that lie between inside and outside, and some inside
    codes = np.zeros(len(points), np.intp)
    for bit, corner in enumerate(corners):
        codes |= (padded[tuple((points + corner).T)] == value).astype(np.intp) << bit
    mixed = codes != (1 << len(corners)) - 1
    return points[mixed], _element_sizes(tuple(float(mm) for mm in spacing))[codes[mixed]]


@lru_cache(maxsize=8)
def _element_sizes(spacing: tuple[float, ...]) -> Floats:
    """Return the size of the surface within a corner's voxels, for each way in which they lie inside (bit n: voxel n).

    Two opposite ways have one surface: that of the way with fewer voxels inside, which keeps apart what touches by
    edges or corners only.
    """
    count = 2 ** len(spacing)
    sizes = np.zeros(2**count)
    for code in range(1, 2**count - 1):
        inside = code if code.bit_count() <= count // 2 else 2**count - 1 - code
        corners = np.array([inside >> bit & 1 for bit in range(count)], np.float32).reshape([2] * len(spacing))
        sizes[code] = _size(corners, spacing)
    return sizes


def _size(corners: npt.NDArray[np.float32], spacing: tuple[float, ...]) -> float:
    """Return the surface between the voxels at a corner: an end (1), a length in mm, or an area in mm²."""
    match len(spacing):
        case 1:
            return 1.0
        case 2:
            return _length(corners, spacing)
        case _:
            return _area(corners, spacing)


def _length(corners: npt.NDArray[np.float32], spacing: tuple[float, ...]) -> float:
    """Return the length of the contour between four pixels in mm."""
    if corners.sum() == 2 and corners[0, 0] != corners[1, 1]:  # two side by side
        return spacing[0] if corners[0, 0] == corners[1, 0] else spacing[1]
    return float(corners.sum() * np.hypot(spacing[0], spacing[1]) / 2)


def _area(corners: npt.NDArray[np.float32], spacing: tuple[float, ...]) -> float:
    """Return the area of the triangles between eight voxels in mm²."""
    from skimage.measure import marching_cubes

    vertices, faces, _, _ = marching_cubes(corners, 0.5, spacing=spacing, method="lorensen")
    a, b, c = (vertices[faces[:, corner]].astype(np.float64) for corner in range(3))
    return float(np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2)
