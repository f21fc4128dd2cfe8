"""Keeps the memory of a network's layers between calls, on Linux with glibc; does nothing elsewhere.

By itself, glibc gives every large block back to the system at once. Each layer of a network in torch then gets its
memory page by page anew, which takes a third of the time on the machines measured (`python benchmarks/heap.py`).
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from threading import Event
from typing import Any

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # of malloc.h
_BLOCKS = 65536  # that may come from the system one by one, as glibc has it
_LARGE = 32 << 20  # bytes of such blocks, where glibc ends up by itself after a large one was freed
_SMALL = 1 << 20  # likewise between calls: other blocks are not to break up what is kept
_NEVER = (1 << 31) - 1

_used = Event()  # whether anything was kept: other programs in the process keep their own settings until then


@contextmanager
def kept() -> Iterator[None]:
    """While this lasts, blocks come from memory that stays with the process when they are freed, until `give_back`.

    What lives on from call to call lies in the way of later blocks; a network then takes up to a third more.
    """
    if libc := _glibc():
        _used.set()
        libc.mallopt(_TRIM_THRESHOLD, _NEVER)
        libc.mallopt(_MMAP_MAX, 0)
    try:
        yield
    finally:
        if libc:
            libc.mallopt(_MMAP_MAX, _BLOCKS)
            libc.mallopt(_MMAP_THRESHOLD, _SMALL)


def give_back() -> None:
    """Return to the system what `kept` kept, if it did."""
    libc = _glibc()
    if libc and _used.is_set():
        libc.mallopt(_TRIM_THRESHOLD, 2 * _LARGE)
        libc.mallopt(_MMAP_THRESHOLD, _LARGE)
        libc.malloc_trim(0)


@cache
def _glibc() -> Any:
    if sys.platform != "linux" or "CS_GNU_LIBC_VERSION" not in os.confstr_names:
        return None
    try:
        version = os.confstr("CS_GNU_LIBC_VERSION")
    except OSError:  # another C library
        return None
    return ctypes.CDLL(None) if version else None
