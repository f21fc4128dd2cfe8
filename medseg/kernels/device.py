"""The device: torch tensors, and the plain loops over them. Not imported by the room itself: torch takes its time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from medseg.kernels import plain
from medseg.kernels.plain import Array, Taps

T = TypeVar("T")


class Device:
    """Tensors of torch on one device, which works through them by itself.

    What numpy knows as uint16 is int32 here: torch does not compare or index tensors of uint16.

    Parameters
    ----------
    device : torch.device
        Such as a graphics card.
    """

    threads = 1

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def zeros(self, shape: Sequence[int], dtype: npt.DTypeLike = np.float32) -> Array:
        """Return a tensor of zeros."""
        example = torch.from_numpy(np.empty(0, _known(np.dtype(dtype))))
        return torch.zeros(tuple(shape), dtype=example.dtype, device=self.device)

    def put(self, array: npt.NDArray[Any]) -> Array:
        """Return a tensor with these values; on the processor it may share their memory."""
        array = array.astype(_known(array.dtype), copy=False)
        if not array.flags.writeable or min(array.strides, default=0) < 0:  # torch has neither
            array = array.copy()
        return torch.from_numpy(array).to(self.device)

    def get(self, array: Array) -> npt.NDArray[Any]:
        """Return the values as a numpy array; on the processor it may share their memory."""
        values: npt.NDArray[Any] = array.cpu().numpy()
        return values.astype(np.uint16) if values.dtype == np.int32 else values

    def each(self, work: Callable[[T], None], items: Iterable[T]) -> None:
        """Do some work for each item, one after the other."""
        for item in items:
            work(item)

    def blend(self, slab: Array, counts: Array, answer: Array, weights: Array, first: int) -> None:
        """See `medseg.kernels.plain.blend`."""
        plain.blend(slab, counts, answer, weights, first)

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


def _known(kind: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype(np.int32) if kind == np.uint16 else kind
