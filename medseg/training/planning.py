"""From what a data set looks like to the plan of its training: pure functions, with a reason for each choice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from medseg.errors import UsageError
from medseg.plan import Label, Network, Plan
from medseg.training.dataset import Dataset
from medseg.training.machine import Machine
from medseg.training.plan_choice import Choice, Wishes, counted
from medseg.training.plan_grid import Grid, plan_grid
from medseg.training.plan_intensity import plan_channels, plan_crop
from medseg.training.plan_labels import atom_table, plan_labels, sided
from medseg.training.plan_network import fit_network
from medseg.training.plan_reasons import why_fit
from medseg.training.survey import Survey

__all__ = ["Choice", "Planned", "Wishes", "atom_table", "describe", "plan_training"]

_OVERLAP, _WHOLE_OVERLAP = 0.5, 0.25  # of windows; less where one window covers a typical scan


@dataclass(frozen=True)
class Planned:
    """How a data set will be trained on.

    Parameters
    ----------
    plan : Plan
        What goes into the bundle.
    batch : int
        Patches in each step.
    mirror : tuple of int
        The plan's axes along which patches may be mirrored.
    choices : tuple of Choice
        Everything that was decided, and why.
    """

    plan: Plan
    batch: int
    mirror: tuple[int, ...]
    choices: tuple[Choice, ...]


def plan_training(survey: Survey, dataset: Dataset, wishes: Wishes, machine: Machine) -> Planned:
    """Return the plan for a data set: the same for the same input.

    Parameters
    ----------
    survey : Survey
        Of the cases.
    dataset : Dataset
        Names of channels and labels.
    wishes : Wishes
        What the user decides.
    machine : Machine
        Where training will run.

    Raises
    ------
    UsageError
        If the wishes do not fit the data, or training does not fit the machine.
    """
    if not survey.cases:
        raise UsageError("there is no case to plan from", hint="give a data set with at least one case")
    wishes.check()
    grid, about_grid = plan_grid(survey, wishes)
    channels, about_channels = plan_channels(survey, dataset.channels)
    crop, about_crop = plan_crop(survey, channels)
    labels, about_labels = plan_labels(dataset.labels)
    mirror, about_mirror = _mirror(grid, labels)
    draft = Plan(
        axes=3 if grid.axes == 3 else 2,
        channels=channels,
        labels=labels,
        orientation=grid.orientation,
        spacing=grid.spacing if grid.physical else None,
        crop=crop,
        patch=(1, 1, 1),
        network=Network(architecture="unet"),
    )
    fit = fit_network(draft, grid, wishes, machine)
    overlap = _WHOLE_OVERLAP if grid.covered_by(fit.patch) else _OVERLAP
    chosen: dict[str, Any] = {"patch": fit.patch, "network": fit.network, "overlap": overlap}
    plan = Plan.parse(draft.model_copy(update=chosen).model_dump(mode="json"))
    about_fit = why_fit(fit, grid, wishes, machine)
    about_overlap = Choice(
        "overlap",
        f"{overlap:g}",
        "one window covers a typical scan" if overlap == _WHOLE_OVERLAP else "a scan needs several windows",
    )
    choices = (*about_grid, *about_channels, about_crop, about_labels, *about_fit, about_overlap, about_mirror)
    return Planned(plan, fit.batch, mirror, choices)


def describe(planned: Planned) -> list[str]:
    """Return a line for each choice: what, value and reason, one below the other."""
    wide = [max(len(getattr(choice, part)) for choice in planned.choices) for part in ("what", "value")]
    return [f"{c.what:<{wide[0]}}  {c.value:<{wide[1]}}  {c.why}".rstrip() for c in planned.choices]


def _mirror(grid: Grid, labels: tuple[Label, ...]) -> tuple[tuple[int, ...], Choice]:
    if names := sided(labels):
        others = f" and {counted(len(names) - 1, 'other')}" if len(names) > 1 else ""
        return (), Choice("mirroring", "none", f"label {names[0]}{others} would change sides")
    if not grid.physical:
        axes = tuple(range(grid.axes))
        value = "along " + " and ".join("ijk"[axis] for axis in axes)
        return axes, Choice("mirroring", value, "no physical size, and no label names a side")
    if grid.left_right is None or grid.left_right >= grid.axes:
        return (), Choice("mirroring", "none", "slices run from left to right")
    axes = (grid.left_right,)
    return axes, Choice("mirroring", "left and right", "no label names a side")
