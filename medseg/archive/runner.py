"""A batch run: items are claimed, done by posts, and entered into the ledger, until none is left or someone says stop.

The process of this module loads no model. It alone writes the ledger, so that nothing is told twice.
"""

from __future__ import annotations

import shutil
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from medseg.archive import audit
from medseg.archive.events import Events
from medseg.archive.foreman import Foreman, Returned
from medseg.archive.index import Index
from medseg.archive.ledger import DONE, FAILED, PASSED, Item, Ledger
from medseg.archive.owner import LEASE
from medseg.archive.task import AGAIN, STOP, Outcome, Task
from medseg.archive.todo import Entry, Todo
from medseg.errors import OutputError

_LISTEN = 0.2  # seconds
_COPY = 2.0  # seconds between two copies of the audit log
_WAIT = 1.0  # seconds between two looks at items that another process has
_CAREFUL = 3  # tries after which an item is done alone
_PACS_FAULTS = 5  # one after the other, after which the PACS is taken to be down


@dataclass
class Tally:
    """How far a run is.

    Parameters
    ----------
    total : int
        Items that the archive has for the rules.
    done, failed, passed : int
        Of them, those that are done, by this run and earlier ones; that failed; that were passed over when read.
    new : int
        Done, failed or passed over by this run.
    began : float
        When, in seconds of `time.monotonic`.
    note : str
        Why it ended before everything was done.
    """

    total: int = 0
    done: int = 0
    failed: int = 0
    passed: int = 0
    new: int = 0
    began: float = field(default_factory=time.monotonic)
    note: str = ""

    @property
    def left(self) -> int:
        """How many items are neither done nor failed."""
        return self.total - self.done - self.failed - self.passed

    @property
    def per_hour(self) -> float:
        """Items that this run finishes in an hour, at its speed so far."""
        return self.new / max(time.monotonic() - self.began, 1e-3) * 3600

    @property
    def eta(self) -> float | None:
        """Seconds until the end at that speed; None before the first item."""
        return self.left / self.per_hour * 3600 if self.new else None


@dataclass(frozen=True)
class Desk:
    """Where a run gets its items from and enters them.

    Parameters
    ----------
    ledger : Ledger
        Of the output folder.
    todo : Todo
        What is to be done.
    index : Index, optional
        Where the files of series are.
    log : Path
        The audit log.
    events : Events
        What the audit log is told.
    """

    ledger: Ledger
    todo: Todo
    index: Index | None
    log: Path
    events: Events


class Runner:
    """One run over the items of a desk.

    Parameters
    ----------
    desk : Desk
        Items.
    foreman : Foreman
        Does them.
    tally : Tally
        Is kept up to date.
    show : callable
        Called with the tally when it changes.
    tries : int
        How often a fault that may pass is tried again.
    """

    def __init__(
        self, desk: Desk, foreman: Foreman, tally: Tally, show: Callable[[Tally], None], *, tries: int
    ) -> None:
        self.desk, self.foreman, self.tally, self._show, self._tries = desk, foreman, tally, show, tries
        self._entries: dict[str, Entry] = {}
        self._again: deque[tuple[Entry, bool]] = deque()
        self._elsewhere: deque[Entry] = deque()
        self._faults: Counter[str] = Counter()
        self._pacs_faults = 0
        self._fault: Outcome | None = None
        self._stops = 0
        self._times = {"copy": 0.0, "renew": time.monotonic(), "look": 0.0}

    def run(self) -> None:
        """Do all items; drain after the first signal to stop, end at once after the second.

        Raises
        ------
        OutputError
            If nothing can be written any more, or the PACS is down; all that is done is in the ledger.
        """
        try:
            with self._signals():
                while self._stops < 2:
                    self._give()
                    if not self.foreman.busy and self._over:
                        break
                    for returned in self.foreman.listen(_LISTEN):
                        self._take(returned)
                    self._now_and_then()
        finally:
            for task in self.foreman.stop():  # however it ends: this process may begin another run
                self.desk.ledger.put_back(task.place, counted=False)
        if self._fault:
            raise OutputError(f"stopped: {self._fault.problem}", hint=f"{self._fault.hint}; then run the same again")
        if self._stops:
            self.tally.note = f"stopped by a signal; {self.tally.left} are left: the same command goes on"

    @property
    def _draining(self) -> bool:
        return bool(self._stops or self._fault)

    @property
    def _over(self) -> bool:
        return self._draining or not (self._again or self._elsewhere or len(self.desk.todo))

    def _give(self) -> None:
        """Give out items while there is room for them."""
        while not self._draining and self.foreman.room():
            entry, alone = self._next()
            if entry is None:
                return
            if alone and not self.foreman.room(alone=True):
                self._again.appendleft((entry, alone))
                return
            tries = self.desk.ledger.claim(entry.task.place, entry.key)
            if tries is None:
                self._not_to_be_had(entry)
                continue
            if tries > _CAREFUL and not alone and not self.foreman.room(alone=True):
                self.desk.ledger.put_back(entry.task.place, counted=False)
                self._again.append((entry, True))
                continue
            self._entries[entry.task.place] = entry
            self.foreman.give(self._with_files(entry), alone=alone or tries > _CAREFUL)

    def _next(self) -> tuple[Entry | None, bool]:
        """Return the next item, and whether it must be done alone: new ones first, then those tried before."""
        entry = self.desk.todo.next()
        if entry:
            return entry, False
        if self._again:
            return self._again.popleft()
        if self._elsewhere and time.monotonic() - self._times["look"] > _WAIT:
            self._times["look"] = time.monotonic()
            return self._elsewhere.popleft(), False
        return None, False

    def _not_to_be_had(self, entry: Entry) -> None:
        """Look again later at an item that another process works on; count one that it has finished."""
        item = self.desk.ledger.get(entry.task.place)
        if item is None or item.key != entry.key:
            return  # a run with other rules has taken its place
        if item.state in {DONE, FAILED, PASSED}:
            self._count(item.state)
        else:
            self._elsewhere.append(entry)

    def _with_files(self, entry: Entry) -> Task:
        if not entry.series or self.desk.index is None:
            return entry.task
        files = [(str(part.path), part.member) for part in self.desk.index.parts(entry.series)]
        return replace(entry.task, files=files)

    def _take(self, returned: Returned) -> None:
        """Enter what became of a task, or let it wait again."""
        task, outcome = returned.task, returned.outcome
        entry = self._entries.pop(task.place)
        if outcome is None:
            self._back(entry, alone=returned.alone, counted=returned.alone)
        elif outcome.state == STOP:
            self._fault = self._fault or outcome
            self._back(entry, alone=False, counted=False)
        elif outcome.state == AGAIN:
            self._passing(entry, task, outcome)
        else:
            self._pacs_faults = 0
            self._finish(entry, task, outcome)

    def _back(self, entry: Entry, *, alone: bool, counted: bool) -> None:
        self.desk.ledger.put_back(entry.task.place, counted=counted)
        self._again.append((entry, alone))

    def _passing(self, entry: Entry, task: Task, outcome: Outcome) -> None:
        """Try again later what may go better then, but not for ever."""
        if outcome.code == "PacsError":
            self._pacs_faults += 1
            if self._pacs_faults >= _PACS_FAULTS:
                self._fault = self._fault or outcome
        self._faults[entry.task.place] += 1
        if self._faults[entry.task.place] >= self._tries and not self._fault:
            self._finish(entry, task, replace(outcome, state=FAILED))
        else:
            self._back(entry, alone=False, counted=True)

    def _finish(self, entry: Entry, task: Task, outcome: Outcome) -> None:
        now = time.time()
        item = Item(
            task.place,
            entry.key,
            entry.model,
            outcome.state,
            0,
            outcome.code,
            outcome.problem,
            outcome.hint,
            outcome.seconds,
            now,
            outcome.result,
        )
        if outcome.state != DONE:  # first, so that a kill in between leaves nothing that no run looks at again
            shutil.rmtree(task.folder, ignore_errors=True)  # what is left of other inputs, or of a killed process
        self.desk.ledger.finish(item, self.desk.events.of_item(task, outcome))
        self.tally.new += 1
        self._count(outcome.state)
        self._show(self.tally)

    def _count(self, state: str) -> None:
        self.tally.done += state == DONE
        self.tally.failed += state == FAILED
        self.tally.passed += state == PASSED

    def _now_and_then(self) -> None:
        now = time.monotonic()
        if now - self._times["renew"] > LEASE / 5:
            self._times["renew"] = now
            self.desk.ledger.renew()
        if now - self._times["copy"] > _COPY:
            self._times["copy"] = now
            audit.copy(self.desk.ledger.audit_lines, self.desk.log)
            self._show(self.tally)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Count the signals to stop, instead of ending at the first one."""

        def stop(number: int, frame: object) -> None:  # noqa: ARG001 - the system's form
            self._stops += 1
            self.tally.note = "stopping once what is under way is done; once more stops at once"

        ours = threading.current_thread() is threading.main_thread()  # no other one may listen to signals
        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM) if ours}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
