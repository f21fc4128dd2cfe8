"""Slices of a tilted gantry, or with gaps, onto a grid at right angles with even spacing: linear, slice by slice."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medseg.dicom.frames import plane_affine
from medseg.dicom.placing import Placement
from medseg.gate import Gate
from medseg.geometry import Geometry

Array = npt.NDArray[Any]

_NOTHING = 1e-3  # of a step, or of a pixel: rounding in the header


def needs_reslice(placement: Placement) -> bool:
    """Return whether the slices of a volume form no grid at right angles."""
    return placement.tilt > 0 or not placement.even


def resliced(array: Array, placement: Placement, gate: Gate, *, outside: float) -> tuple[Array, Geometry]:
    """Return slices on a grid whose third axis is their normal, and the grid.

    The grid has the pixels of the slices, is as wide as the tilt spreads them, and as fine along the normal as the
    smallest distance of slices. A voxel is interpolated linearly between the two slices around it, and within them.

    Parameters
    ----------
    array : (K, rows, columns) array
        The slices, as they lie.
    placement : Placement
        Where they lie.
    gate : Gate
        Refuses a grid that the memory cannot take.
    outside : float
        Value of what no slice covers.

    Returns
    -------
    array : (K', rows', columns') array
        Of the same type; whole numbers are rounded.
    geometry : Geometry
        Of `array.transpose(2, 1, 0)`.
    """
    first = placement.planes[0]
    pixel = np.array([first.spacing[1], first.spacing[0]])  # mm along a row, along a column
    drift = placement.drift / pixel  # of each slice, in pixels (columns, rows)
    before = np.ceil(np.maximum(0, -drift.min(axis=0)) - _NOTHING).astype(int)
    after = np.ceil(np.maximum(0, drift.max(axis=0)) - _NOTHING).astype(int)
    count = round(float(placement.along[-1]) / placement.step) + 1
    columns, rows = np.array([array.shape[2], array.shape[1]]) + before + after
    gate.size(count * int(rows) * int(columns) * array.itemsize, 1 << 62, compressed=False)
    out = np.empty((count, rows, columns), array.dtype)
    heights = np.linspace(0, placement.along[-1], count)
    for n, height in enumerate(heights):
        upper = min(max(int(np.searchsorted(placement.along, height - 1e-9)), 1), len(array) - 1)
        lower = upper - 1
        weight = (height - placement.along[lower]) / (placement.along[upper] - placement.along[lower])
        plane = np.zeros((rows, columns), np.float64)
        weight = round(weight) if abs(weight - round(weight)) < _NOTHING else weight
        for k, share in ((lower, 1 - weight), (upper, weight)):
            if share:
                plane += share * _shifted(array[k], drift[k] + before, (rows, columns), outside)
        out[n] = np.rint(plane) if array.dtype.kind in "iu" else plane
    affine = plane_affine(first.position, first.orientation, first.spacing, float(heights[1] - heights[0]))
    affine[:3, 3] -= affine[:3, :2] @ before
    return out, Geometry(affine, (int(columns), int(rows), count))


def _shifted(plane: Array, by: Array, shape: tuple[int, int], outside: float) -> Array:
    """Return a slice moved by a number of (columns, rows), which need not be whole."""
    whole = np.floor(by + _NOTHING / 2).astype(int)
    part = by - whole
    wide = np.full(shape, outside, np.float64)
    rows, columns = plane.shape
    wide[whole[1] : whole[1] + rows, whole[0] : whole[0] + columns] = plane[
        : max(0, shape[0] - whole[1]), : max(0, shape[1] - whole[0])
    ]
    if np.abs(part).max() < _NOTHING:
        return wide
    moved: Array = ndimage.shift(wide, (part[1], part[0]), order=1, mode="nearest", prefilter=False)
    return moved
