"""Keeps the memory of a network's layers between calls, on Linux with glibc; does nothing elsewhere.

By itself, glibc gives every large block back to the system at once. Each layer of a network in torch then gets its
memory page by page anew, which takes a third of the time on the machines measured (`python benchmarks/heap.py`).
"""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # of malloc.h
_BLOCKS = 65536  # that may come from the system one by one, as glibc has it
_LARGE = 32 << 20  # bytes of such blocks, where glibc ends up by itself after a large one was freed
_SMALL = 1 << 20  # likewise between calls: other blocks are not to break up what is kept
_NEVER = (1 << 31) - 1


@contextmanager
def kept() -> Iterator[None]:
    """While this lasts, blocks come from memory that stays with the process when they are freed, until `give_back`.

    What lives on from call to call lies in the way of later blocks; a network then takes up to a third more.
    """
    if libc := _glibc():
        libc.mallopt(_TRIM_THRESHOLD, _NEVER)
        libc.mallopt(_MMAP_MAX, 0)
    try:
        yield
    finally:
        if libc:
            libc.mallopt(_MMAP_MAX, _BLOCKS)
            libc.mallopt(_MMAP_THRESHOLD, _SMALL)


def give_back() -> None:
    """Return to the system what `kept` kept."""
    if libc := _glibc():
        libc.mallopt(_TRIM_THRESHOLD, 2 * _LARGE)
        libc.mallopt(_MMAP_THRESHOLD, _LARGE)
        libc.malloc_trim(0)


@cache
def _glibc() -> Any:
    return ctypes.CDLL(None) if sys.platform == "linux" and platform.libc_ver()[0] == "glibc" else None
