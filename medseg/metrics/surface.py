"""Distances between the surfaces of two masks, in mm."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from medseg.metrics.overlap import Mask, check_shapes


def hausdorff_distance(
    prediction: Mask, reference: Mask, spacing: Sequence[float], *, percentile: float = 100.0
) -> float:
    """Return the largest distance from either surface to the other in mm; less is better.

    nan if both masks are empty, inf if exactly one is.

    Parameters
    ----------
    prediction, reference : array of bool
        Masks of one label on the same grid.
    spacing : sequence of float
        Voxel size in mm along each axis.
    percentile : float in (0, 100]
        95 gives HD95: the larger of the two directed percentiles, not one of the pooled distances.

    Raises
    ------
    ShapeMismatch
        If the masks differ in shape.

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
    check_shapes(prediction, reference)
    if not (prediction.any() and reference.any()):
        return np.inf if prediction.any() or reference.any() else np.nan
    box = ndimage.find_objects((prediction | reference).astype(np.uint8))[0]
    kept = [axis for axis, size in enumerate(prediction.shape) if size > 1]
    steps = [spacing[axis] for axis in kept]
    masks = [mask[box].reshape([mask[box].shape[axis] for axis in kept]) for mask in (prediction, reference)]
    if not kept:
        return 0.0  # both are the one voxel that there is
    surfaces = [mask & ~ndimage.binary_erosion(mask) for mask in masks]
    directed = [
        ndimage.distance_transform_edt(~other, sampling=steps)[own] for own, other in (surfaces, surfaces[::-1])
    ]
    return max(float(np.percentile(distances, percentile)) for distances in directed)
