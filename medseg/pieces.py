"""Connected pieces of labels: the one place that calls connected-components-3d, or else scipy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from medseg.strides import Part, in_c_order, slowest_first

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.unsignedinteger[Any]]

_SLAB = 1 << 24  # voxels whose pieces are found at a time


def connected_pieces(labels: Array, *, faces_only: bool = False) -> Numbers:
    """Return a number for each connected piece of one label, from 1 in the order of the array; 0 in the background.

    Voxels of one label that touch by faces, edges or corners are one piece (26 neighbours; 8 in a plane). One pass
    for all labels.

    Parameters
    ----------
    labels : array of bool or unsigned int with 2 or 3 axes
        0 is background.
    faces_only : bool
        Voxels must touch by faces (6 neighbours; 4 in a plane).
    """
    if not labels.size:
        return np.zeros(labels.shape, np.uint32)
    if labels.dtype == bool:
        labels = labels.view(np.uint8)  # given bool, cc3d 4.1.1 joins or drops pieces where all lies in one row
    try:
        import cc3d
    except ImportError:  # as on a machine that has only what the network needs
        return _pieces_by_scipy(labels, faces_only=faces_only)
    neighbours: tuple[Literal[4, 8], Literal[6, 26]] = (4, 6) if faces_only else (8, 26)
    pieces: Numbers = cc3d.connected_components(np.ascontiguousarray(labels), connectivity=neighbours[labels.ndim - 2])
    return pieces


def _pieces_by_scipy(labels: Array, *, faces_only: bool) -> Numbers:
    """Return what cc3d returns: many times slower where there are many labels."""
    from scipy import ndimage

    structure = ndimage.generate_binary_structure(labels.ndim, 1 if faces_only else labels.ndim)
    found = np.zeros(labels.shape, np.uint32)
    total = 0
    for value in np.unique(labels[labels > 0]).tolist():
        own, count = ndimage.label(labels == value, structure)
        found += np.where(own > 0, own + total, 0).astype(np.uint32)
        total += count
    pieces, first = np.unique(found, return_index=True)
    names = np.zeros(total + 1, np.uint32)
    names[pieces[np.argsort(np.where(pieces > 0, first, -1))]] = np.arange(len(pieces)) + (pieces[0] > 0)
    return names[found]


class Pieces:
    """The connected pieces of all labels of an array, found slab by slab: only one slab's numbers are in memory.

    Each slab begins with the last plane of the one before; pieces that share a voxel there are one.

    Parameters
    ----------
    array : (I, J, K) array of unsigned int
        In any order of the memory.
    table : array of unsigned int
        The label that each value of `array` stands for; 0 is background.
    faces_only : bool
        Voxels must touch by faces (6 neighbours), not by edges or corners too (26).

    Attributes
    ----------
    labels, sizes : (N + 1,) arrays of int
        Label and voxels of each piece, from 1; number 0 is the background, without voxels.
    reach : (N + 1, 3) array of bool
        Whether a piece reaches the border of the array, along each axis.
    """

    def __init__(self, array: Array, table: Array, *, faces_only: bool = False) -> None:
        self._order = slowest_first(array)
        self._array = array.transpose(self._order)  # as it lies in memory
        self._table, self._faces_only = table, faces_only
        self._known: tuple[int, Array, Numbers] | None = None
        step = max(1, _SLAB * len(self._array) // max(1, array.size))
        self._starts = range(0, len(self._array), step)
        self._names: list[Counts] = []  # of each slab: the pieces that its numbers stand for
        self._find()

    def masks(self, chosen: Mask) -> Iterator[tuple[Part, Mask]]:
        """Yield parts of the array that hold chosen pieces (N + 1,), and where they are in it."""
        for part, numbers, names in self._parts(chosen):
            mask = np.empty(numbers.shape, bool)
            for plane, into in zip(numbers, mask, strict=True):  # indexing widens what it is given
                np.take(chosen[names], plane, out=into, mode="clip")
            yield part, mask.transpose(np.argsort(self._order))

    def first(self, chosen: Mask) -> int:
        """Return which of the chosen pieces (N + 1,) has the first voxel, in the order of the array's axes."""
        begins = []
        for part, numbers, names in self._parts(chosen):
            turned = numbers.transpose(np.argsort(self._order))
            at = np.unravel_index(int(chosen[names][turned].argmax()), turned.shape)
            if chosen[names[turned[at]]]:  # otherwise none lies beyond the plane that the slab before has too
                begin = [int(index) + (span.start or 0) for index, span in zip(at, part, strict=True)]
                begins.append((begin, int(names[turned[at]])))
        return min(begins)[1]

    def _parts(self, chosen: Mask) -> Iterator[tuple[Part, Numbers, Counts]]:
        """Yield parts that hold chosen pieces, their numbers as they lie in memory, and what these stand for."""
        for start, names in zip(self._starts, self._names, strict=True):
            if chosen[names].any():
                numbers = self._slab(start)[1][start > 0 :]
                span = slice(start, start + len(numbers))
                yield tuple(span if axis == self._order[0] else slice(None) for axis in range(3)), numbers, names

    def _slab(self, start: int) -> tuple[Array, Numbers]:
        """Return labels and numbers of the pieces of some planes and of the one before them."""
        if self._known is None or self._known[0] != start:
            labels = in_c_order(self._array[max(0, start - 1) : start + self._starts.step])
            if (self._table != np.arange(len(self._table))).any():
                values, labels = labels, np.empty(labels.shape, self._table.dtype)
                for plane, into in zip(values, labels, strict=True):
                    np.take(self._table, plane, out=into, mode="clip")
            self._known = start, labels, connected_pieces(labels, faces_only=self._faces_only)
        return self._known[1:]

    def _find(self) -> None:
        """Find the pieces of each slab, then those that are one."""
        found = [(np.zeros(1, np.int64), np.zeros(1, np.int64), np.zeros((1, 3), bool))]
        pairs, total, before = [np.zeros((0, 2), np.int64)], 1, np.zeros(0, np.int64)
        for start in self._starts:
            labels, numbers = self._slab(start)
            own, sizes = _measured(labels, numbers)
            names = np.append(0, np.arange(total, total + len(own) - 1))
            if start:
                both = np.stack([before, names[numbers[0].ravel()]], axis=1)
                pairs.append(np.unique(both[_runs(both)], axis=0))
                sizes -= _measured(labels[0], numbers[0], len(own))[1]
            before = names[numbers[-1].ravel()]
            self._names.append(names)
            found.append((own[1:], sizes[1:], self._reach(start, numbers, len(own))[1:]))
            total += len(own) - 1
        own, sizes, reach = (np.concatenate(parts) for parts in zip(*found, strict=True))
        kept, final = np.unique(_roots(total, np.concatenate(pairs)), return_inverse=True)
        self._names = [final[names] for names in self._names]
        self.labels, self.sizes, self.reach = own[kept], np.zeros(len(kept), np.int64), np.zeros((len(kept), 3), bool)
        np.add.at(self.sizes, final, sizes)
        np.logical_or.at(self.reach, final, reach)

    def _reach(self, start: int, numbers: Numbers, count: int) -> Mask:
        """Return which pieces of a slab reach the border of the array, along each of its axes."""
        reach = np.zeros((count, 3), bool)
        first, last = start == 0, start + self._starts.step >= len(self._array)
        slow, middle, fast = self._order
        for axis, face in (
            (slow, numbers[:first]),
            (slow, numbers[len(numbers) - last :]),
            (middle, numbers[:, [0, -1]]),
            (fast, numbers[..., [0, -1]]),
        ):
            reach[face.ravel(), axis] = True
        return reach


def _measured(labels: Array, numbers: Numbers, count: int = 0) -> tuple[Counts, Counts]:
    """Return label and voxels of each numbered piece, and no voxels of the background."""
    runs = _runs(numbers.ravel())
    found = numbers.ravel()[runs]
    count = count or int(found.max()) + 1
    own = np.zeros(count, np.int64)
    own[found] = labels.ravel()[runs]
    sizes = np.bincount(found, np.diff(runs, append=numbers.size), count).astype(np.int64)
    sizes[0] = 0
    return own, sizes


def _runs(values: Array) -> Counts:
    """Return where runs of equal values (or rows of values) begin."""
    changes = values[1:] != values[:-1]
    return np.append(0, 1 + np.flatnonzero(changes if changes.ndim == 1 else changes.any(axis=1)))


def _roots(count: int, pairs: Counts) -> Counts:
    """Return for each of so many names the smallest one to which pairs (N, 2) lead."""
    root = np.arange(count)
    while True:
        ends = np.sort(root[pairs], axis=1)
        ends = ends[ends[:, 0] < ends[:, 1]]
        if not len(ends):
            return root
        np.minimum.at(root, ends[:, 1], ends[:, 0])
        while (root[root] != root).any():
            root = root[root]
