"""Network architectures by name, in two and three dimensions.

A further architecture can be offered by another package through the entry-point group `medseg.networks`, whose
members are looked at only for a name that medseg does not know.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import entry_points
from typing import Any

from torch import Tensor, nn

from medseg.errors import PlanError
from medseg.networks.architecture import Architecture
from medseg.networks.convolutionalize import convolutionalize
from medseg.networks.fcn import FCN
from medseg.networks.hypercolumn import Hypercolumn
from medseg.networks.unet import UNet
from medseg.networks.unet_original import UNetOriginal
from medseg.networks.upsampling import UPSAMPLERS, checkerboard_energy, upsampler

ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "fcn32s": partial(FCN, finest=32),
    "fcn16s": partial(FCN, finest=16),
    "fcn8s": partial(FCN, finest=8),
    "hypercolumn": Hypercolumn,
    "unet": UNet,
    "unet_original": UNetOriginal,
    "unet_residual": partial(UNet, residual=True),
    "unet_attention": partial(UNet, attention=True),
}

__all__ = [
    "ARCHITECTURES",
    "FCN",
    "UPSAMPLERS",
    "Architecture",
    "Hypercolumn",
    "UNet",
    "UNetOriginal",
    "build",
    "checkerboard_energy",
    "convolutionalize",
    "start_from",
    "upsampler",
]


def build(architecture: str, *, axes: int, in_channels: int, out_channels: int, **options: Any) -> nn.Module:
    """Return a new network that maps (B, in_channels, *S) to logits (B, out_channels, *S).

    Parameters
    ----------
    architecture : str
        A name in `ARCHITECTURES`, or of an entry point of the group `medseg.networks`.
    axes : 2 or 3
        Spatial axes.
    in_channels, out_channels : int
        Channels of the scan; labels and background.
    options
        Further keyword arguments of the architecture.

    Raises
    ------
    PlanError
        If there is no such architecture, or it does not take these options.

    Examples
    --------
    >>> import torch
    >>> network = build("fcn8s", axes=2, in_channels=1, out_channels=3, width=4)
    >>> network(torch.zeros(1, 1, 50, 70)).shape
    torch.Size([1, 3, 50, 70])
    """
    found = ARCHITECTURES.get(architecture) or _from_other_packages(architecture)
    if axes not in (2, 3) or in_channels < 1 or out_channels < 1:
        raise PlanError(
            f"network {architecture!r} with {axes} axes, {in_channels} channels in and {out_channels} out",
            hint="give 2 or 3 axes, and at least one channel each",
        )
    known = list(inspect.signature(found).parameters)[3:]
    if unknown := [name for name in options if name not in known]:
        raise PlanError(f"network {architecture!r} has no option {unknown[0]!r}", hint=f"it has: {', '.join(known)}")
    try:
        return found(axes, in_channels, out_channels, **options)
    except (TypeError, ValueError) as error:
        raise PlanError(f"network {architecture!r}: {error}", hint="see its docstring for the options") from error
    except (RuntimeError, MemoryError, OverflowError) as error:
        reason = " ".join(str(error).split())[:100]
        raise PlanError(f"network {architecture!r} cannot be made: {reason}", hint="choose smaller options") from error


def start_from(network: nn.Module, weights: Mapping[str, Tensor]) -> list[str]:
    """Give a network all weights that fit it by name and shape; return the names of those that stay new.

    So a finer FCN begins with the answer of a coarser one: 32s, then 16s, then 8s (Long et al. 2015).

    Raises
    ------
    PlanError
        If none fits.
    """
    own = network.state_dict()
    fitting = {name: weights[name] for name in own if name in weights and own[name].shape == weights[name].shape}
    if not fitting:
        raise PlanError("none of the weights fits the network", hint="give those of a network of the same family")
    network.load_state_dict(fitting, strict=False)
    return [name for name in own if name not in fitting]


def _from_other_packages(architecture: str) -> Callable[..., nn.Module]:
    for entry in entry_points(group="medseg.networks", name=architecture):
        found: Callable[..., nn.Module] = entry.load()
        return found
    raise PlanError(f"there is no network {architecture!r}", hint=f"choose one of: {', '.join(ARCHITECTURES)}")
