"""How much memory a pass needs, how much there is, and in how many strips it therefore runs.

What a process holds is known on Linux. Elsewhere it counts as nothing, so that a limit there holds for the pass alone.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path, PurePosixPath
from threading import Event, Thread
from typing import Any

from medseg.errors import MemoryLimit, UsageError
from medseg.inference.windows import Windows

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_GROUPS, _OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_CONTAINERS = (("", "memory.max", "memory.current"), ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes"))
_OFTEN = 0.002  # seconds between two looks at what a process holds
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
    return _field(Path("/proc/self/status"), "VmRSS")


def peak() -> int:
    """Return the most bytes of memory that this process ever held."""
    if resource is None:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def taken_by(call: Callable[[], Any]) -> int:
    """Return how many bytes a call that returns an array takes at most, the array included."""
    before = most = resident()
    done = Event()

    def look() -> None:
        nonlocal most
        while not done.wait(_OFTEN):
            most = max(most, resident())

    thread = Thread(target=look, name="medseg-memory")
    thread.start()
    try:
        answer = call()
    finally:
        done.set()
        thread.join()
    return int(max(max(most, resident()) - before, prod(answer.shape) * 4))


def available() -> int | None:
    """Return the bytes that this process may still take: of the machine, its container, its limits; None if unknown."""
    limits = [*_of_containers()]
    if found := _field(Path("/proc/meminfo"), "MemAvailable"):
        limits.append(found)
    if resource is not None:
        soft, _ = resource.getrlimit(resource.RLIMIT_AS)
        if soft != resource.RLIM_INFINITY:
            limits.append(soft - _field(Path("/proc/self/status"), "VmSize"))
    return max(0, min(limits)) if limits else None


def _of_containers() -> Iterator[int]:
    """Yield the bytes that each control group around this process leaves it; its cache of files counts as free."""
    try:
        lines = _OWN.read_text().splitlines()
    except OSError:
        lines = []
    own = {parts[1]: parts[2] for parts in (line.split(":", 2) for line in lines) if len(parts) == 3}
    for controller, limit, used in _CONTAINERS:
        path = PurePosixPath(own.get(controller, "/"))
        for group in {str(part).lstrip("/") for part in (path, *path.parents)}:
            folder = _GROUPS / controller / group
            try:
                most, now = (int((folder / name).read_text()) for name in (limit, used))
                stat = (folder / "memory.stat").read_text()
            except (OSError, ValueError):
                continue  # no such group here, or one without a limit
            cache = re.search(r"^(?:total_)?inactive_file (\d+)", stat, re.MULTILINE)
            yield most - now + (int(cache[1]) if cache else 0)


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
    label_bytes : int
        For a voxel of the label map.
    shares : int
        Channels of probabilities that are kept for each voxel of the scan.
    maps : int
        Maps of float32 that are kept on the plan's grid, and then on the scan's.
    passing : int
        What is held for the planes that are looked at or written at the moment.
    working : int
        What the backend takes for one call, its answer included.
    """

    windows: Windows
    channels: int
    voxels: int
    label_bytes: int = 1
    shares: int = 0
    maps: int = 0
    passing: int = 0
    working: int = 0

    @property
    def on_host(self) -> int:
        """What the host holds wherever the network runs: label map, probabilities, maps, planes."""
        kept = self.voxels * (self.label_bytes + 4 * self.shares)
        return kept + 4 * self.maps * (self.voxels + prod(self.windows.shape)) + self.passing

    def beside(self, strips: int) -> int:
        """Return what is held where the network runs: a slab, a plane that is kept for the next ones, and a call."""
        rows, columns = (self.windows.shape[axis] for axis in self.windows.axes[1:])
        rows = min(rows, -(-rows // strips) + 1)
        return rows * columns * ((self.windows.depth + 1) * (4 * self.channels + 6)) + self.working

    def strips_within(self, host: int, device: int | None = None) -> int:
        """Return the least number of strips that fit into bytes of the host, and of a device with its own memory.

        Raises
        ------
        MemoryLimit
            If none does.
        """
        if device is not None:
            if self.on_host > host:
                raise _too_little(self.on_host, host)
            room = device
        else:
            room = host - self.on_host
        rows = self.windows.shape[self.windows.axes[1]]
        counts = [strips for strips in _STRIPS if strips == 1 or strips <= rows]
        for strips in counts:
            if self.beside(strips) <= room:
                return strips
        least = min(map(self.beside, counts))
        if device is not None:
            raise _too_little(least, device, " of the device")
        raise _too_little(least + self.on_host, host)


def _too_little(need: int, limit: int, where: str = "") -> MemoryLimit:
    used = "what is" if where else f"the {in_words(resident())}"
    return MemoryLimit(
        f"needs at least {in_words(max(need, 1e6))} of memory{where} beside {used} in use, and may take"
        f" {in_words(max(0, limit))}",
        hint="give more with --memory, or use a machine that has it",
    )


def _field(path: Path, name: str) -> int:
    """Return a number of bytes from a file of the system, 0 where there is no such file."""
    try:
        found = re.search(rf"^{name}:\s*(\d+) kB", path.read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0
