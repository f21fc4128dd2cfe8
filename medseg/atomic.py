"""Files that become visible whole, together, or not at all.

Each file is written beside its final place under a hidden name without a volume suffix, readable by its owner
alone, flushed to the disk and read back. Only when every file of the set has come that far are they renamed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from medseg.errors import OutputError

Buffer = bytes | bytearray | memoryview

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)  # the last for Windows


@dataclass
class Outputs:
    """A set of files that appear together when the `with` block ends, or not at all when it raises.

    Examples
    --------
    >>> with Outputs() as outputs:  # doctest: +SKIP
    ...     outputs.write(Path("a.json"), [b"{}"])
    ...     outputs.write(Path("b.json"), [b"{}"])
    """

    digests: dict[Path, str] = field(default_factory=dict)  # sha256 of what was written
    _parts: dict[Path, Path] = field(default_factory=dict)

    def write(self, path: Path, chunks: Iterable[Buffer]) -> None:
        """Write `chunks` to a hidden file beside `path`, flush it and read it back.

        Raises
        ------
        OutputError
            If the disk is full, the folder is missing or read-only, or the disk returns other bytes.
        """
        if path in self._parts:
            raise OutputError(f"{path}: two results with one name", hint="give the inputs different names")
        if path.is_dir():
            raise OutputError(f"{path}: is a folder", hint="remove it, or choose another place with -o")
        part = path.parent / f".medseg-{secrets.token_hex(8)}.part"
        with _as_output_error(path):
            handle = os.open(part, _NEW, 0o600)
            self._parts[path] = part
            digest = hashlib.sha256()
            with os.fdopen(handle, "wb") as file:
                for chunk in chunks:
                    digest.update(chunk)
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            self.digests[path] = digest.hexdigest()
            if digest_of(part) != self.digests[path]:
                raise OutputError(f"{path}: the disk returned other bytes than were written", hint="check the disk")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._commit()
        finally:
            for part in self._parts.values():
                part.unlink(missing_ok=True)

    def _commit(self) -> None:
        done: list[Path] = []
        try:
            for path, part in self._parts.items():
                with _as_output_error(path):
                    part.chmod(0o666 & ~_UMASK)
                    part.replace(path)
                done.append(path)
        except OutputError:
            for path in done:
                path.unlink(missing_ok=True)
            raise
        for folder in {path.parent for path in self._parts}:
            _flush_folder(folder)


def write_atomic(path: Path, chunks: Iterable[Buffer]) -> None:
    """Write one file: whole and flushed to the disk, or not at all.

    Raises
    ------
    OutputError
        If it cannot be written; nothing is left behind.
    """
    with Outputs() as outputs:
        outputs.write(path, chunks)


def check_writable(folder: Path) -> None:
    """Create `folder` if needed, and prove that a file can be made in it.

    Raises
    ------
    OutputError
        If not; the reason is the system's own.
    """
    probe = folder / f".medseg-{secrets.token_hex(8)}.part"
    with _as_output_error(folder):
        folder.mkdir(parents=True, exist_ok=True)
        os.close(os.open(probe, _NEW, 0o600))
        probe.unlink()


@contextlib.contextmanager
def _as_output_error(path: Path) -> Iterator[None]:
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise OutputError(
            f"{path}: cannot be written: {reason}", hint="free space, or choose another place with -o"
        ) from error


def sweep(folder: Path, *, older: float = 0.0) -> None:
    """Remove what a killed process left half-written in a folder.

    Parameters
    ----------
    folder : Path
        Where nobody else is writing, unless `older` keeps what that one writes.
    older : float
        Seconds; what is younger stays.
    """
    for part in folder.glob(".medseg-*.part"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - part.stat().st_mtime >= older:
                part.unlink()


def digest_of(path: Path) -> str:
    """Return the sha256 of a file."""
    with open(path, "rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush_folder(folder: Path) -> None:
    if os.name == "nt":  # Windows cannot open a folder, and flushes renames itself
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _read_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


_UMASK = _read_umask()  # once, at import: asking for it means setting it for a moment
