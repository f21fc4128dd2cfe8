"""What a request brings: parts of a form, or a bare body, put into a private folder as they come and counted."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from python_multipart import MultipartParser
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import parse_options_header
from starlette.requests import Request

from medseg.io import SUFFIXES
from medseg.server.answers import Rejected
from medseg.server.settings import Limits
from medseg.server.spool import bytes_in, new_folder, remove

_FIELD = 1 << 20  # bytes of all parts that are no files
_FIELDS = 64
_BOUNDARY = 200  # bytes; RFC 2046 allows 70
_HEADER = 8 << 10  # bytes of the headers of a part
_LOOK = 64 << 20  # bytes after which is looked whether there still is room
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT}


@dataclass
class Sent:
    """What came with a request.

    Parameters
    ----------
    folder : Path
        Where the files lie; whoever has it removes it.
    files : dict
        By name of the part; a folder where there were several of one name.
    fields : dict
        The other parts, as text.
    """

    folder: Path
    files: dict[str, Path] = field(default_factory=dict)
    fields: dict[str, str] = field(default_factory=dict)


async def receive(request: Request, parent: Path, limits: Limits) -> Sent:
    """Take in the body of a request: `multipart/form-data`, or the bytes of one file.

    Raises
    ------
    Rejected
        If it is too large, damaged, or has too many parts; nothing of it is left.
    """
    chunks = _counted(request.stream(), parent, limits.spool)
    sent = Sent(new_folder(parent))
    try:
        kind, options = parse_options_header(request.headers.get("content-type", ""))
        with ExitStack() as files:
            if kind == b"multipart/form-data":
                await _Form(sent, files, limits, options.get(b"boundary", b"")).take(chunks)
            else:
                await _bare(chunks, sent, files)
    except OSError as error:
        remove(sent.folder)
        if error.errno in _NO_ROOM:
            raise _full() from None
        raise
    except BaseException:
        remove(sent.folder)
        raise
    return sent


async def _counted(chunks: AsyncIterator[bytes], folder: Path, most: int) -> AsyncIterator[bytes]:
    """Pass on what comes, as long as the folder for uploads has room."""
    unseen = _LOOK
    async for chunk in chunks:
        unseen += len(chunk)
        if unseen > _LOOK:
            unseen = 0
            if await asyncio.to_thread(bytes_in, folder) > most:
                raise _full()
        yield chunk


def _full() -> Rejected:
    return Rejected(429, "BUSY", "there is no room for more scans", "try again later", headers={"retry-after": "60"})


async def _bare(chunks: AsyncIterator[bytes], sent: Sent, files: ExitStack) -> None:
    """Keep a body that is one file."""
    path = sent.folder / "scan"
    file = _new(path, files)
    async for chunk in chunks:
        await asyncio.to_thread(file.write, chunk)
    if file.tell():
        sent.files["file"] = path


class _Form:
    """A form as it comes in, part after part."""

    def __init__(self, sent: Sent, files: ExitStack, limits: Limits, boundary: bytes) -> None:
        if not 0 < len(boundary) <= _BOUNDARY:
            raise Rejected(400, "FORM", "the form has no boundary", "send it as multipart/form-data")
        self._sent, self._files, self._limits = sent, files, limits
        self._header: list[bytearray] = []
        self._headers: dict[bytes, bytes] = {}
        self._name, self._text, self._said = "", bytearray(), 0
        self._into: BinaryIO | None = None
        self._count, self._ended, self._head = 0, False, 0
        self._pending: list[tuple[BinaryIO, bytes]] = []
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": self._on_field,
                "on_header_value": self._on_value,
                "on_header_end": self._on_header,
                "on_headers_finished": self._on_headers,
                "on_part_data": self._on_data,
                "on_part_end": self._end,
                "on_end": self._finish,
            },
        )

    async def take(self, chunks: AsyncIterator[bytes]) -> None:
        """Read it to its end."""
        try:
            async for chunk in chunks:
                self._parser.write(chunk)
                if self._pending:
                    pending, self._pending = self._pending, []
                    await asyncio.to_thread(_write, pending)
        except MultipartParseError:
            raise Rejected(400, "FORM", "the form is damaged", "send it as multipart/form-data") from None
        if not self._ended:
            raise Rejected(400, "FORM", "the form is cut off", "send it again")

    def _begin(self) -> None:
        self._headers, self._text, self._into, self._head = {}, bytearray(), None, 0
        self._header = [bytearray(), bytearray()]
        self._count += 1
        if self._count > self._limits.files + _FIELDS:
            raise Rejected(413, "FORM", "the form has too many parts", f"at most {self._limits.files} files are taken")

    def _on_field(self, data: bytes, start: int, end: int) -> None:
        self._take_header(0, data[start:end])

    def _on_value(self, data: bytes, start: int, end: int) -> None:
        self._take_header(1, data[start:end])

    def _take_header(self, which: int, data: bytes) -> None:
        self._header[which] += data
        self._head += len(data)
        _check_length(self._head, _HEADER)

    def _on_header(self) -> None:
        self._headers[bytes(self._header[0]).lower()] = bytes(self._header[1])
        self._header = [bytearray(), bytearray()]

    def _on_headers(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if not name or len(name) > 100:
            raise Rejected(400, "FORM", "a part of the form has no name", "name it 'file'")
        self._name = name
        if b"filename" in options or b"filename*" in options:
            given = options.get(b"filename", b"").decode("utf-8", "replace")
            self._into = _new(self._place(name, given), self._files)

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        if self._into is None:
            self._text += data[start:end]
            self._said += end - start
            _check_length(self._said, _FIELD)
        else:
            self._pending.append((self._into, bytes(data[start:end])))

    def _end(self) -> None:
        if self._into is None:
            if len(self._sent.fields) >= _FIELDS:
                raise Rejected(413, "FORM", "the form has too many fields", f"at most {_FIELDS} are taken")
            self._sent.fields[self._name] = self._text.decode("utf-8", "replace")
            return
        into, self._into = self._into, None
        pending, self._pending = self._pending, []
        _write(pending)
        into.close()

    def _finish(self) -> None:
        self._ended = True

    def _place(self, name: str, given: str) -> Path:
        """Return where to put a file: under a number, never under a name that was sent."""
        before = self._sent.files.get(name)
        if before is None:
            path = self._sent.folder / f"{self._count}{_suffix(given)}"
            self._sent.files[name] = path
            return path
        if before.is_file():  # there are several: a DICOM series, slice by slice
            folder = self._sent.folder / f"{self._count}-series"
            folder.mkdir(mode=0o700)
            before.rename(folder / "0")
            self._sent.files[name] = before = folder
        return before / str(self._count)


def _check_length(length: int, most: int) -> None:
    if length > most:
        raise Rejected(413, "FORM", "a part of the form is too long", "send scans as files")


def _write(pending: list[tuple[BinaryIO, bytes]]) -> None:
    for file, data in pending:
        file.write(data)


def _new(path: Path, files: ExitStack) -> BinaryIO:
    return files.enter_context(open(path, "xb", opener=_private))


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _suffix(name: str) -> str:
    """Return the suffix of a name that was sent, if it is one that says what a scan is."""
    return next((suffix for suffix in sorted(SUFFIXES, key=len, reverse=True) if name.lower().endswith(suffix)), "")
