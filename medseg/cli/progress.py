"""Progress on stderr: a bar on a terminal, plain lines elsewhere, JSON lines for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path

from medseg.progress import Progress, silent

STAGES = {"read": 0.05, "prepare": 0.05, "network": 0.7, "restore": 0.1, "check": 0.02, "write": 0.04, "picture": 0.04}


class Style(StrEnum):
    """How progress is shown."""

    auto = "auto"
    plain = "plain"
    json = "json"
    none = "none"


@contextmanager
def shown(style: Style, count: int) -> Iterator[Callable[[Path, int], Progress]]:
    """Yield a function that returns, for a scan and its number (from 0), what to call with its progress."""
    if style is Style.auto:
        style = Style.auto if sys.stderr.isatty() else Style.plain
    if style is Style.none:
        yield lambda _path, _number: silent
    elif style is Style.json:
        yield lambda path, number: _JsonLines(path, number, count)
    elif style is Style.plain:
        yield lambda path, number: _PlainLines(path, number, count)
    else:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars

        columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
        with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
            task = bars.add_task("", total=count)

            def start(path: Path, number: int) -> Progress:
                def update(stage: str, done: float) -> None:
                    bars.update(task, completed=number + _overall(stage, done), description=f"{path.name}: {stage}")

                return update

            yield start


def _overall(stage: str, done: float) -> float:
    """Return the fraction of a scan that is done, from the usual share of each stage."""
    before = 0.0
    for name, share in STAGES.items():
        if name == stage:
            return before + share * done
        before += share
    return before


class _PlainLines:
    """A line for each stage that begins, and for each tenth of the network's work."""

    def __init__(self, path: Path, number: int, count: int) -> None:
        self._front = f"[{number + 1}/{count}] {path.name}"
        self._said = ""

    def __call__(self, stage: str, done: float) -> None:
        line = f"{self._front}: {stage} {int(done * 10) * 10}%" if stage == "network" else f"{self._front}: {stage}"
        if line != self._said:
            self._said = line
            print(line, file=sys.stderr, flush=True)


class _JsonLines:
    """One JSON object for each step."""

    def __init__(self, path: Path, number: int, count: int) -> None:
        self._fixed = {"event": "progress", "scan": str(path), "number": number + 1, "of": count}

    def __call__(self, stage: str, done: float) -> None:
        line = {**self._fixed, "stage": stage, "fraction": round(_overall(stage, done), 4)}
        print(json.dumps(line), file=sys.stderr, flush=True)
