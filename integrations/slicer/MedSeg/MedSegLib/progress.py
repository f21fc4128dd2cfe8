"""What medseg says while it works: lines, progress, and how long it will still take."""

from __future__ import annotations

import json
import math
from collections import deque
from dataclasses import dataclass
from typing import Callable

_EVIDENCE = 1.0  # seconds of progress before anything is said of the rest
_LONGEST = 1 << 20  # bytes without an end of line that are kept as one line


@dataclass(frozen=True)
class Step:
    """How far a run over several scans is."""

    number: int  # of the scan, counted from 1
    of: int
    stage: str
    fraction: float  # of all scans

    @property
    def text(self) -> str:
        """What to show beside a bar."""
        return f"scan {self.number} of {self.of}: {self.stage}" if self.of > 1 else self.stage


@dataclass(frozen=True)
class Note:
    """Something that the user may like to know."""

    text: str


class Lines:
    """Cuts bytes that come in pieces into lines of text."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[str]:
        """Return the lines that have become whole."""
        *whole, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _LONGEST:
            whole.append(self._rest)
            self._rest = b""
        return [_text(line) for line in whole]

    def end(self) -> list[str]:
        """Return what came after the last end of line."""
        rest, self._rest = self._rest, b""
        return [_text(rest)] if rest else []


class Remaining:
    """How long it will still take, from the speed of the later half of the time so far."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._seen: deque[tuple[float, float]] = deque()  # time and fraction, none of it older than needed
        self._began = 0.0

    def update(self, fraction: float) -> None:
        """Note how far it is."""
        if not self._seen:
            self._began = self._clock()
        if not self._seen or fraction > self._seen[-1][1]:
            self._seen.append((self._clock(), fraction))

    def seconds(self) -> float | None:
        """Return how long it will still take; None while that cannot be known."""
        if not self._seen or self._seen[-1][0] - self._began < _EVIDENCE:
            return None
        now = self._clock()
        while len(self._seen) > 2 and self._seen[1][0] <= (self._began + now) / 2:
            self._seen.popleft()
        (then, before), (_, last) = self._seen[0], self._seen[-1]
        return (1 - last) * (now - then) / (last - before)


def parse(line: str) -> Step | Note | None:
    """Return what a line on standard error says to programs, or None if it is for people."""
    said = as_object(line)
    if said.get("event") == "note" and isinstance(said.get("text"), str):
        return Note(said["text"])
    number, of, stage, fraction = (said.get(key) for key in ("number", "of", "stage", "fraction"))
    if said.get("event") != "progress" or type(number) is not int or type(of) is not int or not isinstance(stage, str):
        return None
    if type(fraction) not in (int, float) or not math.isfinite(fraction) or not 1 <= number <= of:
        return None
    return Step(number, of, stage, (number - 1 + min(max(fraction, 0.0), 1.0)) / of)


def as_object(line: str) -> dict[str, object]:
    """Return the JSON object that a line holds; an empty one if it holds none."""
    if not line.startswith("{"):
        return {}
    try:
        said = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def in_words(seconds: float | None) -> str:
    """Return a duration as people say it.

    >>> in_words(200)
    'about 3 min left'
    """
    if seconds is None:
        return ""
    if seconds < 90:
        return f"about {max(1, round(seconds))} s left"
    return f"about {round(seconds / 60)} min left"


def _text(line: bytes) -> str:
    return line.rstrip(b"\r").decode("utf-8", "replace")
