"""Where DICOM objects lie: files in a folder of any depth, or members of a zip archive; told by content alone.

Paths inside a DICOMDIR are never followed: every file is found by walking, and looked into.
"""

from __future__ import annotations

import lzma
import os
import stat
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Protocol, Self

from medseg.gate import HINT_COPY, Gate, free_memory, readable

_VRS = frozenset(
    b"AE AS AT CS DA DS DT FD FL IS LO LT OB OD OF OL OV OW PN SH SL SQ SS ST SV TM UC UI UL UN UR US UT UV".split()
)
_HEAD = 144  # bytes that tell a DICOM file
_SHORT = "short"
_MAX_MEMBERS = 1_000_000
_ENCRYPTED = 99  # compression method of members packed with AES
_DAMAGE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, NotImplementedError)
LOST = (  # kinds of what may have been a slice
    "links that lead nowhere",
    "files that cannot be read",
    "folders that cannot be read",
    "empty files",
    "files cut short",
)


class Damaged(ValueError):
    """A DICOM object that cannot be read; the text says how, without any value from it."""


class Stream(Protocol):
    """What is needed of a file of bytes."""

    def __enter__(self) -> Self:
        """Return the stream."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        """Close it."""

    def seek(self, position: int, /) -> int:
        """Go to a position from the start."""

    def read(self, count: int = -1, /) -> bytes:
        """Return the next bytes."""

    def readinto(self, place: memoryview, /) -> int:
        """Fill a place with the next bytes; return how many there were."""


class _Member:
    """A member of a zip archive as a stream: whatever is wrong with the archive is `Damaged`."""

    def __init__(self, archive: zipfile.ZipFile, member: str) -> None:
        try:
            self._file = archive.open(member)
        except _DAMAGE:
            raise _broken() from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def seek(self, position: int) -> int:
        try:
            return self._file.seek(position)
        except _DAMAGE:
            raise _broken() from None

    def read(self, count: int = -1) -> bytes:
        try:
            return self._file.read(count)
        except _DAMAGE:
            raise _broken() from None

    def readinto(self, place: memoryview) -> int:
        content = self.read(len(place))
        place[: len(content)] = content
        return len(content)


def _broken() -> Damaged:
    return Damaged("its place in the archive is damaged")


@dataclass(frozen=True, slots=True)
class Part:
    """One DICOM object: a file, or a member of a zip archive that stays open as long as its parts are used."""

    path: Path
    member: str = ""
    archive: zipfile.ZipFile | None = field(default=None, compare=False)

    def open(self) -> Stream:
        """Return the object as a seekable stream of bytes.

        Raises
        ------
        Damaged
            If the archive that holds it is; reading from the stream may raise it too.
        """
        if self.archive is None:
            return open(self.path, "rb", buffering=0)
        return _Member(self.archive, self.member)

    def size(self) -> int:
        """Return its length in bytes; for a member of an archive, what the archive says."""
        return self.path.stat().st_size if self.archive is None else self.archive.getinfo(self.member).file_size


@dataclass
class Found:
    """What a folder, file or archive holds: DICOM objects, and how many other things were passed over, by kind."""

    parts: list[Part] = field(default_factory=list)
    passed: Counter[str] = field(default_factory=Counter)


def find(path: Path) -> Found:
    """Return every DICOM object in a folder (at any depth), a zip archive or a file.

    Links are followed once; loops of them, pipes, devices, unreadable files and files of other kinds are counted.

    Raises
    ------
    ScanError
        If the path does not exist, or is an archive that is damaged, encrypted or lies about its size.
    """
    if path.is_dir():
        return _in_folder(path)
    if path.is_file() and not _file_is_dicom(path) and zipfile.is_zipfile(path):
        return _in_archive(path)
    if not path.is_file():
        Gate(path).refuse("NOT_A_FILE", "is no file or folder", "check the name")
    return Found([Part(path)])


def holds_dicom(path: Path) -> bool:
    """Return whether a path is a DICOM file, or a folder or zip archive with at least one in it."""
    if path.is_dir():
        return any(not kind for _, kind in _walk(path))
    if not path.is_file():
        return False
    if _file_is_dicom(path):
        return True
    if not zipfile.is_zipfile(path):
        return False
    try:
        return bool(_in_archive(path, only_first=True).parts)
    except ValueError:
        return True  # a damaged archive is for `find` to refuse


def is_dicom(head: bytes) -> bool:
    """Return whether a file that begins so is DICOM: with the preamble, or with a first element without it."""
    if head[128:132] == b"DICM":
        return True
    if len(head) < 8 or head[1:2] != b"\0" or head[0] not in (2, 8) or head[3:4] != b"\0":
        return False
    length = int.from_bytes(head[4:8], "little")
    return head[4:6] in _VRS or (head[0] == 8 and head[2] in (0, 1, 5, 8, 0x16) and length < 256)


def _in_folder(folder: Path) -> Found:
    found = Found()
    short = []
    for path, kind in _walk(folder):
        if not kind:
            found.parts.append(Part(path))
        elif kind == _SHORT:
            short.append(path.suffix)
        else:
            found.passed[kind] += 1
    found.parts.sort(key=lambda part: str(part.path))
    like = {part.path.suffix for part in found.parts}
    for suffix in short:  # named as the DICOM files are: one of them was cut
        found.passed["files cut short" if suffix in like else "files of other kinds"] += 1
    return found


def _walk(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield (path, kind) of everything under a folder; kind is empty for DICOM objects."""
    waiting, visited = [folder], {_identity(folder.stat())}
    while waiting:
        current = waiting.pop()
        try:
            entries = sorted(os.scandir(current), key=lambda entry: entry.name)
        except OSError:
            yield current, "folders that cannot be read"
            continue
        for entry in entries:
            path = Path(entry.path)
            try:
                status = path.stat()  # entry.stat() knows no device and no number on Windows
            except OSError:
                yield path, "links that lead nowhere" if entry.is_symlink() else "files that cannot be read"
                continue
            if stat.S_ISDIR(status.st_mode):
                if _identity(status) in visited:
                    yield path, "folders met twice through links"
                else:
                    visited.add(_identity(status))
                    waiting.append(path)
            else:
                yield path, _kind_of(path, status)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _kind_of(path: Path, status: os.stat_result) -> str:
    if not stat.S_ISREG(status.st_mode):
        return "pipes, sockets and devices"
    if not status.st_size:
        return "empty files"
    try:
        found = _file_is_dicom(path)
    except OSError:
        return "files that cannot be read"
    return "" if found else _SHORT if status.st_size < 132 else "files of other kinds"


def _file_is_dicom(path: Path) -> bool:
    with open(path, "rb", buffering=0) as file:
        return is_dicom(file.read(_HEAD))


def _in_archive(path: Path, *, only_first: bool = False) -> Found:
    gate = Gate(path)
    try:
        archive = zipfile.ZipFile(path)
        members = archive.infolist()
    except (*_DAMAGE, ValueError):
        _refuse_archive(gate, "is a damaged zip archive")
    if len({member.filename for member in members}) < len(members):
        gate.refuse("ARCHIVE", "holds two files of one name", "unpack it and look which is right")
    if len(members) > _MAX_MEMBERS:
        gate.refuse("ARCHIVE", f"holds {len(members)} files", f"give an archive of at most {_MAX_MEMBERS}")
    found = Found()
    for member in members:
        if member.is_dir():
            continue
        if member.flag_bits & 1 or member.compress_type == _ENCRYPTED:
            gate.refuse("ARCHIVE", "is encrypted", "unpack it and give the folder")
        if member.file_size > free_memory():
            gate.refuse(
                "MEMORY", f"holds a file of {readable(member.file_size)}", "unpack it on a larger machine and look"
            )
        kind = _kind_in(archive, member, gate)
        if kind:
            found.passed[kind] += 1
        else:
            found.parts.append(Part(path, member.filename, archive))
            if only_first:
                break
    return found


def _kind_in(archive: zipfile.ZipFile, member: zipfile.ZipInfo, gate: Gate) -> str:
    """Return the kind of a member; empty for DICOM objects."""
    try:
        with archive.open(member) as file:
            return "" if is_dicom(file.read(_HEAD)) else "files of other kinds"
    except (*_DAMAGE, ValueError, OSError):
        _refuse_archive(gate, "is a damaged zip archive, or packed by an unknown method")


def _refuse_archive(gate: Gate, problem: str) -> NoReturn:
    gate.refuse("ARCHIVE", problem, HINT_COPY)
