"""Scores of membranes between cells: whether the right cells are kept apart (ISBI 2012 challenge).

Arganda-Carreras et al., Frontiers in Neuroanatomy 9:142, 2015. Both scores are restricted to the pixels of the
reference's cells, and compare the cells that a segmentation makes of them with those of the reference.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medseg.metrics.masks import Mask, check_shapes

Cells = npt.NDArray[np.integer]  # 0: membrane; each cell a number of its own


def components(cells: Mask) -> npt.NDArray[np.int32]:
    """Return a number for each piece of a mask whose pixels touch by their sides, 0 outside."""
    found: npt.NDArray[np.int32] = ndimage.label(cells)[0]
    return found


def thinned(membrane: npt.NDArray[np.floating], threshold: float) -> npt.NDArray[np.int32]:
    """Return the cells of a probability of membrane, grown over the membranes between them.

    Pixels below the threshold make cells; a watershed on the probability then gives each pixel of a membrane to one of
    them, so that no score depends on how thick a membrane is drawn (the challenge's border thinning). Where nothing is
    below the threshold, all pixels are 0.
    """
    from skimage.segmentation import watershed

    cells: npt.NDArray[np.int32] = watershed(membrane, components(membrane < threshold))
    return cells


def v_rand(prediction: Cells, reference: Cells) -> float:
    """Return the foreground-restricted Rand score: 0 to 1, more is better; nan if the reference has no cell.

    The harmonic mean of how far predicted cells lie within one true cell, and true cells within one predicted.

    Parameters
    ----------
    prediction, reference : array of int
        A number for each cell; membrane is 0 in the reference, where nothing is counted.

    Examples
    --------
    >>> v_rand(np.array([1, 1, 2, 2]), np.array([7, 7, 8, 8])), v_rand(np.array([1, 1, 1, 1]), np.array([7, 7, 8, 8]))
    (1.0, 0.6666666666666666)
    """
    joint = _joint(prediction, reference)
    if not joint.size:
        return np.nan
    split, merge = (joint.sum(axis=axis) for axis in (0, 1))
    return float((joint**2).sum() / (0.5 * (split**2).sum() + 0.5 * (merge**2).sum()))


def v_info(prediction: Cells, reference: Cells) -> float:
    """Return the foreground-restricted information score: 0 to 1, more is better; nan if the reference has no cell.

    Mutual information over the mean of both entropies; 1 if both have but one cell.

    Examples
    --------
    >>> v_info(np.array([1, 1, 2, 2]), np.array([7, 7, 8, 8])), v_info(np.array([1, 1, 1, 1]), np.array([7, 7, 8, 8]))
    (1.0, 0.0)
    """
    joint = _joint(prediction, reference)
    if not joint.size:
        return np.nan
    of_reference, of_prediction, of_both = (_entropy(p) for p in (joint.sum(axis=0), joint.sum(axis=1), joint.ravel()))
    mean = (of_reference + of_prediction) / 2
    return 1.0 if mean == 0 else (of_reference + of_prediction - of_both) / mean


def _joint(prediction: Cells, reference: Cells) -> npt.NDArray[np.float64]:
    """Return the share of the reference's cell pixels in each pair of a predicted and a true cell."""
    check_shapes(prediction, reference)
    inside = reference > 0
    if not inside.any():
        return np.zeros((0, 0))
    rows, columns = (np.unique(cells[inside], return_inverse=True)[1] for cells in (prediction, reference))
    counts = np.zeros((rows.max() + 1, columns.max() + 1))
    np.add.at(counts, (rows, columns), 1)
    shares: npt.NDArray[np.float64] = counts / counts.sum()
    return shares


def _entropy(shares: npt.NDArray[np.float64]) -> float:
    shares = shares[shares > 0]
    return float(-(shares * np.log2(shares)).sum()) + 0.0
