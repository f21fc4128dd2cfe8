"""Which device computes: asked for by name, or the best one that is there."""

from __future__ import annotations

import torch

from medseg.errors import DeviceError


def choose(name: str = "auto") -> torch.device:
    """Return the device of that name: 'auto', 'cpu', 'cuda', 'cuda:1', 'mps'.

    Raises
    ------
    DeviceError
        If this machine does not have it.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if _has_mps() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise DeviceError(f"device {name!r} is unknown", hint="choose auto, cpu, cuda, cuda:N or mps") from None
    there = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(_has_mps())}.get(device.type, 0)
    if (device.index or 0) >= there:
        raise DeviceError(f"this machine has no device {name!r}", hint="use --device auto or --device cpu")
    return device


def describe(device: torch.device) -> str:
    """Return the name under which the device appears in a report."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def _has_mps() -> bool:
    return torch.backends.mps.is_available()
