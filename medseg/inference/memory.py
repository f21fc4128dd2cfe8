"""How much memory a pass needs, how much there is, and in how many strips it therefore runs."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from math import prod
from pathlib import Path

from medseg.errors import MemoryLimit, UsageError
from medseg.inference.windows import Windows

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_CONTAINERS = (
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)
_STRIPS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)  # more of them answer most windows twice


def parse_bytes(text: str) -> int:
    """Return a number of bytes from words such as "4GB", "1.5 GiB" or "800m".

    Raises
    ------
    UsageError
        If it is none.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?\s*", text.lower())
    if not found or not float(found[1]) or found[2] not in _UNITS:
        raise UsageError(f"{text!r} is no amount of memory", hint="give one such as 4GB")
    return int(float(found[1]) * _UNITS[found[2]])


def in_words(count: float) -> str:
    """Return a number of bytes for people: "3.2 GB"."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def resident() -> int:
    """Return the bytes of memory that this process holds now."""
    return _status("VmRSS") or peak()


def peak() -> int:
    """Return the most bytes of memory that this process ever held, or held since `forget_peak`."""
    if found := _status("VmHWM"):
        return found
    if resource is None:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def forget_peak() -> None:
    """Let `peak` begin anew, where the system can."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def available() -> int | None:
    """Return the bytes that this process may still take: of the machine, its container, its limits; None if unknown."""
    limits = []
    if found := _field(Path("/proc/meminfo"), "MemAvailable"):
        limits.append(found)
    for limit, used in _CONTAINERS:
        try:
            texts = [(Path("/sys/fs/cgroup") / name).read_text().strip() for name in (limit, used)]
            limits.append(int(texts[0]) - int(texts[1]))
        except (OSError, ValueError):
            continue  # no such container, or one without a limit
    if resource is not None:
        soft, _ = resource.getrlimit(resource.RLIMIT_AS)
        if soft != resource.RLIM_INFINITY:
            limits.append(soft - _status("VmSize"))
    return max(0, min(limits)) if limits else None


@dataclass(frozen=True)
class Need:
    """Bytes that a pass takes beside what is there when it begins.

    Parameters
    ----------
    windows : Windows
        Of the pass.
    channels : int
        Of the network's answer.
    voxels : int
        Of the scan.
    shares : int
        Channels of probabilities that are kept for each voxel of the scan.
    working : int
        What the backend takes for one call, its answer included.
    maps : int
        Maps of float32 that are kept on the plan's grid, and then on the scan's.
    """

    windows: Windows
    channels: int
    voxels: int
    shares: int
    working: int
    maps: int = 0

    @property
    def lasting(self) -> int:
        """What stays when the pass is over: the label map, probabilities and maps."""
        kept = self.voxels * ((2 if self.channels > 256 else 1) + 4 * self.shares)
        return kept + 4 * self.maps * (self.voxels + prod(self.windows.shape))

    def slab(self, strips: int) -> int:
        """Return the bytes of the slab, with a plane that is kept for the next ones."""
        rows, columns = (self.windows.shape[axis] for axis in self.windows.axes[1:])
        rows = min(rows, -(-rows // strips) + 1)
        return rows * columns * ((self.windows.depth + 1) * (4 * self.channels + 6))

    def total(self, strips: int) -> int:
        """Return the most that is held at a time."""
        return self.lasting + self.slab(strips) + self.working

    def strips_within(self, limit: int) -> int:
        """Return the least number of strips that fit.

        Raises
        ------
        MemoryLimit
            If none does.
        """
        rows = self.windows.shape[self.windows.axes[1]]
        for strips in _STRIPS:
            if self.total(strips) <= limit:
                return strips
            if strips >= rows:
                break
        least = min(self.total(strips) for strips in _STRIPS)
        raise MemoryLimit(
            f"needs at least {in_words(least)} of memory beside what is in use, and may take {in_words(max(0, limit))}",
            hint="give more with --memory, or use a machine that has it",
        )


def _status(name: str) -> int:
    return _field(Path("/proc/self/status"), name)


def _field(path: Path, name: str) -> int:
    """Return a number of bytes from a file of the system, 0 where there is no such file."""
    try:
        found = re.search(rf"^{name}:\s*(\d+) kB", path.read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0
