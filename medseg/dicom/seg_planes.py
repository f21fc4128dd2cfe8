"""Where the frames of a multi-frame object lie: their own positions, the grid that they form, their place on another.

Positions and orientations of the frames alone tell (PS3.3 C.7.6.16.2.3 and C.7.6.16.2.4), for a segmentation holds
only the frames that are not empty, in any order and with gaps between them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
from pydicom import Dataset

from medseg.dicom.frames import OFF_MM, OFF_STEPS, RAS, plane_affine
from medseg.gate import HINT_EXPORT, Gate
from medseg.geometry import AxisOrder, Geometry
from medseg.volume import LabelMap

Array = npt.NDArray[Any]

MAX_PLANES = 1 << 15
_UNAMBIGUOUS = 0.3  # voxels
_SAME_PLANE = 1e-3  # mm between positions that are one
_NO_SLIDES = "medseg segments scans of patients; convert slide microscopy with a tool made for it"


@dataclass(frozen=True)
class Planes:
    """The frames of one object as planes in space.

    Parameters
    ----------
    affine : (4, 4) array
        Maps (column, row, 0, 1) of the first frame to mm, RAS+; its third column is the unit normal.
    positions : (frames, 3) array
        Centre of the first pixel of each frame, in mm, RAS+.
    size : two ints
        Columns and rows.
    step : float, optional
        mm between planes along the normal, as the object says.
    thickness : float, optional
        mm of tissue in a plane, as the object says.
    """

    affine: Array
    positions: Array
    size: tuple[int, int]
    step: float | None
    thickness: float | None


@dataclass(frozen=True)
class Placement:
    """A grid and where on it the frames lie: pixel (0, 0) of frame n is voxel `starts[n]` of the reordered grid."""

    geometry: Geometry
    order: AxisOrder
    starts: npt.NDArray[np.int64]


def read_planes(dataset: Dataset, size: tuple[int, int], gate: Gate) -> Planes | None:
    """Return where the frames lie; None where nothing says so, as in a projection image."""
    shared = next(iter(dataset.get("SharedFunctionalGroupsSequence") or []), Dataset())
    groups = dataset.get("PerFrameFunctionalGroupsSequence") or []
    _refuse_slides(dataset, shared, groups, gate)
    found = [_numbers(group, shared, "PlanePositionSequence", "ImagePositionPatient", 3) for group in groups]
    positions = [position for position in found if position is not None]
    if not positions:
        return None
    if len(positions) < len(found):
        gate.refuse("HEADER", f"{len(found) - len(positions)} of {len(found)} frames have no position", HINT_EXPORT)
    orientation = _common(groups, shared, "PlaneOrientationSequence", "ImageOrientationPatient", 6, gate)
    spacing = _common(groups, shared, "PixelMeasuresSequence", "PixelSpacing", 2, gate)
    row, column = orientation[:3], orientation[3:]
    off = (np.linalg.norm(row) - 1, np.linalg.norm(column) - 1, row @ column)
    if np.abs(off).max() > 1e-3 or spacing.min() <= 0:
        gate.refuse(
            "AFFINE", "the axes of its frames are not at right angles, or a spacing is not above 0", HINT_EXPORT
        )
    step, thickness = (
        _positive(_numbers(groups[0], shared, "PixelMeasuresSequence", keyword, 1))
        for keyword in ("SpacingBetweenSlices", "SliceThickness")
    )
    affine = plane_affine(positions[0].tolist(), orientation.tolist(), spacing.tolist())
    return Planes(affine, np.array(positions) @ RAS[:3, :3], size, step, thickness)


def regular(planes: Planes, gate: Gate) -> Placement:
    """Return the smallest regular grid that holds all frames, and where they lie on it; refuse uneven positions."""
    normal = planes.affine[:3, 2]
    heights = planes.positions @ normal
    order = np.argsort(heights, kind="stable")
    rises = np.diff(heights[order])
    fresh = rises > _SAME_PLANE
    rank = np.empty(len(heights), np.int64)
    rank[order] = np.concatenate([[0], np.cumsum(fresh)])
    slices = _slice_numbers(rises[fresh], planes.step)
    first, last = planes.positions[order[0]], planes.positions[order[-1]]
    if slices is None:
        _refuse_uneven(gate)
    if slices[-1] >= MAX_PLANES:
        gate.refuse("GEOM_VARIABLE_SPACING", f"its frames span {slices[-1] + 1} planes", HINT_EXPORT)
    affine = planes.affine.copy()
    affine[:3, 3] = first
    if len(slices) > 1:
        affine[:3, 2] = (last - first) / slices[-1]
    else:
        affine[:3, 2] *= _depth(planes, gate)
    at = slices[rank]
    apart = np.abs(planes.positions - first - at[:, None] * affine[:3, 2]).max()
    if apart > _tolerance(float(np.linalg.norm(affine[:3, 2]))):
        _refuse_uneven(gate)
    starts = np.zeros((len(at), 3), np.int64)
    starts[:, 2] = at
    geometry = gate.geometry(affine, (*planes.size, int(slices[-1]) + 1))
    return Placement(geometry, AxisOrder((0, 1, 2), (False, False, False)), starts)


def on_grid(planes: Planes, grid: Geometry) -> Placement | None:
    """Return where the frames lie on a grid, in whatever axis order it is stored; None where they lie beside it.

    A frame lies on the grid where none of its pixels is further from a voxel's centre than the slices of a series may
    lie beside their grid, and none is as near to another voxel.
    """
    back = np.linalg.inv(grid.affine)
    move = back[:3, :3] @ planes.affine[:3, :2]
    starts = planes.positions @ back[:3, :3].T + back[:3, 3]
    units, whole = np.rint(move), np.rint(starts)
    if sorted([*np.abs(units).sum(axis=0), *np.abs(units).sum(axis=1)]) != [0, 1, 1, 1, 1]:
        return None  # rows and columns do not each run along an axis of their own
    i, j = (int(axis) for axis in np.abs(units).argmax(axis=0))
    k = 3 - i - j
    off = np.abs(starts - whole).max(axis=0) + np.abs(move - units) @ planes.size
    if (off > np.minimum(_tolerance(grid.spacing[k]) / np.array(grid.spacing), _UNAMBIGUOUS)).any():
        return None
    if _coarser(planes, grid, k, whole[:, k]):
        return None
    flips = (bool(units[i, 0] < 0), bool(units[j, 1] < 0), False)
    axes = (i, j, k)
    first = whole[:, axes].astype(np.int64)
    for axis in (0, 1):
        if flips[axis]:
            first[:, axis] = grid.shape[axes[axis]] - 1 - first[:, axis]
    return Placement(grid, AxisOrder(axes, flips), first)


def nearest(labels: LabelMap, grid: Geometry) -> Array:
    """Return the atoms of a label map at the voxels of a grid: of the nearest voxel, and 0 outside."""
    move = np.linalg.inv(labels.geometry.affine) @ grid.affine
    found = np.zeros(grid.shape, labels.array.dtype, order="F")
    plane = move[:3, :2] @ np.indices(grid.shape[:2]).reshape(2, -1)
    shape = np.array(labels.geometry.shape)[:, None]
    for k in range(grid.shape[2]):
        index = np.rint((plane + (move[:3, 2] * k + move[:3, 3])[:, None]).round(6)).astype(np.intp)
        inside = ((index >= 0) & (index < shape)).all(axis=0)
        values = np.zeros(plane.shape[1], labels.array.dtype)
        values[inside] = labels.array[tuple(index[:, inside])]
        found[..., k] = values.reshape(grid.shape[:2])
    return found


def _slice_numbers(rises: Array, step: float | None) -> npt.NDArray[np.int64] | None:
    """Return the number of each plane, from the rises between them in mm; None where no step fits all.

    The step is the one that the object states, where that fits, and the smallest rise otherwise.
    """
    if not len(rises):
        return np.zeros(1, np.int64)
    for candidate in (step, float(rises.min())):
        if candidate is None:
            continue
        counts = np.rint(rises / candidate)
        if counts.min() < 1 or counts.sum() >= 1 << 31:
            continue
        numbers = np.concatenate([[0.0], np.cumsum(counts)])
        mean = rises.sum() / numbers[-1]
        heights = np.concatenate([[0.0], np.cumsum(rises)])
        fits = np.abs(heights - numbers * mean).max() <= _tolerance(mean)
        if fits and abs(mean - candidate) <= 0.02 * candidate:
            return numbers.astype(np.int64)
    return None


def _tolerance(step: float) -> float:
    """Return how many mm a plane may lie beside its place: as much as the slices of a series may."""
    return OFF_MM + OFF_STEPS * step


def _coarser(planes: Planes, grid: Geometry, axis: int, at: Array) -> bool:
    """Return whether the planes follow one another in larger steps than the grid's: they leave out planes of it."""
    if not planes.step:
        return False
    own = abs(grid.affine[:3, axis] @ planes.affine[:3, 2])
    rises = np.diff(np.unique(at)) * own
    return bool(planes.step > 1.5 * own and (not rises.size or rises.min() > 0.9 * planes.step))


def _depth(planes: Planes, gate: Gate) -> float:
    depth = planes.step or planes.thickness
    if not depth:
        gate.warn("says nothing of the thickness of its only plane; it is taken as 1 mm")
    return depth or 1.0


def _refuse_uneven(gate: Gate) -> NoReturn:
    gate.refuse(
        "GEOM_VARIABLE_SPACING",
        "its frames do not follow one another at multiples of one distance",
        "give the scan that it was made on, so that each frame can be laid onto its slice",
    )


def _refuse_slides(dataset: Dataset, shared: Dataset, groups: Any, gate: Gate) -> None:
    """Refuse whole-slide images: tiles of a picture, with no place in a patient."""
    first = next(iter(groups), Dataset())
    marks = (
        "TotalPixelMatrixColumns",
        "TotalPixelMatrixRows",
        "ImageOrientationSlide",
        "TotalPixelMatrixOriginSequence",
    )
    tiled = str(dataset.get("DimensionOrganizationType") or "").startswith("TILED")
    if (
        tiled
        or any(mark in dataset for mark in marks)
        or any("PlanePositionSlideSequence" in g for g in (shared, first))
    ):
        gate.refuse("SLIDE", "is a segmentation of slide microscopy", _NO_SLIDES)


def _numbers(group: Dataset, shared: Dataset, sequence: str, keyword: str, count: int) -> Array | None:
    """Return finite numbers from a functional group of a frame, or of all frames; None where there are none."""
    for holder in (group, shared):
        item = next(iter(holder.get(sequence) or []), None)
        value = item.get(keyword) if item is not None else None
        if value is not None:
            found = np.atleast_1d(np.array(value, np.float64))
            if found.shape == (count,) and (np.abs(found) < 1e7).all():
                return found
    return None


def _common(groups: Any, shared: Dataset, sequence: str, keyword: str, count: int, gate: Gate) -> Array:
    """Return numbers that must be there and be the same for all frames."""
    own = [group for group in groups if sequence in group] or groups[:1]
    found = [_numbers(group, shared, sequence, keyword, count) for group in own]
    if any(numbers is None for numbers in found):
        gate.refuse("HEADER", f"gives its frames no valid {keyword}", HINT_EXPORT)
    if len(own) < len(groups) and len(own) > 1:
        found += [_numbers(Dataset(), shared, sequence, keyword, count)] if sequence in shared else []
    first = np.array(found[0])
    if any(numbers is None or np.abs(numbers - first).max() > 1e-4 for numbers in found):
        gate.refuse("GEOM_ORIENTATION", f"its frames differ in {keyword}", HINT_EXPORT)
    return first


def _positive(numbers: Array | None) -> float | None:
    return float(numbers[0]) if numbers is not None and numbers[0] > 0 else None
