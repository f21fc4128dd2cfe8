"""Resampling along the voxel axes, one axis at a time, as a small matrix per axis.

A grid that shares its axes with another needs no general warp: the value at each new coordinate is a fixed
combination of old ones along that axis. For cubic B-splines the prefilter is part of the matrix, so the result
is that of `scipy.ndimage` at a twentieth of its time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg.errors import GeometryError
from medseg.geometry import Geometry
from medseg.strides import in_c_order

Matrix = npt.NDArray[np.float32]

_ROWS = 32  # new samples that are found by one multiplication
_CONVERTED = 1 << 20  # voxels of the scan that are converted at a time
_REACH = 15  # samples: the weight of a sample falls by 0.268 with each step away, to 3e-9
_LEAST = 1e-9  # weight


def coordinates(grid: Geometry, onto: Geometry) -> list[npt.NDArray[np.float64]]:
    """Return, for each axis of `onto`, the fractional indices of its voxel centres in `grid`.

    Rounded to a millionth of a voxel, so that the rounding of a header, which differs between the stored orders of
    one scan, cannot reach a label.

    Raises
    ------
    GeometryError
        If the two grids do not share their axes (to 0.001 voxel over the grid).
    """
    relation = np.linalg.solve(grid.affine, onto.affine)
    scale = np.diag(relation)[:3]
    off_axis = np.abs(relation[:3, :3] - np.diag(scale)) @ np.array(onto.shape)
    if off_axis.max() > 1e-3 or scale.min() <= 0:
        raise GeometryError(
            "the grids do not run along the same axes", hint="bring both to one orientation with order_to() first"
        )
    starts = relation[:3, 3]
    return [(np.arange(n) * step + start).round(6) for n, step, start in zip(onto.shape, scale, starts, strict=True)]


def cubic_matrix(count: int, at: npt.NDArray[np.float64]) -> Matrix:
    """Return the (len(at), count) matrix of cubic B-spline interpolation; coordinates are clamped to the samples.

    Unser et al. 1993; equal to `scipy.ndimage.map_coordinates(order=3, mode="mirror")` within the samples.
    """
    if count == 1:
        return np.ones((len(at), 1), np.float32)
    samples = _basis(count, np.arange(count, dtype=np.float64))  # of the coefficients: solved for, they are prefiltered
    matrix: Matrix = np.linalg.solve(samples.T, _basis(count, at).T).T.astype(np.float32, order="C")
    matrix[np.abs(matrix) < _LEAST] = 0  # denormal numbers would take a hundred times as long
    return matrix


def _basis(count: int, at: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the four cubic B-splines around each coordinate: (len(at), count), mirrored at both ends."""
    at = np.clip(at, 0, count - 1)
    first = np.floor(at).astype(int) - 1
    t = at - np.floor(at)
    taps = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, 3 * (1 - t) ** 3 - 6 * (1 - t) ** 2 + 4, t**3]) / 6
    basis = np.zeros((len(at), count))
    for offset, weight in enumerate(taps):
        index = np.abs(first + offset)
        index = (count - 1) - np.abs((count - 1) - index)
        np.add.at(basis, (np.arange(len(at)), index), weight)
    return basis


@dataclass(frozen=True)
class _Band:
    """Some of the new samples along an axis, as combinations of those old ones that weigh more than 1e-9."""

    new: slice
    old: slice
    matrix: Matrix


def _bands(count: int, at: npt.NDArray[np.float64]) -> list[_Band]:
    """Return the bands of an axis. To what lies within `_REACH` samples, the spline of those samples is the whole."""
    at = np.clip(at, 0, count - 1)
    bands = []
    for start in range(0, len(at), _ROWS):
        part = at[start : start + _ROWS]
        low, high = max(0, int(part[0]) - _REACH), min(count, int(part[-1]) + 2 + _REACH)
        bands.append(_Band(slice(start, start + len(part)), slice(low, high), cubic_matrix(high - low, part - low)))
    return bands


def _is_kept(count: int, at: npt.NDArray[np.float64]) -> bool:
    """Return whether the samples of an axis stay as they are."""
    return len(at) == count and bool(np.abs(at - np.arange(count)).max() < 1e-6)


def resample_image(array: npt.NDArray[Any], grid: Geometry, onto: Geometry) -> npt.NDArray[np.float32]:
    """Return intensities (C, I, J, K) of `grid` at the voxels of `onto`, by cubic B-splines, as float32.

    Voxels of `onto` outside `grid` repeat its border. Beside the result only some planes of it are in memory, and a
    scan stored in another order gives the same bits.
    """
    at = coordinates(grid, onto)
    bands = [_bands(count, places) for count, places in zip(grid.shape, at, strict=True)]
    kept = [_is_kept(count, places) for count, places in zip(grid.shape, at, strict=True)]
    first, *others = sorted(range(3), key=lambda axis: (kept[axis], onto.shape[axis] / grid.shape[axis]))
    out = np.empty((len(array), *onto.shape), np.float32)
    for channel, into in zip(array, out, strict=True):
        for band in bands[first]:
            planes = _planes(channel, first, band)
            for axis in others:
                planes = planes if kept[axis] else _along(axis, bands[axis], planes)
            into[_span(first, band.new)] = planes
    return out


def _planes(channel: npt.NDArray[Any], axis: int, band: _Band) -> npt.NDArray[np.float32]:
    """Return the new samples of one band along one axis, converting what it needs of the scan bit by bit."""
    needed = channel[_span(axis, band.old)]
    alone = _Band(slice(0, len(band.matrix)), slice(None), band.matrix)
    shape = [len(band.matrix) if other == axis else count for other, count in enumerate(needed.shape)]
    out = np.empty(shape, np.float32)
    across = 1 if axis == 0 else 0
    step = max(1, _CONVERTED * shape[across] // needed.size)
    for start in range(0, shape[across], step):
        part = _span(across, slice(start, start + step))
        out[part] = _along(axis, [alone], in_c_order(needed[part], np.float32))
    return out


def _along(axis: int, bands: Sequence[_Band], array: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return an array in C order with the new samples of one axis."""
    shape = [bands[-1].new.stop if other == axis else count for other, count in enumerate(array.shape)]
    out = np.empty(shape, np.float32)
    inner = prod(shape[axis + 1 :])
    old, new = (each.reshape(-1, each.shape[axis], inner) for each in (array, out))
    for band in bands:
        if inner == 1:
            np.matmul(old[:, band.old, 0], band.matrix.T, out=new[:, band.new, 0])
        else:
            np.matmul(band.matrix, old[:, band.old], out=new[:, band.new])
    return out


def _span(axis: int, span: slice) -> tuple[slice, ...]:
    return tuple(span if other == axis else slice(None) for other in range(3))


@dataclass(frozen=True)
class Taps:
    """Linear interpolation along one axis: `array[lower] + (array[upper] - array[lower]) * fraction`."""

    lower: npt.NDArray[np.intp]
    upper: npt.NDArray[np.intp]
    fraction: npt.NDArray[np.float32]

    @classmethod
    def of(cls, count: int, at: npt.NDArray[np.float64]) -> Taps:
        """Return the taps for coordinates `at` among `count` samples; beyond the ends the border is repeated."""
        at = np.clip(at, 0, count - 1)
        lower = np.floor(at).astype(np.intp)
        fraction = (at - lower).astype(np.float32)
        return cls(lower, np.minimum(lower + (fraction > 0), count - 1), fraction)

    @property
    def exact(self) -> bool:
        """Whether the samples are taken as they are, all in order."""
        return not self.fraction.any() and bool((self.lower == np.arange(len(self.lower))).all())

    def part(self, start: int, stop: int) -> Taps:
        """Return the taps of some of the coordinates."""
        return Taps(self.lower[start:stop], self.upper[start:stop], self.fraction[start:stop])


def interpolate(array: npt.NDArray[np.float32], taps: Sequence[Taps]) -> npt.NDArray[np.float32]:
    """Return (I, J, K) samples of `array` by linear interpolation along each axis in turn."""
    for axis, tap in enumerate(taps):
        if tap.exact and len(tap.lower) == array.shape[axis]:
            continue
        lower, upper = array.take(tap.lower, axis), array.take(tap.upper, axis)
        upper -= lower
        upper *= tap.fraction.reshape([-1 if a == axis else 1 for a in range(3)])
        upper += lower
        array = upper
    return array
