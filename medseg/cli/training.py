"""What `medseg train` says while it works: plain lines, a bar on a terminal, or JSON lines for programs."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TypeVar

from medseg.bundle import Bundle
from medseg.cli.checking import finding_lines
from medseg.cli.progress import Style
from medseg.errors import UsageError
from medseg.training.check import Checked
from medseg.training.loop import Step
from medseg.training.planning import Planned, describe
from medseg.training.request import Listener
from medseg.training.validation import lines

Number = TypeVar("Number", int, float)

_PAUSE = 10.0  # seconds between two lines without a Dice
_MOST_LABELS = 6  # whose Dice a line names


class Teller(Listener):
    """Says little: a line for each stage, and one now and then for the steps."""

    def __init__(self) -> None:
        self.last = -math.inf
        self.staged = ""
        self.where = ""
        self.dice = ""
        self.number = 0

    @staticmethod
    @contextmanager
    def shown(style: Style) -> Iterator[Teller]:
        """Yield who tells in the style that was asked for."""
        on_terminal = style is Style.auto and sys.stderr.isatty()
        teller = _Bar() if on_terminal else {Style.none: _Silent, Style.json: _JsonLines}.get(style, Teller)()
        with teller.bars if isinstance(teller, _Bar) else nullcontext():
            try:
                yield teller
            except KeyboardInterrupt:
                teller.say("interrupted; the same command goes on from here")
                raise

    def checked(self, checked: Checked) -> None:
        """Show the data set and what is odd about it."""
        self.say("\n".join(finding_lines(checked)))

    def planned(self, planned: Planned) -> None:
        """Show each choice with its reason."""
        self.say("\n".join(["", *describe(planned), ""]))

    def stage(self, name: str, done: float) -> None:
        """Say that a stage began, and each quarter of it."""
        line = f"{name} {int(done * 4) * 25}%"
        if line != self.staged:
            self.staged = line
            self.show(line)

    def member(self, number: int, count: int, note: str) -> None:
        """Say whose turn it is."""
        self.where = f"fold {number} of {count}: " if count > 1 else ""
        self.dice = ""
        self.say(f"{self.where}training, {note}")

    def step(self, step: Step) -> None:
        """Show a step: with the Dice of held-back patches when there is one, else now and then."""
        now = time.monotonic()
        if step.dice:
            shown = [f"{name} {value:.3f}" for name, value in step.dice.items() if math.isfinite(value)]
            self.dice = (
                "  patch Dice " + ", ".join(shown[:_MOST_LABELS]) + (", ..." if len(shown) > _MOST_LABELS else "")
            )
        if step.dice or now - self.last >= _PAUSE:
            self.last = now
            left = step.seconds * (1 - step.done) / max(step.done, 1e-6)
            idle = f"  idle {step.idle:.0%}" if step.idle >= 0.05 else ""
            self.show(f"{self.where}step {step.step}  loss {step.loss:.3f}{self.dice}{idle}  {_clock(left)} to go")

    def show(self, line: str) -> None:
        """Show a line of progress."""
        print(line, file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """Print lines that stay."""
        print(text, file=sys.stderr, flush=True)

    def finish(self, bundle: Bundle, output: Path) -> None:
        """Print the scores and where the model is."""
        validation = bundle.card.validation
        print("\n".join(lines(validation) if validation else bundle.card.limits))
        if bundle.plan.largest_component:
            print(f"only the largest piece is kept of: {', '.join(bundle.plan.largest_component)}")
        print(f"wrote {output}; curves and logs are in {output.with_suffix('.training')}")
        print(f"next: medseg predict SCAN --model {output}", flush=True)


class _Silent(Teller):
    """Says nothing but results."""

    def checked(self, checked: Checked) -> None:
        """Name the errors: they are the result."""
        for found in checked.findings:
            if found.severity == "error":
                print(f"error: {found.code}: {found.case}: {found.detail}", file=sys.stderr, flush=True)

    def show(self, line: str) -> None:
        """Say nothing."""

    def say(self, text: str) -> None:
        """Say nothing."""


class _JsonLines(_Silent):
    """One JSON object for each stage, each finding, each choice of the plan and each step."""

    def checked(self, checked: Checked) -> None:
        """Write what the check found."""
        for found in checked.findings:
            _write({"event": "finding", **vars(found)})

    def planned(self, planned: Planned) -> None:
        """Write each choice with its reason."""
        for choice in planned.choices:
            _write({"event": "choice", **vars(choice)})

    def member(self, number: int, count: int, note: str) -> None:
        """Write whose turn it is."""
        self.number = number
        _write({"event": "member", "number": number, "of": count, "note": note})

    def say(self, text: str) -> None:
        """Write what else there is to say."""
        _write({"event": "note", "text": text})

    def stage(self, name: str, done: float) -> None:
        """Write how far a stage is."""
        _write({"event": "progress", "stage": name, "fraction": round(done, 4)})

    def step(self, step: Step) -> None:
        """Write a step."""
        dice = {name: value if math.isfinite(value) else None for name, value in step.dice.items()}
        _write({"event": "step", "member": self.number, **vars(step), "dice": dice})


class _Bar(Teller):
    """A bar on a terminal; lines that stay pass above it."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        super().__init__()
        columns = (BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
        self.bars = Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False)
        self.task = self.bars.add_task("", total=1.0)

    def stage(self, name: str, done: float) -> None:
        """Move the bar."""
        self.bars.update(self.task, completed=done, description=name)

    def step(self, step: Step) -> None:
        """Move the bar."""
        self.bars.update(self.task, completed=step.done)
        super().step(step)

    def show(self, line: str) -> None:
        """Show a line beside the bar."""
        self.bars.update(self.task, description=line)

    def say(self, text: str) -> None:
        """Print lines above the bar."""
        self.bars.console.print(text, markup=False, highlight=False)


def sizes(option: str, text: str | None, kind: Callable[[str], Number]) -> tuple[Number, ...] | None:
    """Return the numbers of a size such as 1x1x2.5.

    Raises
    ------
    UsageError
        If it is none.
    """
    if text is None:
        return None
    try:
        return tuple(kind(part) for part in text.lower().replace(",", "x").split("x"))
    except ValueError:
        raise UsageError(f"{option} {text!r}: is no size", hint="give numbers with x between them") from None


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _write(line: dict[str, object]) -> None:
    print(json.dumps(line), file=sys.stderr, flush=True)
