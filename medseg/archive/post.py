"""A worker process on this computer: started, given tasks, listened to, ended with all that it started."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import Any, Protocol

from medseg.archive.task import Settings, Task


@dataclass(frozen=True)
class Event:
    """What a post says.

    Parameters
    ----------
    post : Post
        Which one.
    life : int
        How often it had been started by then: what an earlier life said counts no more.
    kind : str
        'ready', 'broken' (it can never work), 'stage', 'outcome', or 'lost' (it is gone).
    data : dict
        Of that.
    """

    post: Post
    life: int
    kind: str
    data: dict[str, Any] = field(default_factory=dict)


Inbox = Queue[Event]


class Post(Protocol):
    """Where tasks are done; it says through an inbox what comes of them."""

    name: str
    life: int

    def start(self) -> None:
        """Begin, or begin anew."""

    def give(self, task: Task) -> None:
        """Let a task be done."""

    def held(self) -> int:
        """Return the bytes of memory that it holds; 0 where nobody knows."""

    def stop(self) -> None:
        """End at once, with all that is under way."""


class Process:
    """A post that is a process of this computer.

    Parameters
    ----------
    name : str
        For messages.
    settings : Settings
        How it computes.
    inbox : Inbox
        Where it tells what happens.
    loud : bool
        Whether what it prints is shown: it may name patients.
    """

    def __init__(self, name: str, settings: Settings, inbox: Inbox, *, loud: bool = False) -> None:
        self.name, self.settings, self.life = name, settings, 0
        self._inbox, self._loud = inbox, loud
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Begin, or begin anew."""
        self.life += 1
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "medseg.archive.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if self._loud else subprocess.DEVNULL,
            encoding="utf-8",
            start_new_session=True,  # the terminal's Ctrl-C is for the process that gives the tasks
        )
        self._tell(asdict(self.settings))
        Thread(target=self._listen, args=(self._process, self.life), daemon=True).start()

    def give(self, task: Task) -> None:
        """Let a task be done."""
        self._tell(task.plain())

    def held(self) -> int:
        """Return the bytes of memory that the process holds; 0 where nobody knows."""
        if self._process is None:
            return 0
        try:
            pages = Path(f"/proc/{self._process.pid}/statm").read_text("ascii").split()[1]
        except (OSError, IndexError):
            return 0
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def stop(self) -> None:
        """End at once, with all that is under way."""
        if self._process is None:
            return
        with contextlib.suppress(OSError):
            if hasattr(os, "killpg"):
                os.killpg(self._process.pid, signal.SIGKILL)
            else:
                self._process.kill()
        with contextlib.suppress(OSError):
            if self._process.stdin:
                self._process.stdin.close()
        self._process.wait()

    def _tell(self, data: dict[str, Any]) -> None:
        if self._process is None or self._process.stdin is None:
            return
        with contextlib.suppress(OSError):  # who is gone is told of by _listen
            self._process.stdin.write(json.dumps(data) + "\n")
            self._process.stdin.flush()

    def _listen(self, process: subprocess.Popen[str], life: int) -> None:
        """Pass on what the process says, and at last that it is gone."""
        for line in process.stdout or ():
            try:
                data = json.loads(line)
                kind = data.pop("event")
            except (ValueError, KeyError):  # a line that a kill cut off
                continue
            self._inbox.put(Event(self, life, kind, data))
        status = process.wait()
        if process.stdout:
            process.stdout.close()
        self._inbox.put(Event(self, life, "lost", {"status": status}))
