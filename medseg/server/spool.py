"""The folder for what is kept for a while: readable by this user alone, and gone when the server is."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import platformdirs

from medseg.atomic import check_writable
from medseg.errors import UsageError
from medseg.locks import locked

_LOCK = ".lock"
_PREFIX = "server-"


@contextmanager
def spool(parent: Path | None = None) -> Iterator[Path]:
    """Give a new folder, and remove it with all that is in it; those of servers that were killed go first.

    Parameters
    ----------
    parent : Path, optional
        Where to make it; in the user's cache when left out.

    Raises
    ------
    OutputError
        If nothing can be written there.
    """
    parent = parent or platformdirs.user_cache_path("medseg") / "serve"
    check_writable(parent)
    with ExitStack() as held:
        with locked(parent / _LOCK, wait=True):  # or a server that starts now would be taken for one that was killed
            for left in parent.glob(f"{_PREFIX}*"):
                _remove_if_left(left)
            folder = parent / f"{_PREFIX}{os.getpid()}-{secrets.token_hex(8)}"
            folder.mkdir(mode=0o700)
            held.enter_context(locked(folder / _LOCK))
        try:
            yield folder
        finally:
            remove(folder)


def new_folder(parent: Path) -> Path:
    """Return a new folder with a name that nobody can guess."""
    folder = parent / secrets.token_urlsafe(16)
    folder.mkdir(mode=0o700)
    return folder


def remove(folder: Path) -> None:
    """Remove a folder and all in it, if it is there."""
    shutil.rmtree(folder, ignore_errors=True)


def bytes_in(folder: Path) -> int:
    """Return the bytes of all files in a folder."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                total += os.stat(os.path.join(place, name)).st_size  # noqa: PTH116, PTH118 - one call a file
    return total


def _remove_if_left(folder: Path) -> None:
    if folder.is_symlink() or not folder.is_dir():
        return
    with suppress(UsageError, FileNotFoundError), locked(folder / _LOCK):
        remove(folder)
