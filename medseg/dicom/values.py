"""Stored pixel values into physical ones: HU for CT, arbitrary units for MR, Bq/mL for PET."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg.dicom.elements import MODALITY_TABLE, Elements
from medseg.dicom.planes import Plane
from medseg.gate import Gate

Array = npt.NDArray[Any]

AIR = -1024  # HU, where a CT was not reconstructed
_PADDING, _PADDING_LIMIT = 0x00280120, 0x00280121


def physical(stored: Array, planes: Sequence[Plane], gate: Gate) -> Array:
    """Return physical values, (K, rows, columns[, 3]): bits beyond BitsStored removed, padding replaced, rescaled.

    Slope and intercept are those of each slice. The type stays integer where all values are whole and fit 32 bits.
    MONOCHROME1 says how to show values, and changes none.

    Parameters
    ----------
    stored : (K, rows, columns[, 3]) array
        As `pixels.read_stored` returns it; changed in place.
    planes : sequence of K Plane
        Where the values come from.

    Raises
    ------
    ScanError
        If values follow a table that is not linear.
    """
    if any(MODALITY_TABLE in plane.elements.values for plane in planes):
        gate.refuse("MODALITY_LUT", "its values follow a table, not slope and intercept", "export it with a slope")
    if stored.ndim == 4:
        return stored
    padding = [_padded(stored[n], plane.elements) for n, plane in enumerate(planes)]
    for n, plane in enumerate(planes):
        _keep_stored_bits(stored[n], plane.elements, gate)
    return _without_padding(_rescaled(stored, planes), padding, planes[0].modality, gate)


def _padded(plane: Array, elements: Elements) -> Array | None:
    """Return where a stored plane holds padding, or None; the element is read in the type of the pixels."""
    limits = [elements.values[tag] for tag in (_PADDING, _PADDING_LIMIT) if tag in elements.values]
    if not limits or plane.dtype.itemsize > 2 or any(len(limit) < 2 for limit in limits):
        return None
    kind = f"{elements.order}{plane.dtype.kind}2"
    low, high = (int(np.frombuffer(limits[n], kind, 1)[0]) for n in (0, -1))
    low, high = min(low, high), max(low, high)
    mask: Array = (plane >= low) & (plane <= high) if low < high else plane == low
    return mask if mask.any() else None


def _keep_stored_bits(plane: Array, elements: Elements, gate: Gate) -> None:
    """Remove in place what stands outside the stored bits (an overlay, rubbish), and extend their sign."""
    allocated = plane.dtype.itemsize * 8
    stored = elements.short(0x00280101, allocated)
    high = elements.short(0x00280102, stored - 1)
    if not 0 < stored <= allocated or (stored == allocated and high == allocated - 1):
        return
    if not stored - 1 <= high < allocated:
        gate.warn(f"HighBit {high} does not go with BitsStored {stored}; the lowest {stored} bits are read")
        high = stored - 1
    left = allocated - 1 - high
    if plane.dtype.kind == "u" and high == stored - 1:
        np.bitwise_and(plane, (1 << stored) - 1, out=plane)
        return
    if left:
        np.left_shift(plane, left, out=plane)
    if allocated - stored:
        np.right_shift(plane, allocated - stored, out=plane)  # of signed numbers it extends the sign


def _rescaled(stored: Array, planes: Sequence[Plane]) -> Array:
    slopes = np.array([plane.slope for plane in planes])
    intercepts = np.array([plane.intercept for plane in planes])
    if (slopes == 1).all() and (intercepts == 0).all():
        return stored
    target = _type_for(stored, planes[0].elements.short(0x00280101), slopes, intercepts)
    same_size = target.kind == "i" and target.itemsize == stored.itemsize
    out = stored.view(target) if same_size else np.empty(stored.shape, target)
    for n, (slope, intercept) in enumerate(zip(slopes, intercepts, strict=True)):
        if same_size and slope == 1:  # in place, modulo the type: the sum is known to fit
            out[n] += np.int64(intercept).astype(target)
        else:
            np.copyto(out[n], stored[n] * slope + intercept, casting="unsafe")
    return out


def _type_for(stored: Array, bits: int, slopes: Array, intercepts: Array) -> np.dtype[Any]:
    """Return int16 or int32 where all rescaled values are whole and fit, else float32."""
    if (slopes != np.rint(slopes)).any() or (intercepts != np.rint(intercepts)).any():
        return np.dtype(np.float32)
    low, high = (-(1 << bits >> 1), (1 << bits >> 1) - 1) if stored.dtype.kind == "i" else (0, (1 << bits) - 1)
    if not _fit(np.array([low, high]), slopes, intercepts, np.int16):  # not all that could be stored; what is?
        low, high = int(stored.min()), int(stored.max())
    for dtype in (np.int16, np.int32):
        if _fit(np.array([low, high]), slopes, intercepts, dtype):
            return np.dtype(dtype)
    return np.dtype(np.float32)


def _fit(ends: Array, slopes: Array, intercepts: Array, dtype: type[np.signedinteger[Any]]) -> bool:
    rescaled = ends[:, None] * slopes + intercepts
    return bool(np.iinfo(dtype).min <= rescaled.min() and rescaled.max() <= np.iinfo(dtype).max)


def _without_padding(values: Array, padding: Sequence[Array | None], modality: str, gate: Gate) -> Array:
    """Return values with air (CT) or the lowest measured one (else) where padding was."""
    count = sum(int(mask.sum()) for mask in padding if mask is not None)
    if not count:
        return values
    if modality == "CT":
        low = float(AIR)
        if values.dtype.kind == "u":
            values = values.astype(np.int16 if int(values.max()) < 1 << 15 else np.int32)
    else:
        lows = [_lowest(plane, mask) for plane, mask in zip(values, padding, strict=True)]
        low = min((found for found in lows if found is not None), default=0.0)
    for plane, mask in zip(values, padding, strict=True):
        if mask is not None:
            plane[mask] = low
    gate.warn(f"{count} voxels are padding; they are taken as {low:g}")
    return values


def _lowest(plane: Array, mask: Array | None) -> float | None:
    if mask is None:
        return float(plane.min())
    return None if mask.all() else float(plane[~mask].min())
