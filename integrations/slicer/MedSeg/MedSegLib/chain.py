"""Programs run one after the other, each chosen by what the one before has answered, without ever waiting."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .process import Running, Start
from .progress import Lines


class TroubleError(Exception):
    """What went wrong, in words for the user."""


@dataclass(frozen=True)
class Command:
    """A program to run."""

    title: str  # what it is for
    words: tuple[str, ...]
    settings: Mapping[str, str] = field(default_factory=dict)  # added to the environment


@dataclass(frozen=True)
class Done:
    """How a program ended."""

    code: int
    out: str
    err: str

    def must(self, problem: str) -> Done:
        """Return itself; raise TroubleError if the program has failed."""
        if self.code != 0:
            said = (self.err or self.out).strip().splitlines()[-5:]
            raise TroubleError("\n".join([f"{problem} (exit code {self.code})", *said]))
        return self


class Chain:
    """Drives a generator that yields a `Command`, is sent a `Done`, and so on; what it returns is the result.

    Parameters
    ----------
    work : generator
        Its `finally` blocks run when the chain is cancelled too.
    start : function
        Starts a program: `process.Process`, or something else in tests.
    environment : mapping
        Of all programs.
    folder : Path
        For their output.
    """

    def __init__(
        self, work: Generator[Command, Done, Any], start: Start, environment: Mapping[str, str], folder: Path
    ) -> None:
        self._work, self._start, self._environment, self._folder = work, start, environment, folder
        self._process: Running | None = None
        self.title = ""
        self.result: Any = None
        self.problem = ""
        self.cancelled = False
        self.finished = False
        self._begin(None)

    def tick(self) -> list[str]:
        """Look what the program does; return the lines that it has written since the last call."""
        if self._process is None:
            return []
        code = self._process.poll()  # first this, then its output: nothing is missed
        new = [
            line
            for lines, data in zip(self._lines, self._process.read())
            for line in self._kept(lines, lines.feed(data))
        ]
        if code is not None:
            new += [line for lines in self._lines for line in self._kept(lines, lines.end())]
            self._process = None
            out, err = ("\n".join(self._said[lines]) for lines in self._lines)
            self._begin(Done(code, out, err))
        return new

    def cancel(self) -> None:
        """End the program, and let the work clean up after itself."""
        if self.finished:
            return
        if self._process is not None:
            self._process.kill()
            self._process = None
        self._work.close()
        self.cancelled = self.finished = True

    def _begin(self, done: Done | None) -> None:
        try:
            command = next(self._work) if done is None else self._work.send(done)
            while True:
                try:
                    self._process = self._start(command.words, {**self._environment, **command.settings}, self._folder)
                    break
                except OSError as error:  # it cannot be run at all
                    command = self._work.send(Done(127, "", str(error)))
        except StopIteration as end:
            self.result, self.finished = end.value, True
            return
        except (TroubleError, OSError) as error:
            self.problem, self.finished = str(error), True
            return
        self.title = command.title
        self._lines = (Lines(), Lines())
        self._said: dict[Lines, list[str]] = {lines: [] for lines in self._lines}

    def _kept(self, lines: Lines, new: list[str]) -> list[str]:
        self._said[lines] += new
        return new
