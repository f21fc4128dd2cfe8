"""What a user asks of `medseg train`, and who is told how it goes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from medseg.errors import UsageError
from medseg.training.check import Checked
from medseg.training.loop import Step
from medseg.training.planning import Planned
from medseg.training.planning.choice import Wishes

DEFAULT_MINUTES = 60.0


@dataclass(frozen=True)
class Request:
    """A training as it was asked for.

    Parameters
    ----------
    data, output : Path
        Data set, and the model to write.
    minutes, epochs : float, int, optional
        Wall time of the whole command, or epochs of each member; 60 minutes if neither is given.
    folds : int
        Members of the ensemble, each trained without its share of the cases; 0 for one member.
    splits : Path, optional
        JSON list of folds, each with the names of its `train` and `val` cases, instead of `folds`.
    fold : int, optional
        Train this member alone.
    everything : bool
        Hold no case back.
    wishes : Wishes
        What the plan must be.
    device, devices, nodes
        Kind of device, how many of them on each node, and how many nodes.
    memory : str, optional
        Such as '8GB'.
    optimizer, schedule, rate
        Of the recipe.
    patience : int, optional
        Epochs without progress after which a member is done.
    deterministic : bool
        Only operations that give the same bits every time.
    start : str, optional
        Model to begin with, by name or file.
    freeze : bool
        Leave its encoder as it is.
    fix : bool
        Accept references that lie off their scan's grid by rounding noise.
    restart : bool
        Begin anew.
    seed : int
        Of weights, splits and patches.
    """

    data: Path
    output: Path
    minutes: float | None = None
    epochs: int | None = None
    folds: int = 0
    splits: Path | None = None
    fold: int | None = None
    everything: bool = False
    wishes: Wishes = field(default_factory=Wishes)
    device: str = "auto"
    devices: int = 1
    nodes: int = 1
    memory: str | None = None
    optimizer: Literal["adamw", "sgd"] = "adamw"
    schedule: Literal["cosine", "poly"] = "cosine"
    rate: float | None = None
    patience: int | None = None
    deterministic: bool = False
    start: str | None = None
    freeze: bool = False
    fix: bool = False
    restart: bool = False
    seed: int = 0

    @property
    def budget(self) -> float | None:
        """Seconds for the whole command; None where epochs count."""
        if self.epochs is not None:
            return None
        return 60 * (DEFAULT_MINUTES if self.minutes is None else self.minutes)

    @property
    def alone(self) -> bool:
        """Whether one process does it all."""
        return self.devices * self.nodes == 1

    def check(self) -> None:
        """Refuse options that do not fit together.

        Raises
        ------
        UsageError
            With the options.
        """
        clashes = {
            "--minutes and --epochs": self.minutes is not None and self.epochs is not None,
            "--all and --folds": self.everything and self.folds > 0,
            "--all and --patience": self.everything and self.patience is not None,
            "--fold without --folds": self.fold is not None and not (self.folds or self.splits),
            "--splits and --folds": self.splits is not None and self.folds > 0,
            "--splits and --all": self.splits is not None and self.everything,
            "--freeze without --from": self.freeze and self.start is None,
            "--deterministic without --epochs": self.deterministic and self.epochs is None,
        }
        hints = {
            "--deterministic without --epochs": "how many steps fit into a time is never the same; give --epochs",
            "--freeze without --from": "only what has been learned before can be kept",
        }
        for clash, given in clashes.items():
            if given:
                raise UsageError(f"{clash} do not fit together", hint=hints.get(clash, "leave one of them out"))
        if self.folds == 1 or self.folds < 0:
            raise UsageError(f"--folds {self.folds}", hint="give 2 or more")
        if self.fold is not None and self.folds and not 0 <= self.fold < self.folds:
            raise UsageError(f"--fold {self.fold} of --folds {self.folds}", hint=f"give 0 to {self.folds - 1}")
        if not 0 <= self.seed < 2**31:
            raise UsageError(f"--seed {self.seed}", hint="give a whole number from 0 to 2147483647")
        if self.output.suffix != ".safetensors" or self.output.is_dir():
            raise UsageError(f"{self.output}: is no name for a model", hint="give -o NAME.safetensors")
        for name in ("minutes", "epochs", "patience", "rate", "devices", "nodes"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1e9:
                raise UsageError(f"--{name} {value}", hint="give a positive number")

    def settings(self) -> dict[str, Any]:
        """Return all that must be the same when a training goes on."""
        kept = {
            name: value for name, value in vars(self).items() if name not in {"restart", "output", "fold", "wishes"}
        }
        splits = str(self.splits.resolve()) if self.splits else None
        return {**kept, "data": str(self.data.resolve()), "splits": splits, **vars(self.wishes)}


class Listener:
    """Who is told how a training goes; this one does not care."""

    def checked(self, checked: Checked) -> None:
        """Hear what the check found."""

    def planned(self, planned: Planned) -> None:
        """Hear what was planned."""

    def stage(self, name: str, done: float) -> None:
        """Hear how far a stage is: 'check', 'prepare' or 'score'."""

    def member(self, number: int, count: int, note: str) -> None:
        """Hear that a member begins or goes on, counted from 0."""

    def step(self, step: Step) -> None:
        """Hear of each step."""

    def say(self, text: str) -> None:
        """Hear of anything else."""
