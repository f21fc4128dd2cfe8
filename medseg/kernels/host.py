"""The host: numpy arrays, several threads, and compiled loops as soon as they are ready."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from importlib.util import find_spec
from threading import Lock, Thread
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import platformdirs

from medseg.kernels import plain
from medseg.kernels.plain import Array, Taps

T = TypeVar("T")

FOLDER = platformdirs.user_cache_path("medseg") / "kernels"  # of compiled loops
# In voxels x channels of an answer. Added up from each loop measured on one core, eight windows over a voxel: the plain
# loops take some 25 ns and the compiled ones 10. Loading those takes 0.4 s of a core; compiling 4 s, once on a machine.
_PAYS_LOADING = 5e7
_PAYS_COMPILING = 5e8


class _Loops:
    """The loops of this process: plain ones until the compiled ones are there."""

    def __init__(self) -> None:
        self.module: ModuleType = plain
        self._thread: Thread | None = None
        self._lock = Lock()

    def compile(self) -> bool:
        """Compile or load the loops, and return whether that was possible."""
        if find_spec("numba") is None:
            return False
        try:
            self.module = importlib.import_module("medseg.kernels.compiled")
        except Exception:  # noqa: BLE001 - whatever is wrong with an installation of numba, the plain loops give the same
            return False
        return True

    def compile_beside(self) -> None:
        """Begin to do so in another thread, once; a process that ends waits for it, so that the next has the loops."""
        with self._lock:
            if self._thread is None and find_spec("numba") is not None:
                self._thread = Thread(target=self.compile, name="medseg-compile")
                self._thread.start()


_LOOPS = _Loops()


def compile_now() -> bool:
    """Compile the loops, or load them, before going on; return whether numba is there to do so."""
    return _LOOPS.compile()


def cores() -> int:
    """Return on how many processor cores this process may run."""
    if sys.version_info >= (3, 13):
        return os.process_cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Host:
    """Arrays of numpy, and loops over them in several threads.

    Parameters
    ----------
    threads : int, optional
        As many as the process has cores when left out.
    """

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads or cores()
        self._pool = ThreadPoolExecutor(self.threads) if self.threads > 1 else None

    def expect(self, work: float, *, wait: bool = False) -> None:
        """Begin to prepare the compiled loops beside other work, where so much is to come that it pays.

        Parameters
        ----------
        work : float
            Voxels times channels, on the grid of the network's answer.
        wait : bool
            Until they are ready.
        """
        compiled_before = next(FOLDER.glob("*/*.nbc"), None) is not None
        if work >= (_PAYS_LOADING if compiled_before else _PAYS_COMPILING):
            _LOOPS.compile_beside()
            if wait:
                _LOOPS.compile()

    def zeros(self, shape: Sequence[int], dtype: npt.DTypeLike = np.float32) -> Array:
        """Return an array of zeros."""
        return np.zeros(shape, dtype)

    def put(self, array: npt.NDArray[Any]) -> Array:
        """Return the array itself."""
        return array

    def get(self, array: Array) -> npt.NDArray[Any]:
        """Return the array itself."""
        own: npt.NDArray[Any] = array
        return own

    def each(self, work: Callable[[T], None], items: Iterable[T]) -> None:
        """Do some work for each item, several at the same time; work that itself calls `each` may wait for ever.

        The first exception of an item is raised here, when no item is worked on any more; the rest is left undone.
        """
        if self._pool is None:
            for item in items:
                work(item)
            return
        futures = [self._pool.submit(work, item) for item in items]
        try:
            for future in futures:
                future.result()
        finally:
            for future in futures:
                future.cancel()
            wait(futures)

    def blend(self, slab: Array, counts: Array, answer: Array, weights: Array, first: int) -> None:
        """See `medseg.kernels.plain.blend`."""
        _LOOPS.module.blend(slab, counts, answer, weights, first)

    def settle(self, plane: Array, counts: Array, labels: Array, channels: int) -> None:
        """See `medseg.kernels.plain.settle`."""
        _LOOPS.module.settle(plane, counts, labels, channels)

    def between(
        self,
        planes: tuple[Array, Array],
        labels: tuple[Array, Array],
        fraction: float,
        rows: Taps,
        columns: Taps,
        out: Array,
    ) -> None:
        """See `medseg.kernels.plain.between`."""
        _LOOPS.module.between(planes, labels, fraction, rows, columns, out)
