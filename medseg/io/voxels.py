"""Voxels between a file and an array: in the order of the file, in its type, without copies in float64."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg.gate import Gate, blocks
from medseg.io.stream import Stream

MAX_LABEL = 65535
_SLAB = 1 << 20  # bytes that are brought into file order at a time


def read_voxels(stream: Stream, sizes: tuple[int, ...], dtype: np.dtype[Any], *, skip: int = 0) -> npt.NDArray[Any]:
    """Return an array of `sizes`, first axis fastest, filled straight from the stream.

    `skip` bytes before it are passed over. What the file cannot hold is refused before it is allocated.
    """
    stream.check_size(skip + prod(sizes) * dtype.itemsize)
    stream.skip(skip)
    array = np.empty(sizes, dtype, order="F")
    stream.fill(memoryview(array.reshape(-1, order="F").view(np.uint8).data))
    return array


def scaled(stored: npt.NDArray[Any], slope: float, intercept: float, gate: Gate) -> npt.NDArray[Any]:
    """Return finite intensities in native byte order: `stored * slope + intercept`, integer where that is exact."""
    if not stored.dtype.isnative:
        stored = stored.byteswap(inplace=True).view(stored.dtype.newbyteorder())
    if stored.dtype.kind == "f":
        gate.finite(stored)
    if (slope, intercept) == (1.0, 0.0):
        return stored
    target = _scaled_dtype(stored, slope, intercept)
    out = stored if target == stored.dtype else np.empty_like(stored, dtype=target)
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is answered below
        for block, into in zip(blocks(stored), blocks(out), strict=True):
            np.copyto(into, block * np.float64(slope) + intercept, casting="unsafe")
    if out.dtype.kind == "f":
        gate.finite(out)
    return out


def whole(array: npt.NDArray[Any], gate: Gate) -> npt.NDArray[np.unsignedinteger[Any]]:
    """Return voxels as the smallest unsigned type that holds them, or refuse what is no map of labels."""
    low, high = float(array.min()), float(array.max())
    if low < 0 or high > MAX_LABEL or (array.dtype.kind == "f" and (array != np.rint(array)).any()):
        gate.refuse(
            "NOT_LABELS", f"holds values from {low:g} to {high:g} that are not all whole labels", "give a label map"
        )
    return array.astype(np.min_scalar_type(int(high)), copy=False)


def storable(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the type in which voxels of `dtype` are stored: bool as uint8, float16 as float32."""
    if dtype.kind == "b":
        return np.dtype(np.uint8)
    return np.dtype(np.float32) if dtype == np.float16 else dtype.newbyteorder("=")


def in_file_order(array: npt.NDArray[Any]) -> Iterator[bytes]:
    """Yield the voxels, first axis fastest, as little-endian bytes, some planes of the last axis at a time."""
    dtype = storable(array.dtype).newbyteorder("<")
    planes = max(1, _SLAB // max(1, array[..., 0].size * dtype.itemsize))
    for start in range(0, array.shape[-1], planes):
        yield array[..., start : start + planes].astype(dtype, copy=False).tobytes(order="F")


def _scaled_dtype(stored: npt.NDArray[Any], slope: float, intercept: float) -> np.dtype[Any]:
    if stored.dtype.kind == "f":
        return stored.dtype
    if slope == int(slope) and intercept == int(intercept):
        ends = [int(stored.min()) * int(slope) + int(intercept), int(stored.max()) * int(slope) + int(intercept)]
        for dtype in (np.int16, np.int32):
            limits = np.iinfo(dtype)
            if limits.min <= min(ends) and max(ends) <= limits.max:
                return np.dtype(dtype)
    return np.dtype(np.float32)
