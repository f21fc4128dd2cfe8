"""Where windows lie, how much each of their voxels counts, and in which order they are answered.

Placement and weights are those of MONAI's `sliding_window_inference` with mode "gaussian", so that either gives the
same answer for the same network.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise, product
from math import ceil, prod

import numpy as np
import numpy.typing as npt

from medseg.geometry import tuple_of_three

_SIGMA = 0.125  # of the window's size
_LEAST_WEIGHT = 1e-3

Three = tuple[int, int, int]


def window_starts(size: int, patch: int, overlap: float) -> list[int]:
    """Return the first voxel of each window along an axis; the last window ends with the axis.

    Where the patch is larger than the axis, its one window begins before it.

    >>> window_starts(10, 4, 0.5)
    [0, 2, 4, 6]
    >>> window_starts(5, 8, 0.5)
    [-1]
    """
    if patch >= size:
        return [-((patch - size) // 2)]
    step = max(1, int(patch * (1 - overlap)))
    return [min(number * step, size - patch) for number in range(ceil((size - patch) / step) + 1)]


def gaussian_weights(patch: Sequence[int]) -> npt.NDArray[np.float32]:
    """Return how much each voxel of a window counts: (I, J, K), 1 at the centre, at least 0.001 (Isensee 2021)."""
    weights = np.ones((), np.float32)
    for size in patch:
        x = np.arange(size, dtype=np.float32) - np.float32((size - 1) / 2)
        weights = weights[..., None] * np.exp(x**2 / np.float32(-2 * (size * _SIGMA) ** 2))
    floored: npt.NDArray[np.float32] = np.maximum(weights, np.float32(_LEAST_WEIGHT))
    return floored


@dataclass(frozen=True)
class Strip:
    """Rows of the grid that one pass settles, and the corners of the windows that reach into them."""

    rows: tuple[int, int]
    corners: tuple[Three, ...]


@dataclass(frozen=True)
class Windows:
    """The windows over a grid.

    Parameters
    ----------
    shape : three ints
        Of the grid.
    patch : three ints
        Size of a window.
    starts : three lists of int
        First voxels of windows along each axis of the grid.
    axes : three ints
        Along which windows follow one another, slowest first: planes of the first are held only while windows can
        still touch them; the other two are a plane's rows and columns.
    """

    shape: Three
    patch: Three
    starts: tuple[list[int], list[int], list[int]]
    axes: Three

    @classmethod
    def over(cls, shape: Three, patch: Three, overlap: float) -> Windows:
        """Return the windows over a grid, in the order that keeps the fewest voxels waiting."""
        starts = [window_starts(size, window, overlap) for size, window in zip(shape, patch, strict=True)]
        held = [min(patch[axis], shape[axis]) * (prod(shape) // shape[axis]) for axis in range(3)]
        first = held.index(min(held))
        rows, columns = (axis for axis in range(3) if axis != first)
        return cls(shape, patch, (starts[0], starts[1], starts[2]), (first, rows, columns))

    def __len__(self) -> int:
        return prod(map(len, self.starts))

    @property
    def depth(self) -> int:
        """How many planes are held at a time."""
        return min(self.patch[self.axes[0]], self.shape[self.axes[0]])

    def end(self, corner: Three) -> Three:
        """Return the voxel after the last one of a window, along each axis."""
        return tuple_of_three(start + size for start, size in zip(corner, self.patch, strict=True))

    def strips(self, count: int) -> Iterator[Strip]:
        """Yield the grid in that many strips of rows, or as many as there are rows.

        A strip has the first row of the next one too, so that every point between two rows lies in one strip; windows
        that reach into two strips are answered twice.
        """
        first, rows, columns = self.axes
        size, patch = self.shape[rows], self.patch[rows]
        bounds = np.linspace(0, size, min(count, size) + 1).astype(int).tolist()
        for start, end in pairwise(bounds):
            stop = min(end + 1, size)
            reaching = [at for at in self.starts[rows] if at < stop and at + patch > start]
            corners = product(self.starts[first], reaching, self.starts[columns])
            yield Strip((start, stop), tuple(self._placed(corner) for corner in corners))

    def rounds(self, strip: Strip) -> Iterator[tuple[int, list[Three]]]:
        """Yield the windows that begin in one plane, and that plane's number, plane after plane."""
        first = self.axes[0]
        for start, corners in groupby(strip.corners, key=lambda corner: corner[first]):
            yield start, list(corners)

    def _placed(self, along: Sequence[int]) -> Three:
        return tuple_of_three(along[self.axes.index(axis)] for axis in range(3))
