"""Losses: Dice with cross-entropy, and the border-weighted cross-entropy of the U-Net paper with its weight map."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from medseg.plan import Plan
from medseg.training.patches import IGNORE

_SMOOTH = 1e-5  # voxels; keeps a label that is in neither from dividing by 0
_FAR = 6  # sigma; a second cell further away than this adds less than 2e-8 of the border's weight


def border_weights(
    cells: npt.NDArray[np.integer], *, border: float = 10.0, sigma: float = 5.0
) -> npt.NDArray[np.float32]:
    """Return how much each voxel counts in the loss, so that touching cells are learned apart.

    w(x) = w_c(x) + border * exp(-(d1(x) + d2(x))**2 / (2 * sigma**2)), where d1 and d2 are the distances in voxels to
    the nearest and the second nearest cell, and w_c balances background and cells: each has the same total, and the
    mean is 1 (equation 2 of Ronneberger et al. 2015, whose border and sigma are the defaults). The second term is
    left out inside cells, as in the paper's figure 3.

    Parameters
    ----------
    cells : (*S) array of int
        A number for each cell, 0 between them.
    border : float
        Weight of the border between two cells that touch, in units of the mean.
    sigma : float
        Width of the border in voxels.

    Examples
    --------
    >>> print(border_weights(np.array([[1, 1, 0, 2, 2]])).round(2))
    [[ 0.62  0.62 11.73  0.62  0.62]]
    """
    between = cells == 0
    balance = np.ones(cells.shape, np.float32)
    if between.any() and not between.all():
        for part in (between, ~between):
            balance[part] = cells.size / (2 * np.count_nonzero(part))
    near = np.full((2, *cells.shape), _FAR * sigma, np.float32)  # distances to the nearest two cells
    reach = int(np.ceil(_FAR * sigma))
    for number, box in enumerate(ndimage.find_objects(cells), start=1):
        if box is None:
            continue
        around = tuple(slice(max(0, side.start - reach), side.stop + reach) for side in box)
        distance = ndimage.distance_transform_edt(cells[around] != number).astype(np.float32)
        first, second = near[0][around], near[1][around]
        np.minimum(second, np.maximum(first, distance), out=second)
        np.minimum(first, distance, out=first)
    weights: npt.NDArray[np.float32] = balance
    weights[between] += border * np.exp(-((near.sum(axis=0)[between]) ** 2) / (2 * sigma**2))
    return weights


def weighted_cross_entropy(logits: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Return the cross-entropy of each voxel times its weight, averaged over the voxels.

    Parameters
    ----------
    logits : (B, L, *S) Tensor
    target : (B, 1, *S) Tensor
        Channel numbers.
    weights : (B, 1, *S) Tensor
        Of `border_weights`.
    """
    drawn = target[:, 0] != IGNORE
    known = torch.where(drawn, target[:, 0], 0).long()
    return (functional.cross_entropy(logits, known, reduction="none") * weights[:, 0] * drawn).mean()


def dice_cross_entropy(logits: Tensor, target: Tensor, regions: Tensor | None = None) -> Tensor:
    """Return cross-entropy plus one minus the mean soft Dice of the labels, over the voxels that somebody has drawn.

    Sums of the Dice run over the whole batch (Milletari et al. 2016; Isensee et al. 2021). Regions that overlap are
    compared as regions: their probability is the sum of that of their atoms.

    Parameters
    ----------
    logits : (B, A, *S) Tensor
        Background, then each atom.
    target : (B, 1, *S) Tensor
        Channel numbers; `IGNORE` where nothing is to be learned.
    regions : (N, A) Tensor, optional
        1 where an atom (background first) belongs to a label; each atom but background a label when left out.
    """
    drawn = target != IGNORE
    known = torch.where(drawn, target, 0).long()
    entropy = functional.cross_entropy(logits, known[:, 0], reduction="none")[:, None] * drawn
    truth = torch.zeros_like(logits).scatter_(1, known, 1.0) * drawn
    found = logits.softmax(dim=1) * drawn
    if regions is None:
        truth, found = truth[:, 1:], found[:, 1:]
    else:
        truth, found = (torch.einsum("na,ba...->bn...", regions, part) for part in (truth, found))
    over = [0, *range(2, logits.ndim)]
    both, either = (truth * found).sum(over), truth.sum(over) + found.sum(over)
    dice = (2 * both + _SMOOTH) / (either + _SMOOTH)
    return 1 - dice.mean() + entropy.sum() / drawn.sum().clamp(min=1)


def region_table(plan: Plan) -> Tensor | None:
    """Return which atoms (columns, background first) make up each label (rows); None where each has its own."""
    if all(len(label.atoms) == 1 for label in plan.labels) and len(plan.atoms) == len(plan.labels):
        return None
    rows = [[0.0, *(float(atom in label.atoms) for atom in plan.atoms)] for label in plan.labels]
    return torch.tensor(rows)
