"""Stored pixel values of planes: read straight into place where they lie plainly, else decoded by a child process."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from medseg.dicom.elements import DEFLATED, NATIVE, UNDEFINED, Elements, inflated
from medseg.dicom.parts import Damaged, Part, Stream
from medseg.dicom.planes import Plane
from medseg.dicom.streams import check_streams
from medseg.gate import HINT_COPY, Gate, readable

Array = npt.NDArray[Any]

_DECODER = Path(__file__).with_name("decoder.py")
_MAX_RATIO = 20_000  # no image compression of a real slice reaches this; a black 512 x 512 JPEG 2000 has 3,000
_CHILD_BYTES = 3 << 30  # of address space, beside what the pixels need
_COLOURS = frozenset({"PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "ARGB", "CMYK", "HSV"})
_PADDED = 1.02  # times the pixels: what some writers fill up to a block
_HINT_DECODE = "copy it again from the source, or convert it with gdcmconv"
_PATIENCE = 60.0  # seconds for one frame
_SECONDS_PER_BYTE = 2e-6  # and what a large frame may take longer
_CODES = {
    "1.2.840.10008.1.2.4.201": "High-Throughput JPEG 2000",
    "1.2.840.10008.1.2.4.202": "High-Throughput JPEG 2000",
    "1.2.840.10008.1.2.4.203": "High-Throughput JPEG 2000",
}


def read_stored(planes: Sequence[Plane], gate: Gate) -> Array:
    """Return the stored values of planes of one format: (K, rows, columns[, samples]), in native byte order.

    Raises
    ------
    ScanError
        PIXEL_TRUNCATED, PIXEL_FORMAT, PIXEL_DAMAGED, NO_DECODER or MEMORY, with the slice concerned.
    """
    dtype, shape = pixel_format(planes[0].elements, gate)
    for plane in planes:
        _check(plane, shape, dtype, gate)
    gate.size(len(planes) * int(np.prod(shape)) * dtype.itemsize, 1 << 62, compressed=False)
    array = np.empty((len(planes), *shape), dtype)
    plain = [(n, plane) for n, plane in enumerate(planes) if plane.elements.syntax in NATIVE]
    packed = [(n, plane) for n, plane in enumerate(planes) if plane.elements.syntax not in NATIVE]
    _share(plain, lambda some: _read_plain(some, array, gate))
    _share(packed, lambda some: _decode(some, array, gate))
    return array


def pixel_format(elements: Elements, gate: Gate) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """Return type and shape, (rows, columns) or (rows, columns, 3), of the stored values of one plane."""
    bits, samples = elements.short(0x00280100), elements.short(0x00280002, 1)
    signed = elements.short(0x00280103) == 1
    photometric = elements.text(0x00280004)
    rows, columns = elements.short(0x00280010), elements.short(0x00280011)
    gray = samples == 1 and photometric in ("MONOCHROME1", "MONOCHROME2", "")
    color = samples == 3 and bits == 8 and photometric in ("RGB", "YBR_RCT", "YBR_ICT")
    if not (gray or color) or bits not in (8, 16, 32) or not rows or not columns:
        known = photometric if photometric in _COLOURS or gray else "unknown colours"
        what = f"{known}, {samples} samples of {bits} bits"
        gate.refuse("PIXEL_FORMAT", f"has pixels medseg does not read ({what})", "export it as gray values")
    return np.dtype(f"{'i' if signed else 'u'}{bits // 8}"), (rows, columns) if gray else (rows, columns, 3)


def _check(plane: Plane, shape: tuple[int, ...], dtype: np.dtype[Any], gate: Gate) -> None:
    """Refuse, before anything is allocated, pixels that the object cannot hold."""
    elements = plane.elements
    if pixel_format(elements, gate) != (dtype, shape):
        gate.refuse("PIXEL_FORMAT", f"{plane.name} has another pixel format than the others", "export the series again")
    need = int(np.prod(shape)) * dtype.itemsize
    there = elements.size - elements.offset
    if elements.syntax in NATIVE:
        there = min(there, elements.length)
        total = need * elements.frames()
        if elements.length == UNDEFINED or there < total:
            _truncated(gate, plane, there, total)
        if elements.length > total + total % 2:
            problem = f"{plane.name} declares {readable(total)} of pixels and holds {readable(elements.length)}"
            if elements.length > _PADDED * total:
                gate.refuse("PIXEL_LENGTH", problem, "export the series again from its source")
            gate.warn(f"{plane.name} holds {elements.length - total} bytes behind its pixels")
    elif elements.length != UNDEFINED or there * _MAX_RATIO < need:
        _truncated(gate, plane, there, need)


def _truncated(gate: Gate, plane: Plane, there: int, need: int) -> None:
    gate.refuse(
        "PIXEL_TRUNCATED",
        f"{plane.name} declares {readable(need)} of pixels and holds {readable(there)}",
        HINT_COPY,
    )


def _share(work: list[tuple[int, Plane]], do: Callable[[list[tuple[int, Plane]]], None]) -> None:
    """Do the work in as many threads as there are processors, at most four; the first failure is raised."""
    workers = max(1, min(4, os.cpu_count() or 1, len(work) // 8))
    if workers == 1:
        do(work)
        return
    shares = [work[n * len(work) // workers : (n + 1) * len(work) // workers] for n in range(workers)]
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(do, shares))


@contextmanager
def _named(plane: Plane, gate: Gate) -> Iterator[None]:
    """Refuse, with the name of the plane, what cannot be read."""
    try:
        yield
    except Damaged as error:
        gate.refuse("PIXEL_DAMAGED", f"{plane.name}: {error}", HINT_COPY)
    except OSError:
        gate.refuse("UNREADABLE", f"{plane.name} cannot be read", "check disk, network and permissions")


def _by_object(work: Sequence[tuple[int, Plane]]) -> Iterator[list[tuple[int, Plane]]]:
    """Yield the work object by object."""
    for _, group in groupby(work, key=lambda item: (item[1].part.path, item[1].part.member)):
        yield list(group)


def _read_plain(work: Sequence[tuple[int, Plane]], array: Array, gate: Gate) -> None:
    """Read uncompressed pixels straight into the array."""
    for group in _by_object(work):
        first = group[0][1]
        with _named(first, gate), first.part.open() as raw:
            file: Stream = raw
            if first.elements.syntax == DEFLATED:
                file = inflated(raw)
            elif first.part.archive is not None and len(group) > 1:
                file = io.BytesIO(raw.read())
            for n, plane in group:
                place = _bytes_of(array[n])
                file.seek(plane.elements.offset + max(plane.number - 1, 0) * len(place))
                got = _fill(file, place)
                if got < len(place):
                    _truncated(gate, plane, got, len(place))
                _put_right(array[n], plane.elements)


def _put_right(pixels: Array, elements: Elements) -> None:
    """Bring what was stored in another byte order, or colour after colour, into ours."""
    if elements.order == ">" and (pixels.itemsize > 1 or elements.words):
        words = pixels.reshape(-1)
        if pixels.itemsize == 1:
            words = words[: len(words) // 2 * 2].view(np.uint16)
        words.byteswap(inplace=True)
    if pixels.ndim == 3 and elements.short(0x00280006) == 1:
        pixels[...] = pixels.reshape(3, *pixels.shape[:2]).transpose(1, 2, 0).copy()


def _bytes_of(array: Array) -> memoryview:
    """Return the bytes of a contiguous array, to be written into."""
    return array.reshape(-1).view(np.uint8).data


def _fill(file: Stream, place: memoryview) -> int:
    got = 0
    while got < len(place):
        count = file.readinto(place[got:])
        if not count:
            break
        got += count
    return got


def _decode(work: Sequence[tuple[int, Plane]], array: Array, gate: Gate) -> None:
    """Fill the array with frames that a child process decodes; one that dies gets a second, more careful one."""
    if not work:
        return
    for group in _by_object(work):
        first = group[0][1]
        with _named(first, gate), first.part.open() as file:
            fault = check_streams(file, first.elements)
        if fault:
            gate.refuse("PIXEL_DAMAGED", f"{first.name}: {fault}", HINT_COPY)
    left = list(work)
    with _child(array[0].nbytes) as child:
        while left and _ask(child, left[0][1], array[left[0][0]], gate):
            del left[0]
    if not left:
        return
    with _child(array[0].nbytes, careful=True) as child:
        for n, plane in left:
            if not _ask(child, plane, array[n], gate):
                gate.refuse("PIXEL_DAMAGED", f"{plane.name}: its pixels made the decoder fail", _HINT_DECODE)


@dataclass
class _Child:
    """A process that decodes, and the object whose bytes it has."""

    process: subprocess.Popen[bytes]
    has: Part | None = None


@contextmanager
def _child(frame_bytes: int, *, careful: bool = False) -> Iterator[_Child]:
    process = subprocess.Popen(  # noqa: S603 - our own program
        [sys.executable, str(_DECODER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        limits = {"memory": _CHILD_BYTES + 16 * frame_bytes, "careful": careful}
        _send(process, json.dumps(limits).encode() + b"\n")
        yield _Child(process)
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe:
                _close(pipe)


def _close(pipe: Any) -> None:
    try:
        pipe.close()
    except BrokenPipeError:
        return  # the child is gone, and what it was to be told with it


def _ask(child: _Child, plane: Plane, into: Array, gate: Gate) -> bool:
    """Fill a plane with what the child decodes; return False where the child died or hung over it."""
    data = b""
    if plane.part.archive is not None and child.has != plane.part:
        with _named(plane, gate), plane.part.open() as file:
            data = file.read()
        child.has = plane.part
    request = {
        "path": str(plane.part.path),
        "member": plane.part.member,
        "frame": max(plane.number - 1, 0),
        "syntax": plane.elements.syntax,
        "shape": into.shape,
        "dtype": into.dtype.str,
        "length": len(data),
    }
    clock = threading.Timer(_PATIENCE + _SECONDS_PER_BYTE * into.nbytes, child.process.kill)
    clock.start()
    try:
        _send(child.process, json.dumps(request).encode() + b"\n" + data)
        status, body = _receive(child.process, into)
    finally:
        clock.cancel()
    if status == b"?":
        _refuse_decoder(plane, gate)
    if status == b"-":
        gate.refuse("PIXEL_DAMAGED", f"{plane.name}: its pixels cannot be decoded ({body})", _HINT_DECODE)
    return status == b"+"


def _refuse_decoder(plane: Plane, gate: Gate) -> None:
    syntax = plane.elements.syntax
    plain = syntax if re.fullmatch(r"[0-9.]{1,64}", syntax) else "?"
    name = _CODES.get(syntax, f"transfer syntax {plain}")
    package = "pylibjpeg pylibjpeg-openjpeg" if syntax in _CODES else "python-gdcm"
    gate.refuse("NO_DECODER", f"{plane.name}: no decoder for {name} is installed", f"pip install {package}")


def _send(process: subprocess.Popen[bytes], message: bytes) -> None:
    if process.stdin is None:
        return
    try:
        process.stdin.write(message)
        process.stdin.flush()
    except (BrokenPipeError, OSError):
        return  # the child is gone; the empty answer says so


def _receive(process: subprocess.Popen[bytes], into: Array) -> tuple[bytes, str]:
    """Return the status of an answer and its text; pixels go into the array. An empty status: there is no answer."""
    if process.stdout is None:
        return b"", ""
    head = process.stdout.read(9)
    if len(head) < 9:
        return b"", ""
    length = int.from_bytes(head[1:], "little")
    if head[:1] != b"+":
        return head[:1], process.stdout.read(min(length, 1000)).decode("ascii", "replace")
    place = _bytes_of(into)
    if length != len(place) or _fill(cast(Stream, process.stdout), place) < length:
        return b"", ""
    return b"+", ""
