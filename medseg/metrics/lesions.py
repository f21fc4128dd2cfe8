"""Scores that count lesions: whether each connected piece was found, and how well.

A lesion is a connected piece of a mask, voxels touching by faces, edges or corners (26 neighbours; 8 in a plane).
Pieces of the prediction and of the reference are matched one to one, best IoU first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from medseg.metrics.masks import Mask, as_masks
from medseg.pieces import connected_pieces

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Lesions:
    """The lesions of both masks, and what each pair that touches has in common.

    Parameters
    ----------
    predicted, true : (n,), (m,) array of int64
        Voxels of each lesion of the prediction and of the reference.
    pairs : (p, 2) array of int
        Indices of a predicted and a true lesion that share voxels.
    common : (p,) array of int64
        The voxels that they share.

    Examples
    --------
    >>> found = Lesions.of(np.array([[1, 1, 0, 1, 0, 0]]) > 0, np.array([[1, 1, 0, 0, 0, 1]]) > 0)
    >>> found.predicted.tolist(), found.true.tolist(), found.matches(0.5).tolist()
    ([2, 1], [2, 1], [[0, 0]])
    """

    predicted: Counts
    true: Counts
    pairs: npt.NDArray[np.int64]
    common: Counts

    @classmethod
    def of(cls, prediction: Mask, reference: Mask) -> Lesions:
        """Find the lesions of two masks with 2 or 3 axes."""
        prediction, reference = as_masks(prediction, reference)
        pieces = [connected_pieces(mask) for mask in (prediction, reference)]
        sizes = [np.bincount(piece.ravel())[1:] for piece in pieces]
        shared = prediction & reference
        keys, common = np.unique(
            pieces[0][shared].astype(np.int64) * (len(sizes[1]) + 1) + pieces[1][shared], return_counts=True
        )
        pairs = np.stack(np.divmod(keys, len(sizes[1]) + 1), axis=1) - 1
        return cls(sizes[0], sizes[1], pairs, common)

    @cached_property
    def ious(self) -> npt.NDArray[np.float64]:
        """IoU of each pair: (p,)."""
        predicted, true = self.predicted[self.pairs[:, 0]], self.true[self.pairs[:, 1]]
        overlap: npt.NDArray[np.float64] = self.common / (predicted + true - self.common)
        return overlap

    def matches(self, minimum_iou: float) -> npt.NDArray[np.int64]:
        """Return pairs with an IoU above `minimum_iou`, each lesion in one at most, best first: (t, 2)."""
        order = np.argsort(-self.ious, kind="stable")
        chosen, seen = [], (set[int](), set[int]())
        for predicted, true in self.pairs[order[self.ious[order] > minimum_iou]].tolist():
            if predicted not in seen[0] and true not in seen[1]:
                seen[0].add(predicted)
                seen[1].add(true)
                chosen.append((predicted, true))
        return np.array(chosen, np.int64).reshape(-1, 2)

    def f1(self, minimum_iou: float = 0.0) -> float:
        """See `detection_f1`."""
        count = len(self.predicted) + len(self.true)
        return 2 * len(self.matches(minimum_iou)) / count if count else math.nan

    @property
    def panoptic_quality(self) -> float:
        """See `panoptic_quality`."""
        count = len(self.predicted) + len(self.true)
        return float(2 * self.ious[self.ious > 0.5].sum()) / count if count else math.nan

    @property
    def dice(self) -> float:
        """See `lesion_dice`."""
        spurious = len(self.predicted) - len(np.unique(self.pairs[:, 0]))
        count = len(self.true) + spurious
        return float(self.dice_of_each.sum()) / count if count else math.nan

    @cached_property
    def dice_of_each(self) -> npt.NDArray[np.float64]:
        """Dice of each true lesion with all predicted ones that touch it; 0 where none does: (m,)."""
        common = np.bincount(self.pairs[:, 1], weights=self.common, minlength=len(self.true))
        touching = np.bincount(self.pairs[:, 1], self.predicted[self.pairs[:, 0]], minlength=len(self.true))
        scores: npt.NDArray[np.float64] = 2 * common / (self.true + touching)
        return scores


def detection_f1(prediction: Mask, reference: Mask, *, minimum_iou: float = 0.0) -> float:
    """Return the F1 score of found lesions: 0 to 1, more is better.

    Twice the matched pairs over the lesions of both masks; a lesion that no other is left for is a false one. nan if
    both masks are empty, 0 if one is. Commowick et al., Scientific Reports 8:13650, 2018.

    Parameters
    ----------
    prediction, reference : array of bool with 2 or 3 axes
        Masks of one label on the same grid.
    minimum_iou : float
        A pair must have an IoU above it. 0: one common voxel is enough; 0.5: the recognition quality of
        `panoptic_quality`.

    Examples
    --------
    >>> detection_f1(np.array([[1, 1, 0, 1, 0, 0]]) > 0, np.array([[1, 1, 0, 0, 0, 1]]) > 0)
    0.5
    """
    return Lesions.of(prediction, reference).f1(minimum_iou)


def panoptic_quality(prediction: Mask, reference: Mask) -> float:
    """Return detection F1 times the mean IoU of what was detected, with an IoU above 0.5: 0 to 1, more is better.

    nan if both masks are empty, 0 if one is. Kirillov et al., CVPR 2019.

    Examples
    --------
    >>> panoptic_quality(np.array([[1, 1, 1, 0, 1]]) > 0, np.array([[1, 1, 0, 0, 1]]) > 0)  # (2/3 + 1) / 2
    0.8333333333333333
    """
    return Lesions.of(prediction, reference).panoptic_quality


def lesion_dice(prediction: Mask, reference: Mask) -> float:
    """Return the mean Dice over lesions: 0 to 1, more is better.

    Each lesion of the reference is compared with all of the prediction that touch it (0 if none does), and each lesion
    of the prediction that touches none adds a 0. Small lesions count as much as large ones. nan if both masks are
    empty, 0 if one is. Saluja et al., arXiv:2312.11017, 2023 (BraTS; there masks are dilated first).

    Examples
    --------
    >>> lesion_dice(np.array([[1, 1, 0, 1, 0, 0]]) > 0, np.array([[1, 1, 0, 0, 0, 1]]) > 0)  # (1 + 0 + 0) / 3
    0.3333333333333333
    """
    return Lesions.of(prediction, reference).dice
