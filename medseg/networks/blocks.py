"""Building blocks that the architectures share, in two and three dimensions.

Sizes follow one rule everywhere: an axis of n voxels has ceil(n / s) voxels at stride s; coming back, upsampling
gives s * ceil(n / s) voxels, and what overhangs at the end of the axis is cut off. So every size fits, and voxel 0
stays voxel 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import gcd

import torch
from torch import Tensor, nn

from medseg.networks.layers import BATCH_NORM, CONV, INSTANCE_NORM, MAX_POOL
from medseg.networks.upsampling import Linear

Size = int | Sequence[int]  # one number for every axis, or one per axis
NORMS = ("instance", "batch", "group", "none")
_GROUPS = 8  # of channels in a group norm, fewer where a group would have but one channel


def per_axis(size: Size, axes: int) -> tuple[int, ...]:
    """Return one number per axis.

    Raises
    ------
    ValueError
        If there are more or fewer numbers than axes.
    """
    numbers = (size,) * axes if isinstance(size, int) else tuple(size)
    if len(numbers) != axes or min(numbers) < 1:
        raise ValueError(f"{list(numbers)} does not fit {axes} axes: give one positive number, or one per axis")
    return numbers


def cut(x: Tensor, like: Tensor) -> Tensor:
    """Return (B, C, *S) without what overhangs the size of `like` at the end of each axis."""
    return x[(slice(None), slice(None), *map(slice, like.shape[2:]))]


def norm_layer(name: str, axes: int, channels: int) -> nn.Module:
    """Return a norm with learned scale and shift: 'instance', 'batch', 'group', or 'none'.

    Ulyanov et al. 2016; Ioffe and Szegedy 2015; Wu and He 2018.
    """
    match name:
        case "instance":
            return INSTANCE_NORM[axes](channels, affine=True)
        case "batch":
            return BATCH_NORM[axes](channels)
        case "group":
            return nn.GroupNorm(gcd(_GROUPS, channels, channels // 2 or 1), channels)
        case "none":
            return nn.Identity()
    raise ValueError(f"norm {name!r} is unknown: choose one of {', '.join(NORMS)}")


def pool(axes: int) -> nn.Module:
    """Return max pooling by 2 that keeps the last, half-filled cell of an odd axis."""
    return MAX_POOL[axes](2, ceil_mode=True)


def vgg_stages(axes: int, in_channels: int, width: int | None, *, norm: str) -> tuple[list[int], nn.ModuleList]:
    """Return the five stages of VGG-16 (Simonyan and Zisserman 2015) without their poolings, and their widths.

    Convolutions of kernel 3, each with norm and ReLU. `width` is that of the first stage: 64 in the paper; 32 in 2D
    and 16 in 3D when left out.
    """
    width = {2: 32, 3: 16}[axes] if width is None else width
    if width < 1:
        raise ValueError(f"width {width}: give a positive one")
    widths = [width * factor for factor in (1, 2, 4, 8, 8)]
    stages = nn.ModuleList()
    for a, b, count in zip([in_channels, *widths[:-1]], widths, (2, 2, 3, 3, 3), strict=True):
        layers: list[nn.Module] = []
        for number in range(count):
            layers += [he_(CONV[axes](b if number else a, b, 3, padding=1)), norm_layer(norm, axes, b)]
            layers.append(nn.ReLU(inplace=True))
        stages.append(nn.Sequential(*layers))
    return widths, stages


def he_(conv: nn.Module) -> nn.Module:
    """Initialise a convolution that a ReLU follows: normal of variance 2 / fan-in, no bias (He et al. 2015)."""
    if isinstance(conv.weight, Tensor):
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    if isinstance(conv.bias, Tensor):
        nn.init.zeros_(conv.bias)
    return conv


class ConvBlock(nn.Module):
    """Two times convolution, norm, leaky ReLU; with `residual`, a shortcut around both.

    Maps (B, in_channels, *S) to (B, out_channels, *ceil(S / stride)). He et al. 2016 for the shortcut.
    """

    def __init__(
        self,
        axes: int,
        in_channels: int,
        out_channels: int,
        *,
        kernel: Size = 3,
        stride: Size = 1,
        residual: bool = False,
        norm: str = "instance",
    ) -> None:
        super().__init__()
        kernel, stride = per_axis(kernel, axes), per_axis(stride, axes)
        if any(size % 2 == 0 for size in kernel):
            raise ValueError(f"kernel {list(kernel)} is even and has no middle: use {[size | 1 for size in kernel]}")
        padding = tuple(size // 2 for size in kernel)
        self.conv1 = CONV[axes](in_channels, out_channels, kernel, stride, padding, bias=False)
        self.norm1 = norm_layer(norm, axes, out_channels)
        self.conv2 = CONV[axes](out_channels, out_channels, kernel, 1, padding, bias=False)
        self.norm2 = norm_layer(norm, axes, out_channels)
        self.act = nn.LeakyReLU(0.01, inplace=True)
        self.residual = residual
        self.shortcut: nn.Module | None = None
        if residual and (in_channels != out_channels or max(stride) > 1):
            self.shortcut = CONV[axes](in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(self.act(self.norm1(self.conv1(x)))))
        if self.residual:
            y = y + (x if self.shortcut is None else self.shortcut(x))
        out: Tensor = self.act(y)
        return out


class AttentionGate(nn.Module):
    """Weigh a skip connection, voxel by voxel, by what the coarser features make of it (Oktay et al. 2018).

    Maps (B, channels, *S) and (B, gate_channels, *ceil(S / stride)) to (B, channels, *S).
    """

    def __init__(self, axes: int, channels: int, gate_channels: int, *, stride: Size) -> None:
        super().__init__()
        inner = max(1, channels // 2)
        self.of_skip = CONV[axes](channels, inner, 1, bias=False)
        self.of_gate = CONV[axes](gate_channels, inner, 1)
        self.enlarge = Linear(per_axis(stride, axes))
        self.weight = CONV[axes](inner, 1, 1)

    def forward(self, skip: Tensor, gate: Tensor) -> Tensor:
        both = self.of_skip(skip) + cut(self.enlarge(self.of_gate(gate)), skip)
        return skip * torch.sigmoid(self.weight(torch.relu(both)))


class UpBlock(nn.Module):
    """Upsampling by `stride`, concatenation with the skip connection, then a `ConvBlock`.

    Maps (B, in_channels, *ceil(S / stride)) and (B, out_channels, *S) to (B, out_channels, *S). `upsampler` makes
    the layer that enlarges, from channels in, channels out and `factor`.
    """

    def __init__(
        self,
        axes: int,
        in_channels: int,
        out_channels: int,
        *,
        upsampler: Callable[..., nn.Module],
        stride: Size = 2,
        attention: bool = False,
        kernel: Size = 3,
        residual: bool = False,
        norm: str = "instance",
    ) -> None:
        super().__init__()
        self.up = upsampler(in_channels, out_channels, factor=per_axis(stride, axes))
        self.gate = AttentionGate(axes, out_channels, in_channels, stride=stride) if attention else None
        self.block = ConvBlock(axes, 2 * out_channels, out_channels, kernel=kernel, residual=residual, norm=norm)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        kept = skip if self.gate is None else self.gate(skip, x)
        out: Tensor = self.block(torch.cat((cut(self.up(x), skip), kept), dim=1))
        return out
