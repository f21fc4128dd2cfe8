"""The log of one member and the picture of all: what the loop says, written down."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from medseg.atomic import write_atomic
from medseg.plan import Plan
from medseg.report.curves import Point, curves
from medseg.training.log import Log, Row, read_log
from medseg.training.loop import Step
from medseg.training.workspace import Workspace


class Journal:
    """Writes each step of a member to its log; takes up the log of a run that was killed.

    Parameters
    ----------
    path : Path
        Of the log.
    plan : Plan
        Names the labels.
    passes : float
        Share of its cases that a member sees in one step.
    """

    def __init__(self, path: Path, plan: Plan, passes: float) -> None:
        self.path, self.plan, self.passes = path, plan, passes
        self._log: Log | None = None

    def write(self, step: Step) -> None:
        """Append a step; the first one says after which step the log goes on."""
        if self._log is None:
            self._log = self._open(step.step - 1)
        dice = [*step.dice.values()]
        with np.errstate(invalid="ignore"):
            mean = float(np.nanmean(dice)) if np.isfinite(dice).any() else float("nan")
        self._log.append(
            Row(
                step=step.step,
                epoch=step.step * self.passes,
                rate=step.rate,
                loss=step.loss,
                dice=mean,
                labels=step.dice,
                seconds=step.seconds,
                idle=step.idle,
            )
        )

    def close(self) -> None:
        """Close the log."""
        if self._log is not None:
            self._log.close()

    def _open(self, step: int) -> Log:
        if self.path.exists():
            return Log.resume(self.path, step)
        return Log(self.path, [label.name for label in self.plan.labels])


def draw_curves(workspace: Workspace, members: int, plan: Plan, title: str) -> None:
    """Write `curves.png`: loss and Dice of all members that have a log."""
    runs = {}
    for member in range(members):
        if workspace.log(member).exists():
            rows = read_log(workspace.log(member))
            name = f"fold {member}" if members > 1 else ""
            runs[name] = [Point(row.seconds, row.loss, row.labels if np.isfinite(row.dice) else {}) for row in rows]
    if any(runs.values()):
        write_atomic(workspace.folder / "curves.png", [curves(runs, plan.labels, title=title)])
