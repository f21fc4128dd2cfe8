"""One network of a model on its backend: how a prepared scan goes through it within memory, and again with less."""

from __future__ import annotations

import gc
from collections.abc import Callable, Generator
from contextlib import ExitStack, closing
from dataclasses import replace
from math import prod

import numpy as np

from medseg.bundle import Bundle
from medseg.errors import MemoryLimit
from medseg.geometry import Geometry
from medseg.inference.backends import Backend, How
from medseg.inference.backends.choice import open_backend
from medseg.inference.engine import Pass
from medseg.inference.heap import give_back
from medseg.inference.memory import Need, available, resident
from medseg.inference.uncertainty import Watch
from medseg.inference.windows import Windows
from medseg.kernels import Host
from medseg.prepare import Prepared

_FAR = 0.3  # of the memory there is: a pass that takes less is run without asking how much the backend takes
_PASSING = 16  # bytes for each channel and voxel of a plane that a thread looks at, or writes probabilities of
_HEADROOM = 100_000_000  # bytes for stacks and heaps of threads, and whatever else is small
_LOOPS = 400_000_000  # bytes of address space that compiled loops and their compiler take; a third of that is used
_MORE = 4  # times as many strips in the second try
_OUT_OF_MEMORY = ("out of memory", "not enough memory", "bad_alloc", "bad allocation", "can't allocate memory")


class Stage:
    """One network of a model, ready to run.

    Parameters
    ----------
    bundle : Bundle
        The model.
    how : How
        What the user asked for.
    host : Host
        For what is computed on the CPU.
    disagreement : bool
        The network also says how much its members and views disagree, as a last channel.

    Attributes
    ----------
    backend : Backend
        What runs the network.
    advice : tuple of str
        What would be faster on this machine.
    """

    def __init__(self, bundle: Bundle, how: How, host: Host, *, disagreement: bool = False) -> None:
        self.bundle, self.plan = bundle, bundle.plan
        self._how, self._host = how, host
        self.channels = len(self.plan.atoms) + 1 + disagreement
        self._taken: dict[str, int] = {}
        self.backend, self.advice = open_backend(bundle, how, host, disagreement=disagreement)

    def windows(self, prepared: Prepared, overlap: float | None) -> Windows:
        """Return the windows over a scan."""
        return Windows.over(prepared.geometry.shape, self.plan.patch, self.plan.overlap if overlap is None else overlap)

    def need(self, windows: Windows, onto: Geometry, *, probabilities: bool, watch: Watch | None = None) -> Need:
        """Return what a pass takes of memory, without what the backend takes for one call."""
        _, rows, columns = (windows.shape[axis] for axis in windows.axes)
        looked = rows * columns if watch else 0
        written = prod(sorted(onto.shape)[1:]) if probabilities else 0
        return Need(
            windows,
            self.channels,
            voxels=prod(onto.shape),
            label_bytes=np.min_scalar_type(max(self.plan.atoms)).itemsize,
            shares=len(self.plan.atoms) + 1 if probabilities else 0,
            maps=watch.maps if watch else 0,
            passing=self._host.threads * _PASSING * self.channels * (looked + written),
        )

    def fitted(self, need: Need, memory: int | None, backend: Backend | None = None) -> tuple[Need, int]:
        """Return in how many strips a pass fits into memory, and its need, in full where that is not small.

        Parameters
        ----------
        need : Need
            Without what the backend takes for one call: that is measured, unless there is plenty or all is too little.
        memory : int, optional
            As of `run`.
        backend : Backend, optional
            Another one than that of the stage.

        Raises
        ------
        MemoryLimit
            If it does not fit, in any.
        """
        backend = backend or self.backend
        host, device = limits(backend, memory)
        strips = need.strips_within(host, device)
        little = need.on_host + (0 if device is not None else need.beside(1)) < host * _FAR
        if memory is None and little and (device is None or need.beside(1) < device * _FAR):
            return need, strips
        backend.free()
        need = replace(need, working=self.working(backend))
        return need, need.strips_within(*limits(backend, memory))

    def working(self, backend: Backend) -> int:
        """Return the bytes that a backend takes for one call, measured once, on a window of zeros."""
        if backend.name not in self._taken:
            zeros = np.zeros((backend.batch, len(self.plan.channels), *self.plan.patch), np.float32)
            self._taken[backend.name] = backend.taken(zeros)
        return self._taken[backend.name]

    @property
    def temperature(self) -> float:
        """What logits are divided by before the softmax."""
        return self.bundle.calibration.temperature if self.bundle.calibration else 1.0

    @property
    def disagrees(self) -> bool:
        """Whether the network says how much its members and views disagree, as a last channel."""
        return self.channels > len(self.plan.atoms) + 1

    def run(
        self,
        prepared: Prepared,
        onto: Geometry,
        *,
        overlap: float | None = None,
        memory: int | None = None,
        probabilities: bool = False,
        watch: Watch | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> Pass:
        """Return a pass that was run.

        Parameters
        ----------
        prepared : Prepared
            The scan on the plan's grid.
        onto : Geometry
            The scan's own grid.
        overlap : float, optional
            Instead of the plan's.
        memory : int, optional
            Bytes that the process may hold, and those that a pass may take on a device; what there is when left out.
        probabilities : bool
            Keep them.
        watch : Watch, optional
            Is shown the planes of logits as they are closed.
        progress : callable, optional
            Called with the fraction done.

        Raises
        ------
        MemoryLimit
            If it does not fit.
        """
        windows = self.windows(prepared, overlap)
        need = self.need(windows, onto, probabilities=probabilities, watch=watch)
        notes: list[str] = []

        def attempt(backend: Backend, strips: int) -> Pass | None:
            spare = limits(backend, memory)[0] - need.on_host - need.beside(strips)
            if isinstance(backend.place, Host) and spare > _LOOPS:
                backend.place.expect(float(prod(windows.shape)) * self.channels)
            try:
                job = Pass(
                    prepared,
                    onto,
                    self.plan,
                    backend,
                    windows=windows,
                    probabilities=probabilities,
                    temperature=self.temperature,
                )
                if watch:
                    watch.begin(prepared, windows, backend.place)
                job.run(strips, watch=watch, progress=progress)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                return None
            job.notes = notes
            return job

        with closing(self._tries(need, memory, notes)) as tries, ExitStack() as after:
            after.callback(give_back)
            for backend, strips in tries:
                if job := attempt(backend, strips):
                    return job
                gc.collect()
                backend.free()
        raise MemoryLimit(
            f"{self.backend.name}: ran out of memory", hint="give it a machine with more, or a smaller part of the scan"
        )

    def _tries(self, need: Need, memory: int | None, notes: list[str]) -> Generator[tuple[Backend, int]]:
        """Yield backend and strips of each try: as planned, a smaller slab, smaller batches, and at last the CPU."""
        _, strips = self.fitted(need, memory)
        yield self.backend, strips
        notes.append(self._again(f"a smaller slab ({_MORE * strips} strips)"))
        yield self.backend, _MORE * strips
        if (batch := self.backend.batch) > 1:
            notes.append(self._again("one window at a time"))
            self.backend.batch = 1
            try:
                yield self.backend, _MORE * strips
            finally:
                self.backend.batch = batch
        if not isinstance(self.backend.place, Host):
            notes.append(self._again("the CPU"))
            how = replace(self._how, device="cpu", backend="torch", precision="float32")
            cpu, _ = open_backend(self.bundle, how, self._host, disagreement=self.disagrees)
            yield cpu, self.fitted(need, memory, cpu)[1]

    def _again(self, what: str) -> str:
        return f"{self.backend.name}: out of memory; tried again with {what}"


def limits(backend: Backend, memory: int | None) -> tuple[int, int | None]:
    """Return the bytes that a pass may take of the host, and of a device with memory of its own."""
    own = None if memory is None else max(0, memory - resident())
    known = [limit for limit in (available(), own) if limit is not None]
    room = backend.room()
    device = None if room is None else min(room, room if memory is None else memory)
    return min(known, default=1 << 62) - _HEADROOM, device


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error of numpy, torch or OpenVINO says that memory is at an end."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return any(words in str(error).lower() for words in _OUT_OF_MEMORY)
