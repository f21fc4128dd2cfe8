"""From a scan to what the network sees, and from its answer back to the scan: plain functions on volumes.

Training and predicting share `prepare`, so they cannot differ. `restore` knows nothing of what `prepare` did:
it relates two geometries.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg.boxes import box_around
from medseg.errors import GeometryError, PlanError, ShapeMismatch
from medseg.geometry import AxisOrder, Geometry, tuple_of_three
from medseg.plan import Channel, Plan, Window, ZScore
from medseg.resampling import Taps, coordinates, interpolate, resample_image
from medseg.volume import Array, Volume

_SAME_SPACING = 1e-4  # relative; a scan this close to the plan's grid is not resampled
_SLAB = 1 << 22  # voxels of the scan that are restored at a time


@dataclass(frozen=True)
class Rescale:
    """Normalisation of one channel: clip to [low, high], subtract `shift`, divide by `scale`."""

    low: float
    high: float
    shift: float
    scale: float

    def apply(self, array: Array) -> npt.NDArray[np.float32]:
        """Return normalised intensities as a new array of float32, in C order."""
        out = np.array(array, dtype=np.float32, order="C")
        np.clip(out, self.low, self.high, out=out)
        out -= np.float32(self.shift)
        out /= np.float32(self.scale)
        return out


@dataclass(frozen=True, eq=False)
class Prepared:
    """A scan on the plan's grid, and how its intensities are normalised, window by window or all at once.

    Parameters
    ----------
    volume : Volume
        On the plan's grid; in the type of the scan where nothing was resampled.
    rescale : tuple of Rescale
        One for each channel.
    """

    volume: Volume
    rescale: tuple[Rescale, ...]

    @property
    def geometry(self) -> Geometry:
        """The grid on which the network works."""
        return self.volume.geometry

    def window(self, start: Sequence[int], stop: Sequence[int]) -> npt.NDArray[np.float32]:
        """Return the normalised intensities (C, I, J, K) from voxel `start` (included) to `stop` (excluded)."""
        box = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
        return np.stack(
            [rule.apply(channel[box]) for rule, channel in zip(self.rescale, self.volume.array, strict=True)]
        )

    def array(self) -> npt.NDArray[np.float32]:
        """Return all normalised intensities (C, I, J, K)."""
        return self.window((0, 0, 0), self.geometry.shape)


def prepare(scan: Volume, plan: Plan) -> Prepared:
    """Return a scan as the network of `plan` sees it: oriented, cropped to the foreground, on the plan's spacing.

    The result is the same, to the bit, for each of the 48 orders in which a scan can be stored.

    Parameters
    ----------
    scan : Volume
        With as many channels as the plan.
    plan : Plan
        Orientation, crop, spacing and intensity rules.

    Raises
    ------
    PlanError
        If the scan has another number of channels, or no physical size where the plan needs one.
    """
    if len(scan.array) != len(plan.channels):
        wanted = ", ".join(channel.name for channel in plan.channels)
        raise PlanError(
            f"the scan has {len(scan.array)} channels, the model needs {len(plan.channels)} ({wanted})",
            hint="give one file for each with --channel NAME=FILE",
        )
    volume = _oriented(scan, plan)
    if plan.crop is not None:
        volume = _cropped(volume, plan.crop)
    rescale = tuple(_rescale(array, channel) for array, channel in zip(volume.array, plan.channels, strict=True))
    return Prepared(_respaced(volume, plan), rescale)


def restore(logits: npt.NDArray[np.float32], grid: Geometry, onto: Geometry) -> npt.NDArray[np.unsignedinteger[Any]]:
    """Return the label of each voxel of a scan: where the interpolated logits are largest.

    Linear interpolation, class by class with a running maximum, some planes at a time: beside the logits, memory
    does not grow with the number of classes. Outside `grid` is background.

    Parameters
    ----------
    logits : (L, A, B, C) array of float32
        One channel for background and each label, on `grid`.
    grid : Geometry
        Where the logits lie.
    onto : Geometry
        The scan's; its voxel axes run along those of `grid`, in any order and direction.

    Returns
    -------
    (I, J, K) array of an unsigned integer type
        Channel numbers, 0 for background, on `onto`.

    Raises
    ------
    GeometryError
        If the grids do not share their axes.
    """
    placement = _place(logits, grid, onto)
    labels = np.zeros(placement.shape, np.min_scalar_type(len(logits) - 1))
    for planes, taps in placement.slabs():
        best = interpolate(logits[0], taps).copy()
        label = np.zeros(best.shape, labels.dtype)
        for number, channel in enumerate(logits[1:], start=1):
            value = interpolate(channel, taps)
            larger = value > best
            label[larger] = number
            np.maximum(best, value, out=best)
        labels[planes] = label
    restored: npt.NDArray[np.unsignedinteger[Any]] = placement.order.inverse().apply(labels)
    return np.asfortranarray(restored)


def resample_labels(channels: npt.NDArray[np.uint8], grid: Geometry, onto: Geometry) -> npt.NDArray[np.uint8]:
    """Return channel numbers of `grid` at the voxels of `onto`: there, the one whose interpolated share is largest.

    The answer of `restore` to one channel of 0 and 1 for each number, but each number is looked at in the box around
    it alone, so that neither time nor memory grows with how many there are.

    Parameters
    ----------
    channels : (A, B, C) array of uint8
        On `grid`.
    grid, onto : Geometry
        As in `restore`.
    """
    placement = _place(channels[None], grid, onto)
    best = np.zeros([span.stop - span.start for span in placement.box], np.float32)
    label = np.zeros(best.shape, np.uint8)
    for number in np.flatnonzero(np.bincount(channels.ravel(), minlength=1)).tolist():
        mask = channels == number
        reach, taps, part = _reached(mask, placement.taps)
        share = interpolate(mask[part].astype(np.float32), taps)
        larger = share > best[reach]
        label[reach][larger] = number
        np.maximum(best[reach], share, out=best[reach])
    labels = np.zeros(placement.shape, np.uint8)
    labels[placement.box] = label
    restored: npt.NDArray[np.uint8] = placement.order.inverse().apply(labels)
    return np.asfortranarray(restored)


def _reached(
    mask: npt.NDArray[np.bool_], taps: tuple[Taps, Taps, Taps]
) -> tuple[tuple[slice, ...], list[Taps], tuple[slice, ...]]:
    """Return which voxels a mask that is not empty can reach, and from which part of it they are interpolated."""
    box = box_around(mask)
    reach, parts, inside = [], [], []
    for axis, (tap, count) in enumerate(zip(taps, mask.shape, strict=True)):
        low, high = (box[axis].start, box[axis].stop - 1) if box else (0, -1)
        near = np.flatnonzero((tap.upper >= low) & (tap.lower <= high))
        start, stop = (int(near[0]), int(near[-1]) + 1) if near.size else (0, 0)
        first, last = max(0, low - 1), min(count, high + 2)
        part = tap.part(start, stop)
        reach.append(slice(start, stop))
        parts.append(Taps(part.lower - first, part.upper - first, part.fraction))
        inside.append(slice(first, last))
    return tuple(reach), parts, tuple(inside)


def restore_labels(
    logits: npt.NDArray[np.float32], grid: Geometry, onto: Geometry, plan: Plan
) -> npt.NDArray[np.unsignedinteger[Any]]:
    """Return the atoms of `plan` on `onto`, where `restore` returns channel numbers."""
    values = np.array([0, *plan.atoms])
    found: npt.NDArray[np.unsignedinteger[Any]] = values.astype(np.min_scalar_type(values.max()))[
        restore(logits, grid, onto)
    ]
    return found


def restore_probabilities(logits: npt.NDArray[np.float32], grid: Geometry, onto: Geometry) -> npt.NDArray[np.float32]:
    """Return the softmax (L, I, J, K) of the interpolated logits on `onto`; outside `grid` background has 1.

    Their largest channel is the label that `restore` returns.
    """
    placement = _place(logits, grid, onto)
    out = np.zeros((len(logits), *placement.shape), np.float32)
    out[0] = 1
    for planes, taps in placement.slabs():
        values = np.stack([interpolate(channel, taps) for channel in logits])
        values = np.exp(values - values.max(axis=0))
        out[(slice(None), *planes)] = values / values.sum(axis=0)
    restored: npt.NDArray[np.float32] = placement.order.inverse().apply(out)
    return restored


@dataclass(frozen=True)
class _Placement:
    """Where the voxels of a scan, brought to the order of a grid, lie on that grid."""

    order: AxisOrder
    shape: tuple[int, int, int]
    box: tuple[slice, slice, slice]
    taps: tuple[Taps, Taps, Taps]

    def slabs(self) -> Iterator[tuple[tuple[slice, slice, slice], tuple[Taps, Taps, Taps]]]:
        """Yield parts of the box that the grid covers, a few planes of the first axis each, with their taps."""
        first, second, third = self.box
        plane = (second.stop - second.start) * (third.stop - third.start)
        step = max(1, _SLAB // max(1, plane))
        for start in range(first.start, first.stop, step) if plane else ():
            stop = min(start + step, first.stop)
            part = self.taps[0].part(start - first.start, stop - first.start)
            yield (slice(start, stop), second, third), (part, self.taps[1], self.taps[2])


def _place(logits: Array, grid: Geometry, onto: Geometry) -> _Placement:
    if logits.shape[1:] != grid.shape:
        raise ShapeMismatch(f"logits of shape {logits.shape} on a grid of shape {grid.shape}", hint="give that grid")
    order = _order_along(grid, onto)
    scan = onto.reordered(order)
    box, taps = [], []
    for count, at in zip(grid.shape, coordinates(grid, scan), strict=True):
        inside = np.flatnonzero((at >= -0.5 - 1e-6) & (at <= count - 0.5 + 1e-6))
        start, stop = (int(inside[0]), int(inside[-1]) + 1) if inside.size else (0, 0)
        box.append(slice(start, stop))
        taps.append(Taps.of(count, at[start:stop]))
    return _Placement(order, scan.shape, tuple_of_three(box), tuple_of_three(taps))


def _order_along(grid: Geometry, onto: Geometry) -> AxisOrder:
    """Return the order that makes the axes of `onto` run along those of `grid`."""
    relation = np.linalg.solve(grid.affine, onto.affine)[:3, :3]
    axes = tuple_of_three(int(axis) for axis in np.abs(relation).argmax(axis=1))
    if sorted(axes) != [0, 1, 2]:
        raise GeometryError("the grids do not run along the same axes", hint="give the grid that prepare() returned")
    return AxisOrder(axes, tuple_of_three(bool(relation[row, axis] < 0) for row, axis in enumerate(axes)))


def _oriented(scan: Volume, plan: Plan) -> Volume:
    if not scan.geometry.physical:
        return scan
    order = scan.geometry.order_to(plan.orientation)
    return Volume(order.apply(scan.array), scan.geometry.reordered(order), scan.source)


def _cropped(volume: Volume, threshold: float) -> Volume:
    foreground: npt.NDArray[np.bool_] = np.asarray((volume.array > threshold).any(axis=0))
    box = box_around(foreground)
    if box is None:
        return volume  # nothing but background: the network shall see it whole
    geometry = volume.geometry.cropped(
        tuple_of_three(span.start for span in box), tuple_of_three(span.stop for span in box)
    )
    return Volume(volume.array[(slice(None), *box)], geometry, volume.source)


def _respaced(volume: Volume, plan: Plan) -> Volume:
    if plan.spacing is None:
        return volume
    if not volume.geometry.physical:
        raise PlanError("the scan has no physical size, the model needs one", hint="give a file with spacing in mm")
    if np.allclose(volume.geometry.spacing, plan.spacing, rtol=_SAME_SPACING, atol=0):
        return volume
    grid = volume.geometry.respaced(plan.spacing)
    return Volume(resample_image(volume.array, volume.geometry, grid), grid, volume.source)


def _rescale(array: Array, channel: Channel) -> Rescale:
    match channel.intensity:
        case Window(low=low, high=high, mean=mean, deviation=deviation):
            return Rescale(low, high, mean, deviation)
        case ZScore(clip_percentiles=percentiles):
            low, high = (float(value) for value in np.percentile(array, percentiles))
            mean, deviation = _moments(array, low, high)
            return Rescale(low, high, mean, deviation or 1.0)


def _moments(array: Array, low: float, high: float) -> tuple[float, float]:
    """Return mean and deviation of the clipped voxels, summed in one order however the array is stored."""
    total = squares = 0.0
    middle = (low + high) / 2
    for plane in array:
        values = np.clip(np.ascontiguousarray(plane), low, high).astype(np.float64) - middle
        total += float(values.sum())
        squares += float((values * values).sum())
    mean = total / array.size
    return middle + mean, max(0.0, squares / array.size - mean * mean) ** 0.5
