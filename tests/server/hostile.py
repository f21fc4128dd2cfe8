"""What hostile requests are sent with, and what must be true of the server afterwards."""

from __future__ import annotations

import json
import os
import re
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path

from hostile_files import CANARY
from serving import Server

PATIENCE = 30.0  # seconds within which whatever is wrong must have been answered, on a busy machine


@dataclass
class Reply:
    """What came back on one connection.

    Parameters
    ----------
    raw : bytes
        All of it, until the other side closed or was silent for too long.
    closed : bool
        Whether the other side closed.
    seconds : float
        How long it took.
    """

    raw: bytes
    closed: bool
    seconds: float

    @property
    def statuses(self) -> list[int]:
        """Return the status of each answer, in order."""
        return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) [A-Z]", self.raw)]

    @property
    def status(self) -> int:
        """Return the last status; 0 if the connection was closed without an answer."""
        return self.statuses[-1] if self.statuses else 0


def talk(port: int, *pieces: bytes, pause: float = 0.0, shut: bool = False, seconds: float = PATIENCE) -> Reply:
    """Send pieces over one connection, and return all that comes until the other side closes."""
    start, got, closed = time.monotonic(), b"", False
    with socket.create_connection(("127.0.0.1", port), seconds) as connection:
        try:
            for piece in pieces:
                connection.sendall(piece)
                if pause:
                    time.sleep(pause)
            if shut:
                connection.shutdown(socket.SHUT_WR)
        except (BrokenPipeError, ConnectionResetError):
            pass  # refused before all was sent: what was answered is read below
        try:
            while time.monotonic() - start < seconds:
                connection.settimeout(max(0.01, seconds - (time.monotonic() - start)))
                more = connection.recv(1 << 16)
                if not more:
                    closed = True
                    break
                got += more
        except ConnectionResetError:
            closed = True
        except TimeoutError:
            pass
    return Reply(got, closed, time.monotonic() - start)


def head(line: str, port: int, *lines: str, host: str | None = None) -> bytes:
    """Return the head of a request, to be answered by one answer and a close."""
    first = [line, f"Host: {host or f'127.0.0.1:{port}'}", "Connection: close"]
    return "\r\n".join([*first, *lines, "", ""]).encode("latin-1")


def post(path: str, port: int, body: bytes, *lines: str) -> bytes:
    """Return a whole request with a body."""
    return head(f"POST {path} HTTP/1.1", port, f"Content-Length: {len(body)}", *lines) + body


@dataclass
class Watch:
    """Holds a server against what must be true after whatever it was sent.

    Parameters
    ----------
    server : Server
        One that runs.
    """

    server: Server
    before: dict[Path, tuple[int, int]] = field(init=False)

    def __post_init__(self) -> None:
        self._spool = self.server.folder / "XDG_CACHE_HOME" / "medseg" / "serve"
        self.before = self._outside()
        self.scan = self.server.scan.read_bytes()

    def check(self, *, token: str = "") -> None:
        """Assert that it answers, segments, keeps nothing, has said no name, and touched nothing else."""
        known = f"Authorization: Bearer {token or 'none'}"
        good = talk(self.server.port, post("/predict", self.server.port, self.scan, known))
        assert good.status == 200, good.raw
        until = time.monotonic() + PATIENCE
        while (left := self.left(token)) and time.monotonic() < until:
            time.sleep(0.02)
        assert not left
        log = self.server.log()
        assert CANARY not in log, log
        assert "Canary" not in log, log
        assert "Traceback" not in log, log
        assert self._outside() == self.before

    def left(self, token: str = "") -> list[object]:
        """Return what it keeps or has to do."""
        known = f"Authorization: Bearer {token or 'none'}"
        reply = talk(self.server.port, head("GET /health HTTP/1.1", self.server.port, known))
        queue = json.loads(reply.raw.partition(b"\r\n\r\n")[2])["queue"]
        files = [name for _, _, names in os.walk(self._spool) for name in names if name != ".lock"]
        return [*files, *(name for name in ("waiting", "running") if queue[name])]

    def _outside(self) -> dict[Path, tuple[int, int]]:
        """Return size and time of every file outside the spool."""
        found = {}
        for place, folders, names in os.walk(self.server.folder):
            folders[:] = [name for name in folders if name != "matplotlib" and Path(place, name) != self._spool]
            for path in (Path(place, name) for name in names if name != "log"):
                found[path] = (path.stat().st_size, path.stat().st_mtime_ns)
        return found


def with_limits(**limits: float) -> str:
    """Return a program for the process of a server that changes what `Limits` has when nothing is said."""
    return f"""
import dataclasses
from medseg.server.settings import Limits
said = dict(zip([each.name for each in dataclasses.fields(Limits)], Limits.__init__.__defaults__))
Limits.__init__.__defaults__ = tuple({{**said, **{json.dumps(limits)}}}.values())
"""
