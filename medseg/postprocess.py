"""Cleaning a label map after prediction, and counting its pieces.

Pieces are found in one orientation, so that the answer does not depend on how the map is stored, and in one pass for
all labels that do not overlap. What is removed becomes background.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from medseg.boxes import Box, box_around
from medseg.pieces import Pieces
from medseg.plan import Label, Plan
from medseg.strides import box_where
from medseg.volume import Array, LabelMap, disjoint

Mask = npt.NDArray[np.bool_]


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

    def others(group: tuple[Label, ...], pieces: Pieces) -> Mask:
        dropped = np.ones(len(pieces.sizes), bool)
        for place, label in enumerate(group, start=1):
            own = pieces.labels == place
            if own.any():
                size = pieces.sizes[own].max()
                largest = own & (pieces.sizes == size)
                dropped[pieces.first(largest) if largest.sum() > 1 else largest.argmax()] = False
                removed[label.name] = 1 - float(size / pieces.sizes[own].sum())
        return dropped

    return _without(labels, names, others), removed


def remove_specks(labels: LabelMap, minimum_ml: Mapping[str, float]) -> LabelMap:
    """Remove the connected pieces (26 neighbours) of each named label that are smaller than its minimum in mL.

    Of a picture without a physical size the minimum is a number of pixels.
    """
    unit = labels.geometry.voxel_volume / 1000 if labels.geometry.physical else 1.0

    def small(group: tuple[Label, ...], pieces: Pieces) -> Mask:
        minimum = np.array([0.0, *(minimum_ml[label.name] for label in group)])
        dropped: Mask = pieces.sizes * unit < minimum[pieces.labels] * (1 - 1e-9)
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
    array = labels.array.copy(order="K")
    for name in names:
        _fill(array, labels, labels.label(name))
    return replace(labels, array=array)


def count_pieces(labels: LabelMap) -> dict[str, int]:
    """Return how many connected pieces (26 neighbours) each label has."""
    counts: dict[str, int] = {}
    for group in disjoint(labels.labels, _atoms):
        found = np.bincount(_pieces(labels, group)[1].labels, minlength=len(group) + 1)
        counts |= {label.name: int(found[place]) for place, label in enumerate(group, start=1)}
    return {label.name: counts[label.name] for label in labels.labels}


def _fill(array: Array, labels: LabelMap, label: Label) -> None:
    """Write a label into the background of `array` that it encloses in the label map."""
    flat = array.shape.index(1) if 1 in array.shape else None
    outside: Array = labels.place_table([label.atoms]) == 0
    box = box_where(labels.array, lambda values: ~outside[values])
    if box is None:
        return
    spaces = Pieces(labels.array[box], outside.view(np.uint8), faces_only=True)
    open_to = spaces.reach[:, [axis for axis in range(3) if axis != flat]]
    enclosed = (spaces.labels > 0) & (open_to.sum(axis=1) == 0)
    for part, holes in spaces.masks(enclosed):
        inside = array[box][part]
        np.copyto(inside, label.atoms[0], where=holes & (inside == 0))


def _without(labels: LabelMap, names: Iterable[str], unwanted: Callable[[tuple[Label, ...], Pieces], Mask]) -> LabelMap:
    """Return the map without the pieces (N + 1,) that `unwanted` chooses; their labels are places in the group."""
    order = labels.geometry.order_to("RAS")
    for group in disjoint([labels.label(name) for name in names], _atoms):
        box, pieces = _pieces(labels, group)
        dropped = unwanted(group, pieces)
        dropped[0] = False  # the background is no piece
        if dropped.any():
            array = labels.array.copy(order="K")
            for part, mask in pieces.masks(dropped):
                np.copyto(order.apply(array)[box][part], 0, where=mask)
            labels = replace(labels, array=array)
    return labels


def _pieces(labels: LabelMap, group: tuple[Label, ...]) -> tuple[Box, Pieces]:
    """Return the pieces of labels that do not overlap, in RAS order, and the box in which they lie."""
    array = labels.geometry.order_to("RAS").apply(labels.array)
    box = box_around(array) or (slice(0),) * 3
    return box, Pieces(array[box], labels.place_table([label.atoms for label in group]))


def _atoms(label: Label) -> tuple[int, ...]:
    return label.atoms
