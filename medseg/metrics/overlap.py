"""How much two masks of one label have in common, from four counts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from medseg.errors import UsageError
from medseg.metrics.masks import Mask, as_mask, as_masks, check_shapes

Integers = npt.NDArray[np.integer[Any]]
Counts = npt.NDArray[np.int64]

_CHUNK = 1 << 22  # voxels looked at in one go


@dataclass(frozen=True)
class Overlap:
    """Voxels of one label in both masks, in one of them, and in neither; every score of overlap follows from them.

    Examples
    --------
    >>> Overlap.of(np.array([True, True, False]), np.array([False, True, True]))
    Overlap(both=1, prediction_only=1, reference_only=1, neither=0)
    """

    both: int
    prediction_only: int
    reference_only: int
    neither: int

    @classmethod
    def of(cls, prediction: Mask, reference: Mask) -> Self:
        """Count two masks of one shape."""
        prediction, reference = as_masks(prediction, reference)
        both = int(np.count_nonzero(prediction & reference))
        predicted, true = int(np.count_nonzero(prediction)), int(np.count_nonzero(reference))
        return cls(both, predicted - both, true - both, prediction.size - predicted - true + both)

    @property
    def predicted(self) -> int:
        """Voxels of the prediction."""
        return self.both + self.prediction_only

    @property
    def true(self) -> int:
        """Voxels of the reference."""
        return self.both + self.reference_only

    @property
    def dice(self) -> float:
        """See `medseg.metrics.dice`."""
        return _ratio(2 * self.both, self.predicted + self.true)

    @property
    def iou(self) -> float:
        """See `medseg.metrics.iou`."""
        return _ratio(self.both, self.both + self.prediction_only + self.reference_only)

    @property
    def sensitivity(self) -> float:
        """See `medseg.metrics.sensitivity`."""
        return _ratio(self.both, self.true)

    @property
    def precision(self) -> float:
        """See `medseg.metrics.precision`."""
        return _ratio(self.both, self.predicted)

    @property
    def specificity(self) -> float:
        """See `medseg.metrics.specificity`."""
        return _ratio(self.neither, self.neither + self.prediction_only)

    @property
    def pixel_error(self) -> float:
        """See `medseg.metrics.pixel_error`."""
        wrong = self.prediction_only + self.reference_only
        return _ratio(wrong, wrong + self.both + self.neither)

    @property
    def relative_volume_error(self) -> float:
        """See `medseg.metrics.relative_volume_error`."""
        if not self.true:
            return math.inf if self.predicted else math.nan
        return (self.predicted - self.true) / self.true


def dice(prediction: Mask, reference: Mask) -> float:
    """Return twice the common voxels over the sum of both: 0 to 1, more is better.

    nan if both masks are empty, 0 if one is. Equals the F1 score of the voxels. Dice, Ecology 26(3), 1945.

    Parameters
    ----------
    prediction, reference : array of bool
        Masks of one label, of the same shape, with any number of axes. Of whole numbers what is not 0 is inside.

    Raises
    ------
    ShapeMismatch
        If the masks differ in shape.
    UsageError
        If one holds fractions.

    Examples
    --------
    >>> dice(np.array([True, True, False]), np.array([False, True, True]))
    0.5
    """
    return Overlap.of(prediction, reference).dice


def iou(prediction: Mask, reference: Mask) -> float:
    """Return the common voxels over those of either mask: 0 to 1, more is better.

    nan if both masks are empty, 0 if one is. Equals dice / (2 - dice). Jaccard, New Phytologist 11(2), 1912.

    Examples
    --------
    >>> round(iou(np.array([True, True, False]), np.array([False, True, True])), 4)
    0.3333
    """
    return Overlap.of(prediction, reference).iou


def sensitivity(prediction: Mask, reference: Mask) -> float:
    """Return the share of the reference that was found (recall): 0 to 1, more is better.

    nan if the reference is empty; 0 if only the prediction is. Yerushalmy, Public Health Reports 62(40), 1947.

    Examples
    --------
    >>> sensitivity(np.array([True, True, False]), np.array([False, True, False]))
    1.0
    """
    return Overlap.of(prediction, reference).sensitivity


def precision(prediction: Mask, reference: Mask) -> float:
    """Return the share of the prediction that is right (positive predictive value): 0 to 1, more is better.

    nan if the prediction is empty; 0 if only the reference is. Taha and Hanbury, BMC Medical Imaging 15:29, 2015.

    Examples
    --------
    >>> precision(np.array([True, True, False]), np.array([False, True, False]))
    0.5
    """
    return Overlap.of(prediction, reference).precision


def specificity(prediction: Mask, reference: Mask) -> float:
    """Return the share of what lies outside the reference that the prediction leaves out: 0 to 1, more is better.

    nan if the reference fills the grid; 1 if the prediction is empty. It grows with the empty space around a structure,
    so compare it on one grid only. Yerushalmy, Public Health Reports 62(40), 1947.

    Examples
    --------
    >>> specificity(np.array([True, True, False]), np.array([False, True, False]))
    0.5
    """
    return Overlap.of(prediction, reference).specificity


def pixel_error(prediction: Mask, reference: Mask) -> float:
    """Return the fraction of voxels in which the masks differ: 0 to 1, less is better; nan without voxels.

    0 if both masks are empty. Arganda-Carreras et al., Frontiers in Neuroanatomy 9:142, 2015.

    Examples
    --------
    >>> pixel_error(np.array([True, True, False, False]), np.array([False, True, False, False]))
    0.25
    """
    return Overlap.of(prediction, reference).pixel_error


def volume(mask: Mask, spacing: Sequence[float]) -> float:
    """Return the volume of a mask in mL (1000 mm³), 0 if it is empty.

    Parameters
    ----------
    mask : array of bool
        With three axes.
    spacing : three floats
        Voxel size in mm along each axis.

    Examples
    --------
    >>> volume(np.ones((10, 10, 5), bool), spacing=(1, 1, 3))
    1.5
    """
    return int(np.count_nonzero(as_mask(mask))) * math.prod(spacing) / 1000


def absolute_volume_error(prediction: Mask, reference: Mask, spacing: Sequence[float]) -> float:
    """Return the difference of both volumes in mL without its sign: 0 or more, less is better; 0 if both are empty.

    It does not say that the masks lie in one place. Heimann et al., IEEE TMI 28(8), 2009.

    Examples
    --------
    >>> full = np.ones((10, 10, 5), bool)
    >>> absolute_volume_error(full, full[::-1] & (np.arange(5) < 3), spacing=(1, 1, 3))
    0.6
    """
    counts = Overlap.of(prediction, reference)
    return abs(counts.predicted - counts.true) * math.prod(spacing) / 1000


def relative_volume_error(prediction: Mask, reference: Mask) -> float:
    """Return the excess of the prediction's volume as a share of the reference's: -1 or more, 0 is best.

    nan if both masks are empty, inf if only the reference is, -1 if only the prediction is. Heimann et al., IEEE TMI
    28(8), 2009.

    Examples
    --------
    >>> relative_volume_error(np.array([True, True, True]), np.array([False, True, True]))
    0.5
    """
    return Overlap.of(prediction, reference).relative_volume_error


def confusion_matrix(prediction: Integers, reference: Integers, count: int) -> npt.NDArray[np.int64]:
    """Return how many voxels of each label of the reference (rows) got each label of the prediction (columns).

    Parameters
    ----------
    prediction, reference : array of int
        Label maps of the same shape, with labels from 0 (background) to `count` - 1.
    count : int
        Number of labels with background.

    Returns
    -------
    (count, count) array of int64

    Raises
    ------
    ShapeMismatch
        If the maps differ in shape.
    UsageError
        If a label lies outside 0 to `count` - 1.

    Examples
    --------
    >>> confusion_matrix(np.array([0, 1, 2, 2]), np.array([0, 1, 1, 2]), 3).tolist()
    [[1, 0, 0], [0, 1, 1], [0, 0, 1]]
    """
    counts = np.zeros(count * count, np.int64)
    for predicted, true, lengths in _runs(prediction, reference, count):
        counts += _sums(true * count + predicted, lengths, count * count)
    return counts.reshape(count, count)


def overlaps(prediction: Integers, reference: Integers, count: int) -> list[Overlap]:
    """Return the overlap of each label, background first, from one pass over runs of equal voxels.

    Time and memory do not grow with the number of labels. Parameters and errors as of `confusion_matrix`.

    Examples
    --------
    >>> overlaps(np.array([0, 1, 2, 2]), np.array([0, 1, 1, 2]), 3)[1]
    Overlap(both=1, prediction_only=0, reference_only=1, neither=2)
    """
    both, predicted, true = (np.zeros(count, np.int64) for _ in range(3))
    for columns, rows, lengths in _runs(prediction, reference, count):
        same = columns == rows
        both += _sums(rows[same], lengths[same], count)
        predicted += _sums(columns, lengths, count)
        true += _sums(rows, lengths, count)
    neither = prediction.size - true - predicted + both
    table = np.stack([both, predicted - both, true - both, neither], axis=1)
    return [Overlap(*row) for row in table.tolist()]


def _runs(prediction: Integers, reference: Integers, count: int) -> Iterator[tuple[Counts, Counts, Counts]]:
    """Yield runs in which neither map changes: label of the prediction, of the reference, and length."""
    check_shapes(prediction, reference)
    if prediction.ndim > 1 and prediction.flags.f_contiguous:
        prediction, reference = prediction.T, reference.T  # read in the order of the memory
    predicted, true = np.ascontiguousarray(prediction).ravel(), np.ascontiguousarray(reference).ravel()
    for start in range(0, len(true), _CHUNK):
        a, b = predicted[start : start + _CHUNK], true[start : start + _CHUNK]
        starts = np.concatenate([[0], 1 + np.flatnonzero((a[1:] != a[:-1]) | (b[1:] != b[:-1]))])
        columns, rows = a[starts].astype(np.int64), b[starts].astype(np.int64)
        low, high = min(columns.min(), rows.min()), max(columns.max(), rows.max())
        if low < 0 or high >= count:
            raise UsageError(
                f"label {low if low < 0 else high} lies outside 0 to {count - 1}", hint="give the number of labels"
            )
        yield columns, rows, np.diff(starts, append=len(a))


def _sums(places: Counts, lengths: Counts, count: int) -> Counts:
    return np.bincount(places, weights=lengths, minlength=count).astype(np.int64)


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
