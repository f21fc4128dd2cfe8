"""A program of its own: decompresses frames of pixels, so that a damaged one can end nothing but this process.

`medseg.dicom.pixels` starts it as a script. It reads requests from standard input, one line of JSON each (with the
bytes of the object behind it where that is no file), and answers on standard output: a status byte (+ done, - failed,
? no decoder), a length of eight bytes, and as many bytes of pixels (little-endian, samples interleaved) or of text.
It imports nothing of medseg.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import threading
from typing import Any, BinaryIO

_RLE = "1.2.840.10008.1.2.5"  # dicomsdl writes beyond its buffer where there is no offset table
_HTJ2K = "1.2.840.10008.1.2.4.20"  # and .201, .202, .203


def main() -> None:
    """Answer requests until standard input ends."""
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(2, 1)  # what a library prints must not mix with the answers
    limits = json.loads(requests.readline())
    _limit(limits["memory"])
    cache: dict[str, Any] = {}
    data, owner = b"", None
    while line := requests.readline():
        request = json.loads(line)
        if request["length"]:
            data, owner = requests.read(request["length"]), (request["path"], request["member"])
        elif owner != (request["path"], request["member"]):
            data = b""
        status, body = _answer(request, data, cache, careful=limits["careful"])
        answers.write(status + len(body).to_bytes(8, "little"))
        answers.write(body)
        answers.flush()


def _limit(memory: int) -> None:
    """Bound memory and processor time, and leave no core dump: it would hold the patient's pixels."""
    try:
        import resource
    except ImportError:  # Windows: the parent's clock is the only limit
        return
    for kind, wanted in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_AS, memory)):
        _, most = resource.getrlimit(kind)
        limit = wanted if most == resource.RLIM_INFINITY else min(wanted, most)
        with contextlib.suppress(ValueError, OSError):  # where the system has no such limit
            resource.setrlimit(kind, (limit, limit))
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()


def _end_with_parent(parent: int) -> None:
    """End this process when the one that started it is gone, even while a decoder never returns."""
    import time

    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _answer(
    request: dict[str, Any], data: bytes, cache: dict[str, Any], *, careful: bool
) -> tuple[bytes, memoryview | bytes]:
    import numpy as np

    pixels = np.empty(request["shape"], request["dtype"])
    failures = []
    only_pydicom = careful or request["syntax"] == _RLE or request["syntax"].startswith(_HTJ2K)
    for decode in (_by_pydicom,) if only_pydicom else (_by_dicomsdl, _by_pydicom):
        try:
            decode(request, data, cache, pixels)
        except ImportError:
            continue
        except Exception as error:  # noqa: BLE001 - whatever a decoder raises, the parent refuses the series
            failures.append(type(error).__name__)
        else:
            return b"+", pixels.reshape(-1).view(np.uint8).data
    return (b"-", ", ".join(failures).encode()) if failures else (b"?", b"")


def _by_dicomsdl(request: dict[str, Any], data: bytes, cache: dict[str, Any], pixels: Any) -> None:
    """Decode one frame by dicomsdl, which is fast; not RLE and HTJ2K."""
    import dicomsdl

    key = f"dicomsdl {request['path']} {request['member']}"
    if key not in cache:
        cache.clear()
        dicomsdl.set_loglevel(dicomsdl.LogLevel.ERROR)
        cache[key] = dicomsdl.open_memory(data) if data else dicomsdl.open_file(request["path"])
    info = cache[key].getPixelDataInfo()
    declared = (info["Rows"], info["Cols"], info["SamplesPerPixel"], info["BytesAllocated"])
    rows, columns, samples = (*pixels.shape, 1)[:3]
    if declared != (rows, columns, samples, pixels.itemsize) or request["frame"] >= info["NumberOfFrames"]:
        raise ValueError("the object is not what its header says")
    cache[key].copyFrameData(request["frame"], pixels)


def _by_pydicom(request: dict[str, Any], data: bytes, cache: dict[str, Any], pixels: Any) -> None:
    """Decode one frame by whatever decoders pydicom finds installed."""
    import numpy as np
    from pydicom import dcmread
    from pydicom.pixels.decoders.base import get_decoder

    key = f"pydicom {request['path']} {request['member']}"
    if key not in cache:
        cache.clear()
        source: str | BinaryIO = io.BytesIO(data) if data else request["path"]
        cache[key] = dcmread(source, force=True)
    decoder = get_decoder(request["syntax"])
    if not decoder.is_available:
        raise ImportError("no decoder")
    frame, _ = decoder.as_array(cache[key], index=request["frame"], raw=True)
    np.copyto(pixels, frame, casting="same_kind" if frame.dtype.itemsize == pixels.itemsize else "safe")


if __name__ == "__main__":
    main()
