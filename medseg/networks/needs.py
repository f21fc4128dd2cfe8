"""What a network needs: computed from the network itself, never typed."""

from __future__ import annotations

from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.flop_counter import FlopCounterMode

from medseg.errors import PlanError
from medseg.networks import ARCHITECTURES, Architecture, build

SIZES = {2: (512, 512), 3: (128, 128, 128)}  # inputs for which operations and memory are counted
_NARROW = 2  # channels of the copy whose receptive field is measured
_NORMS = (nn.InstanceNorm2d, nn.InstanceNorm3d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm)
_CONVS = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class Needs:
    """What one network needs.

    Parameters
    ----------
    parameters : int
        Numbers that are learned.
    stride : tuple of int
        Voxels of the input, per axis, for each voxel of the coarsest features.
    receptive_field : tuple of int
        Voxels per axis on which an output voxel can depend through convolutions, poolings and interpolations, at
        most; instance and group norm look at the whole input beside.
    size_rule : str
        Sizes that it takes.
    flops_per_voxel : float
        Floating-point operations of all convolutions for each voxel of the input; a multiplication and an addition
        are two.
    activations_per_voxel : float
        Bytes in float32 that training keeps for the way back, for each voxel of the input.
    """

    parameters: int
    stride: tuple[int, ...]
    receptive_field: tuple[int, ...]
    size_rule: str
    flops_per_voxel: float
    activations_per_voxel: float


def needs(architecture: str, *, axes: int, in_channels: int = 1, out_channels: int = 2, **options: Any) -> Needs:
    """Return what one of medseg's architectures needs; operations and memory for inputs of `SIZES`.

    Nothing is allocated at that size: the counting runs on PyTorch's meta device.

    Raises
    ------
    PlanError
        If there is no such architecture in medseg, or it does not take these options.
    """
    with torch.device("meta"):
        network = _own(architecture, axes, in_channels, out_channels, options)
        x = torch.empty(1, in_channels, *SIZES[axes])
    voxels = x[0, 0].numel()
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            kept[StorageWeakRef(tensor.untyped_storage()).cdata] = tensor  # views of one storage count once
        return tensor

    with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        network.train()(x)
    return Needs(
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        stride=network.stride,
        receptive_field=receptive_field(architecture, axes=axes, **options),
        size_rule=network.size_rule,
        flops_per_voxel=counter.get_total_flops() / voxels,
        activations_per_voxel=sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) / voxels,
    )


def receptive_field(architecture: str, *, axes: int, **options: Any) -> tuple[int, ...]:
    """Return on how many input voxels per axis an output voxel depends at most.

    Measured along each axis on a narrow copy of the network whose weights are all positive, without norms and with
    mean in place of maximum, so that no dependence can cancel: the extent of an output voxel's gradient, the largest
    over all places within a stride.

    Raises
    ------
    PlanError
        If there is no such architecture in medseg, or it does not take these options.
    """
    network = _own(architecture, axes, 1, 1, _narrow(architecture, options))
    probe = _all_positive(network).eval()
    if all(len({*size}) == 1 for layer in probe.modules() if isinstance(layer, _CONVS) for size in _sizes(layer)):
        return (_extent(probe, 0),) * axes
    return tuple(_extent(probe, axis) for axis in range(axes))


def _own(architecture: str, axes: int, in_channels: int, out_channels: int, options: dict[str, Any]) -> Architecture:
    network = build(architecture, axes=axes, in_channels=in_channels, out_channels=out_channels, **options)
    if not isinstance(network, Architecture):
        raise PlanError(f"network {architecture!r} is of another package", hint=f"choose {', '.join(ARCHITECTURES)}")
    return network


def _narrow(architecture: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return the options with few channels, on which the receptive field does not depend."""
    known = signature(ARCHITECTURES[architecture]).parameters
    narrow = {name: _NARROW for name in ("width", "fc_width") if name in known}
    if "widths" not in known:
        return {**options, **narrow}
    return {**options, **narrow, "widths": [_NARROW] * len(options.get("widths", known["widths"].default))}


class _MeanPool(nn.Module):
    """Pooling by 2 whose every voxel counts; an odd axis is filled up with its last voxel."""

    def forward(self, x: Tensor) -> Tensor:
        for axis in range(2, x.ndim):
            if x.shape[axis] % 2:
                x = torch.cat((x, x.narrow(axis, -1, 1)), dim=axis)
            x = x.unflatten(axis, (-1, 2)).mean(dim=axis + 1)
        return x


def _all_positive(network: Architecture) -> Architecture:
    for name, layer in list(network.named_modules()):
        if isinstance(layer, _NORMS):
            network.set_submodule(name, nn.Identity())
        elif isinstance(layer, nn.MaxPool2d | nn.MaxPool3d):
            network.set_submodule(name, _MeanPool())
        elif isinstance(layer, _CONVS):
            nn.init.constant_(layer.weight, 1 / layer.weight[0].numel())
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return network


def _sizes(layer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return layer.kernel_size, layer.stride


def _extent(probe: Architecture, axis: int, size: int = 128) -> int:
    """Return the largest extent of the gradients of one stride's outputs, in the middle of a long thin input."""
    period = probe.stride[axis]
    middle = size // 2 // period * period
    shape = [size if other == axis else 1 for other in range(probe.axes)]
    largest = 0
    x = torch.ones(1, 1, *shape, requires_grad=True)
    answers = probe(x).flatten()
    for place in range(middle, middle + period):
        (gradient,) = torch.autograd.grad(answers[place], x, retain_graph=True)
        touched = torch.nonzero(gradient.flatten())
        first, last = int(touched.min()), int(touched.max())
        if first == 0 or last == size - 1:
            return _extent(probe, axis, 2 * size)
        largest = max(largest, last - first + 1)
    return largest
