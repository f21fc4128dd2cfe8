"""The host: numpy arrays and several threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from medseg.kernels import plain
from medseg.kernels.plain import Array, Taps

T = TypeVar("T")


class Host:
    """Arrays of numpy, and loops over them in several threads.

    Parameters
    ----------
    threads : int, optional
        As many as the process may use when left out.
    """

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads or len(os.sched_getaffinity(0))
        self._pool = ThreadPoolExecutor(self.threads) if self.threads > 1 else None

    def zeros(self, shape: Sequence[int], dtype: npt.DTypeLike = np.float32) -> Array:
        """Return an array of zeros."""
        return np.zeros(shape, dtype)

    def put(self, array: npt.NDArray[Any]) -> Array:
        """Return the array itself."""
        return array

    def get(self, array: Array) -> npt.NDArray[Any]:
        """Return the array itself."""
        own: npt.NDArray[Any] = array
        return own

    def each(self, work: Callable[[T], None], items: Iterable[T]) -> None:
        """Do some work for each item, several at the same time."""
        for _ in self._pool.map(work, items) if self._pool else map(work, items):
            pass

    def blend(self, slab: Array, counts: Array, answer: Array, weights: Array) -> None:
        """See `medseg.kernels.plain.blend`."""
        plain.blend(slab, counts, answer, weights)

    def settle(self, plane: Array, counts: Array, labels: Array, channels: int) -> None:
        """See `medseg.kernels.plain.settle`."""
        plain.settle(plane, counts, labels, channels)

    def between(
        self,
        planes: tuple[Array, Array],
        labels: tuple[Array, Array],
        fraction: float,
        rows: Taps,
        columns: Taps,
        out: Array,
    ) -> None:
        """See `medseg.kernels.plain.between`."""
        plain.between(planes, labels, fraction, rows, columns, out)
