"""How well a probability tells a label from the rest, over all thresholds."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import stats

from medseg.errors import UsageError
from medseg.metrics.masks import Mask, as_mask, check_shapes

Floats = npt.NDArray[np.floating]


def auc(probability: Floats, reference: Mask) -> float:
    """Return the area under the ROC curve: 0 to 1, 0.5 is chance, more is better; nan without both kinds of voxel.

    It is the chance that a voxel of the label has a higher probability than one outside, ties counting half
    (Hanley and McNeil, Radiology 143(1), 1982).

    Parameters
    ----------
    probability : array of float
        Of the label; any increasing function of it gives the same area.
    reference : array of bool
        Of the same shape.

    Examples
    --------
    >>> auc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True]))
    0.75
    """
    reference = as_mask(reference)
    check_shapes(probability, reference)
    positive = int(np.count_nonzero(reference))
    negative = reference.size - positive
    if not (positive and negative):
        return np.nan
    ranks = stats.rankdata(probability, axis=None)[reference.ravel()]
    return float((ranks.sum() - positive * (positive + 1) / 2) / (positive * negative))


def sensitivity_at_specificity(probability: Floats, reference: Mask, specificity: float) -> float:
    """Return the largest sensitivity of a threshold whose specificity is at least `specificity`.

    0 to 1, more is better; nan if the reference is empty or full. A point of the ROC curve (Metz, Seminars in Nuclear
    Medicine 8(4), 1978).

    Examples
    --------
    >>> sensitivity_at_specificity(np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True]), 1.0)
    0.5
    """
    reference = as_mask(reference)
    check_shapes(probability, reference)
    inside, outside = probability[reference], np.sort(probability[~reference])
    if not (inside.size and outside.size):
        return np.nan
    allowed = int(np.floor((1 - specificity) * outside.size + 1e-9))  # voxels outside that may be called inside
    if allowed >= outside.size:
        return 1.0
    return float((inside > outside[outside.size - 1 - allowed]).mean())


def brier(probability: Floats, reference: Mask) -> float:
    """Return the mean squared difference between probability and truth: 0 to 1, less is better; nan without voxels.

    Brier, Monthly Weather Review 78(1), 1950 (half of his sum over both classes). It grows with the structure's share
    of the grid, so compare it on one grid only.

    Parameters
    ----------
    probability : array of float
        Of the label, 0 to 1.
    reference : array of bool
        Of the same shape.

    Raises
    ------
    UsageError
        If a probability lies outside 0 to 1.

    Examples
    --------
    >>> brier(np.array([0.0, 0.5, 1.0, 1.0]), np.array([False, True, True, True]))
    0.0625
    """
    reference = _checked(probability, reference)
    return float(np.mean((probability - reference) ** 2, dtype=np.float64)) if reference.size else np.nan


def calibration_error(probability: Floats, reference: Mask, *, bins: int = 15) -> float:
    """Return the expected calibration error (ECE): 0 to 1, less is better; nan without voxels.

    Voxels are sorted into bins of equal width by the label's probability; in each, the mean probability is held against
    the share that is of the label, and the differences are averaged by the voxels in the bin. Naeini et al., AAAI 2015;
    Guo et al., ICML 2017 (who bin the probability of the winning class).

    Examples
    --------
    >>> calibration_error(np.array([0.9, 0.9, 0.9, 0.9]), np.array([True, True, True, False])).__round__(3)
    0.15
    """
    reference = _checked(probability, reference)
    if not reference.size:
        return np.nan
    flat = probability.ravel().astype(np.float64)
    place = np.minimum((flat * bins).astype(np.intp), bins - 1)
    gaps = np.bincount(place, weights=flat - reference.ravel(), minlength=bins)
    return float(np.abs(gaps).sum() / reference.size)


def _checked(probability: Floats, reference: Mask) -> Mask:
    """Return the reference as a mask; refuse what is no probability."""
    reference = as_mask(reference)
    check_shapes(probability, reference)
    if probability.size and not (probability.min() >= 0 and probability.max() <= 1):
        raise UsageError(
            f"probabilities from {probability.min():g} to {probability.max():g}", hint="apply sigmoid or softmax first"
        )
    return reference
