"""Network architectures by name, in two and three dimensions.

A further architecture can be offered by another package through the entry-point group `medseg.networks`, whose
members are looked at only for a name that medseg does not know.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any

from torch import nn

from medseg.errors import PlanError
from medseg.networks.unet import UNet

ARCHITECTURES: dict[str, type[nn.Module]] = {
    "unet": UNet,
}

__all__ = ["ARCHITECTURES", "UNet", "build"]


def build(
    architecture: str, *, axes: int, in_channels: int, out_channels: int, options: Mapping[str, Any] | None = None
) -> nn.Module:
    """Return a new network that maps (B, in_channels, *S) to logits (B, out_channels, *S).

    Parameters
    ----------
    architecture : str
        A name in `ARCHITECTURES`, or of an entry point of the group `medseg.networks`.
    axes : 2 or 3
        Spatial axes.
    in_channels, out_channels : int
        Channels of the scan; labels and background.
    options : mapping, optional
        Further keyword arguments of the architecture.

    Raises
    ------
    PlanError
        If there is no such architecture, or it does not take these options.
    """
    found = ARCHITECTURES.get(architecture) or _from_other_packages(architecture)
    try:
        network = found(axes, in_channels, out_channels, **(options or {}))
    except (TypeError, ValueError) as error:
        raise PlanError(f"network {architecture!r}: {error}", hint="see its docstring for the options") from error
    if not hasattr(network, "divisor"):
        raise PlanError(
            f"network {architecture!r} has no attribute `divisor`",
            hint="give it one: the number of voxels that each axis of its input must be divisible by",
        )
    return network


def _from_other_packages(architecture: str) -> type[nn.Module]:
    for entry in entry_points(group="medseg.networks", name=architecture):
        found: type[nn.Module] = entry.load()
        return found
    raise PlanError(f"there is no network {architecture!r}", hint=f"choose one of: {', '.join(ARCHITECTURES)}")
