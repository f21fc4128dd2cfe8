"""One pass from a prepared scan to the labels of its voxels.

Windows follow one another along one axis. Each answer is blended into a slab of planes; as soon as no window can touch
a plane any more it is closed, and the planes of the scan that lie between closed planes are written. So only a slab of
logits lives at a time, whatever the size of the scan and however many labels there are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice

import numpy as np

from medseg.errors import PlanError
from medseg.geometry import Geometry
from medseg.inference.backends import Backend
from medseg.inference.slab import Slab
from medseg.inference.windows import Strip, Three, Windows, gaussian_weights
from medseg.kernels import Host
from medseg.kernels.plain import Array
from medseg.plan import Plan
from medseg.prepare import Prepared
from medseg.restore import Placement, Restorer, Settled

Watcher = Callable[[Strip, int, Sequence[Settled]], None]


class Pass:
    """One pass over a scan: `run` it once.

    Parameters
    ----------
    prepared : Prepared
        The scan on the plan's grid.
    onto : Geometry
        The scan's own grid.
    plan : Plan
        Of the model.
    backend : Backend
        The network.
    windows : Windows
        Where it looks.
    probabilities : bool
        Write the probabilities too.
    temperature : float
        Logits are divided by it before the softmax.

    Attributes
    ----------
    answered, air : int
        Windows that the network saw, and those that it did not have to see as they hold only air.
    seconds : dict
        Time spent in the network, in blending and in restoring; all of it as that of the network on a device, which
        works on while the host goes ahead.
    notes : list of str
        What went otherwise than asked for.
    """

    def __init__(
        self,
        prepared: Prepared,
        onto: Geometry,
        plan: Plan,
        backend: Backend,
        *,
        windows: Windows,
        probabilities: bool = False,
        temperature: float = 1.0,
    ) -> None:
        self.prepared, self.onto = prepared, onto
        self.plan, self.backend, self.windows = plan, backend, windows
        self.restorer = Restorer(
            Placement.of(prepared.geometry, onto),
            [0, *plan.atoms],
            axes=windows.axes,
            place=backend.place,
            probabilities=probabilities,
            temperature=temperature,
        )
        weights = gaussian_weights(windows.patch).transpose(windows.axes)
        self._weights = backend.place.put(np.ascontiguousarray(weights))
        self.answered = self.air = 0
        self.seconds = {"network": 0.0, "blend": 0.0, "restore": 0.0}
        self.notes: list[str] = []

    def run(
        self, strips: int = 1, *, watch: Watcher | None = None, progress: Callable[[float], None] | None = None
    ) -> Restorer:
        """Answer all windows, and return what was restored.

        Parameters
        ----------
        strips : int
            Parts in which the grid is gone through, each with a slab of its own: more take less memory, and more time.
        watch : callable, optional
            Called with strip, number of the first plane and planes whenever some were closed.
        progress : callable, optional
            Called with the fraction done.
        """
        parts = list(self.windows.strips(strips))
        total = sum(len(part.corners) for part in parts)
        for strip in parts:
            self.restorer.strip(*strip.rows)
            slab: Slab | None = None
            for start, corners in self.windows.rounds(strip):
                for corner, answer in self._answers(corners):
                    slab = slab or self._slab(strip, len(answer))
                    self._close(slab, start, strip, watch)
                    self._add(slab, strip, corner, answer)
                    del answer  # or it would live beside the next one
                    if progress:
                        progress((self.answered + self.air) / total)
            if slab:
                self._close(slab, self.windows.shape[self.windows.axes[0]], strip, watch)
        if progress:
            progress(1.0)
        if not isinstance(self.backend.place, Host):
            self.seconds = {"network": sum(self.seconds.values()), "blend": 0.0, "restore": 0.0}
        return self.restorer

    def _answers(self, corners: Sequence[Three]) -> Iterator[tuple[Three, Array]]:
        """Yield each corner of a window that holds more than air, and the logits (M, I, J, K) there."""
        seen = iter([corner for corner in corners if not is_air(self.prepared, self.plan, self.windows, corner)])
        self.air += len(corners)
        while group := list(islice(seen, self.backend.batch)):
            with self._timed("network"):
                answers = self.backend(
                    np.stack([self.prepared.window(corner, self.windows.end(corner)) for corner in group])
                )
            if answers.shape[2:] != self.windows.patch or answers.shape[1] <= len(self.plan.atoms):
                raise PlanError(
                    f"the network gives {tuple(answers.shape[1:])} values for a window of {self.windows.patch}",
                    hint="give a network that keeps the size of its input and has a channel for each label",
                )
            self.answered += len(group)
            self.air -= len(group)
            yield from zip(group, answers, strict=True)
            del answers

    def _slab(self, strip: Strip, channels: int) -> Slab:
        rows, columns = strip.rows[1] - strip.rows[0], self.windows.shape[self.windows.axes[2]]
        shape = (self.windows.depth, channels, rows, columns)
        return Slab(self.backend.place, shape, len(self.plan.atoms) + 1)

    def _add(self, slab: Slab, strip: Strip, corner: Three, answer: Array) -> None:
        """Blend in as much of an answer as lies in the strip."""
        first, rows, columns = self.windows.axes
        limits = {first: (0, self.windows.shape[first]), rows: strip.rows, columns: (0, self.windows.shape[columns])}
        cuts, at = [], []
        for axis, (start, stop) in limits.items():
            low, high = max(start, corner[axis]), min(stop, corner[axis] + self.windows.patch[axis])
            cuts.append(slice(low - corner[axis], high - corner[axis]))
            at.append(low - (start if axis == rows else 0))
        order = (1 + first, 0, 1 + rows, 1 + columns)
        turned = answer.permute(order) if hasattr(answer, "permute") else answer.transpose(order)
        with self._timed("blend"):
            slab.add(turned[cuts[0], :, cuts[1], cuts[2]], self._weights[tuple(cuts)], (at[0], at[1], at[2]))

    def _close(self, slab: Slab, stop: int, strip: Strip, watch: Watcher | None) -> None:
        """Close the planes before `stop`, and write what lies between them."""
        with self._timed("restore"):
            while (first := slab.base) < stop:
                planes = slab.close(min(stop, first + slab.depth))
                if watch:
                    watch(strip, first, planes)
                self.restorer.take(first, planes)
                slab.release(planes)

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[part] += time.perf_counter() - start


def is_air(prepared: Prepared, plan: Plan, windows: Windows, corner: Three) -> bool:
    """Return whether nothing in a window is above the intensity at which the plan crops scans."""
    if plan.crop is None:
        return False
    ends = zip(corner, windows.end(corner), strict=True)
    box = tuple(slice(max(0, start), stop) for start, stop in ends)
    return not bool((prepared.volume.array[(slice(None), *box)] > plan.crop).any())
