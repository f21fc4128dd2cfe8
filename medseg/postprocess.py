"""Cleaning a label map after prediction, and counting its pieces."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import cc3d
import numpy as np
import numpy.typing as npt

from medseg.geometry import AxisOrder
from medseg.volume import LabelMap


def clean(labels: LabelMap, largest_component: Iterable[str]) -> tuple[LabelMap, dict[str, float]]:
    """Keep only the largest connected piece (26 neighbours) of each named label.

    Of two pieces of one size that stays which begins further left, then back, then below, however the map is
    stored. Labels that are not named are untouched.

    Returns
    -------
    LabelMap, dict
        The cleaned map, and for each named label that is present the fraction of its voxels that was removed.
    """
    removed: dict[str, float] = {}
    for name in largest_component:
        order, box, pieces = _pieces(labels, name)
        sizes = np.bincount(pieces.ravel())[1:]
        if sizes.size:
            removed[name] = 1 - float(sizes.max() / sizes.sum())
        if len(sizes) > 1:
            array = labels.array.copy()
            order.apply(array)[box][(pieces > 0) & (pieces != 1 + sizes.argmax())] = 0
            labels = replace(labels, array=array)
    return labels, removed


def count_pieces(labels: LabelMap, name: str) -> int:
    """Return how many connected pieces (26 neighbours) a label has."""
    return int(_pieces(labels, name)[2].max(initial=0))


def _pieces(labels: LabelMap, name: str) -> tuple[AxisOrder, tuple[slice, ...], npt.NDArray[np.unsignedinteger[Any]]]:
    """Return the order to RAS, the box around a label in that order, and its pieces in the box, numbered from 1."""
    order = labels.geometry.order_to("RAS")
    mask = order.apply(labels.mask(name))
    box = tuple(_span(np.asarray(mask.any(axis=others))) for others in ((1, 2), (0, 2), (0, 1)))
    part = np.ascontiguousarray(mask[box])
    pieces = cc3d.connected_components(part, connectivity=26) if part.size else np.zeros(part.shape, np.uint32)
    return order, box, pieces


def _span(hit: npt.NDArray[np.bool_]) -> slice:
    found = np.flatnonzero(hit)
    return slice(int(found[0]), int(found[-1]) + 1) if found.size else slice(0, 0)
