"""Cleaning a label map: by hand, against scipy, and in every storage order."""

import sys
import tracemalloc

import numpy as np
import pytest
from conftest import ORDERS, PLAN
from scipy import ndimage

from medseg.errors import PlanError, UsageError
from medseg.geometry import Geometry
from medseg.pieces import Pieces, connected_pieces
from medseg.plan import Label, Plan
from medseg.postprocess import clean, count_pieces, fill_holes, keep_largest, remove_specks
from medseg.volume import LabelMap, disjoint

LABELS = (Label(value=1, name="front"), Label(value=2, name="back"))


def labelled(array, labels=LABELS, spacing=(1, 1, 1)):
    return LabelMap(array, Geometry(np.diag([*spacing, 1.0]), array.shape), labels)


@pytest.fixture(params=[1, 60, 1 << 24], ids=["planes", "thin slabs", "one slab"])
def slab(request, monkeypatch):
    """Voxels in which pieces are found at a time."""
    monkeypatch.setattr("medseg.pieces._SLAB", request.param)
    return request.param


def test_pieces_are_counted_over_corners():
    array = np.zeros((6, 6, 6), np.uint8)
    array[0, 0, 0] = array[1, 1, 1] = array[4, 4, 4] = 1
    found = labelled(array)
    assert count_pieces(found) == {"front": 2, "back": 0}


def test_cleaning_keeps_the_largest_piece_of_each_named_label_and_touches_no_other():
    array = np.zeros((9, 9, 9), np.uint8)
    array[0:2, 0:2, 0:2] = 1
    array[5, 5, 5] = 1
    array[8, 8, 8] = array[0, 8, 8] = 2
    cleaned, removed = keep_largest(labelled(array), ["front"])
    assert removed == {"front": pytest.approx(1 / 9)}
    assert (cleaned.array == 1).sum() == 8
    assert (cleaned.array == 2).sum() == 2
    assert (array == 1).sum() == 9  # the input stays


@pytest.mark.parametrize("order", ORDERS)
def test_of_two_pieces_of_one_size_the_same_stays_in_each_of_the_48_orders(slab, order):
    array = np.zeros((9, 8, 7), np.uint8)
    array[1, 6, 5] = array[7, 1, 2] = array[4, 3, 6] = 1
    grid = Geometry(np.eye(4), array.shape)
    wanted = keep_largest(LabelMap(array, grid, LABELS), ["front"])[0].array
    assert wanted[1, 6, 5] == 1
    assert wanted.sum() == 1
    stored = np.ascontiguousarray(order.apply(array))
    found = keep_largest(LabelMap(stored, grid.reordered(order), LABELS), ["front"])[0].array
    assert np.array_equal(found, order.apply(wanted))


def test_cleaning_a_map_without_the_label_changes_nothing():
    empty = labelled(np.zeros((5, 6, 7), np.uint8))
    assert keep_largest(empty, ["front"]) == (empty, {})


@pytest.mark.parametrize("seed", range(5))
def test_many_labels_in_one_pass_are_each_label_alone(slab, seed):
    noise = np.random.default_rng(seed).normal(size=(30, 28, 26))
    array = np.digitize(ndimage.gaussian_filter(noise, 1.2), [-0.1, 0, 0.06, 0.12]).astype(np.uint8)
    labels = tuple(Label(value=value, name=f"label {value}") for value in range(1, 5))
    found, removed = keep_largest(labelled(array, labels), [label.name for label in labels])
    assert sum(count_pieces(labelled(array, labels)).values()) > 20
    for label in labels:
        pieces, count = ndimage.label(array == label.value, np.ones((3, 3, 3)))
        sizes = np.bincount(pieces.ravel())[1:]
        assert count_pieces(labelled(array, labels))[label.name] == count
        assert np.array_equal(found.array == label.value, pieces == 1 + sizes.argmax())
        assert removed[label.name] == pytest.approx(1 - sizes.max() / sizes.sum())


@pytest.mark.parametrize("seed", range(3))
def test_pieces_are_those_of_scipy_down_to_one_row(seed):
    rng = np.random.default_rng(seed)
    for _ in range(300):
        mask = rng.random(rng.integers(1, 7, rng.integers(2, 4))) < rng.random()
        assert connected_pieces(mask).max() == ndimage.label(mask, np.ones([3] * mask.ndim))[1]
        assert connected_pieces(mask, faces_only=True).max() == ndimage.label(mask)[1]


@pytest.mark.parametrize("faces_only", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_pieces_found_slab_by_slab_are_those_of_the_whole(slab, seed, faces_only):
    rng = np.random.default_rng(seed)
    shape = rng.integers(1, 12, 3)
    stored = rng.choice(3, shape, p=[0.6, 0.25, 0.15]).astype(np.uint8)
    array = stored.transpose(rng.permutation(3))[::-1]
    table = np.array([0, 1, 2] if seed % 2 else [0, 2, 0], np.uint8)[: array.max() + 1]
    whole = connected_pieces(table[array], faces_only=faces_only)
    found = Pieces(array, table, faces_only=faces_only)
    assert len(found.sizes) == whole.max() + 1
    assert sorted(found.sizes[1:]) == sorted(np.bincount(whole.ravel())[1:])
    for number in range(1, len(found.sizes)):
        mask = np.zeros(array.shape, bool)
        for part, own in found.masks(np.arange(len(found.sizes)) == number):
            mask[part] |= own
        (piece,) = np.unique(whole[mask])
        assert np.array_equal(mask, whole == piece)
        assert found.sizes[number] == mask.sum()
        assert {found.labels[number]} == {*table[array[mask]]}
        at = np.argwhere(mask)
        assert found.reach[number].tolist() == ((at == 0) | (at == np.array(mask.shape) - 1)).any(axis=0).tolist()
    chosen = rng.random(len(found.sizes)) < 0.5
    chosen[0] = False
    if chosen.any():
        numbers = np.zeros(array.shape, int)
        for number in np.flatnonzero(chosen):
            for part, own in found.masks(np.arange(len(found.sizes)) == number):
                numbers[part][own] = number
        assert found.first(chosen) == numbers.ravel()[numbers.ravel() > 0][0]


def test_a_snake_through_every_slab_is_one_piece(slab):
    array = np.zeros((9, 9, 21), np.uint8)
    array[:, :, ::2] = 1
    array[0, 0, 1::4] = array[8, 8, 3::4] = 1
    assert Pieces(array, np.arange(2, dtype=np.uint8)).sizes.tolist() == [0, array.sum()]
    assert count_pieces(labelled(array)) == {"front": 1, "back": 0}


def test_pieces_of_nothing_are_none():
    assert Pieces(np.zeros((0, 0, 0), np.uint8), np.zeros(1, np.uint8)).sizes.tolist() == [0]
    assert count_pieces(labelled(np.zeros((3, 4, 5), np.uint8))) == {"front": 0, "back": 0}


def test_counting_pieces_takes_the_memory_of_a_slab(monkeypatch):
    monkeypatch.setattr("medseg.pieces._SLAB", 1 << 18)
    array = np.zeros((200, 200, 200), np.uint8, order="F")
    array[20:180, 20:180, 20:180] = 1
    tracemalloc.start()
    assert count_pieces(labelled(array))["front"] == 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < array.nbytes / 2


def test_regions_that_overlap_are_cleaned_one_after_the_other():
    whole, core = Label(value=1, name="whole", atoms=(1, 2)), Label(value=2, name="core", atoms=(2,))
    groups = disjoint([whole, core, Label(value=3, name="else")], lambda label: label.atoms)
    assert groups == [(whole, Label(value=3, name="else")), (core,)]
    array = np.zeros((12, 5, 5), np.uint8)
    array[1:8], array[2:4, 2, 2], array[6, 2, 2], array[10, 2, 2] = 1, 2, 2, 2
    found, removed = keep_largest(labelled(array, (whole, core)), ["whole", "core"])
    assert removed == {"whole": pytest.approx(1 / 176), "core": pytest.approx(1 / 3)}
    assert found.array[10, 2, 2] == found.array[6, 2, 2] == 0
    assert found.array[3, 2, 2] == 2


def test_specks_are_removed_by_their_volume():
    array = np.zeros((9, 9, 9), np.uint8)
    array[0:2, 0:2, 0:2], array[5:7, 5, 5], array[8, 8, 8] = 1, 1, 2
    found = remove_specks(labelled(array, spacing=(5, 5, 10)), {"front": 2.0})  # a voxel has 0.25 mL
    assert (found.array == 1).sum() == 8
    assert (found.array == 2).sum() == 1
    assert np.array_equal(remove_specks(labelled(array, spacing=(5, 5, 10)), {"front": 0.5}).array, array)


@pytest.mark.parametrize("shape", [(9, 8, 7), (9, 8, 1), (1, 8, 9), (6, 1, 1), (2, 8, 8)])
@pytest.mark.parametrize("seed", range(4))
def test_holes_are_those_of_scipy(slab, seed, shape):
    mask = np.random.default_rng(seed).random(shape) < 0.7
    found = fill_holes(labelled(mask.astype(np.uint8)), ["front"]).array
    flat = mask if 1 not in shape else mask.squeeze(shape.index(1))
    assert np.array_equal(found, ndimage.binary_fill_holes(flat).reshape(shape))


def test_a_hole_is_filled_around_another_label():
    array = np.ones((7, 7, 7), np.uint8)
    array[2:5, 2:5, 2:5], array[3, 3, 3] = 0, 2
    found = fill_holes(labelled(array), ["front", "back"]).array
    assert (found == 1).sum() == 343 - 1
    assert found[3, 3, 3] == 2


def test_a_plan_says_what_is_cleaned():
    array = np.ones((7, 7, 7), np.uint8)
    array[3, 3, 3], array[5:], array[6, 0, 0] = 0, 0, 1
    array[6, 6, 6] = 2
    plan = Plan.parse({**PLAN, "largest_component": ["front"], "minimum_ml": {"back": 0.002}, "fill_holes": ["front"]})
    found, removed = clean(labelled(array), plan)
    assert removed == {"front": pytest.approx(1 / 245)}
    assert (found.array[:5] == 1).all()
    assert not found.array[5:].any()
    assert clean(labelled(array), Plan.parse(PLAN))[0].array is not None
    with pytest.raises(PlanError, match="fill_holes names unknown labels: liver"):
        Plan.parse({**PLAN, "fill_holes": ["liver"]})


def test_an_unknown_label_is_named():
    with pytest.raises(UsageError, match="no label named 'liver'"):
        keep_largest(labelled(np.zeros((3, 3, 3), np.uint8)), ["liver"])


def test_without_cc3d_pieces_are_the_same(monkeypatch):
    rng = np.random.default_rng(0)
    for number in range(60):
        shape = rng.integers(1, 9, size=rng.integers(2, 4))
        labels = rng.integers(number % 3 == 0, rng.integers(2, 5), size=shape).astype(np.uint8)
        for faces_only in (False, True):
            wanted = connected_pieces(labels, faces_only=faces_only)
            with monkeypatch.context() as patch:
                patch.setitem(sys.modules, "cc3d", None)
                assert np.array_equal(connected_pieces(labels, faces_only=faces_only), wanted)
