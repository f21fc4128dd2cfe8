"""Locks on files: held until the block ends or the process is gone, however it goes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medseg.errors import UsageError


@contextmanager
def locked(path: Path, *, shared: bool = False, wait: bool = False) -> Iterator[None]:
    """Hold a file against other processes.

    Parameters
    ----------
    path : Path
        Made if it is not there.
    shared : bool
        Others may hold it too, if they share it.
    wait : bool
        Wait for those who hold it.

    Raises
    ------
    UsageError
        If another process holds it, and nobody waits.
    """
    with open(path, "ab") as file:
        try:
            _lock(file.fileno(), shared=shared, wait=wait)
        except OSError:
            raise UsageError(
                f"{path.parent}: another run is at work here", hint="wait for it, or choose another -o"
            ) from None
        yield


def _lock(handle: int, *, shared: bool, wait: bool) -> None:
    if os.name == "nt":
        import msvcrt

        if not shared:  # Windows knows no shared lock: there, only runs of the same member are kept apart
            mode = msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK  # type: ignore[attr-defined,unused-ignore]
            msvcrt.locking(handle, mode, 1)  # type: ignore[attr-defined,unused-ignore]
        return
    import fcntl

    fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
