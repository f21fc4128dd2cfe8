"""Scans that clients sent and will speak of again, kept for a while."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

from medseg.server.settings import Limits
from medseg.server.spool import bytes_in, remove

_SHARE = 4  # each kind of session may take so large a part of what is kept: 1 / _SHARE


@dataclass(eq=False)
class Session:
    """A scan that was sent once, to be used several times.

    Parameters
    ----------
    name : str
        Nobody can guess it, or the client gave it.
    path : Path
        The file, in a folder of its own.
    keep : float
        Seconds for which it stays after it was last asked for.
    size : int
        Bytes on the disk.
    """

    name: str
    path: Path
    keep: float
    size: int
    users: int = 0
    asked: float = field(default_factory=time.monotonic)


class Sessions:
    """Scans by a name: one that nobody can guess, or one that the client gave.

    Parameters
    ----------
    limits : Limits
        How many, how much, and for how long.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._all: dict[str, Session] = {}
        self._lock = Lock()

    def add(self, name: str, path: Path, *, keep: float = 0) -> Session:
        """Keep a scan; one of the same name goes. `keep` may ask for less than the server's time, not for more."""
        longest = self._limits.keep
        session = Session(name, path, min(keep, longest) if keep > 0 else longest, bytes_in(path.parent))
        with self._lock:
            before = self._all.pop(name, None)
            self._all[name] = session
        if before and not before.users:
            remove(before.path.parent)
        self.tidy()
        return session

    def find(self, name: str) -> Session | None:
        """Return a session, if it is still there."""
        with self._lock:
            session = self._all.get(name)
            if session:
                session.asked = time.monotonic()
            return session

    def drop(self, name: str) -> bool:
        """Forget a session; return whether there was one."""
        with self._lock:
            session = self._all.pop(name, None)
        if session and not session.users:
            remove(session.path.parent)
        return session is not None

    def use(self, session: Session, step: int) -> None:
        """Count the jobs that need it: 1 for one that begins, -1 for one that ended."""
        with self._lock:
            session.users += step
            session.asked = time.monotonic()
            gone = self._all.get(session.name) is not session
        if gone and not session.users:
            remove(session.path.parent)

    def tidy(self) -> None:
        """Forget what nobody asked for in a while, and the oldest of too many or too much."""
        now = time.monotonic()
        gone: list[Session] = []
        with self._lock:
            excess = len(self._all) - self._limits.kept
            total = sum(each.size for each in self._all.values())
            for session in sorted(self._all.values(), key=lambda each: each.asked):
                too_much = excess > 0 or total > self._limits.spool // _SHARE
                if not session.users and (too_much or now - session.asked > session.keep):
                    gone.append(self._all.pop(session.name))
                    excess, total = excess - 1, total - session.size
        for session in gone:
            remove(session.path.parent)
