"""What every metric asks of its arrays: one shape, and inside or outside."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from medseg.errors import ShapeMismatch, UsageError

Mask = npt.NDArray[np.bool_]


def as_mask(array: npt.NDArray[Any]) -> Mask:
    """Return a mask: bool as it is, whole numbers as what is not 0.

    Raises
    ------
    UsageError
        If the array holds fractions, such as probabilities.
    """
    array = np.asarray(array)
    if array.dtype.kind not in "biu":
        raise UsageError(f"a mask of {array.dtype}", hint="give bool, such as probability > 0.5")
    return array.astype(bool, copy=False)


def as_masks(prediction: npt.NDArray[Any], reference: npt.NDArray[Any]) -> tuple[Mask, Mask]:
    """Return two masks of one shape.

    Raises
    ------
    ShapeMismatch
        If they differ in shape.
    UsageError
        If one holds fractions.
    """
    masks = as_mask(prediction), as_mask(reference)
    check_shapes(*masks)
    return masks


def check_shapes(prediction: npt.NDArray[Any], reference: npt.NDArray[Any]) -> None:
    """Refuse arrays of different shapes."""
    if prediction.shape != reference.shape:
        raise ShapeMismatch(
            f"prediction of shape {prediction.shape} and reference of shape {reference.shape}",
            hint="bring one to the grid of the other",
        )
