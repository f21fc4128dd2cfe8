"""Walking and copying arrays that are stored in any order."""

from itertools import permutations

import numpy as np
import pytest

from medseg.strides import box_where, copy_into, in_c_order, slabs

SHAPES = [(5, 6, 7), (1, 300, 40), (300, 1, 40), (300, 40, 1), (150, 33, 270), (1, 1, 9), (1, 1, 1), (0, 3, 4)]


def stored(shape):
    """Yield one array in every order of the memory, forwards and backwards."""
    array = np.random.default_rng(0).integers(-99, 99, shape).astype(np.int16)
    for axes in permutations(range(len(shape))):
        turned = np.ascontiguousarray(array.transpose(axes)).transpose(np.argsort(axes))
        yield turned
        yield turned[::-1, ..., ::-1]


@pytest.mark.parametrize("shape", [*SHAPES, (2, 20, 30, 300), (7, 5)])
def test_a_copy_in_c_order_is_the_array(shape):
    for array in stored(shape):
        copy = in_c_order(array)
        assert copy.flags.c_contiguous
        assert copy.dtype == array.dtype
        assert np.array_equal(copy, array)
        assert in_c_order(array, np.float32).dtype == np.float32
        out = np.zeros((*shape[:-1], shape[-1] + 3), np.float32)
        copy_into(out[..., 1:-2], array)
        assert np.array_equal(out[..., 1:-2], array)
        assert not out[..., 0].any()


@pytest.mark.parametrize("shape", SHAPES)
def test_slabs_cover_an_array_once(shape):
    for array in stored(shape):
        seen = np.zeros(shape, int)
        for part in slabs(array, 500):
            seen[part] += 1
            assert seen[part].size <= max(500, sorted(shape)[1] * sorted(shape)[2])
        assert (seen == 1).all()


def test_slabs_lie_along_the_axis_that_is_stored_slowest():
    parts = list(slabs(np.zeros((4, 5, 6), order="F"), 40))
    assert parts == [(slice(None), slice(None), slice(start, start + 2)) for start in (0, 2, 4)]


def test_the_box_holds_all_that_passes():
    for array in stored((5, 6, 7)):
        array[...] = 0
        assert box_where(array, lambda values: values > 1) is None
        array[1, 2, 3], array[3, 2, 6], array[0, 0, 0] = 2, 5, 1
        assert box_where(array, lambda values: values > 1) == (slice(1, 4), slice(2, 3), slice(3, 7))
