"""Arrays in whatever order they are stored: walked and copied in parts that stay in the processor's cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Part = tuple[slice, ...]

_SLAB = 1 << 18  # voxels walked at a time
_FASTEST, _LAST, _OTHER = 128, 256, 16  # voxels of a tile along the axes stored fastest before and after
_PADDING = 8  # voxels: at distances of a power of two, lines would push one another out of the cache


def slabs(array: Array, voxels: int = _SLAB) -> Iterator[Part]:
    """Yield parts that together cover an array once: about `voxels` each, along the axis that is stored slowest."""
    slowest = slowest_first(array)[0]
    step = max(1, voxels * array.shape[slowest] // max(1, array.size))
    for start in range(0, array.shape[slowest], step):
        yield tuple(slice(start, start + step) if axis == slowest else slice(None) for axis in range(array.ndim))


def box_where(array: Array, test: Callable[[Array], Array]) -> Part | None:
    """Return the smallest box that holds all voxels that pass a test; None if none does."""
    found = [np.zeros(count, bool) for count in array.shape]
    for part in slabs(array):
        passed = test(array[part])
        for axis, hits in enumerate(found):
            hits[part[axis]] |= passed.any(axis=tuple(other for other in range(array.ndim) if other != axis))
    if not found[0].any():
        return None
    return tuple(slice(int(hits.argmax()), len(hits) - int(hits[::-1].argmax())) for hits in found)


def in_c_order(array: Array, dtype: npt.DTypeLike | None = None) -> Array:
    """Return a copy of an array whose last axis is stored fastest."""
    out = np.empty(array.shape, array.dtype if dtype is None else dtype)
    copy_into(out, array)
    return out


def copy_into(out: Array, array: Array) -> None:
    """Do `out[...] = array`, where the last axis of `out` is stored fastest.

    Where another axis of `array` is, as in a NIfTI file, this is several times faster: tiles are first copied as they
    are stored, and then turned in the cache.
    """
    order = slowest_first(array)
    long = [axis for axis in order if array.shape[axis] > 1]
    if not long or long[-1] == max(long):
        out[...] = array
        return
    sizes = [{long[-1]: _FASTEST, max(long): _LAST}.get(axis, _OTHER) for axis in range(array.ndim)]
    sizes = [min(size, count) for size, count in zip(sizes, array.shape, strict=True)]
    stored = np.empty([sizes[axis] + _PADDING for axis in order], array.dtype).transpose(np.argsort(order))
    for corner in product(*(range(0, count, size) for count, size in zip(array.shape, sizes, strict=True))):
        tile = tuple(slice(start, start + size) for start, size in zip(corner, sizes, strict=True))
        turned = stored[tuple(slice(count) for count in array[tile].shape)]
        turned[...] = array[tile]
        out[tile] = turned


def slowest_first(array: Array) -> list[int]:
    """Return the axes in the order of the memory; those of one voxel, which have no place in it, come last."""
    return sorted(range(array.ndim), key=lambda axis: (array.shape[axis] == 1, -abs(array.strides[axis])))
