"""From a scan to what the network sees: plain functions on volumes.

Training and predicting share `prepare`, so they cannot differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medseg.boxes import box_around
from medseg.errors import PlanError
from medseg.geometry import Geometry, tuple_of_three
from medseg.plan import Channel, Plan, Window, ZScore
from medseg.resampling import resample_image
from medseg.volume import Array, Volume

_SAME_SPACING = 1e-4  # relative; a scan this close to the plan's grid is not resampled


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
