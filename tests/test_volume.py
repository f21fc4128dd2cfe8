"""Volumes and label maps: shapes agree with their grids, labels may overlap."""

import tracemalloc
from itertools import pairwise

import numpy as np
import pytest

from medseg.errors import ShapeMismatch, UsageError
from medseg.geometry import Geometry
from medseg.plan import Label
from medseg.volume import LabelMap, Volume

GRID = Geometry(np.eye(4), (2, 3, 4))


@pytest.mark.parametrize(("kind", "shape"), [(Volume, (2, 3, 4)), (Volume, (1, 4, 3, 2)), (LabelMap, (1, 2, 3, 4))])
def test_an_array_of_another_shape_is_refused(kind, shape):
    with pytest.raises(ShapeMismatch, match="on a grid of shape"):
        kind(np.zeros(shape, np.uint8), GRID)


def test_labels_that_share_an_atom_overlap():
    array = np.zeros((2, 3, 4), np.uint8)
    array[0, 0, :3] = (1, 2, 3)
    tumour = Label(value=1, name="whole tumour", atoms=(1, 2))
    core = Label(value=2, name="core", atoms=(2,))
    labels = LabelMap(array, GRID, (tumour, core))
    assert labels.counts() == {"whole tumour": 2, "core": 1}
    assert labels.mask("whole tumour").sum() == 2
    assert (labels.mask("core") & labels.mask("whole tumour")).sum() == 1


def test_a_label_stands_for_its_own_value_unless_it_says_otherwise():
    assert Label(value=7, name="x").atoms == (7,)


def test_an_unknown_label_is_answered_with_the_known_ones():
    with pytest.raises(UsageError, match="choose one of: a"):
        LabelMap(np.zeros((2, 3, 4), np.uint8), GRID, (Label(value=1, name="a"),)).mask("b")


def test_neighbouring_labels_have_different_colours():
    colours = [Label(value=value, name=str(value)).rgb for value in range(1, 40)]
    assert len(set(colours)) == 39
    for one, two in pairwise(colours):
        assert sum(abs(a - b) for a, b in zip(one, two, strict=True)) > 100


def test_counting_does_not_widen_the_whole_array():
    array = np.zeros((200, 200, 200), np.uint8, order="F")
    array[50:60, 50:60, 50:60] = 1
    labels = LabelMap(array, Geometry(np.eye(4), array.shape), (Label(value=1, name="a"),))
    tracemalloc.start()
    assert labels.counts() == {"a": 1000}
    assert tracemalloc.get_traced_memory()[1] < array.nbytes
    tracemalloc.stop()


def test_labels_that_are_no_whole_numbers_are_refused():
    with pytest.raises(UsageError, match="float32"):
        LabelMap(np.zeros((2, 3, 4), np.float32), GRID)
