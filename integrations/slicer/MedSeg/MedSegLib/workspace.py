"""A folder for the files of one run, that nobody else may look into and that does not stay."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path

from .environment import alive

_PREFIX = "medseg-slicer-"


def new_workspace(parent: Path | None = None) -> Path:
    """Return a new folder of mode 0700, and remove those of processes that are no more."""
    parent = parent or Path(tempfile.gettempdir())
    sweep(parent, _PREFIX)
    return Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=parent))


def remove(folder: Path) -> None:
    """Remove a folder with all that is in it."""
    shutil.rmtree(folder, ignore_errors=True)  # what another program holds open goes with a later sweep


def sweep(parent: Path, prefix: str, *, keep: tuple[str, ...] = ()) -> None:
    """Remove the folders `<prefix><process>-...` whose process does not run any more."""
    for folder in parent.glob(f"{prefix}*"):
        owner = re.match(re.escape(prefix) + r"(\d{1,9})-", folder.name)
        if owner and folder.name not in keep and not folder.is_symlink() and not alive(int(owner[1])):
            remove(folder)
