"""Models by name: those shipped with medseg, and those in a store on this computer.

The store is a folder of `.safetensors` files: the user's own, or the one that `MEDSEG_ZOO` names.
"""

from __future__ import annotations

import os
import re
from importlib import resources
from pathlib import Path

import platformdirs

from medseg.atomic import check_writable, write_atomic
from medseg.bundle import Bundle
from medseg.errors import BundleError

DEFAULT = "hippocampus-t1"
_SUFFIX = ".safetensors"


def store() -> Path:
    """Return the folder in which `add` keeps models."""
    named = os.environ.get("MEDSEG_ZOO")
    return Path(named) if named else platformdirs.user_data_path("medseg") / "models"


def models() -> dict[str, Path]:
    """Return the file of every model by name; one in the store hides a shipped one of the same name."""
    shipped = Path(str(resources.files("medseg") / "models"))
    return {
        path.name.removesuffix(_SUFFIX): path
        for folder in (shipped, store())
        for path in sorted(folder.glob(f"*{_SUFFIX}"))
    }


def find(model: str | Path) -> Path:
    """Return the file of a model given by name or by path.

    Raises
    ------
    BundleError
        If there is no such model.
    """
    known = models()
    if str(model) in known:
        return known[str(model)]
    path = Path(model)
    if path.exists() or re.search(r"[/\\]|\.safetensors$", str(model)):
        return path
    raise BundleError(f"there is no model {str(model)!r}", hint=f"give a file, or one of: {', '.join(known)}")


def add(path: Path) -> str:
    """Check a model file and copy it into the store under its own name; return the name.

    Raises
    ------
    BundleError
        If the file is not a sound model.
    OutputError
        If the store cannot be written.
    """
    name = Bundle.load(path).card.name
    folder = store()
    check_writable(folder)
    write_atomic(folder / f"{name}{_SUFFIX}", [path.read_bytes()])
    return name
