"""What host and device have in common: arrays, and the loops over them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from medseg.kernels.plain import Array, Taps

T = TypeVar("T")


class Place(Protocol):
    """Where the logits of a pass live.

    Parameters
    ----------
    threads : int
        How many items of work `each` does at the same time.
    """

    threads: int

    def zeros(self, shape: Sequence[int], dtype: npt.DTypeLike = np.float32) -> Array:
        """Return an array of zeros."""

    def put(self, array: npt.NDArray[Any]) -> Array:
        """Return an array with these values; it may share their memory."""

    def get(self, array: Array) -> npt.NDArray[Any]:
        """Return the values as a numpy array; it may share their memory."""

    def each(self, work: Callable[[T], None], items: Iterable[T]) -> None:
        """Do some work for each item, in no order, at the same time where that helps."""

    def blend(self, slab: Array, counts: Array, answer: Array, weights: Array, first: int) -> None:
        """See `medseg.kernels.plain.blend`."""

    def settle(self, plane: Array, counts: Array, labels: Array, channels: int) -> None:
        """See `medseg.kernels.plain.settle`."""

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
