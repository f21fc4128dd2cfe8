"""Building blocks that the architectures share, in two and three dimensions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

Layer = Callable[..., nn.Module]
CONV: dict[int, Layer] = {2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED: dict[int, Layer] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORM: dict[int, Layer] = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}

Size = int | Sequence[int]  # one number for every axis, or one per axis


def per_axis(size: Size, axes: int) -> tuple[int, ...]:
    """Return one number per axis."""
    return (size,) * axes if isinstance(size, int) else tuple(size)


class ConvBlock(nn.Module):
    """Two times convolution, instance norm, leaky ReLU; with `residual`, a shortcut around both.

    Maps (B, in_channels, *S) to (B, out_channels, *S / stride). He et al. 2016 for the shortcut.
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
    ) -> None:
        super().__init__()
        kernel, stride = per_axis(kernel, axes), per_axis(stride, axes)
        padding = tuple(k // 2 for k in kernel)
        self.conv1 = CONV[axes](in_channels, out_channels, kernel, stride, padding, bias=False)
        self.norm1 = NORM[axes](out_channels, affine=True)
        self.conv2 = CONV[axes](out_channels, out_channels, kernel, 1, padding, bias=False)
        self.norm2 = NORM[axes](out_channels, affine=True)
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


class UpBlock(nn.Module):
    """Transposed convolution by `stride`, concatenation with the skip connection, then a `ConvBlock`.

    Maps (B, in_channels, *S) and (B, out_channels, *S * stride) to (B, out_channels, *S * stride).
    """

    def __init__(
        self,
        axes: int,
        in_channels: int,
        out_channels: int,
        *,
        kernel: Size = 3,
        stride: Size = 2,
        residual: bool = False,
    ) -> None:
        super().__init__()
        stride = per_axis(stride, axes)
        self.up = TRANSPOSED[axes](in_channels, out_channels, stride, stride)
        self.block = ConvBlock(axes, 2 * out_channels, out_channels, kernel=kernel, residual=residual)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        out: Tensor = self.block(torch.cat((self.up(x), skip), dim=1))
        return out
