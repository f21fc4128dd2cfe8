"""Posts on the nodes of a Ray cluster: actors hold the model, and the process that writes the ledger watches them.

Each actor is a `Station` on one GPU, or on a share of the cores of one node; it reads the scans and writes the results
itself, so that all nodes must see the same files under the same names. Ray starts nothing anew on its own: an actor
that is lost is told of like a process that died, and what it had under way is given out again.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from threading import Event as Flag
from threading import Lock, Thread
from typing import Any

from medseg import __version__
from medseg.archive.post import Event, Inbox, Post
from medseg.archive.ray_seat import Seat
from medseg.archive.task import DEPTH, Settings, Task
from medseg.errors import DeviceError, UsageError

_DEVICES = {"auto", "cuda", "cpu"}
_STORE = 100_000_000  # bytes that Ray sets aside on this computer: tasks and outcomes are small
_TICK = 0.1  # seconds between two looks at what came back
_ASK = 1.0  # seconds between two questions to an actor
_KNOCK = 30.0  # seconds that a cluster has to answer in
_PATIENCE = 600.0  # seconds without any actor that works, after which the run is given up
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_SCHEDULER_EVENTS": "0"}  # Ray asks for them in the environment alone


@dataclass(frozen=True)
class Share:
    """A part of a node: cores and GPUs that Ray counts for an actor, and the threads it computes with."""

    node: str
    cores: float
    gpus: float
    threads: int


def shares(nodes: Sequence[dict[str, Any]], settings: Settings, workers: int) -> list[Share]:
    """Return the share of each actor: `workers` on each GPU, or on each node where the cluster has none.

    Where there are GPUs, and the device is not 'cpu', nodes without any are left alone: with equal settings all
    results come from devices of one kind.

    Raises
    ------
    UsageError
        If a device is named that Ray does not give out.
    DeviceError
        If there is nothing of the kind that is asked for.
    """
    if settings.device not in _DEVICES:
        raise UsageError(
            f"--device {settings.device}: Ray chooses the devices itself", hint="give auto, cuda or cpu with it"
        )
    having = [(node["NodeID"], node["Resources"]) for node in nodes if node["Alive"]]
    gpus = settings.device != "cpu" and any(has.get("GPU", 0) for _, has in having)
    if settings.device == "cuda" and not gpus:
        raise DeviceError("the Ray cluster has no GPU", hint="add a node with one, or use --device cpu")
    found = []
    for node, has in having:
        count = workers * int(has.get("GPU", 0) if gpus else has.get("CPU", 0) >= 1)
        for _ in range(count):
            cores = has.get("CPU", 0) / count
            cores = float(int(cores)) if cores > 1 else cores  # Ray counts whole cores from one on
            threads = settings.threads or max(1, int(cores))
            found.append(Share(node, min(cores, threads), 1 / workers if gpus else 0, threads))
    if not found:
        raise DeviceError("the Ray cluster has no cores to compute on", hint="add a node to it")
    return found


class RayPost:
    """A post that is an actor.

    Parameters
    ----------
    name : str
        For messages.
    share : Share
        Where it is, and how much of that it takes.
    settings : Settings
        How it computes.
    watch : Watch
        Hears what it says.
    """

    def __init__(self, name: str, share: Share, settings: Settings, watch: Watch) -> None:
        self.name, self.life = name, 0
        self._share, self._settings, self._watch = share, replace(settings, threads=share.threads), watch
        self._at: tuple[int, Any] = 0, None  # a life, and the actor of it
        self._worked = 0  # the last life that did
        self._held, self._heard = 0, 0.0

    def start(self) -> None:
        """Begin, or begin anew; Ray says when there is room for it."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        kind = self._watch.ray.remote(
            num_cpus=self._share.cores,
            num_gpus=self._share.gpus,
            max_concurrency=DEPTH + 1,  # all its tasks, and a question
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(self._share.node, soft=True),
        )(Seat)
        self.life += 1
        self._at = self.life, kind.remote(asdict(self._settings))
        self._held = 0
        self._watch.expect(self._at[1].state.remote(), self, self.life)

    def give(self, task: Task) -> None:
        """Let a task be done."""
        answers = self._at[1].do.options(num_returns="streaming").remote(task.plain())
        self._watch.expect(answers, self, self.life, task.place)

    def held(self) -> int:
        """Return the bytes of memory that it held a moment ago; 0 where nobody knows."""
        return self._held

    def stop(self) -> None:
        """End at once, with all that is under way."""
        self._watch.forget(self, self.life)
        if self._at[1] is not None:
            with suppress(Exception):  # it may be gone already, and Ray with it
                self._watch.ray.kill(self._at[1], no_restart=True)

    @property
    def ready(self) -> bool:
        """Whether it works."""
        return self._worked == self.life > 0

    def ask(self) -> None:
        """Ask for its state, if that was not done a moment ago."""
        life, actor = self._at
        if self.ready and time.monotonic() - self._heard > _ASK:
            self._heard = float("inf")
            self._watch.expect(actor.state.remote(), self, life)

    def heard(self, life: int, state: dict[str, Any]) -> None:
        """Take in its state."""
        if state["broken"] or state["version"] != __version__:
            _, problem, hint = state["broken"] or ("", *_foreign(f"medseg {state['version']}"))
            self.say(life, "broken", problem=f"{self.name}: {problem}", hint=hint)
        elif self._worked != life:
            self._worked = life
            self.say(life, "ready", gpus=0)
        self._held, self._heard = state["held"], time.monotonic()

    def lost(self, life: int, places: Sequence[str], error: Exception) -> None:
        """Say that it is gone. What it told last may have been lost with it: any of its tasks may have ended it."""
        self._worked = 0
        if getattr(error, "actor_init_failed", False):
            problem, hint = _foreign("another medseg, or none")
            self.say(life, "broken", problem=f"{self.name}: {problem}", hint=hint)
        for place in places:
            self.say(life, "stage", place=place, stage="unknown")
        self.say(life, "lost")

    def say(self, life: int, kind: str, **data: Any) -> None:
        """Tell what happened."""
        self._watch.inbox.put(Event(self, life, kind, data))


def _foreign(version: str) -> tuple[str, str]:
    return f"its node has {version}; here is medseg {__version__}", "install the same medseg and Python on all nodes"


class Watch:
    """Hears what all actors say, in a thread of its own.

    Parameters
    ----------
    ray : module
        Connected.
    inbox : Inbox
        Where it is told.
    """

    def __init__(self, ray: Any, inbox: Inbox) -> None:
        self.ray, self.inbox = ray, inbox
        self._posts: list[RayPost] = []
        self._expected: dict[Any, tuple[RayPost, int, str]] = {}  # answers of Ray: post, life, and place of the task
        self._lock, self._over = Lock(), Flag()
        self._thread = Thread(target=self._listen, daemon=True)

    def begin(self, some: Sequence[RayPost]) -> None:
        """Listen to posts."""
        self._posts = [*some]
        self._thread.start()

    def end(self) -> None:
        """Listen no more."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def expect(self, answer: Any, post: RayPost, life: int, place: str = "") -> None:
        """Wait for an answer: all that is said of a task, or a state, which has no place."""
        with self._lock:
            self._expected[answer] = post, life, place

    def forget(self, post: RayPost, life: int) -> list[str]:
        """Wait for nothing more of one life of a post; return the places of the tasks that it had."""
        with self._lock:
            mine = {answer: place for answer, (*owner, place) in self._expected.items() if owner == [post, life]}
            for answer in mine:
                del self._expected[answer]
        return [place for place in mine.values() if place]

    def _listen(self) -> None:
        seen = time.monotonic()
        try:
            while not self._over.is_set():
                for post in self._posts:
                    post.ask()
                self._hear()
                if any(post.ready for post in self._posts):
                    seen = time.monotonic()
                elif time.monotonic() - seen > _PATIENCE:
                    problem = f"no node of the Ray cluster has had room for a worker for {_PATIENCE:g} s"
                    self._give_up(problem, "add nodes, or free some")
                    return
        except Exception as error:  # noqa: BLE001 - whatever Ray raises: nobody would hear of any task again
            self._give_up(f"the connection to Ray is lost ({type(error).__name__})", "start the cluster")

    def _hear(self) -> None:
        with self._lock:
            expected = [*self._expected]
        if not expected:
            self._over.wait(_TICK)
        elif self.ray.wait(expected, num_returns=1, timeout=_TICK)[0]:
            for answer in self.ray.wait(expected, num_returns=len(expected), timeout=0)[0]:
                self._take(answer)

    def _take(self, answer: Any) -> None:
        with self._lock:
            post, life, place = self._expected.get(answer, (None, 0, ""))
        if post is None:  # it was stopped
            return
        try:
            said = self.ray.get(next(answer) if place else answer)
        except (self.ray.exceptions.RayError, StopIteration) as error:
            post.lost(life, self.forget(post, life), error)
            return
        if isinstance(said, str):
            post.say(life, "stage", place=place, stage=said)
            return
        with self._lock:
            self._expected.pop(answer, None)
        if place:
            post.say(life, "outcome", place=place, outcome=said)
        else:
            post.heard(life, said)

    def _give_up(self, problem: str, hint: str) -> None:
        post = self._posts[0]
        post.say(post.life, "broken", problem=problem, hint=f"{hint}, and run the same again: what is done is kept")


@contextmanager
def posts(address: str, settings: Settings, inbox: Inbox, *, workers: int) -> Iterator[list[Post]]:
    """Yield posts on a Ray cluster, which is left, or ended if it was started here, when the block ends.

    Parameters
    ----------
    address : str
        host:port of a cluster; 'auto' for the one of this computer; '' to start one on this computer.
    settings : Settings
        How to compute; the device is 'auto', 'cuda' or 'cpu'.
    inbox : Inbox
        Where the posts tell what happens.
    workers : int
        Posts on each GPU, or on each node where the cluster has none.

    Raises
    ------
    UsageError
        If Ray is not installed, or the settings do not fit it.
    DeviceError
        If the cluster cannot be reached, or has not what is asked for.
    """
    with _signals_kept():
        ray = _connected(address)
    watch = Watch(ray, inbox)
    try:
        some = [
            RayPost(f"worker {number}", share, settings, watch)
            for number, share in enumerate(shares(ray.nodes(), settings, workers), start=1)
        ]
        watch.begin(some)
        yield [*some]
    finally:
        watch.end()
        ray.shutdown()


def check_installed() -> None:
    """Refuse a machine without Ray.

    Raises
    ------
    UsageError
        With what to install.
    """
    if find_spec("ray") is None:
        raise UsageError("Ray is not installed", hint="pip install 'medseg[ray]'")


def _connected(address: str) -> Any:
    """Return Ray, connected to a cluster, silent, and telling nobody of its use."""
    os.environ.update(_QUIET)
    if not address:  # a secret of this process alone, instead of one in a file that others may read
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    check_installed()
    import ray

    if address:
        _check_there(address)
    own: dict[str, Any] = {} if address else {"object_store_memory": _STORE, "include_dashboard": False}
    try:
        ray.init(address=address or "local", log_to_driver=False, logging_level="ERROR", **own)
        ray._private.worker._worker_logs_enabled = False  # noqa: SLF001 - else what Ray says of nodes mixes with ours
    except Exception as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise DeviceError(f"Ray does not work: {said}", hint="use one version of Ray and Python everywhere") from error
    return ray


def _check_there(address: str) -> None:
    """Refuse to wait for a cluster that does not answer: Ray itself waits for hours."""
    words = [sys.executable, "-m", "ray.scripts.scripts", "status", "--address", address]
    none = subprocess.DEVNULL
    try:
        subprocess.run(words, stdin=none, stdout=none, stderr=none, timeout=_KNOCK, check=True)  # noqa: S603 - Ray's own
    except subprocess.SubprocessError:
        hint = f"see whether `ray status --address {address}` shows one"
        raise DeviceError(f"no Ray cluster answers at {address}", hint=hint) from None


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Put back what is done at signals: Ray changes it."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)
