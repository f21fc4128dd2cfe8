"""What training may use of this machine: its memory."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from medseg.errors import UsageError
from medseg.inference.device import describe

_SHARE = {"cuda": 0.9, "mps": 0.5, "cpu": 0.5}  # of the memory that is there; on cpu and mps, others live in it too
_ASSUMED = 8 << 30  # bytes, where a system does not tell
_UNITS = {"k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4}
_BINARY_UNITS = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


@dataclass(frozen=True)
class Machine:
    """Where a network is trained.

    Parameters
    ----------
    kind : 'cpu', 'cuda' or 'mps'
        Of the device.
    memory : int
        Bytes that training may use.
    name : str
        Of the device, for reports.
    """

    kind: str
    memory: int
    name: str


def this_machine(device: str | torch.device, memory: int | None = None) -> Machine:
    """Return what training may use of a device of this machine.

    Parameters
    ----------
    device : str or torch.device
        One that is there: see `medseg.inference.device.choose`.
    memory : int, optional
        Bytes; when left out nine tenths of a GPU's memory, or half of the RAM that is free.
    """
    device = torch.device(device)
    if memory is None:
        total = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else _free_ram()
        memory = int(_SHARE.get(device.type, 0.5) * total)
    return Machine(device.type, memory, describe(device))


def parse_memory(text: str) -> int:
    """Return the bytes of an amount of memory.

    Raises
    ------
    UsageError
        If it is none, or its unit is missing.

    Examples
    --------
    >>> parse_memory("8GB"), parse_memory("500 MB"), parse_memory("1.5 GiB")
    (8000000000, 500000000, 1610612736)
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt])(i?)b?", text.strip().lower(), re.ASCII)
    if found is None:
        raise UsageError(f"--memory {text!r}: not an amount of memory", hint="give such as 8GB, 500MB or 16GiB")
    number, unit, binary = found.groups()
    size = int(float(number) * (_BINARY_UNITS if binary else _UNITS)[unit])
    if not 0 < size < 1 << 60:
        raise UsageError(f"--memory {text!r}: no machine has that", hint="give such as 8GB, 500MB or 16GiB")
    return size


def _free_ram() -> int:
    """Return the bytes of RAM that can be had without swapping, within the limit of a container."""
    amounts = []
    with suppress(OSError, ValueError, IndexError):
        told = Path("/proc/meminfo").read_text().split("MemAvailable:", 1)[1]
        amounts.append(int(told.split()[0]) << 10)
    if not amounts:  # not Linux
        with suppress(OSError, ValueError, AttributeError):
            amounts.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # "max" is no limit
            amounts.append(int(Path(limit).read_text()))
    return min(amounts, default=_ASSUMED)
