"""The objects of one series as they arrive: written under numbers of ours, counted, and all there or none."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from medseg.atomic import Buffer
from medseg.dicom.elements import read_elements
from medseg.dicom.pacs.query import Remote
from medseg.dicom.parts import Damaged, Part, is_dicom
from medseg.errors import MedsegError, OutputError, PacsError, UsageError

_HEAD = 144  # bytes that tell a DICOM file
_INSTANCE, _SERIES = 0x00080018, 0x0020000E
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)  # the last for Windows


class Landing:
    """A folder into which one series arrives. When the `with` block raises, nothing of it stays there.

    Parameters
    ----------
    folder : Path
        Empty, or not there yet.
    remote : Remote
        What was asked for.
    """

    def __init__(self, folder: Path, remote: Remote) -> None:
        self._folder, self._remote = folder, remote
        self._lock = threading.Lock()
        self._written: list[Path] = []
        self._instances: set[str] = set()
        self._strangers = 0
        self.trouble: MedsegError | None = None  # why an object could not be kept, the first time

    def take(self, chunks: Iterable[Buffer]) -> bool:
        """Write one object; return whether it is of the series.

        What is of another series is not kept. What is damaged is, as one object: telling why is for who reads it.

        Raises
        ------
        PacsError
            If it is no DICOM.
        OutputError
            If it cannot be written.
        """
        with self._lock:
            path = self._folder / f"{len(self._written):06d}.dcm"
            self._written.append(path)
        try:
            self._write(path, chunks)
            return self._keep(path)
        except MedsegError as error:
            self.trouble = self.trouble or error
            raise

    def finish(self) -> int:
        """Return how many objects have arrived.

        Raises
        ------
        PacsError
            If they are fewer than were announced, or none.
        OutputError
            If one of them could not be written.
        """
        if self.trouble:
            raise self.trouble
        wanted = max(self._remote.images or 1, 1)
        if len(self._instances) < wanted:
            others = f" and {self._strangers} of other series" if self._strangers else ""
            raise PacsError(
                f"{len(self._instances)} of {wanted} objects of a series arrived{others}",
                hint="try again; if it stays so, look whether the PACS still has them all",
            )
        return len(self._instances)

    def __enter__(self) -> Self:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if next(self._folder.iterdir(), None) is not None:
                raise UsageError("the folder for a series from the PACS is not empty", hint="give a new one")
        except OSError as error:
            raise _unwritable(error) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            for path in self._written:
                path.unlink(missing_ok=True)

    def _write(self, path: Path, chunks: Iterable[Buffer]) -> None:
        try:
            with os.fdopen(os.open(path, _NEW, 0o600), "wb", buffering=0) as file:
                for chunk in chunks:
                    rest = memoryview(chunk)
                    while rest:
                        rest = rest[file.write(rest) :]
        except MedsegError:
            raise
        except OSError as error:
            raise _unwritable(error) from None

    def _keep(self, path: Path) -> bool:
        with open(path, "rb", buffering=0) as file:
            if not is_dicom(file.read(_HEAD)):
                raise PacsError("the PACS sent something that is no DICOM object", hint="try again, or look at its log")
        try:
            elements = read_elements(Part(path))
            series, instance = elements.text(_SERIES), elements.text(_INSTANCE)
        except Damaged:
            series, instance = self._remote.series, path.name
        with self._lock:
            own = series == self._remote.series
            self._strangers += not own
            if not own or instance in self._instances:
                path.unlink()
            else:
                self._instances.add(instance)
        return own


def _unwritable(error: OSError) -> OutputError:
    reason = error.strerror or type(error).__name__
    return OutputError(
        f"an object from the PACS cannot be written: {reason}", hint="free space, or choose another folder"
    )
