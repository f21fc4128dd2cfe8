"""One network of a model on its backend: how a prepared scan goes through it within memory, and again with less."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property

import numpy as np

from medseg.bundle import Bundle
from medseg.errors import MemoryLimit
from medseg.geometry import Geometry
from medseg.inference.backends import How
from medseg.inference.backends.choice import open_backend
from medseg.inference.engine import Pass
from medseg.inference.heap import give_back
from medseg.inference.memory import Need, available, forget_peak, peak, resident
from medseg.inference.uncertainty import Watch
from medseg.inference.windows import Windows
from medseg.kernels import Host
from medseg.prepare import Prepared

_FAR = 0.3  # of the memory there is: a pass that takes less is run without asking how much the backend takes
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
        self.backend, self.advice = open_backend(bundle, how, host, disagreement=disagreement)

    def windows(self, prepared: Prepared, overlap: float | None) -> Windows:
        """Return the windows over a scan."""
        return Windows.over(prepared.geometry.shape, self.plan.patch, self.plan.overlap if overlap is None else overlap)

    def need(self, windows: Windows, onto: Geometry, *, probabilities: bool, maps: int = 0) -> Need:
        """Return what a pass takes of memory, without what the backend takes for one call."""
        shares = len(self.plan.atoms) + 1 if probabilities else 0
        return Need(windows, self.channels, int(np.prod(onto.shape)), shares, 0, maps)

    def strips(self, need: Need, memory: int | None) -> int:
        """Return in how many strips a pass fits into memory.

        Raises
        ------
        MemoryLimit
            If it does not, in any.
        """
        limit = self.limit(memory)
        if memory is None and need.total(1) < limit * _FAR:
            return 1
        return replace(need, working=self.working).strips_within(limit)

    @property
    def temperature(self) -> float:
        """What logits are divided by before the softmax."""
        return self.bundle.calibration.temperature if self.bundle.calibration else 1.0

    @property
    def disagrees(self) -> bool:
        """Whether the network says how much its members and views disagree, as a last channel."""
        return self.channels > len(self.plan.atoms) + 1

    @cached_property
    def working(self) -> int:
        """Bytes that the backend takes for one call, measured once, on a window of zeros."""
        zeros = np.zeros((self.backend.batch, len(self.plan.channels), *self.plan.patch), np.float32)
        before = resident()
        forget_peak()
        answer = self.backend(zeros)
        taken = max(peak() - before, int(np.prod(answer.shape)) * 4)
        give_back()
        return taken

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
        maps = watch.maps if watch else 0
        strips = self.strips(self.need(windows, onto, probabilities=probabilities, maps=maps), memory)
        self._host.expect(float(np.prod(windows.shape)) * self.channels)
        notes: list[str] = []
        for count in self._tries(strips, notes):
            job = Pass(
                prepared,
                onto,
                self.plan,
                self.backend,
                windows=windows,
                probabilities=probabilities,
                temperature=self.temperature,
            )
            job.notes = notes
            try:
                if watch:
                    watch.begin(prepared, windows, self.backend.place)
                job.run(count, watch=watch, progress=progress)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
            else:
                give_back()
                return job
            del job
            gc.collect()
            self.backend.free()
        raise MemoryLimit(
            f"{self.backend.name}: ran out of memory", hint="give it a machine with more, or a smaller part of the scan"
        )

    def _tries(self, strips: int, notes: list[str]) -> Iterator[int]:
        """Yield the strips of each try: as planned, a smaller slab, smaller batches, and at last the CPU."""
        yield strips
        notes.append(self._again(f"a smaller slab ({_MORE * strips} strips)"))
        yield _MORE * strips
        if self.backend.batch > 1:
            notes.append(self._again("one window at a time"))
            self.backend.batch = 1
            yield _MORE * strips
        if not isinstance(self.backend.place, Host):
            notes.append(self._again("the CPU"))
            cpu = replace(self._how, device="cpu", backend="torch", precision="float32")
            self.backend, _ = open_backend(self.bundle, cpu, self._host, disagreement=self.disagrees)
            yield _MORE * strips

    def _again(self, what: str) -> str:
        return f"{self.backend.name}: out of memory; tried again with {what}"

    def limit(self, memory: int | None) -> int:
        """Return the bytes that a pass may take."""
        room = self.backend.room()
        if room is not None:
            return room if memory is None else min(room, memory)
        there = available()
        own = None if memory is None else memory - resident()
        limits = [limit for limit in (there, own) if limit is not None]
        return min(limits) if limits else 1 << 62


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error of numpy, torch or OpenVINO says that memory is at an end."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return any(words in str(error).lower() for words in _OUT_OF_MEMORY)
