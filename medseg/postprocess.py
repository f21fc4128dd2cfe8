"""Cleaning a label map after prediction, and counting its pieces.

Pieces are found in one orientation, so that the answer does not depend on how the map is stored, and in one pass for
all labels that do not overlap. What is removed becomes background.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg.boxes import Box, box_around
from medseg.pieces import connected_pieces
from medseg.plan import Label, Plan
from medseg.volume import LabelMap, disjoint

Sizes = npt.NDArray[np.int64]


def clean(labels: LabelMap, plan: Plan) -> tuple[LabelMap, dict[str, float]]:
    """Do what a plan asks for: largest pieces, then specks, then holes.

    Returns
    -------
    LabelMap, dict
        The cleaned map, and what `keep_largest` says of the plan's labels.
    """
    labels, removed = keep_largest(labels, plan.largest_component)
    labels = remove_specks(labels, plan.minimum_ml)
    return fill_holes(labels, plan.fill_holes), removed


def keep_largest(labels: LabelMap, names: Iterable[str]) -> tuple[LabelMap, dict[str, float]]:
    """Keep only the largest connected piece (26 neighbours) of each named label.

    Of two pieces of one size that stays which begins further left, then back, then below. Labels that are not named
    are untouched.

    Returns
    -------
    LabelMap, dict
        The cleaned map, and for each named label that is present the fraction of its voxels that was removed.
    """
    removed: dict[str, float] = {}

    def others(group: tuple[Label, ...], owners: Sizes, sizes: Sizes) -> npt.NDArray[np.bool_]:
        dropped = np.ones(len(sizes), bool)
        for place, label in enumerate(group, start=1):
            own = np.flatnonzero(owners == place)
            if len(own):
                largest = own[sizes[own].argmax()]
                dropped[largest] = False
                removed[label.name] = 1 - float(sizes[largest] / sizes[own].sum())
        return dropped

    return _without(labels, names, others), removed


def remove_specks(labels: LabelMap, minimum_ml: Mapping[str, float]) -> LabelMap:
    """Remove the connected pieces (26 neighbours) of each named label that are smaller than its minimum in mL.

    Of a picture without a physical size the minimum is a number of pixels.
    """
    unit = labels.geometry.voxel_volume / 1000 if labels.geometry.physical else 1.0

    def small(group: tuple[Label, ...], owners: Sizes, sizes: Sizes) -> npt.NDArray[np.bool_]:
        minimum = np.array([0.0, *(minimum_ml[label.name] for label in group)])
        dropped: npt.NDArray[np.bool_] = sizes * unit < minimum[owners] * (1 - 1e-9)
        return dropped

    return _without(labels, minimum_ml, small)


def fill_holes(labels: LabelMap, names: Iterable[str]) -> LabelMap:
    """Give each named label the background that it encloses: what has no way out over faces of voxels (6 neighbours).

    Voxels of other labels stay, and are walls only to their own label. In a map of one slice a hole is enclosed in
    the slice.
    """
    names = list(names)
    if not names:
        return labels
    array = labels.array.copy()
    flat = array.shape.index(1) if 1 in array.shape else None
    for name in names:
        mask = labels.mask(name)
        box = box_around(mask)
        if box is not None:
            part = np.pad(mask[box], [(0, 0) if axis == flat else (1, 1) for axis in range(3)])
            spaces = connected_pieces((~part).squeeze(flat) if flat is not None else ~part, faces_only=True)
            spaces = spaces.reshape(part.shape)
            holes = (spaces > 0) & (spaces != spaces.flat[0])  # the first corner is outside
            inner = holes[tuple(slice(None) if axis == flat else slice(1, -1) for axis in range(3))]
            array[box][inner & (array[box] == 0)] = labels.label(name).atoms[0]
    return replace(labels, array=array)


def count_pieces(labels: LabelMap) -> dict[str, int]:
    """Return how many connected pieces (26 neighbours) each label has."""
    counts: dict[str, int] = {}
    for group in disjoint(labels.labels, _atoms):
        _, owners, _, _ = _pieces(labels, group)
        found = np.bincount(owners, minlength=len(group) + 1)
        counts |= {label.name: int(found[place]) for place, label in enumerate(group, start=1)}
    return {label.name: counts[label.name] for label in labels.labels}


def _without(
    labels: LabelMap,
    names: Iterable[str],
    unwanted: Callable[[tuple[Label, ...], Sizes, Sizes], npt.NDArray[np.bool_]],
) -> LabelMap:
    """Return the map without the pieces that `unwanted` chooses by their labels (places in the group) and sizes."""
    order = labels.geometry.order_to("RAS")
    for group in disjoint([labels.label(name) for name in names], _atoms):
        box, owners, sizes, pieces = _pieces(labels, group)
        dropped = np.append(False, unwanted(group, owners, sizes))  # the background is no piece
        if dropped.any():
            array = labels.array.copy()
            order.apply(array)[box][dropped[pieces]] = 0
            labels = replace(labels, array=array)
    return labels


def _pieces(labels: LabelMap, group: tuple[Label, ...]) -> tuple[Box, Sizes, Sizes, npt.NDArray[Any]]:
    """Return the pieces of labels that do not overlap, in RAS order.

    The box around them; for each piece its label's place in the group, from 1, and its voxels; and the number of each
    voxel's piece, from 1.
    """
    places = labels.geometry.order_to("RAS").apply(labels.places([label.atoms for label in group]))
    box = box_around(places)
    if box is None:
        return (slice(0),) * 3, np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 0, 0), np.intp)
    part = np.ascontiguousarray(places[box])
    pieces = connected_pieces(part)
    inside = np.flatnonzero(part)
    numbers = pieces.ravel()[inside]
    sizes = np.bincount(numbers)
    owners = np.zeros(len(sizes), np.int64)
    owners[numbers] = part.ravel()[inside]
    return box, owners[1:], sizes[1:], pieces


def _atoms(label: Label) -> tuple[int, ...]:
    return label.atoms
