"""From what a data set looks like to the plan of its training: pure functions, with a reason for each choice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from medseg.errors import UsageError
from medseg.plan import Label, Network, Plan
from medseg.training.dataset import Dataset
from medseg.training.planning.choice import Choice, Wishes, counted
from medseg.training.planning.grid import Grid, plan_grid
from medseg.training.planning.intensity import plan_channels, plan_crop
from medseg.training.planning.labels import atom_table, plan_labels, sided
from medseg.training.planning.machine import Machine
from medseg.training.planning.network import fit_network
from medseg.training.planning.reasons import why_fit
from medseg.training.planning.survey import Survey
from medseg.training.planning.symmetry import told_apart

__all__ = ["Choice", "Planned", "Wishes", "atom_table", "describe", "plan_training"]

_OVERLAP, _WHOLE_OVERLAP = 0.5, 0.25  # of windows; less where one window covers a typical scan

_TOLD = 0.5  # share of cases whose mirror images look unlike the others: more, and none is mirrored


@dataclass(frozen=True)
class Planned:
    """How a data set will be trained on.

    Parameters
    ----------
    plan : Plan
        What goes into the bundle.
    batch : int
        Patches in each step.
    choices : tuple of Choice
        Everything that was decided, and why.
    """

    plan: Plan
    batch: int
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
    mirror, about_mirror = _mirror(grid, labels, survey)
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
    chosen: dict[str, Any] = {"patch": fit.patch, "network": fit.network, "overlap": overlap, "mirror": mirror}
    plan = Plan.parse(draft.model_copy(update=chosen).model_dump(mode="json"))
    about_fit = why_fit(fit, grid, wishes, machine)
    about_overlap = Choice(
        "overlap",
        f"{overlap:g}",
        "one window covers a typical scan" if overlap == _WHOLE_OVERLAP else "a scan needs several windows",
    )
    choices = (*about_grid, *about_channels, about_crop, about_labels, *about_fit, about_overlap, about_mirror)
    return Planned(plan, fit.batch, choices)


def describe(planned: Planned) -> list[str]:
    """Return a line for each choice: what, value and reason, one below the other."""
    wide = [max(len(getattr(choice, part)) for choice in planned.choices) for part in ("what", "value")]
    return [f"{c.what:<{wide[0]}}  {c.value:<{wide[1]}}  {c.why}".rstrip() for c in planned.choices]


def _mirror(grid: Grid, labels: tuple[Label, ...], survey: Survey) -> tuple[tuple[int, ...], Choice]:
    """Return the plan's axes along which a mirrored scan could be one of the scans."""
    if names := sided(labels):
        others = f" and {counted(len(names) - 1, 'other')}" if len(names) > 1 else ""
        return (), Choice("mirroring", "none", f"label {names[0]}{others} would change sides")
    if not grid.physical:
        likely = {axis: axis for axis in range(grid.axes)}
    elif grid.left_right is None or grid.left_right >= grid.axes:
        return (), Choice("mirroring", "none", "slices run from left to right")
    else:
        likely = {grid.left_right: 0}  # the plan's axis, and that of RAS
    scans = [case.coarse for case in survey.cases if case.coarse is not None]
    shares = {axis: told_apart(scans, own) for axis, own in likely.items()}
    axes = tuple(axis for axis, share in shares.items() if share <= _TOLD)
    if not axes:
        share = min(shares.values())
        return (), Choice("mirroring", "none", f"a mirrored scan looks unlike the others in {share:.0%} of cases")
    value = "left and right" if grid.physical else "along " + " and ".join("ijk"[axis] for axis in axes)
    return axes, Choice("mirroring", value, "mirrored scans look like the others, and no label names a side")
