"""Beginning with a model that is there: its plan, and all of its weights that still mean the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from medseg.bundle import Bundle, Weights
from medseg.errors import UsageError
from medseg.inference import new_network
from medseg.plan import Plan
from medseg.training.planning import Planned
from medseg.training.planning.choice import ASKED, Choice, Wishes, times

_KEPT = ("axes", "channels", "orientation", "spacing", "crop", "patch", "overlap", "network")


def plan_from(bundle: Bundle, planned: Planned, wishes: Wishes) -> Planned:
    """Return a plan with the labels of the data set, and all else as the model has it.

    Raises
    ------
    UsageError
        If the model takes another number of channels, or something is asked for that its weights cannot do.
    """
    model = bundle.plan
    if len(model.channels) != len(planned.plan.channels):
        raise UsageError(
            f"{bundle.card.name} takes {len(model.channels)} channels, the data have {len(planned.plan.channels)}",
            hint="choose another --from",
        )
    for name in ("network", "widths", "spacing", "axes"):
        if getattr(wishes, name) is not None:
            raise UsageError(
                f"--{name} and --from do not fit together", hint="the model says it; leave one of them out"
            )
    kept = model.model_dump(mode="json", include=set(_KEPT))
    if wishes.patch is not None:
        kept["patch"] = planned.plan.patch
    plan = Plan.parse({**planned.plan.model_dump(mode="json"), **kept})
    choices = tuple(choice for choice in planned.choices if choice.what in {"labels", "batch", "mirroring", "memory"})
    told = Choice("network", plan.network.architecture, f"as {bundle.card.name} {bundle.card.version} has it")
    size = Choice("patch", times(plan.patch), ASKED if wishes.patch else "as the model has it")
    return replace(planned, plan=plan, choices=(told, size, *choices))


def start_weights(bundle: Bundle, member: int, plan: Plan) -> tuple[Weights, list[str]]:
    """Return the weights of a member for the network of a plan, and the names of its labels that begin anew.

    Of parameters with a part for each label, the parts of labels with the same name are taken over, and the
    background's; all else of them is new.
    """
    own = bundle.members[member % len(bundle.members)]
    fresh = {name: tensor.numpy() for name, tensor in new_network(plan).state_dict().items()}
    places = _places(bundle.plan, plan)
    rows = [(0, 0), *((old + 1, new + 1) for new, old in places.items())]
    weights: dict[str, npt.NDArray[np.float32]] = {}
    heads = _heads(plan)
    for name, array in fresh.items():
        if name in heads and name in own:
            weights[name] = array.copy()
            for before, now in rows:
                weights[name][_at(heads[name], now)] = own[name][_at(heads[name], before)]
        elif name in own and own[name].shape == array.shape:
            weights[name] = own[name].astype(np.float32)
    unknown = [label.name for label in plan.labels if not any(plan.atoms.index(atom) in places for atom in label.atoms)]
    return weights, unknown


def _places(old: Plan, new: Plan) -> dict[int, int]:
    """Return, for each atom of a plan that an older one knows by the names of its labels, its number there."""
    known = {_names(old, atom): number for number, atom in enumerate(old.atoms)}
    return {number: known[_names(new, atom)] for number, atom in enumerate(new.atoms) if _names(new, atom) in known}


def _names(plan: Plan, atom: int) -> frozenset[str]:
    return frozenset(label.name for label in plan.labels if atom in label.atoms)


def _heads(plan: Plan) -> dict[str, int]:
    """Return the parameters with a part for each output channel, and the axis of these parts.

    Found by building the network with one label more: what changes its shape.
    """
    free = next(value for value in range(1, 1 << 16) if value not in plan.atoms)
    more = plan.labels[0].model_copy(update={"value": free, "atoms": (free,), "name": f"{plan.labels[0].name}+"})
    values = {label.value for label in plan.labels}
    more = more.model_copy(update={"value": next(v for v in range(1, 1 << 16) if v not in values)})
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in new_network(plan).state_dict().items()}
        larger = new_network(plan.model_copy(update={"labels": (*plan.labels, more)})).state_dict()
    return {
        name: next(axis for axis, (a, b) in enumerate(zip(shape, larger[name].shape, strict=True)) if a != b)
        for name, shape in shapes.items()
        if shape != larger[name].shape
    }


def _at(axis: int, index: int) -> tuple[slice | int, ...]:
    return (*(slice(None),) * axis, index)
