"""Cleaning a label map after prediction, and counting its pieces."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import cc3d
import numpy as np

from medseg.volume import LabelMap


def clean(labels: LabelMap, largest_component: Iterable[str]) -> tuple[LabelMap, dict[str, float]]:
    """Keep only the largest connected piece (26 neighbours) of each named label.

    Of two pieces of one size the first in the order of the array stays. Labels that are not named are untouched.

    Returns
    -------
    LabelMap, dict
        The cleaned map, and for each named label that is present the fraction of its voxels that was removed.
    """
    array = labels.array
    removed: dict[str, float] = {}
    for name in largest_component:
        mask = labels.mask(name)
        if not mask.any():
            continue
        pieces = cc3d.connected_components(mask, connectivity=26)
        sizes = np.bincount(pieces.ravel(order="K"))[1:]
        removed[name] = 1 - float(sizes.max() / sizes.sum())
        if len(sizes) > 1:
            array = np.where(mask & (pieces != 1 + sizes.argmax()), 0, array).astype(array.dtype)
            labels = replace(labels, array=array)
    return labels, removed


def count_pieces(labels: LabelMap, name: str, *, least: int = 1) -> int:
    """Return how many connected pieces (26 neighbours) of at least `least` voxels a label has."""
    mask = labels.mask(name)
    if not mask.any():
        return 0
    pieces = cc3d.connected_components(mask, connectivity=26)
    return int((np.bincount(pieces.ravel(order="K"))[1:] >= least).sum())
