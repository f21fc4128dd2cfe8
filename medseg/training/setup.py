"""What stands before the first step of a training: checked cases, a plan, and who is held back from whom."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from medseg import zoo
from medseg.bundle import Bundle
from medseg.errors import UsageError
from medseg.inference import device as devices
from medseg.plan import Label, Plan
from medseg.training.cache import Cache, Cached, identity
from medseg.training.check import Checked, check
from medseg.training.data import Legend
from medseg.training.dataset import Case, File
from medseg.training.finetune import plan_from
from medseg.training.layouts import find_dataset
from medseg.training.planning import Planned, plan_training
from medseg.training.planning.labels import atom_table
from medseg.training.planning.machine import parse_memory, this_machine
from medseg.training.request import Listener, Request
from medseg.training.validation import Split, folds, held_out, read_splits
from medseg.training.workspace import Workspace

_NAME = "setup.json"


@dataclass(frozen=True)
class Setup:
    """A training before its first step.

    Parameters
    ----------
    name : str
        Of the data set.
    cases : tuple of Case
        Sound ones.
    legend : Legend
        Of their references.
    plan : Plan
        Of the members.
    batch : int
        Patches in a step.
    splits : tuple of Split
        For each member, the cases that it learns from, and those held back.
    survey : dict
        The data set in a few numbers.
    """

    name: str
    cases: tuple[Case, ...]
    legend: Legend
    plan: Plan
    batch: int
    splits: tuple[Split, ...]
    survey: dict[str, Any]


def set_up(request: Request, workspace: Workspace, listener: Listener) -> Setup:
    """Return the setup of a training: the one in the workspace, or a new one.

    Raises
    ------
    UsageError
        If the check finds errors, the plan cannot be made, or the data have changed since the training began.
    """
    dataset = find_dataset(request.data)
    files = _digest(dataset.cases)
    if (known := workspace.parsed(_NAME, lambda said: (said["files"], _from_data(said)))) is not None:
        before, setup = known
        if before != files:
            raise UsageError(
                f"{request.data}: the data have changed since this training began", hint="begin anew with --restart"
            )
        listener.say(f"going on with the training in {workspace.folder}")
        return setup
    checked = check(dataset, fix=request.fix, progress=listener.stage)
    listener.checked(checked)
    if errors := sum(finding.severity == "error" for finding in checked.findings):
        raise UsageError(
            f"{request.data}: the check found {errors} error{'s' if errors > 1 else ''}",
            hint="mend the cases above, or take them out; nothing has been trained",
        )
    planned = _plan(request, checked)
    listener.planned(planned)
    setup = _setup(request, checked, planned)
    workspace.write(_NAME, {"files": files, **_to_data(setup)})
    return setup


def prepare_cases(setup: Setup, workspace: Workspace, listener: Listener) -> list[Cached]:
    """Return all cases on the plan's grid, from the workspace where they are there and whole."""
    cache = Cache(workspace.cases, setup.plan, setup.legend)
    found: list[Cached] = []
    with ThreadPoolExecutor(2) as pool:
        for number, case in enumerate(pool.map(cache.get, setup.cases), start=1):
            found.append(case)
            listener.stage("prepare", number / len(setup.cases))
    return found


def _plan(request: Request, checked: Checked) -> Planned:
    device = devices.choose(request.device)
    memory = parse_memory(request.memory) if request.memory else None
    planned = plan_training(checked.survey, checked.dataset, request.wishes, this_machine(device, memory))
    if request.start is not None:
        planned = plan_from(Bundle.load(zoo.find(request.start)), planned, request.wishes)
    if planned.batch < (count := request.devices * request.nodes):
        raise UsageError(f"{count} devices cannot share a batch of {planned.batch}", hint=f"give --batch {count}")
    return planned


def _setup(request: Request, checked: Checked, planned: Planned) -> Setup:
    dataset = checked.dataset
    legend = Legend(dataset.labels, atom_table(dataset.labels), dataset.ignore, request.fix)
    return Setup(
        name=dataset.name,
        cases=dataset.cases,
        legend=legend,
        plan=planned.plan,
        batch=planned.batch,
        splits=tuple(_splits(request, dataset.cases)),
        survey=checked.survey.as_record(),
    )


def _splits(request: Request, cases: Sequence[Case]) -> Sequence[Split]:
    groups = [case.group for case in cases]
    if request.splits:
        found = read_splits(request.splits, cases)
        if request.fold is not None and request.fold >= len(found):
            raise UsageError(f"--fold {request.fold} of {request.splits}", hint=f"give 0 to {len(found) - 1}")
        return found
    if request.everything:
        return [([*range(len(groups))], [])]
    if request.folds:
        return folds(groups, request.folds, seed=request.seed)
    return [held_out(groups, seed=request.seed)]


def _to_data(setup: Setup) -> dict[str, Any]:
    return {
        **asdict(replace(setup, legend=Legend())),
        "plan": setup.plan.model_dump(mode="json"),
        "legend": {
            "labels": [label.model_dump(mode="json") for label in setup.legend.labels],
            "atoms": sorted(setup.legend.atoms.items()),
            "ignore": setup.legend.ignore,
            "fix": setup.legend.fix,
        },
    }


def _from_data(data: dict[str, Any]) -> Setup:
    legend = data["legend"]
    return Setup(
        name=data["name"],
        cases=tuple(_case(case) for case in data["cases"]),
        legend=Legend(
            tuple(Label.parse(label) for label in legend["labels"]),
            dict(legend["atoms"]),
            legend["ignore"],
            legend["fix"],
        ),
        plan=Plan.parse(data["plan"]),
        batch=data["batch"],
        splits=tuple((learned, held) for learned, held in data["splits"]),
        survey=data["survey"],
    )


def _case(data: dict[str, Any]) -> Case:
    images = tuple(_file(file) for file in data["images"])
    return Case(data["name"], images, _file(data["reference"]), data["group"])


def _file(data: dict[str, Any]) -> File:
    return File(Path(data["path"]), data["volume"])


def _digest(cases: Sequence[Case]) -> str:
    """Return what tells whether the files of the cases are the same."""
    parts = [[case.name, case.group, *(identity(file) for file in (*case.images, case.reference))] for case in cases]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
