"""Bytes in and out of plain and compressed files: to the last checksum, and never more than asked for.

Reading fills a buffer that the caller has allocated. Writing compresses blocks in two threads into one gzip
member (so that every reader, browsers too, sees all of it) without time or name: same input, same bytes.
"""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from io import RawIOBase
from typing import Any, BinaryIO, Literal

from isal import igzip, isal_zlib

from medseg.gate import HINT_COPY, MAX_TRAILING, Gate, readable

GZIP_MAGIC = b"\x1f\x8b"
Compression = Literal["", "gzip", "zlib"]

_CHUNK = 1 << 22
_LEVEL = 2  # of isal: within 1 % of level 3 in size, faster
_THREADS = 2


class Stream:
    """A file to be read front to back, decompressed where needed, with every fault refused by the gate.

    Parameters
    ----------
    file : binary file
        Open at the first byte to read.
    gate : Gate
        Refuses truncation and damage.
    compression : '', 'gzip' or 'zlib'
        How the rest of the file is stored.
    """

    def __init__(self, file: BinaryIO, gate: Gate, *, compression: Compression) -> None:
        self._gate = gate
        self._compressed = bool(compression)
        self._file: Any = _OPENERS[compression](file)
        self._stored = os.fstat(file.fileno()).st_size

    def check_size(self, count: int) -> None:
        """Refuse before allocation a count of decompressed bytes that the file cannot hold."""
        self._gate.size(count, self._stored, compressed=self._compressed)

    def read(self, count: int) -> bytes:
        """Return up to `count` bytes; fewer at the end of the file."""
        buffer = bytearray(count)
        return bytes(buffer[: self._fill(memoryview(buffer))])

    def fill(self, target: memoryview) -> None:
        """Fill `target` to its end, or refuse the file as cut off."""
        got = self._fill(target)
        if got < len(target):
            self._gate.refuse(
                "TRUNCATED", f"ends after {readable(got)} of {readable(len(target))} of voxels", HINT_COPY
            )

    def skip(self, count: int) -> None:
        """Pass over `count` bytes, or refuse the file as cut off."""
        buffer = memoryview(bytearray(min(count, _CHUNK)))
        while count:
            part = buffer[: min(count, _CHUNK)]
            self.fill(part)
            count -= len(part)

    def finish(self) -> None:
        """Read on to the end, so that length and checksum are verified; warn of what followed the voxels."""
        trailing = 0 if self._compressed else self._stored - self._file.tell()
        buffer = memoryview(bytearray(_CHUNK if self._compressed else 0))
        while got := self._fill(buffer):
            trailing += got
            if trailing > MAX_TRAILING:
                self._gate.refuse(
                    "TRAILING_DATA",
                    f"goes on for more than {readable(MAX_TRAILING)} after its voxels",
                    "the header does not describe this file; export the scan again from its source",
                )
        if trailing:
            self._gate.warn(f"{trailing} bytes follow the voxels; they are ignored")

    def _fill(self, target: memoryview) -> int:
        position = 0
        try:
            while position < len(target):
                got = self._file.readinto(target[position : position + _CHUNK])
                if not got:
                    break
                position += got
        except EOFError:
            self._gate.refuse("TRUNCATED", "its compressed stream ends early", HINT_COPY)
        except (_ISAL_ERROR, zlib.error, gzip.BadGzipFile) as error:
            self._gate.refuse("CHECKSUM", f"its compressed stream is damaged ({error})", HINT_COPY)
        return position


class _ZlibFile(RawIOBase):
    """A zlib stream as a file: every byte asked for, and the checksum at its end."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._inflate = zlib.decompressobj()

    def readinto(self, target: Any) -> int:
        while not self._inflate.eof:
            more = self._inflate.unconsumed_tail or self._file.read(1 << 20)
            if data := self._inflate.decompress(more, len(target)):
                target[: len(data)] = data
                return len(data)
            if not more:
                raise EOFError
        return 0


_ISAL_ERROR: Any = isal_zlib.error
_OPENERS: dict[Compression, Callable[[BinaryIO], Any]] = {
    "": lambda file: file,
    "gzip": lambda file: igzip.GzipFile(fileobj=file),
    "zlib": _ZlibFile,
}


def compress(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield one gzip member that holds all `chunks`; each is compressed on its own, two at a time."""
    yield b"\x1f\x8b\x08\0\0\0\0\0\0\xff"  # deflate, no name, no time, unknown system
    length = checksum = 0

    def counted() -> Iterator[bytes]:
        nonlocal length, checksum
        for chunk in chunks:
            length += len(chunk)
            checksum = isal_zlib.crc32(chunk, checksum)
            yield chunk

    yield from _deflated(counted())
    yield struct.pack("<II", checksum, length & 0xFFFFFFFF)


def zlib_compress(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield one zlib stream that holds all `chunks`."""
    yield b"\x78\x5e"
    checksum = 1

    def summed() -> Iterator[bytes]:
        nonlocal checksum
        for chunk in chunks:
            checksum = isal_zlib.adler32(chunk, checksum)
            yield chunk

    yield from _deflated(summed())
    yield struct.pack(">I", checksum)


def _deflated(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield a raw deflate stream, in blocks that do not refer to each other."""
    pending: deque[Future[bytes]] = deque()
    with ThreadPoolExecutor(_THREADS) as pool:
        for chunk in chunks:
            pending.append(pool.submit(_deflate, chunk))
            if len(pending) > _THREADS:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    yield b"\x03\0"  # an empty last block


def _deflate(chunk: bytes) -> bytes:
    deflate = isal_zlib.compressobj(_LEVEL, isal_zlib.DEFLATED, -15)
    body: bytes = deflate.compress(chunk) + deflate.flush(isal_zlib.Z_FULL_FLUSH)
    return body
