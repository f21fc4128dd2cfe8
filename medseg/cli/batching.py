"""The steps of `medseg batch`: words into numbers, and how far a run is, told to people and programs."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

from medseg.archive import Shard, Tally, Watcher
from medseg.cli.progress import Style
from medseg.dicom.pacs import Query
from medseg.errors import UsageError

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}
_OFTEN = 10.0  # seconds between two plain lines


@dataclass(frozen=True)
class Asked:
    """What was asked of a PACS, in words."""

    pacs: str
    modality: Sequence[str]
    date: str
    description: str
    store: bool
    store_to: str
    token_file: Path | None
    store_token_file: Path | None

    @property
    def query(self) -> Query:
        """The series that are meant."""
        return Query(tuple(self.modality), parse_dates(self.date), self.description)

    @property
    def file_of_store_token(self) -> Path | None:
        """Where the token lies for storing."""
        return self.store_token_file if self.store_to else self.token_file


def check_words(archive: Path | None, output: Path | None, engine: str, asked: Asked) -> Path:
    """Return the folder for results, if the words go together.

    Raises
    ------
    UsageError
        If they do not.
    """
    if output is None:
        raise UsageError("no folder for results was named", hint="name one with -o")
    if (archive is None) == (not asked.pacs):
        raise UsageError("one archive is needed", hint="name a folder, or a PACS with --pacs")
    idle = [field.name for field in fields(asked) if getattr(asked, field.name)]
    if not asked.pacs and idle:
        option = idle[0].replace("_", "-")
        raise UsageError(
            f"--{option} is for series of a PACS", hint="name one with --pacs, or leave it out; see --rules"
        )
    if asked.store_token_file and not asked.store_to:
        raise UsageError("--store-token-file is for --store-to", hint="--token-file holds the token of --pacs")
    if engine.partition(":")[0] not in {"local", "ray"}:
        raise UsageError(f"there is no engine {engine!r}", hint="choose local, ray or ray:ADDRESS")
    return output


def read_token(path: Path | None) -> str:
    """Return the token in a file; '' without a file.

    Raises
    ------
    UsageError
        If it cannot be read.
    """
    try:
        return path.read_text("ascii").strip() if path else ""
    except (OSError, UnicodeDecodeError):
        raise UsageError(f"{path}: holds no token", hint="give a text file with the token alone") from None


def parse_seconds(text: str) -> float:
    """Return seconds from words such as '90s', '30m' or '2h'.

    Raises
    ------
    UsageError
        If it is no time.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    if not found or not float(found[1]):
        raise UsageError(f"{text!r} is no time", hint="give one such as 90s, 30m or 2h")
    return float(found[1]) * _UNITS[found[2]]


def parse_shard(text: str) -> Shard:
    """Return a part of an archive from words such as '3/8'.

    Raises
    ------
    UsageError
        If it is none.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", text.strip())
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise UsageError(f"{text!r} is no part of an archive", hint="give one from 1/N to N/N, such as --shard 3/8")
    return Shard(int(found[1]) - 1, int(found[2]))


def parse_dates(text: str) -> tuple[str, str]:
    """Return the first and last day of 'YYYYMMDD-YYYYMMDD', 'YYYYMMDD-', '-YYYYMMDD' or 'YYYYMMDD'; '' for none.

    Raises
    ------
    UsageError
        If it is no such thing.
    """
    found = re.fullmatch(r"(\d{8}|)(-?)(\d{8}|)", text.strip())
    if not found or (found[3] and not found[2]):
        raise UsageError(f"{text!r} are no dates", hint="give them as --date 20260101-20260131")
    return (found[1], found[3]) if found[2] else (found[1], found[1])


class Said(Watcher):
    """Tells how far a run is in lines."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self._noted = ""

    def listed(self, files: int) -> None:
        """Say how many files were looked at, now and then."""
        if self._due():
            print(f"looking into the archive: {files} files", file=sys.stderr, flush=True)

    def begin(self, tally: Tally) -> None:
        """Say what is to be done."""
        found = f"{tally.total} scans to segment in the archive"
        print(f"{found}: {tally.done} done, {tally.failed} failed, {tally.left} to do", file=sys.stderr, flush=True)

    def step(self, tally: Tally) -> None:
        """Say how far it is, now and then."""
        if tally.note != self._noted:
            self._noted = tally.note
            print(tally.note, file=sys.stderr, flush=True)
        if self._due():
            print(line_of(tally), file=sys.stderr, flush=True)

    def tell(self, tally: Tally, output: Path) -> int:
        """Say how it ended; return the exit code."""
        print(end_of(tally, output))
        return int(bool(tally.failed or tally.left))

    def _due(self) -> bool:
        now = time.monotonic()
        if now - self._last < _OFTEN:
            return False
        self._last = now
        return True


class _Silent(Said):
    """Says nothing before the end."""

    def listed(self, files: int) -> None: ...

    def begin(self, tally: Tally) -> None: ...

    def step(self, tally: Tally) -> None: ...


class _JsonLines(Said):
    """One JSON object for each step."""

    def listed(self, files: int) -> None:
        if self._due():
            self._print(event="listing", files=files)

    def begin(self, tally: Tally) -> None:
        self._print(event="begin", **_numbers(tally))

    def step(self, tally: Tally) -> None:
        self._print(event="progress", **_numbers(tally))

    def tell(self, tally: Tally, output: Path) -> int:
        self._print(event="end", **_numbers(tally), note=tally.note)
        return super().tell(tally, output)

    @staticmethod
    def _print(**data: object) -> None:
        print(json.dumps(data), file=sys.stderr, flush=True)


class _Bar(Said):
    """A bar on a terminal."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        super().__init__()
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
        self.bars = Progress(*columns, console=Console(stderr=True), transient=True)
        self._task = self.bars.add_task("looking into the archive", total=None)

    def listed(self, files: int) -> None:
        self.bars.update(self._task, description=f"looking into the archive: {files} files")

    def begin(self, tally: Tally) -> None:
        self.step(tally)

    def step(self, tally: Tally) -> None:
        self.bars.update(
            self._task, total=tally.total, completed=tally.total - tally.left, description=tally.note or line_of(tally)
        )

    def tell(self, tally: Tally, output: Path) -> int:
        self.bars.stop()
        return super().tell(tally, output)


@contextmanager
def watched(style: Style) -> Iterator[Said]:
    """Yield what tells how far a run is."""
    if style is Style.auto and sys.stderr.isatty():
        bar = _Bar()
        with bar.bars:
            yield bar
    else:
        yield {Style.none: _Silent, Style.json: _JsonLines}.get(style, Said)()


def line_of(tally: Tally) -> str:
    """Return how far a run is, in a line."""
    line = f"{tally.done} done, {tally.failed} failed, {tally.left} left"
    if tally.eta is None:
        return line
    return f"{line}; {tally.per_hour:.0f} an hour, {in_time(tally.eta)} to go"


def end_of(tally: Tally, output: Path) -> str:
    """Return how a run ended."""
    if not tally.total:
        return "no scan was found that the rules mean"
    lines = [f"{tally.done} of {tally.total} scans segmented"]
    if not tally.new and not tally.left:
        lines[0] += "; nothing was left to do"
    if tally.passed:
        lines.append(f"{tally.passed} passed over, as the rules do not mean them")
    if tally.failed:
        lines.append(f"{tally.failed} failed: see `medseg status {output}`")
    if tally.note:
        lines.append(tally.note)
    lines.append(f"results: {output / 'index.html'}")
    return "\n".join(lines)


def in_time(seconds: float) -> str:
    """Return a span of time for people."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _numbers(tally: Tally) -> dict[str, float | int | None]:
    eta = None if tally.eta is None else round(tally.eta, 1)
    return {
        "total": tally.total,
        "done": tally.done,
        "failed": tally.failed,
        "passed": tally.passed,
        "left": tally.left,
        "per_hour": round(tally.per_hour, 1),
        "eta_seconds": eta,
    }
