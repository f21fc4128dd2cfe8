"""Instance and group norm whose means are exact in OpenVINO.

OpenVINO adds up all voxels of a channel one after the other, in float32. Where many of them are equal, as air in a CT,
the errors of rounding all go the same way: after the first layer values are off by a thousandth, and by a tenth in the
end. Here voxels are averaged in blocks, and then blocks of blocks, as torch does it.
"""

from __future__ import annotations

import copy
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, avg_pool3d

_BLOCK = 8  # voxels along an axis, at most


class BlockNorm(nn.Module):
    """Does what an `nn.InstanceNorm2d`, `nn.InstanceNorm3d` or `nn.GroupNorm` does in evaluation mode.

    Parameters
    ----------
    norm : nn.Module
        One of them, which has no running statistics.
    """

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm: Any = norm

    def forward(self, values: Tensor) -> Tensor:
        """Return (B, C, ...) normalised."""
        groups = self.norm.num_groups if isinstance(self.norm, nn.GroupNorm) else values.shape[1]
        values = values - _mean(values, groups)
        scale = 1 / torch.sqrt(_mean(values * values, groups) + self.norm.eps)
        if self.norm.weight is None:
            return values * scale
        shape = (1, -1, *[1] * (values.ndim - 2))
        found: Tensor = values * (scale * self.norm.weight.reshape(shape)) + self.norm.bias.reshape(shape)
        return found


def with_exact_means(network: nn.Module) -> nn.Module:
    """Return a copy of a network with its norms in this form."""
    found = copy.deepcopy(network)
    for module in list(found.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, (nn.InstanceNorm2d, nn.InstanceNorm3d, nn.GroupNorm)) and not _remembers(child):
                setattr(module, name, BlockNorm(child))
    return found


def _remembers(norm: nn.Module) -> bool:
    return bool(getattr(norm, "track_running_stats", False))


def _mean(values: Tensor, groups: int) -> Tensor:
    """Return the mean of each group of channels (B, C, 1, ...)."""
    pool: Any = avg_pool3d if values.ndim == 5 else avg_pool2d
    while prod(values.shape[2:]) > 1:
        block = [max(n for n in range(1, _BLOCK + 1) if int(size) % n == 0) for size in values.shape[2:]]
        if prod(block) == 1:  # sizes such as 11 have no smaller blocks
            block = [int(size) for size in values.shape[2:]]
        values = pool(values, block, block)
    channels = int(values.shape[1])
    if groups == channels:
        return values
    means = values.reshape(values.shape[0], groups, channels // groups).mean(2, keepdim=True)
    return means.expand(-1, -1, channels // groups).reshape(values.shape)
