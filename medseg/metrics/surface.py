"""Distances between the surfaces of two masks in mm, all scores from one set of them.

An axis of one voxel takes no part: a mask of one slice has a contour, and not every pixel of it is surface.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from medseg.errors import UsageError
from medseg.metrics.masks import Mask, as_masks, check_shapes
from medseg.metrics.nearest import Floats, nearest_distances
from medseg.metrics.surfaces import Kind, Surface, surfaces

_SLACK = 1 + 1e-6  # a spacing that a file rounded to float32 must not push a distance over a tolerance


@dataclass(frozen=True, eq=False)
class Directed:
    """Distances in mm from the points of one surface to another, growing, and what each point counts (None: one)."""

    distances: Floats
    sizes: Floats | None

    @property
    def total(self) -> float:
        """What all points count: their number, or the surface's area."""
        return float(len(self.distances) if self.sizes is None else self.sizes.sum())

    def sum(self, values: Floats | Mask) -> float:
        """Return the sum of one value per point, each counted by its size."""
        return float(np.sum(values) if self.sizes is None else np.sum(values * self.sizes))

    def percentile(self, percentile: float) -> float:
        """Return the distance within which that share of the surface lies; between two voxels it is interpolated."""
        if not len(self.distances):
            return math.inf
        if self.sizes is None:
            return _interpolated(self.distances, percentile / 100)
        shares = np.cumsum(self.sizes) / self.sizes.sum()
        return float(self.distances[min(int(np.searchsorted(shares, percentile / 100)), len(self.distances) - 1)])


@dataclass(frozen=True, eq=False)
class SurfaceDistances:
    """The distances from either surface to the other; every score of surfaces follows from them.

    Examples
    --------
    >>> a, b = np.zeros((2, 9), bool)
    >>> a[1] = b[5] = True
    >>> found = surface_distances(a, b, spacing=[2.5])
    >>> found.hausdorff(), found.average(), found.dice(tolerance=10)
    (10.0, 10.0, 1.0)
    """

    prediction: Directed
    reference: Directed

    @classmethod
    def none(cls) -> Self:
        """Return the distances between two empty masks: every score of them is nan."""
        return cls(Directed(np.zeros(0), None), Directed(np.zeros(0), None))

    def hausdorff(self, percentile: float = 100.0) -> float:
        """See `hausdorff_distance`."""
        if not 0 < percentile <= 100:
            raise UsageError(f"percentile {percentile} is not in (0, 100]", hint="95 gives HD95")
        if not self._total:
            return math.nan
        return max(self.prediction.percentile(percentile), self.reference.percentile(percentile))

    def average(self) -> float:
        """See `average_surface_distance`."""
        return self._mean(self.prediction.distances, self.reference.distances)

    def root_mean_square(self) -> float:
        """See `rms_surface_distance`."""
        return math.sqrt(self._mean(self.prediction.distances**2, self.reference.distances**2))

    def dice(self, tolerance: float) -> float:
        """See `surface_dice`."""
        if not tolerance >= 0:
            raise UsageError(f"tolerance {tolerance} is negative", hint="give mm, such as 2")
        near = tolerance * _SLACK
        return self._mean(self.prediction.distances <= near, self.reference.distances <= near)

    @property
    def _total(self) -> float:
        return self.prediction.total + self.reference.total

    def _mean(self, predicted: Floats | Mask, true: Floats | Mask) -> float:
        total = self._total
        return (self.prediction.sum(predicted) + self.reference.sum(true)) / total if total else math.nan


def surface_distances(
    prediction: Mask, reference: Mask, spacing: Sequence[float], *, surface: Kind = "voxels"
) -> SurfaceDistances:
    """Return the distances between the surfaces of two masks, from which every score of surfaces follows.

    Parameters
    ----------
    prediction, reference : array of bool with 1 to 3 axes
        Masks of one label on the same grid.
    spacing : sequence of float
        Voxel size in mm along each axis.
    surface : 'voxels' or 'elements'
        What a surface is: voxels with a face neighbour outside the mask, each counting one, or elements between voxels,
        each counting its area (`docs/metrics.md` shows by how much the scores differ).

    Raises
    ------
    ShapeMismatch
        If the masks differ in shape.
    UsageError
        If the spacing does not fit them.
    """
    masks = [mask.view(np.uint8) for mask in as_masks(prediction, reference)]
    found = label_surface_distances(masks[0], masks[1], spacing, surface=surface)
    return found.get(1) or SurfaceDistances.none()


def label_surface_distances(
    prediction: npt.NDArray[np.integer[Any]],
    reference: npt.NDArray[np.integer[Any]],
    spacing: Sequence[float],
    *,
    surface: Kind = "voxels",
) -> dict[int, SurfaceDistances]:
    """Return the distances between the surfaces of each label that is in either map.

    One look at each map finds all surfaces; distances are then computed from surface voxels alone, so that cost grows
    with the surfaces and not with labels times voxels. Memory: about four bytes for each voxel of the labels' box
    (six for 16-bit labels), and at most 150 bytes for each surface voxel of a map.

    Parameters
    ----------
    prediction, reference : array of int with 1 to 3 axes
        Label maps on the same grid; 0 is background.
    spacing, surface
        As of `surface_distances`.
    """
    check_shapes(prediction, reference)
    if len(spacing) != prediction.ndim or not all(mm > 0 and math.isfinite(mm) for mm in spacing):
        raise UsageError(
            f"spacing {tuple(spacing)} of an array with {prediction.ndim} axes", hint="give mm for each axis"
        )
    if prediction.ndim not in {1, 2, 3}:
        raise UsageError(f"array with {prediction.ndim} axes", hint="give one, two or three")
    if surface not in {"voxels", "elements"}:
        raise UsageError(f"unknown kind of surface {surface!r}", hint="choose voxels or elements")
    maps, spacing = _flattened([prediction, reference], spacing)
    predicted, true = (surfaces(labels, spacing, surface) for labels in maps)
    return {label: _between(predicted.get(label), true.get(label), spacing) for label in sorted({*predicted, *true})}


def _between(prediction: Surface | None, reference: Surface | None, spacing: Sequence[float]) -> SurfaceDistances:
    """Return the distances between two surfaces; those to a surface that is not there are infinite."""
    return SurfaceDistances(_directed(prediction, reference, spacing), _directed(reference, prediction, spacing))


def hausdorff_distance(
    prediction: Mask,
    reference: Mask,
    spacing: Sequence[float],
    *,
    percentile: float = 100.0,
    surface: Kind = "voxels",
) -> float:
    """Return the largest distance from either surface to the other in mm: 0 or more, less is better.

    nan if both masks are empty, inf if exactly one is.

    Parameters
    ----------
    prediction, reference, spacing, surface
        As of `surface_distances`.
    percentile : float in (0, 100]
        95 gives HD95: the larger of the two directed percentiles, not one of the pooled distances. It is interpolated
        between voxels, and for `elements` it is the first distance at which that share of the area is reached.

    References
    ----------
    Huttenlocher et al., IEEE TPAMI 15(9), 1993. A surface voxel has a face neighbour outside the mask; the border of
    the grid is outside. An axis of one voxel takes no part.

    Examples
    --------
    >>> a, b = np.zeros((2, 1, 1, 9), bool)
    >>> a[0, 0, 1] = b[0, 0, 5] = True
    >>> hausdorff_distance(a, b, spacing=(1, 1, 2.5))
    10.0
    """
    return surface_distances(prediction, reference, spacing, surface=surface).hausdorff(percentile)


def average_surface_distance(
    prediction: Mask, reference: Mask, spacing: Sequence[float], *, surface: Kind = "voxels"
) -> float:
    """Return the average symmetric surface distance (ASSD) in mm: 0 or more, less is better.

    The mean over the points of both surfaces together, so that the larger surface counts more (the mean of the two
    directed means is another number). nan if both masks are empty, inf if exactly one is. Heimann et al., IEEE TMI
    28(8), 2009.

    Examples
    --------
    >>> a, b = np.zeros((2, 9), bool)
    >>> a[1:4] = b[1:6] = True
    >>> average_surface_distance(a, b, spacing=[1])
    1.0
    """
    return surface_distances(prediction, reference, spacing, surface=surface).average()


def rms_surface_distance(
    prediction: Mask, reference: Mask, spacing: Sequence[float], *, surface: Kind = "voxels"
) -> float:
    """Return the root of the mean squared symmetric surface distance in mm: 0 or more, less is better.

    Its square is the mean squared distance in mm². As ASSD, with far points counting more. nan if both masks are
    empty, inf if exactly one is. Heimann et al., IEEE TMI 28(8), 2009.

    Examples
    --------
    >>> a, b = np.zeros((2, 9), bool)
    >>> a[1:4] = b[1:6] = True
    >>> round(rms_surface_distance(a, b, spacing=[1]) ** 2, 9)
    2.0
    """
    return surface_distances(prediction, reference, spacing, surface=surface).root_mean_square()


def surface_dice(
    prediction: Mask, reference: Mask, spacing: Sequence[float], tolerance: float, *, surface: Kind = "voxels"
) -> float:
    """Return the share of both surfaces that lies within a tolerance of the other (NSD): 0 to 1, more is better.

    nan if both masks are empty, 0 if exactly one is. Nikolov et al., JMIR 23(7):e26151, 2021.

    Parameters
    ----------
    prediction, reference, spacing, surface
        As of `surface_distances`.
    tolerance : float
        In mm, such as the distance between two experts; a distance equal to it up to a millionth is within.

    Examples
    --------
    >>> a, b = np.zeros((2, 9), bool)
    >>> a[1:4] = b[1:6] = True
    >>> surface_dice(a, b, spacing=[1], tolerance=1)
    0.5
    """
    return surface_distances(prediction, reference, spacing, surface=surface).dice(tolerance)


def _flattened(
    maps: Sequence[npt.NDArray[Any]], spacing: Sequence[float]
) -> tuple[list[npt.NDArray[Any]], tuple[float, ...]]:
    """Return label maps without axes of one voxel, in the order in which the first lies in memory."""
    shape = maps[0].shape
    kept = [axis for axis, size in enumerate(shape) if size > 1] or [0]
    maps = [labels.reshape([shape[axis] for axis in kept]) for labels in maps]
    if maps[0].flags.f_contiguous:
        return [labels.T for labels in maps], tuple(spacing[axis] for axis in reversed(kept))
    return maps, tuple(spacing[axis] for axis in kept)


def _directed(own: Surface | None, other: Surface | None, spacing: Sequence[float]) -> Directed:
    if own is None:
        return Directed(np.zeros(0), None)
    if other is None:
        return Directed(np.full(len(own.points), np.inf), own.sizes)
    distances = nearest_distances(own.points, other.points, spacing)
    if own.sizes is None:
        return Directed(np.sort(distances), None)
    order = np.argsort(distances, kind="stable")
    return Directed(distances[order], own.sizes[order])


def _interpolated(ordered: Floats, share: float) -> float:
    """Return the quantile of ordered values, interpolated as numpy does."""
    place = share * (len(ordered) - 1)
    lower = min(int(place), len(ordered) - 1)
    upper = min(lower + 1, len(ordered) - 1)
    if ordered[lower] == ordered[upper]:  # both may be infinite
        return float(ordered[lower])
    return float(ordered[lower] + (ordered[upper] - ordered[lower]) * (place - lower))
