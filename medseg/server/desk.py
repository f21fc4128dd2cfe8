"""Where jobs wait: a bounded queue in which every client has its turn, and the jobs that are done for a while."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from pathlib import Path
from threading import Condition
from typing import Any

from medseg.server.settings import Limits
from medseg.server.spool import bytes_in, remove

WAITING, RUNNING, DONE, FAILED, CANCELLED = "waiting", "running", "done", "failed", "cancelled"
_SHARE = 2  # one client may take so large a part of the queue: 1 / _SHARE


class Full(Exception):
    """No more jobs can wait."""


class Cancelled(Exception):
    """The client does not want it any more."""


@dataclass(frozen=True)
class Order:
    """What is wanted of one scan.

    Parameters
    ----------
    model : str
        By name.
    formats : tuple of str
        Of results, as `medseg predict --format` takes them.
    files : dict
        Where the scan lies that was sent: a file or folder for each channel of the model.
    choice : dict
        'series', 'volume', 'repair' and 'suv' for `medseg.read`.
    keep_files : bool
        They belong to a session, and stay.
    planes : bool
        Keep what pictures of its planes are drawn from.
    numbered : bool
        Let voxels count the labels in their order, from 1, instead of having the values of the model.
    """

    model: str
    formats: tuple[str, ...]
    files: dict[str, Path]
    choice: dict[str, Any] = field(default_factory=dict)
    keep_files: bool = False
    planes: bool = False
    numbered: bool = False

    def drop_files(self) -> None:
        """Remove what was sent, unless it belongs to a session."""
        if not self.keep_files:
            for path in self.files.values():
                remove(path.parent)


@dataclass(eq=False)
class Job:
    """One scan on its way: what is wanted, how far it has come, and where its results lie.

    Parameters
    ----------
    name : str
        Nobody can guess it.
    client : str
        Whose it is, so that all have their turn.
    order : Order
        What is wanted.
    folder : Path
        Of its results; goes with the job.
    """

    name: str
    client: str
    order: Order
    folder: Path
    state: str = WAITING
    stage: str = ""
    fraction: float = 0.0
    report: dict[str, Any] = field(default_factory=dict)
    error: dict[str, str] = field(default_factory=dict)
    results: dict[str, Path] = field(default_factory=dict)
    watchers: int = 0
    unwanted: bool = False
    forgotten: bool = False
    asked: float = field(default_factory=time.monotonic)
    left: float | None = None  # when the last of those who watched it went

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self.state in {DONE, FAILED, CANCELLED}

    def tell(self, stage: str, fraction: float) -> None:
        """Note how far it has come.

        Raises
        ------
        Cancelled
            If nobody wants it any more.
        """
        if self.unwanted:
            raise Cancelled
        self.stage, self.fraction = stage, fraction


class Desk:
    """All jobs: those that wait, one turn for each client; those that run; those that are done.

    Parameters
    ----------
    limits : Limits
        How many, and for how long.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._turns: OrderedDict[str, deque[Job]] = OrderedDict()  # by client; the first has the next turn
        self._changed = Condition()
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether nothing is done any more."""
        return self._closed

    def submit(self, job: Job) -> None:
        """Let a job wait for its turn.

        Raises
        ------
        Full
            If too many wait, of all clients or of this one.
        """
        with self._changed:
            own = self._turns.get(job.client, ())
            waiting = sum(map(len, self._turns.values()))
            if self._closed or waiting >= self.limits.queue or len(own) >= max(1, self.limits.queue // _SHARE):
                raise Full
            self._jobs[job.name] = job
            self._turns.setdefault(job.client, deque()).append(job)
            self._changed.notify()

    def next(self) -> Job | None:
        """Wait for the next job and return it, as running; none when the desk is closed."""
        with self._changed:
            while not self._turns and not self._closed:
                self._changed.wait()
            if self._closed:
                return None
            client, jobs = self._turns.popitem(last=False)
            job = jobs.popleft()
            if jobs:
                self._turns[client] = jobs  # behind all others
            job.state = RUNNING
            return job

    def end(self, job: Job, state: str) -> None:
        """Note how a job ended."""
        with self._changed:
            job.state, job.asked = state, time.monotonic()
            forgotten = job.forgotten
        if forgotten:
            self._drop(job)

    def find(self, name: str) -> Job | None:
        """Return a job that is not forgotten yet."""
        with self._changed:
            job = self._jobs.get(name)
            if job:
                job.asked = time.monotonic()
            return job

    def place(self, job: Job) -> int:
        """Return how many jobs have their turn before a waiting one."""
        with self._changed:
            own = self._turns.get(job.client, deque())
            if job not in own:
                return 0
            rank, clients = own.index(job), list(self._turns)
            mine = clients.index(job.client)
            before = sum(min(len(jobs), rank) for jobs in self._turns.values())
            return before + sum(len(self._turns[client]) > rank for client in clients[:mine])

    def cancel(self, job: Job) -> None:
        """Let a job stop as soon as it can; one that waits is out at once."""
        with self._changed:
            job.unwanted = True
            if job.state == WAITING:
                self._turns[job.client].remove(job)
                if not self._turns[job.client]:
                    del self._turns[job.client]
                job.state = CANCELLED
                job.order.drop_files()

    def forget(self, job: Job) -> None:
        """Remove a job and all that is kept of it; one that runs goes when it has stopped."""
        self.cancel(job)
        with self._changed:
            job.forgotten = True
            ended = job.ended
        if ended:
            self._drop(job)

    def watch(self, job: Job, step: int) -> None:
        """Count those who watch a job: 1 for one who comes, -1 for one who goes."""
        with self._changed:
            job.watchers += step
            job.asked = time.monotonic()
            job.left = None if job.watchers else job.asked

    def tidy(self) -> None:
        """Stop what nobody waits for any more, and forget what was kept for long enough or is too much."""
        now, limits = time.monotonic(), self.limits
        with self._changed:
            jobs = list(self._jobs.values())
        for job in jobs:
            if not job.ended and job.left is not None and now - job.left > limits.patience:
                self.cancel(job)
        ended = sorted((job for job in jobs if job.ended and not job.watchers), key=lambda job: job.asked)
        sizes = {job.name: bytes_in(job.folder) for job in ended}
        count, total = len(ended), sum(sizes.values())
        for job in ended:
            cancelled = job.state == CANCELLED and now - job.asked > limits.patience
            if cancelled or now - job.asked > limits.keep or count > limits.kept or total > limits.spool:
                self.forget(job)
                count, total = count - 1, total - sizes[job.name]

    def counts(self) -> dict[str, int]:
        """Return how many jobs wait, run, and are kept."""
        with self._changed:
            states = [job.state for job in self._jobs.values()]
        return {
            "waiting": states.count(WAITING),
            "running": states.count(RUNNING),
            "kept": len(states) - states.count(WAITING) - states.count(RUNNING),
            "room": self.limits.queue,
        }

    def close(self) -> None:
        """Take no more jobs, and stop those that wait and run."""
        with self._changed:
            self._closed = True
            jobs = list(self._jobs.values())
            self._changed.notify_all()
        for job in jobs:
            self.cancel(job)

    def _drop(self, job: Job) -> None:
        with self._changed:
            self._jobs.pop(job.name, None)
        job.order.drop_files()
        remove(job.folder)
