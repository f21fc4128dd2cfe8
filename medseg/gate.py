"""The gate that every file passes: what is impossible is refused, what is odd is said, nothing is guessed silently.

The readers of all formats share these checks, so that one fault has one answer and one stable code.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from medseg.errors import GeometryError, ScanError
from medseg.geometry import Geometry

SPACING_LIMITS = (0.01, 100.0)  # mm between voxels that a scan of a patient can have
MAX_DEFLATE_RATIO = 1032  # zlib's documented limit: no deflate stream expands further
MAX_TRAILING = 64 << 20  # bytes after the voxels that are read to reach the checksum
HINT_EXPORT = "export the scan again from its source"
HINT_COPY = "the file was cut off or damaged; copy it again from the source"
_HUGE = 1e30  # an intensity beyond this was not measured; its square overflows float32
_BLOCK = 1 << 22  # voxels looked at in one step
_NO_LIMITS = (1 << 63, float("inf"))
_limits: ContextVar[tuple[int, float]] = ContextVar("limits", default=_NO_LIMITS)


class Gate:
    """What one file is held against: refuses with a code, or warns and goes on.

    Parameters
    ----------
    path : Path
        The file, named at the front of every refusal.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.warnings: list[str] = []

    def refuse(self, code: str, problem: str, hint: str) -> NoReturn:
        """Raise `ScanError`: what was found, what to do, and a stable code for the reason."""
        raise ScanError(f"{self.path}: {problem}", hint=hint, code=code) from None  # a cause may name files

    def warn(self, sentence: str) -> None:
        """Note an oddity that does not forbid going on."""
        if sentence not in self.warnings:
            self.warnings.append(sentence)

    def size(self, voxel_bytes: int, stored: int, *, compressed: bool) -> None:
        """Refuse, before anything is allocated, voxels that the file cannot hold or the memory cannot take.

        Parameters
        ----------
        voxel_bytes : int
            Bytes of voxels that the header declares (and the offset before them).
        stored : int
            Bytes of the file.
        compressed : bool
            Whether those are a deflate stream.
        """
        limit, ratio = _limits.get()
        if voxel_bytes > limit:
            self.refuse(
                "TOO_LARGE",
                f"has {readable(voxel_bytes)} of voxels, at most {readable(limit)} are taken here",
                "crop the scan, or ask for a higher limit",
            )
        if compressed and voxel_bytes > stored * ratio:
            self.refuse(
                "RATIO",
                f"is said to be {voxel_bytes / stored:.0f} times as large when decompressed",
                f"at most {ratio:g} times is taken here; give it without compression",
            )
        most = stored * MAX_DEFLATE_RATIO if compressed else stored
        if voxel_bytes > most:
            self.refuse(
                "TRUNCATED",
                f"declares {readable(voxel_bytes)}, but {readable(stored)} of file hold at most {readable(most)}",
                HINT_COPY,
            )
        free = free_memory()
        if voxel_bytes > free:
            self.refuse(
                "MEMORY",
                f"needs {readable(voxel_bytes)} of memory for its voxels, {readable(free)} are free",
                "close other programs, use a larger machine, or crop the scan",
            )

    def choose_volume(self, asked: int | None, count: int) -> int:
        """Return which of `count` volumes (or pages) to read, or refuse to guess."""
        hint = f"choose one with --volume N (0 to {count - 1}), or give a file that holds one"
        if asked is None and count > 1:
            self.refuse("SEVERAL_VOLUMES", f"holds {count} volumes", hint)
        if asked is not None and not 0 <= asked < count:
            self.refuse("SEVERAL_VOLUMES", f"has no volume {asked}", hint)
        return asked or 0

    def geometry(self, affine: npt.NDArray[np.float64], shape: tuple[int, int, int]) -> Geometry:
        """Return the geometry, or refuse it: singular, not finite, or a spacing that no scan has."""
        try:
            geometry = Geometry(affine, shape)
        except GeometryError as error:
            self.refuse("AFFINE", error.problem, "repair the header, or export the scan again from its source")
        low, high = SPACING_LIMITS
        for axis, mm, voxels in zip("ijk", geometry.spacing, shape, strict=True):
            if voxels > 1 and not low <= mm <= high:
                self.refuse(
                    "SPACING",
                    f"spacing along {axis} is {mm:.4g} mm, outside {low:g} to {high:g} mm",
                    "check the units in the header; medseg expects millimetres",
                )
        if geometry.shear > 0.1:
            self.warn(f"the voxel axes are not at right angles (off by up to {geometry.shear:.2g} degrees)")
        return geometry

    def finite(self, array: npt.NDArray[Any]) -> None:
        """Replace in place what is no measured intensity, and say how much of it there was.

        NaN and -Inf become the smallest measured value (air), +Inf the largest; values beyond 1e30 count as
        infinite. A scan without one measured voxel is refused.
        """
        nans = infinite = 0
        low, high = np.inf, -np.inf
        for block in blocks(array):
            good = np.abs(block) <= _HUGE  # False for NaN too
            if good.all():
                values = block
            else:
                missing = int(np.isnan(block).sum())
                nans += missing
                infinite += int(good.size - good.sum()) - missing
                values = block[good]
            if values.size:
                low, high = min(low, float(values.min())), max(high, float(values.max()))
        if not nans and not infinite:
            return
        if low > high:
            self.refuse("NOT_FINITE", "no voxel has a finite value", HINT_EXPORT)
        for block in blocks(array):
            block[np.isnan(block) | (block < -_HUGE)] = low
            block[block > _HUGE] = high
        if nans:
            self.warn(f"{nans} voxels are NaN; they are taken as air ({low:g})")
        if infinite:
            self.warn(f"{infinite} voxels are infinite or beyond 1e30; they are clipped to {low:g} .. {high:g}")


@contextmanager
def limited(voxel_bytes: int, ratio: float) -> Iterator[None]:
    """While it lasts, files read in this thread are refused that have more bytes of voxels, or are packed more tightly.

    Parameters
    ----------
    voxel_bytes : int
        Of one scan, decompressed.
    ratio : float
        Of those to the bytes of a compressed file.
    """
    before = _limits.set((voxel_bytes, ratio))
    try:
        yield
    finally:
        _limits.reset(before)


def most_inflated(stored: int) -> int:
    """Return to how many bytes `stored` bytes of a deflate stream may grow here."""
    limit, ratio = _limits.get()
    return int(min(limit, stored * min(ratio, MAX_DEFLATE_RATIO)))


def blocks(array: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    """Yield flat views of about four million voxels that together cover a contiguous array once."""
    flat = array.reshape(-1, order="F" if array.flags.f_contiguous else "C")
    if array.size and not np.shares_memory(flat, array):
        raise ValueError("blocks() needs a contiguous array")
    for start in range(0, flat.size, _BLOCK):
        yield flat[start : start + _BLOCK]


def readable(count: float) -> str:
    """Return a number of bytes as people say it: '31.5 MB'."""
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"


def free_memory() -> int:
    """Return the bytes that this process may still allocate, as far as the system says."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            lines = dict(line.split(":", 1) for line in file)
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        pass
    try:  # other systems: half of all memory, as they do not say what is free
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, ValueError, OSError):
        return 1 << 63
