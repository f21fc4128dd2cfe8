"""Stored pixel values of planes: read straight into place where they lie plainly, else decoded by a child process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from medseg.dicom.elements import DEFLATED, NATIVE, UNDEFINED, Damaged, Elements, inflated
from medseg.dicom.planes import Plane
from medseg.gate import HINT_COPY, Gate, readable
from medseg.progress import Progress, silent

Array = npt.NDArray[Any]

_DECODER = Path(__file__).with_name("decoder.py")
_MAX_RATIO = 20_000  # no image compression of a real slice reaches this; a black 512 x 512 JPEG 2000 has 3,000
_CHILD_BYTES = 3 << 30  # of address space, beside what the pixels need
_COLOURS = frozenset({"PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "ARGB", "CMYK", "HSV"})
_PATIENCE = 60.0  # seconds for one frame
_SECONDS_PER_BYTE = 2e-6  # and what a large frame may take longer
_CODES = {
    "1.2.840.10008.1.2.4.201": "High-Throughput JPEG 2000",
    "1.2.840.10008.1.2.4.202": "High-Throughput JPEG 2000",
    "1.2.840.10008.1.2.4.203": "High-Throughput JPEG 2000",
}


def read_stored(planes: Sequence[Plane], gate: Gate, *, progress: Progress = silent) -> Array:
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
    progress("read", 1.0)
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
    frames = int(elements.number(0x00280008) or 1)
    there = elements.size - elements.offset
    if elements.syntax in NATIVE:
        there = min(there, elements.length)
        total = need * frames
        if elements.length == UNDEFINED or there < total:
            _truncated(gate, plane, there, total)
    elif elements.length != UNDEFINED or there * _MAX_RATIO < need:
        _truncated(gate, plane, there, need)


def _truncated(gate: Gate, plane: Plane, there: int, need: int) -> None:
    gate.refuse(
        "PIXEL_TRUNCATED",
        f"{plane.name} declares {readable(need)} of pixels and holds {readable(there)}",
        HINT_COPY,
    )


def _share(work: list[tuple[int, Plane]], do: Any) -> None:
    """Do the work in as many threads as there are processors, at most four; the first failure is raised."""
    workers = max(1, min(4, os.cpu_count() or 1, len(work) // 8))
    if len(work) < 16:
        do(work)
        return
    shares = [work[n * len(work) // workers : (n + 1) * len(work) // workers] for n in range(workers)]
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(do, shares))


def _read_plain(work: Sequence[tuple[int, Plane]], array: Array, gate: Gate) -> None:
    """Read uncompressed pixels straight into the array."""
    for n, plane in work:
        elements = plane.elements
        place = _bytes_of(array[n])
        try:
            with plane.part.open() as raw:
                file: BinaryIO = inflated(raw) if elements.syntax == DEFLATED else raw
                file.seek(elements.offset + max(plane.number - 1, 0) * len(place))
                got = _fill(file, place)
        except Damaged as error:
            gate.refuse("PIXEL_DAMAGED", f"{plane.name}: {error}", HINT_COPY)
        except (zipfile.BadZipFile, zlib.error, EOFError):
            gate.refuse("PIXEL_DAMAGED", f"{plane.name}: its place in the archive is damaged", HINT_COPY)
        except OSError:
            gate.refuse("UNREADABLE", f"{plane.name} cannot be read", "check disk, network and permissions")
        if got < len(place):
            _truncated(gate, plane, got, len(place))
        if elements.order == ">" and array.itemsize > 1:
            array[n].byteswap(inplace=True)
        if array.ndim == 4 and elements.short(0x00280006) == 1:  # planes of colour one after the other
            array[n] = array[n].reshape(3, *array.shape[1:3]).transpose(1, 2, 0).copy()


def _bytes_of(array: Array) -> memoryview:
    """Return the bytes of a contiguous array, to be written into."""
    return array.reshape(-1).view(np.uint8).data


def _fill(file: BinaryIO, place: memoryview) -> int:
    got = 0
    while got < len(place):
        count = file.readinto(place[got:])  # type: ignore[attr-defined]
        if not count:
            break
        got += count
    return got


def _decode(work: Sequence[tuple[int, Plane]], array: Array, gate: Gate) -> None:
    """Fill the array with frames that a child process decodes."""
    if not work:
        return
    with _child(array[0].nbytes) as child:
        for n, plane in work:
            _ask(child, plane, array[n], gate)


@contextmanager
def _child(frame_bytes: int) -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen(  # noqa: S603 - our own program
        [sys.executable, str(_DECODER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        limits = {"memory": _CHILD_BYTES + 16 * frame_bytes}
        _send(child, json.dumps(limits).encode() + b"\n")
        yield child
    finally:
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe:
                _close(pipe)


def _close(pipe: Any) -> None:
    try:
        pipe.close()
    except BrokenPipeError:
        return  # the child is gone, and what it was to be told with it


def _ask(child: subprocess.Popen[bytes], plane: Plane, into: Array, gate: Gate) -> None:
    data = b""
    if plane.part.archive is not None:
        try:
            with plane.part.open() as file:
                data = file.read()
        except (zipfile.BadZipFile, zlib.error, EOFError):
            gate.refuse("PIXEL_DAMAGED", f"{plane.name}: its place in the archive is damaged", HINT_COPY)
    request = {
        "path": str(plane.part.path),
        "member": plane.part.member,
        "frame": max(plane.number - 1, 0),
        "syntax": plane.elements.syntax,
        "shape": into.shape,
        "dtype": into.dtype.str,
        "length": len(data),
    }
    clock = threading.Timer(_PATIENCE + _SECONDS_PER_BYTE * into.nbytes, child.kill)
    clock.start()
    try:
        _send(child, json.dumps(request).encode() + b"\n" + data)
        status, body = _receive(child, into)
    finally:
        clock.cancel()
    if status == b"+":
        return
    if status == b"?":
        _refuse_decoder(plane, gate)
    how = f"its pixels cannot be decoded ({body})" if status else "its pixels made the decoder fail"
    gate.refuse("PIXEL_DAMAGED", f"{plane.name}: {how}", "copy it again from the source, or convert it with gdcmconv")


def _refuse_decoder(plane: Plane, gate: Gate) -> None:
    name = _CODES.get(plane.elements.syntax, f"transfer syntax {plane.elements.syntax}")
    package = "pylibjpeg pylibjpeg-openjpeg" if plane.elements.syntax in _CODES else "python-gdcm"
    gate.refuse("NO_DECODER", f"{plane.name}: no decoder for {name} is installed", f"pip install {package}")


def _send(child: subprocess.Popen[bytes], message: bytes) -> None:
    if child.stdin is None:
        return
    try:
        child.stdin.write(message)
        child.stdin.flush()
    except (BrokenPipeError, OSError):
        return  # the child is gone; the empty answer says so


def _receive(child: subprocess.Popen[bytes], into: Array) -> tuple[bytes, str]:
    """Return the status of an answer and its text; pixels go into the array. An empty status: there is no answer."""
    if child.stdout is None:
        return b"", ""
    head = child.stdout.read(9)
    if len(head) < 9:
        return b"", ""
    length = int.from_bytes(head[1:], "little")
    if head[:1] != b"+":
        return head[:1], child.stdout.read(min(length, 1000)).decode("ascii", "replace")
    place = _bytes_of(into)
    if length != len(place) or _fill(child.stdout, place) < length:  # type: ignore[arg-type]
        return b"", ""
    return b"+", ""
