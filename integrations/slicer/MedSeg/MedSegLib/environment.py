"""The environment of a program that is no part of Slicer."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

_OF_SLICER = {  # Slicer's own Python, libraries and plug-ins, which another program must not load
    "ITK_AUTOLOAD_PATH",
    "LD_LIBRARY_PATH",
    "LD_PRELOAD",
    "PYTHONHOME",
    "PYTHONPATH",
    "PYTHONSTARTUP",
    "QML2_IMPORT_PATH",
    "QT_PLUGIN_PATH",
    "VIRTUAL_ENV",
    "__PYVENV_LAUNCHER__",
}
_CERTIFICATES = {"REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"}  # a hospital may need its own; Slicer's is of no use outside


def cleaned(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without what Slicer has set for itself, and with UTF-8 in all that is written.

    Parameters
    ----------
    environment : mapping
        That of this process, or better `slicer.util.startupEnvironment()`.
    """
    home = environment.get("SLICER_HOME", "")
    kept = {}
    for name, value in environment.items():
        upper = name.upper()
        if upper in _OF_SLICER or upper.startswith("DYLD_"):
            continue
        if upper in _CERTIFICATES and _is_slicers(value, home):
            continue
        kept[name] = _outside(value, home) if upper == "PATH" else value
    kept.update(PYTHONUTF8="1", PYTHONNOUSERSITE="1", PYTHONUNBUFFERED="1")
    return kept


def data_folder(environment: Mapping[str, str], *, platform: str = sys.platform) -> Path:
    """Return the folder of the user in which the environment of medseg is kept."""
    home = Path(environment.get("USERPROFILE" if platform == "win32" else "HOME", "") or Path.home())
    if platform == "win32":
        return Path(environment.get("LOCALAPPDATA") or home / "AppData" / "Local") / "medseg" / "slicer"
    if platform == "darwin":
        return home / "Library" / "Application Support" / "medseg" / "slicer"
    return Path(environment.get("XDG_DATA_HOME") or home / ".local" / "share") / "medseg" / "slicer"


def alive(pid: int) -> bool:
    """Say whether a process of this computer runs (or has the number of one that did)."""
    if os.name == "nt":
        import ctypes

        kernel = ctypes.windll.kernel32
        handle = kernel.OpenProcess(0x1000, 0, pid)  # may ask for its exit code
        if not handle:
            return False
        code = ctypes.c_ulong()
        kernel.GetExitCodeProcess(handle, ctypes.byref(code))
        kernel.CloseHandle(handle)
        return code.value == 259  # still active
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


def _is_slicers(value: str, home: str) -> bool:
    return os.path.basename(value) == "Slicer.crt" or bool(home and _within(value, home))


def _outside(path: str, home: str) -> str:
    return os.pathsep.join(part for part in path.split(os.pathsep) if not (home and _within(part, home)))


def _within(path: str, folder: str) -> bool:
    inner, outer = (os.path.normcase(os.path.abspath(each)) for each in (path, folder))
    return inner == outer or inner.startswith(outer.rstrip(os.sep) + os.sep)
