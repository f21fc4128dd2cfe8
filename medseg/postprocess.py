"""Cleaning a label map after prediction, and counting its pieces."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import cc3d
import numpy as np
import numpy.typing as npt

from medseg.volume import LabelMap


def clean(labels: LabelMap, largest_component: Iterable[str]) -> tuple[LabelMap, dict[str, float]]:
    """Keep only the largest connected piece (26 neighbours) of each named label.

    Of two pieces of one size the first in the order of the array stays. Labels that are not named are untouched.

    Returns
    -------
    LabelMap, dict
        The cleaned map, and for each named label that is present the fraction of its voxels that was removed.
    """
    removed: dict[str, float] = {}
    array = labels.array
    for name in largest_component:
        box, pieces, sizes = _pieces(labels, name)
        if not sizes.size:
            continue
        removed[name] = 1 - float(sizes.max() / sizes.sum())
        if len(sizes) > 1:
            array = array.copy()
            array[box][(pieces > 0) & (pieces != 1 + sizes.argmax())] = 0
            labels = replace(labels, array=array)
    return labels, removed


def count_pieces(labels: LabelMap, name: str) -> int:
    """Return how many connected pieces (26 neighbours) a label has."""
    return len(_pieces(labels, name)[2])


def _pieces(
    labels: LabelMap, name: str
) -> tuple[tuple[slice, ...], npt.NDArray[np.unsignedinteger[Any]], npt.NDArray[np.int64]]:
    """Return the box around a label, its pieces in it numbered from 1, and their sizes in voxels."""
    mask = labels.mask(name)
    box = tuple(_span(np.asarray(mask.any(axis=others))) for others in ((1, 2), (0, 2), (0, 1)))
    pieces = cc3d.connected_components(mask[box], connectivity=26) if mask[box].size else np.zeros((0, 0, 0), np.uint32)
    return box, pieces, np.bincount(pieces.ravel(order="K"))[1:]


def _span(hit: npt.NDArray[np.bool_]) -> slice:
    found = np.flatnonzero(hit)
    return slice(int(found[0]), int(found[-1]) + 1) if found.size else slice(0, 0)
