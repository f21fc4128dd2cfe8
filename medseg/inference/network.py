"""The network that a plan names: new, or with the weights of a bundle."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from medseg.bundle import Bundle
from medseg.errors import BundleError, PlanError, ShapeMismatch
from medseg.networks import Architecture, build
from medseg.plan import Plan


def new_network(plan: Plan) -> nn.Module:
    """Return the network of a plan with new weights.

    Raises
    ------
    PlanError
        If there is no such architecture, it does not take the options, or the patch does not fit it.
    """
    options = plan.network.options
    if given := {"architecture", "axes", "in_channels", "out_channels"} & options.keys():
        raise PlanError(f"network options name {', '.join(sorted(given))}", hint="the plan itself says these")
    network = build(
        plan.network.architecture,
        axes=plan.axes,
        in_channels=len(plan.channels),
        out_channels=len(plan.atoms) + 1,
        **options,
    )
    if isinstance(network, Architecture):
        _check_patch(network, plan)
    return network


def _check_patch(network: Architecture, plan: Plan) -> None:
    patch = plan.patch[: plan.axes]
    try:
        network.check((1, len(plan.channels), *patch))
    except ShapeMismatch as error:
        raise PlanError(f"patch {patch}: {error.problem}", hint=error.hint) from error
    if not network.keeps_size:
        raise PlanError(
            f"network {plan.network.architecture!r} gives fewer voxels than it takes", hint="choose border='mirror'"
        )


def load_network(bundle: Bundle, member: int = 0) -> nn.Module:
    """Return one network of a bundle with its weights, in evaluation mode.

    Raises
    ------
    BundleError
        If there is no such architecture, or the weights do not fit it.
    """
    name = bundle.card.name
    try:
        network = new_network(bundle.plan)
    except PlanError as error:
        raise BundleError(f"{name}: {error.problem}", hint=error.hint) from error
    state = {key: torch.from_numpy(array.astype(np.float32)) for key, array in bundle.members[member].items()}
    try:
        network.load_state_dict(state, strict=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise BundleError(
            f"{name}: the weights do not fit the network ({reason})", hint="get the model again"
        ) from None
    return network.eval()
