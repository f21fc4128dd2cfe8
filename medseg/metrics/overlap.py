"""How much two masks of one label have in common."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from medseg.errors import ShapeMismatch

Mask = npt.NDArray[np.bool_]


def dice(prediction: Mask, reference: Mask) -> float:
    """Return twice the common voxels over the sum of both: 0 to 1, more is better; nan if both masks are empty.

    Dice, Ecology 26(3), 1945.

    Parameters
    ----------
    prediction, reference : array of bool
        Masks of one label, of the same shape.

    Raises
    ------
    ShapeMismatch
        If the masks differ in shape.

    Examples
    --------
    >>> dice(np.array([True, True, False]), np.array([False, True, True]))
    0.5
    """
    check_shapes(prediction, reference)
    total = int(np.count_nonzero(prediction)) + int(np.count_nonzero(reference))
    return 2 * int(np.count_nonzero(prediction & reference)) / total if total else float("nan")


def iou(prediction: Mask, reference: Mask) -> float:
    """Return the common voxels over those of either mask: 0 to 1, more is better; nan if both masks are empty.

    Jaccard, New Phytologist 11(2), 1912. Equals dice / (2 - dice).

    Examples
    --------
    >>> round(iou(np.array([True, True, False]), np.array([False, True, True])), 4)
    0.3333
    """
    check_shapes(prediction, reference)
    union = int(np.count_nonzero(prediction | reference))
    return int(np.count_nonzero(prediction & reference)) / union if union else float("nan")


def pixel_error(prediction: Mask, reference: Mask) -> float:
    """Return the fraction of voxels in which the masks differ: 0 to 1, less is better; nan without voxels.

    Examples
    --------
    >>> pixel_error(np.array([True, True, False, False]), np.array([False, True, False, False]))
    0.25
    """
    check_shapes(prediction, reference)
    return int(np.count_nonzero(prediction != reference)) / prediction.size if prediction.size else float("nan")


def check_shapes(prediction: npt.NDArray[np.generic], reference: npt.NDArray[np.generic]) -> None:
    """Refuse arrays of different shapes."""
    if prediction.shape != reference.shape:
        raise ShapeMismatch(
            f"prediction of shape {prediction.shape} and reference of shape {reference.shape}",
            hint="bring one to the grid of the other",
        )
