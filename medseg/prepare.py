"""From a scan to what the network sees: plain functions on volumes.

Training and predicting share `prepare`, so they cannot differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
import numpy.typing as npt

from medseg.errors import PlanError
from medseg.geometry import Geometry, tuple_of_three
from medseg.plan import Channel, Plan, Window, ZScore
from medseg.resampling import resample_image
from medseg.strides import box_where, copy_into, in_c_order, slabs
from medseg.volume import Array, Volume

_SAME_SPACING = 1e-4  # relative; a scan this close to the plan's grid is not resampled
_COUNTED = 2  # bytes of an integer whose values are counted instead of sorted
_PLANES = 16  # converted together


@dataclass(frozen=True)
class Rescale:
    """Normalisation of one channel: clip to [low, high], subtract `shift`, divide by `scale`."""

    low: float
    high: float
    shift: float
    scale: float

    def apply(self, array: Array, out: npt.NDArray[np.float32]) -> None:
        """Write normalised intensities (I, J, K) into `out`, best in C order."""
        copy_into(out, array)
        for part in slabs(out):
            values = out[part]
            np.clip(values, self.low, self.high, out=values)
            values -= np.float32(self.shift)
            values /= np.float32(self.scale)


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
        """Return the normalised intensities (C, I, J, K) from voxel `start` (included) to `stop` (excluded).

        Outside the scan they are zero, the mean intensity.
        """
        out = np.zeros((len(self.rescale), *(b - a for a, b in zip(start, stop, strict=True))), np.float32)
        ends = [(max(0, a), min(n, b)) for a, b, n in zip(start, stop, self.geometry.shape, strict=True)]
        channels = self.volume.array[(slice(None), *(slice(a, b) for a, b in ends))]
        inside = out[(slice(None), *(slice(a - first, b - first) for (a, b), first in zip(ends, start, strict=True)))]
        for rule, channel, into in zip(self.rescale, channels, inside, strict=True):
            rule.apply(channel, into)
        return out

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


def _oriented(scan: Volume, plan: Plan) -> Volume:
    if not scan.geometry.physical:
        return scan
    order = scan.geometry.order_to(plan.orientation)
    return Volume(order.apply(scan.array), scan.geometry.reordered(order), scan.source)


def _cropped(volume: Volume, threshold: float) -> Volume:
    box = box_where(volume.array, lambda values: values > threshold)
    if box is None:
        return volume  # nothing but background: the network shall see it whole
    geometry = volume.geometry.cropped(
        tuple_of_three(span.start for span in box[1:]), tuple_of_three(span.stop for span in box[1:])
    )
    return Volume(volume.array[(slice(None), *box[1:])], geometry, volume.source)


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
        case ZScore(clip_percentiles=percentiles) if array.dtype.kind in "iu" and array.itemsize <= _COUNTED:
            return _counted(array, percentiles)
        case ZScore(clip_percentiles=percentiles):
            copy = array.flatten(order="K")
            low, high = (float(value) for value in np.percentile(copy, percentiles, overwrite_input=True))
            return Rescale(low, high, *_moments(array, low, high))


def _counted(array: Array, percentiles: Sequence[float]) -> Rescale:
    """Return the z-score of integers, from the number of voxels of each value: in one pass, and in any order."""
    limits = np.iinfo(array.dtype)
    values = np.arange(limits.min, limits.max + 1)
    counts = np.zeros(len(values), np.int64)
    for part in slabs(array):
        native = array[part].astype(array.dtype.newbyteorder("="), copy=False)
        bits = native.ravel(order="K").view(f"u{array.itemsize}")  # negative values are the upper half
        counts += np.bincount(bits, minlength=len(values))
    counts = np.roll(counts, -limits.min)
    ranks = np.cumsum(counts)
    low, high = (_percentile(values, ranks, percentile) for percentile in percentiles)
    clipped = np.clip(values, low, high)
    mean = float(counts @ clipped) / array.size
    deviation = float(counts @ (clipped - mean) ** 2 / array.size) ** 0.5
    return Rescale(low, high, mean, deviation or 1.0)


def _percentile(values: Array, ranks: Array, percentile: float) -> float:
    """Return a percentile of sorted values, of which `ranks` voxels are at most that large, as `np.percentile` does."""
    at = (int(ranks[-1]) - 1) * (percentile / 100)
    below, above = values[np.searchsorted(ranks, [int(at), ceil(at)], side="right")].tolist()
    share = at - int(at)
    return float(below + (above - below) * share if share < 0.5 else above - (above - below) * (1 - share))


def _moments(array: Array, low: float, high: float) -> tuple[float, float]:
    """Return mean and deviation of the clipped voxels (1 where they do not differ), summed in one order."""
    total = squares = 0.0
    middle = (low + high) / 2
    for start in range(0, len(array), _PLANES):
        for plane in in_c_order(array[start : start + _PLANES]):  # together, as they may lie side by side in memory
            values = np.clip(plane, low, high).astype(np.float64)
            values -= middle
            total += float(values.sum())
            squares += float(np.square(values, out=values).sum())
    mean = total / array.size
    return middle + mean, max(0.0, squares / array.size - mean * mean) ** 0.5 or 1.0
