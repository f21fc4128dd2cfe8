"""Scores that look at the form of a mask: its rim, and its centreline."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from medseg.boxes import box_around
from medseg.errors import UsageError
from medseg.metrics.masks import Mask, as_masks
from medseg.metrics.overlap import Overlap


def boundary_iou(prediction: Mask, reference: Mask, spacing: Sequence[float], width: float) -> float:
    """Return the IoU of the rims of two masks: 0 to 1, more is better.

    A rim is what lies inside a mask and within `width` of the nearest voxel outside it (the border of the grid is
    outside; an axis of one voxel takes no part). For a mask no thicker than twice the width it is the IoU. nan if both
    masks are empty, 0 if one is. Cheng et al., CVPR 2021 (who measure the width in pixels along the diagonal too, as
    2 % of the image's diagonal).

    Parameters
    ----------
    prediction, reference : array of bool
        Masks of one label on the same grid.
    spacing : sequence of float
        Voxel size in mm along each axis.
    width : float
        In mm.

    Examples
    --------
    >>> a, b = np.zeros((2, 12), bool)
    >>> a[1:9] = b[2:10] = True
    >>> boundary_iou(a, b, spacing=[1], width=2), round(iou_of_all := 7 / 9, 4)
    (0.3333333333333333, 0.7778)
    """
    prediction, reference = as_masks(prediction, reference)
    if not width > 0:
        raise UsageError(f"width {width} is not positive", hint="give mm, such as 2")
    box = box_around(prediction | reference)
    if box is None:
        return math.nan
    rims = [_rim(mask[box], mask.shape, spacing, width) for mask in (prediction, reference)]
    return Overlap.of(rims[0], rims[1]).iou


def centreline_dice(prediction: Mask, reference: Mask) -> float:
    """Return the harmonic mean of how far either centreline lies in the other mask (clDice): 0 to 1, more is better.

    For vessels, nerves and airways: a gap costs as much as it is long, however thin the branch. Centrelines are those
    of `skimage.morphology.skeletonize`. nan if both masks are empty, 0 if one is. Shit et al., CVPR 2021.

    Parameters
    ----------
    prediction, reference : array of bool with 2 or 3 axes
        Masks of one label on the same grid.

    Examples
    --------
    >>> a, b = np.zeros((2, 9, 30), bool)
    >>> a[3:6] = b[3:6, :20] = True
    >>> round(centreline_dice(a, b), 2)
    0.82
    """
    from skimage.morphology import skeletonize

    prediction, reference = as_masks(prediction, reference)
    box = box_around(prediction | reference)
    if box is None:
        return math.nan
    masks = [np.atleast_2d(mask[box].squeeze()) for mask in (prediction, reference)]
    if not (masks[0].any() and masks[1].any()):
        return 0.0
    thinned = [(mask, skeletonize(mask)) for mask in masks]
    lines = [line if line.any() else mask for mask, line in thinned]  # nothing is left of a cube of two voxels
    precision, sensitivity = (float(other[line].mean()) for line, other in zip(lines, masks[::-1], strict=True))
    return 2 * precision * sensitivity / (precision + sensitivity) if precision + sensitivity else 0.0


def _rim(mask: Mask, grid: tuple[int, ...], spacing: Sequence[float], width: float) -> Mask:
    """Return the rim of a mask within its box; `grid` is the shape of the whole."""
    kept = [axis for axis, size in enumerate(grid) if size > 1] or [0]
    flat = mask.reshape([mask.shape[axis] for axis in kept])
    depth = ndimage.distance_transform_edt(np.pad(flat, 1), sampling=[spacing[axis] for axis in kept])
    inner = depth[tuple(slice(1, -1) for _ in kept)]
    rim: Mask = (flat & (inner <= width * (1 + 1e-6))).reshape(mask.shape)
    return rim
