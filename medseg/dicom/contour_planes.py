"""Where planar contours lie on a voxel grid: the axis across their planes, the plane of each, the points in pixels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg.dicom.contours import Points
from medseg.gate import Gate
from medseg.geometry import Geometry

Array = npt.NDArray[Any]

_PARALLEL = 0.5  # degrees between a contour and the planes of a grid on which it is still drawn
_FLAT = 0.1  # of the distance between planes: how far a contour may leave its own plane
_SLACK = 0.01  # mm, the rounding of coordinates in a file
_TIE = 1e-4  # of the distance between planes: nearer to half-way than this is half-way


@dataclass(frozen=True)
class Drawing:
    """The contours of one structure on a grid.

    Parameters
    ----------
    rings : list of (n, 2) arrays
        Points in pixels, along the two axes of the grid's planes in rising order.
    planes : list of int
        The plane of each ring.
    """

    rings: list[Points]
    planes: list[int]


class Planes:
    """The planes of a grid that are parallel to contours.

    Parameters
    ----------
    contours : sequence of (n, 3) arrays
        All contours of a file, mm, RAS+.
    grid : Geometry
        The grid, in any of its 48 stored orders.
    gate : Gate
        Refuses contours that are not planar (CONTOUR_NOT_PLANAR) or not parallel to the grid (GEOM_OBLIQUE), and
        takes the warnings.
    """

    def __init__(self, contours: Sequence[Points], grid: Geometry, gate: Gate) -> None:
        self.grid = grid
        self.gate = gate
        self._inverse = np.linalg.inv(grid.affine)
        areas = [_area_vector(points) for points in contours]
        normals = np.cross(grid.affine[:3, [1, 2, 0]].T, grid.affine[:3, [2, 0, 1]].T)
        normals /= np.linalg.norm(normals, axis=1, keepdims=True)
        seen = np.abs(np.array(areas).reshape(-1, 3) @ normals.T).sum(axis=0)
        self.axis = int(seen.argmax()) if seen.any() else 2
        normal = normals[self.axis]
        self.normal = normal * np.sign(normal[np.abs(normal).argmax()])  # the same in all stored orders
        self.step = float(abs(self.normal @ grid.affine[:3, self.axis]))
        flat = [self._check(points, area) for points, area in zip(contours, areas, strict=True)]
        self._across = self.normal if all(flat) else _mean_direction(areas, self.normal)

    def draw(self, contours: Sequence[Points], tally: Counter[str]) -> Drawing:
        """Return the contours of one structure in pixels, and count in `tally` what does not fit the grid.

        Contours of one plane in space are kept together. Where several such planes fall on one plane of the grid,
        the nearest is drawn and the others are left out.
        """
        indices = [self._index(points) for points in contours]
        rows, columns = (axis for axis in range(3) if axis != self.axis)
        last = np.array(self.grid.shape)[[rows, columns]] - 0.5
        nearest: dict[int, tuple[float, list[int]]] = {}
        for members in self._groups(contours):
            at = float(np.mean([indices[member][:, self.axis].mean() for member in members]))
            if not -0.5 - _TIE <= at <= self.grid.shape[self.axis] - 0.5 + _TIE:
                tally["outside"] += len(members)
                continue
            plane = self._plane(at)
            away = round(abs(at - plane), 4)
            tally["between"] += len(members) if away * self.step > _FLAT * self.step + _SLACK else 0
            if plane in nearest:
                worse = members if away >= nearest[plane][0] else nearest[plane][1]
                tally["crowded"] += len(worse)
            if plane not in nearest or away < nearest[plane][0]:
                nearest[plane] = away, members
        tally["coarse"] += len(nearest) > 2 and int(np.diff(sorted(nearest)).min()) > 1
        rings, planes = [], []
        for plane, (_, members) in sorted(nearest.items()):
            for member in members:
                ring = indices[member][:, [rows, columns]]
                tally["cut"] += bool((ring < -0.5 - _FLAT).any() or (ring > last + _FLAT).any())
                rings.append(ring)
                planes.append(plane)
        return Drawing(rings, planes)

    def _index(self, points: Points) -> Points:
        index: Points = points @ self._inverse[:3, :3].T + self._inverse[:3, 3]
        return index

    def _plane(self, at: float) -> int:
        """Return the nearest plane; of two, the one that is further back along the normal in space."""
        along = self.normal @ self.grid.affine[:3, self.axis] > 0
        plane = np.ceil(at - 0.5 - _TIE) if along else np.floor(at + 0.5 + _TIE)
        return int(np.clip(plane, 0, self.grid.shape[self.axis] - 1))

    def _groups(self, contours: Sequence[Points]) -> list[list[int]]:
        """Return the numbers of the contours that lie in one plane in space, plane by plane."""
        heights = [float((points @ self._across).mean()) for points in contours]
        groups: list[list[int]] = []
        lowest = -np.inf
        for number in np.argsort(heights, kind="stable").tolist():
            if heights[number] - lowest > _FLAT / 2 * self.step + _SLACK:
                lowest = heights[number]
                groups.append([])
            groups[-1].append(number)
        return groups

    def _check(self, points: Points, area: Array) -> bool:
        """Return whether a contour lies in a plane of the grid's direction; refuse one that is far from it."""
        allowed = _FLAT * self.step + _SLACK
        if np.ptp(points @ self.normal) <= allowed:
            return True
        size = float(np.linalg.norm(area))
        own = area / size if size else self.normal
        if np.ptp(points @ own) > allowed:
            self.gate.refuse(
                "CONTOUR_NOT_PLANAR",
                f"holds a contour whose points leave its plane by {np.ptp(points @ own):.2g} mm",
                "export the structure set again from the program that drew it",
            )
        angle = float(np.degrees(np.arccos(min(1.0, abs(float(own @ self.normal))))))
        if angle > _PARALLEL:
            self.gate.refuse(
                "GEOM_OBLIQUE",
                f"holds contours that are turned by {angle:.2g} degrees against the planes of the grid",
                "give the scan on which they were drawn",
            )
        return False


def _area_vector(points: Points) -> Array:
    """Return the vector area of a closed line, mm2: across its plane, whatever its shape."""
    arms = points - points[0]
    area: Array = np.cross(arms, np.roll(arms, -1, axis=0)).sum(axis=0) / 2
    return area


def _mean_direction(areas: Sequence[Array], normal: Array) -> Array:
    total = np.sum([area * np.sign(area @ normal) for area in areas], axis=0)
    mean: Array = total / np.linalg.norm(total)
    return mean
