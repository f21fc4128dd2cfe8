"""Progress on stderr: a bar on a terminal, plain lines elsewhere, JSON lines for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TextIO

from medseg import progress
from medseg.progress import Progress, Stages

ESTIMATING = {"read": 0.2, "locate": 0.1, "prepare": 0.2, "sample": 0.5}
EVALUATING = {"read": 0.4, "scores": 0.6}


class Style(StrEnum):
    """How progress is shown."""

    auto = "auto"
    plain = "plain"
    json = "json"
    none = "none"


class Display:
    """Shows no progress; what is said goes where it should."""

    def __init__(self, count: int, stages: Stages) -> None:
        self.count = count
        self._stages = stages

    def of(self, path: Path, number: int) -> Progress:
        """Return what to call with the progress of a scan; `number` counts from 0."""
        return partial(self.show, path, number)

    def show(self, path: Path, number: int, stage: str, done: float) -> None:
        """Show how far a stage of a scan is."""

    def say(self, text: str, to: TextIO) -> None:
        """Print lines between two scans."""
        print(text, file=to, flush=True)

    def note(self, text: str) -> None:
        """Tell the user something that no output depends on."""

    def overall(self, stage: str, done: float) -> float:
        """Return the fraction of a scan that is done."""
        return progress.overall(self._stages, stage, done)


class _Plain(Display):
    """A line for each stage that begins, and for each tenth of the network's work."""

    _said = ""

    def show(self, path: Path, number: int, stage: str, done: float) -> None:
        line = f"[{number + 1}/{self.count}] {path.name}: {stage}"
        line += f" {int(done * 10) * 10}%" if stage == "network" else ""
        if line != self._said:
            self._said = line
            print(line, file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        self.say(f"note: {text}", sys.stderr)


class _JsonLines(Display):
    """One JSON object for each step."""

    def show(self, path: Path, number: int, stage: str, done: float) -> None:
        line = {"event": "progress", "scan": str(path), "number": number + 1, "of": self.count, "stage": stage}
        print(json.dumps({**line, "fraction": round(self.overall(stage, done), 4)}), file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        print(json.dumps({"event": "note", "text": text}), file=sys.stderr, flush=True)


class _Bar(Display):
    """A bar for all scans, on a terminal; it steps aside for what is said."""

    def __init__(self, count: int, stages: Stages) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars

        super().__init__(count, stages)
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
        console = Console(stderr=True)
        self.bars = Bars(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False)
        self.task = self.bars.add_task("", total=count)

    def show(self, path: Path, number: int, stage: str, done: float) -> None:
        self.bars.update(self.task, completed=number + self.overall(stage, done), description=f"{path.name}: {stage}")

    def say(self, text: str, to: TextIO) -> None:
        self.bars.stop()
        super().say(text, to)
        self.bars.start()

    def note(self, text: str) -> None:
        self.say(f"note: {text}", sys.stderr)


@contextmanager
def shown(style: Style, count: int, stages: Stages = progress.PREDICTING) -> Iterator[Display]:
    """Yield the display of a run over `count` scans."""
    if style is Style.auto and sys.stderr.isatty():
        display = _Bar(count, stages)
        with display.bars:
            yield display
    else:
        yield {Style.none: Display, Style.json: _JsonLines}.get(style, _Plain)(count, stages)
