"""Who works on an item: a process, told apart from every other one, on this computer or another."""

from __future__ import annotations

import os
from pathlib import Path

LEASE = 300.0  # seconds for which the word of a process on another computer holds


def own() -> str:
    """Return the name of this process: computer, its last start, process, and when that began."""
    return "|".join([platform_name(), _boot(), str(os.getpid()), _began(os.getpid())])


def gone(owner: str) -> bool:
    """Return whether a process is known to be dead: it was on this computer, and is not any more."""
    name, boot, number, began = owner.split("|")
    if name != platform_name():
        return False
    if boot != _boot():
        return True
    if began:
        return _began(int(number)) != began
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass
    return False


def platform_name() -> str:
    """Return the name of this computer."""
    return os.uname().nodename if hasattr(os, "uname") else os.environ.get("COMPUTERNAME", "computer")


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return ""


def _began(number: int) -> str:
    """Return when a process began, in ticks since the start of the computer; '' where there is none, or nobody says."""
    try:
        stat = Path(f"/proc/{number}/stat").read_text("ascii", errors="replace")
    except OSError:
        return ""
    fields = stat.rpartition(")")[2].split()
    return "" if fields[0] == "Z" else fields[19]
