"""Watches over posts: gives them tasks, holds each task to its limits, and finds out which one ended a post.

A post that dies takes all tasks with it that were under way. Each of them is then done alone: the innocent end well,
and the guilty one is known.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from queue import Empty

from medseg.archive.post import Event, Inbox, Post
from medseg.archive.task import AGAIN, DEPTH, FAILED, Outcome, Task
from medseg.errors import DeviceError, MedsegError

_DEATHS = 10  # of a post one after the other before it was ready
_ENOUGH = 10  # deaths after which a task is to blame in any case
_SPARE = 1.25, 500e6  # how much more than the limit a post may hold for a moment: ratio, bytes
_MEMORY = {"MemoryLimit", "MemoryError", "MEMORY"}


More = Callable[[int], Iterable[Post]]


@dataclass(frozen=True)
class Limits:
    """What one task may take.

    Parameters
    ----------
    seconds : float
        Of reading, computing and writing, without waiting.
    memory : int, optional
        Bytes of the process.
    tries : int
        How often a fault that may pass is tried again.
    """

    seconds: float = 3600.0
    memory: int | None = None
    tries: int = 3


@dataclass(frozen=True)
class Returned:
    """A task that is no longer under way; without an outcome it waits again, and `alone` says how it is done then."""

    task: Task
    outcome: Outcome | None = None
    alone: bool = False


@dataclass
class _Held:
    """A task under way: the stage it is in, since when, and the seconds of those before."""

    task: Task
    alone: bool
    stage: str = ""
    since: float = 0.0
    spent: float = 0.0

    def seconds(self, now: float) -> float:
        return self.spent + (now - self.since if self.stage else 0.0)


@dataclass
class _State:
    """What is known of a post."""

    ready: bool = False
    deaths: int = 0
    held: dict[str, _Held] = field(default_factory=dict)

    @property
    def room(self) -> int:
        """How many tasks it can take; one that must be alone leaves none."""
        if not self.ready or any(one.alone for one in self.held.values()):
            return 0
        return DEPTH - len(self.held)


class Foreman:
    """Posts, and the tasks that they have.

    Parameters
    ----------
    posts : sequence of Post
        They are started.
    inbox : Inbox
        Where they tell what happens.
    limits : Limits
        Of each task.
    more : callable, optional
        Returns further posts for a number of GPUs, once a post has told how many there are.
    """

    def __init__(self, posts: Sequence[Post], inbox: Inbox, limits: Limits, more: More | None = None) -> None:
        self._inbox, self._limits, self._more = inbox, limits, more
        self._states: dict[Post, _State] = {}
        self._died: Counter[str] = Counter()
        self._suspects: dict[str, list[set[str]]] = {}  # of each death, by each of them
        self._others = 0  # deaths that no task brought about, as all of them ended later
        self._hire(posts)

    def _hire(self, posts: Iterable[Post]) -> None:
        for post in posts:
            self._states[post] = _State()
            post.start()

    @property
    def busy(self) -> int:
        """How many tasks are under way."""
        return sum(len(state.held) for state in self._states.values())

    def room(self, *, alone: bool = False) -> bool:
        """Return whether a task can be given, for one that must be `alone` to a post without any."""
        return any(state.room and not (alone and state.held) for state in self._states.values())

    def give(self, task: Task, *, alone: bool = False) -> None:
        """Give a task to the post with the fewest."""
        able = {post: state for post, state in self._states.items() if state.room and not (alone and state.held)}
        post = min(able, key=lambda post: len(able[post].held))
        self._states[post].held[task.place] = _Held(task, alone)
        post.give(task)

    def listen(self, seconds: float) -> list[Returned]:
        """Return the tasks that come back within some time; at once when there is one.

        Raises
        ------
        MedsegError
            If a post cannot work at all.
        """
        found: list[Returned] = []
        until = time.monotonic() + seconds
        while not found and (wait := until - time.monotonic()) > 0:
            try:
                event = self._inbox.get(timeout=wait)
            except Empty:
                break
            found += self._heard(event)
            while not self._inbox.empty():
                found += self._heard(self._inbox.get())
        return found + self._checked()

    def stop(self) -> list[Task]:
        """End all posts at once; return the tasks that were under way."""
        for post in self._states:
            post.stop()
        return [one.task for state in self._states.values() for one in state.held.values()]

    def _heard(self, event: Event) -> list[Returned]:
        post, data = event.post, event.data
        state = self._states[post]
        if event.life != post.life:
            return []
        match event.kind:
            case "ready":
                state.ready, state.deaths = True, 0
                if self._more and data["gpus"] > 1:
                    more, self._more = self._more(data["gpus"]), None
                    self._hire(more)
            case "broken":
                raise MedsegError(data["problem"], hint=data["hint"])
            case "stage":
                self._stage(state, data["place"], data["stage"])
            case "outcome":
                return self._outcome(state, data["place"], Outcome.of(data["outcome"]))
            case "lost":
                return self._lost(post, state)
        return []

    def _stage(self, state: _State, place: str, stage: str) -> None:
        if one := state.held.get(place):
            now = time.monotonic()
            one.spent, one.stage, one.since = one.seconds(now), stage, now

    def _outcome(self, state: _State, place: str, outcome: Outcome) -> list[Returned]:
        one = state.held.pop(place, None)
        if one is None:
            return []
        if outcome.state == AGAIN and outcome.code in _MEMORY:
            if not one.alone:  # others may have held what it lacked
                return [Returned(one.task, None, alone=True)]
            outcome = Outcome(FAILED, outcome.code, outcome.problem, outcome.hint, outcome.seconds)
        self._clear(place)
        return [Returned(one.task, outcome)]

    def _clear(self, place: str) -> None:
        """Note that a task did not kill: it was under way and came to an end."""
        for suspects in self._suspects.pop(place, ()):
            suspects.discard(place)
            self._others += not suspects

    def _lost(self, post: Post, state: _State) -> list[Returned]:
        """Start a post anew that died; find out by which task."""
        if not state.ready:
            state.deaths += 1
            if state.deaths >= _DEATHS:
                raise DeviceError(
                    f"{post.name} died {_DEATHS} times before it could work", hint="run again with --debug"
                )
        back = []
        suspects = {place for place, one in state.held.items() if one.stage or one.spent}
        enough = min(self._limits.tries + self._others, _ENOUGH)  # where someone else kills too, more is needed
        for one in state.held.values():
            if one.task.place in suspects:
                self._suspects.setdefault(one.task.place, []).append(suspects)
            if one.alone:
                self._died[one.task.place] += 1
            if (count := self._died[one.task.place]) >= enough:
                text = f"the process that worked on it died {count} times"
                outcome = Outcome(
                    FAILED, "WORKER_DIED", text, "look at the scan; it may need more memory than there is"
                )
                back.append(Returned(one.task, outcome))
            else:
                back.append(Returned(one.task, None, alone=bool(one.stage or one.spent)))
        self._anew(post)
        return back

    def _checked(self) -> list[Returned]:
        """Return the tasks of posts that were ended, as a task or the post itself went over a limit."""
        back: list[Returned] = []
        for post, state in self._states.items():
            now = time.monotonic()
            late = [one for one in state.held.values() if one.seconds(now) > self._limits.seconds]
            if late:
                back += self._overdue(state, late)
                self._anew(post)
            elif self._too_large(post):
                back += self._freed(state)
                self._anew(post)
        return back

    def _overdue(self, state: _State, late: list[_Held]) -> list[Returned]:
        """Return the tasks of a post that took too long; one that holds the whole process up delays others too."""
        some = [*state.held.values()]
        if sum(bool(one.stage) for one in some) > 1:
            return [Returned(one.task, None, alone=bool(one.stage)) for one in some]
        text = f"it took longer than {self._limits.seconds:g} s"
        outcome = Outcome(FAILED, "TIME_LIMIT", text, "look at the scan, or allow more with --time-limit")
        return [Returned(one.task, outcome if one in late else None) for one in some]

    def _too_large(self, post: Post) -> bool:
        limit = self._limits.memory
        return limit is not None and post.held() > _SPARE[0] * limit + _SPARE[1]

    def _freed(self, state: _State) -> list[Returned]:
        """Return the tasks of a post that held too much; the only one is to blame."""
        some = [*state.held.values()]
        if len(some) > 1:
            return [Returned(one.task, None, alone=True) for one in some]
        text = "it took more memory than one scan may"
        outcome = Outcome(FAILED, "MEMORY_LIMIT", text, "look at the scan, or allow more with --memory")
        return [Returned(one.task, outcome) for one in some]

    def _anew(self, post: Post) -> None:
        deaths = self._states[post].deaths
        post.stop()
        self._states[post] = _State(deaths=deaths)
        post.start()
