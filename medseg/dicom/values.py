"""Stored pixel values into physical ones: HU for CT, arbitrary units for MR, Bq/mL for PET."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg.dicom.elements import MODALITY_TABLE, Elements
from medseg.dicom.planes import Plane
from medseg.gate import HINT_EXPORT, Gate

Array = npt.NDArray[Any]

AIR = -1024  # HU, where a CT was not reconstructed
_PADDING, _PADDING_LIMIT = 0x00280120, 0x00280121
_BITS, _UNITS = 0x00280101, 0x00541001


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
        If values follow a table that is not linear, or slope, intercept or BitsStored make no sense.
    """
    if any(MODALITY_TABLE in plane.elements.values for plane in planes):
        gate.refuse("MODALITY_LUT", "its values follow a table, not slope and intercept", "export it with a slope")
    if len({plane.elements.text(_UNITS) for plane in planes}) > 1:
        gate.refuse("MIXED_UNITS", "has slices in different units", "export the series again from its source")
    if stored.ndim == 4:
        return stored
    _check_scale(planes, gate)
    padding = [_padded(stored[n], plane.elements) for n, plane in enumerate(planes)]
    for n, plane in enumerate(planes):
        keep_stored_bits(stored[n], plane, gate)
        again = _padded(stored[n], plane.elements)  # padding whose sign was not extended, or that lies beyond the bits
        padding[n] = again if padding[n] is None else padding[n] if again is None else padding[n] | again
    return _without_padding(_rescaled(stored, planes), padding, planes[0].modality, gate)


def with_air(values: Array) -> Array:
    """Return values in a type that holds that of air."""
    if values.dtype.kind == "f" or np.iinfo(values.dtype).min <= AIR:
        return values
    return values.astype(np.int16 if int(values.max()) < 1 << 15 else np.int32)


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


def _check_scale(planes: Sequence[Plane], gate: Gate) -> None:
    """Refuse a slope or intercept that is no number, or is missing in some slices only."""
    hint = "export the series again from its source; a value is never guessed"
    for plane in planes:
        if not (math.isfinite(plane.slope) and math.isfinite(plane.intercept)) or plane.slope == 0:
            gate.refuse("RESCALE", f"{plane.name} has a RescaleSlope or RescaleIntercept that is no valid number", hint)
        if plane.rescaled != planes[0].rescaled:
            gate.refuse("RESCALE", f"{plane.name} or {planes[0].name} has no RescaleSlope, the other has", hint)


def bits_of(plane: Plane) -> int:
    """Return BitsStored, BitsAllocated where it is missing."""
    return plane.elements.short(_BITS, plane.elements.short(0x00280100))


def keep_stored_bits(pixels: Array, plane: Plane, gate: Gate) -> None:
    """Remove in place what stands outside the stored bits (an overlay, rubbish), and extend their sign."""
    allocated = pixels.dtype.itemsize * 8
    stored = bits_of(plane)
    high = plane.elements.short(0x00280102, stored - 1)
    if not 0 < stored <= allocated:
        gate.refuse("PIXEL_FORMAT", f"{plane.name} says that {stored} of {allocated} bits are stored", HINT_EXPORT)
    if stored == allocated:
        return
    if not stored - 1 <= high < allocated:
        gate.warn(f"HighBit {high} does not go with BitsStored {stored}; the lowest {stored} bits are read")
        high = stored - 1
    left = allocated - 1 - high
    if pixels.dtype.kind == "u" and high == stored - 1:
        np.bitwise_and(pixels, (1 << stored) - 1, out=pixels)
        return
    if left:
        np.left_shift(pixels, left, out=pixels)
    if allocated - stored:
        np.right_shift(pixels, allocated - stored, out=pixels)  # of signed numbers it extends the sign


def _rescaled(stored: Array, planes: Sequence[Plane]) -> Array:
    slopes = np.array([plane.slope for plane in planes])
    intercepts = np.array([plane.intercept for plane in planes])
    if (slopes == 1).all() and (intercepts == 0).all():
        return stored
    target = _type_for(stored, max(map(bits_of, planes)), slopes, intercepts)
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
        values = with_air(values)
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
