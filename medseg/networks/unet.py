"""U-Net, plain and residual, in two and three dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod

from torch import Tensor, nn

from medseg.networks.blocks import CONV, ConvBlock, Size, UpBlock, per_axis


class UNet(nn.Module):
    """U-Net (Ronneberger et al. 2015; 3D: Çiçek et al. 2016; residual: Isensee et al. 2024).

    Maps (B, in_channels, *S) to logits (B, out_channels, *S); S: axes divisible by `divisor`.

    Parameters
    ----------
    axes : 2 or 3
        Spatial axes.
    in_channels, out_channels : int
        Channels of the input; labels and background.
    widths : sequence of int
        Channels of each stage, from full resolution down.
    strides : sequence of int or of one int per axis, optional
        Step from each stage to the next: one fewer than `widths`; 2 everywhere when left out.
    kernels : sequence of int or of one int per axis, optional
        Kernel of each stage; 3 everywhere when left out.
    residual : bool
        A shortcut around each pair of convolutions.
    deep_supervision : bool
        In training mode, return logits of every decoder stage but the coarsest, finest first.
    """

    def __init__(
        self,
        axes: int,
        in_channels: int,
        out_channels: int,
        *,
        widths: Sequence[int] = (32, 64, 128, 256),
        strides: Sequence[Size] | None = None,
        kernels: Sequence[Size] | None = None,
        residual: bool = False,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        strides = strides or (2,) * (len(widths) - 1)
        kernels = kernels or (3,) * len(widths)
        if len(strides) != len(widths) - 1 or len(kernels) != len(widths):
            raise ValueError(f"{len(widths)} widths need {len(widths) - 1} strides and {len(widths)} kernels")
        self.divisor = tuple(prod(steps) for steps in zip(*(per_axis(s, axes) for s in strides), strict=True))
        stages = list(zip(pairwise(widths), strides, strict=True))
        self.stem = ConvBlock(axes, in_channels, widths[0], kernel=kernels[0], residual=residual)
        self.downs = nn.ModuleList(
            ConvBlock(axes, a, b, kernel=kernel, stride=stride, residual=residual)
            for ((a, b), stride), kernel in zip(stages, kernels[1:], strict=True)
        )
        self.ups = nn.ModuleList(
            UpBlock(axes, b, a, kernel=kernel, stride=stride, residual=residual)
            for ((a, b), stride), kernel in zip(reversed(stages), reversed(kernels[:-1]), strict=True)
        )
        self.head = CONV[axes](widths[0], out_channels, kernel_size=1)
        coarser = widths[-2:0:-1] if deep_supervision else ()
        self.deep_heads = nn.ModuleList(CONV[axes](width, out_channels, kernel_size=1) for width in coarser)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        features = [self.stem(x)]
        for down in self.downs:
            features.append(down(features[-1]))
        x = features.pop()
        decoded = []
        for up in self.ups:
            x = up(x, features.pop())
            decoded.append(x)
        logits: Tensor = self.head(x)
        if not (self.training and len(self.deep_heads)):
            return logits
        coarse = [head(stage) for head, stage in zip(self.deep_heads, decoded[:-1], strict=True)]
        return [logits, *reversed(coarse)]
