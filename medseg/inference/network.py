"""The network that a plan names: new, or with the weights of a bundle."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from torch import nn

from medseg.bundle import Bundle
from medseg.errors import BundleError, PlanError
from medseg.networks import build
from medseg.plan import Plan


def new_network(plan: Plan) -> nn.Module:
    """Return the network of a plan with new weights.

    Raises
    ------
    PlanError
        If there is no such architecture, it does not take the options, or the patch does not fit it.
    """
    network = build(
        plan.network.architecture,
        axes=plan.axes,
        in_channels=len(plan.channels),
        out_channels=len(plan.labels) + 1,
        options=plan.network.options,
    )
    divisor = cast("tuple[int, ...]", network.divisor)
    if any(size % steps for size, steps in zip(plan.patch, divisor, strict=False)):
        raise PlanError(f"patch {plan.patch} is not divisible by {divisor}", hint="choose a patch that is")
    return network


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
