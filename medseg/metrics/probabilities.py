"""How well a probability tells a label from the rest, over all thresholds."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import stats

from medseg.metrics.overlap import Mask, check_shapes

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
    check_shapes(probability, reference)
    positive = int(np.count_nonzero(reference))
    negative = reference.size - positive
    if not (positive and negative):
        return np.nan
    ranks = stats.rankdata(probability, axis=None)[reference.ravel()]
    return float((ranks.sum() - positive * (positive + 1) / 2) / (positive * negative))


def sensitivity_at_specificity(probability: Floats, reference: Mask, specificity: float) -> float:
    """Return the largest sensitivity of a threshold whose specificity is at least `specificity`; 0 to 1.

    nan if the reference is empty or full.

    Examples
    --------
    >>> sensitivity_at_specificity(np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True]), 1.0)
    0.5
    """
    check_shapes(probability, reference)
    inside, outside = probability[reference], np.sort(probability[~reference])
    if not (inside.size and outside.size):
        return np.nan
    allowed = int(np.floor((1 - specificity) * outside.size + 1e-9))  # voxels outside that may be called inside
    if allowed >= outside.size:
        return 1.0
    return float((inside > outside[outside.size - 1 - allowed]).mean())
