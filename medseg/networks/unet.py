"""U-Net as it is used today: padded, with norms; plain, residual, or with attention gates; in 2D and 3D.

The network of the first paper, unpadded, is `unet_original.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from math import prod
from typing import Any

from torch import Tensor, nn

from medseg.networks.architecture import Architecture
from medseg.networks.blocks import ConvBlock, Size, UpBlock, cut, per_axis
from medseg.networks.layers import CONV
from medseg.networks.upsampling import upsampler


class UNet(Architecture):
    """U-Net (Ronneberger et al. 2015; 3D: Çiçek et al. 2016; residual: Isensee et al. 2024; gates: Oktay et al. 2018).

    Maps (B, in_channels, *S) to logits (B, out_channels, *S), for any S: an axis of n voxels has ceil(n / s) at
    stride s, and what overhangs on the way up is cut off.

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
    stem_stride : int or one int per axis
        Above 1, the network works on a grid that many times coarser, and its head enlarges the logits back: a few
        times faster, as most of the work of a U-Net is done at full resolution.
    norm : str
        'instance', 'batch', 'group' or 'none'.
    residual : bool
        A shortcut around each pair of convolutions.
    attention : bool
        Gates that weigh the skip connections.
    upsampling : str
        A key of `medseg.networks.UPSAMPLERS`.
    upsampling_options : mapping, optional
        Of that way, such as `{"kernel": 4}` of 'transposed' or `{"mode": "linear"}` of 'resize'.
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
        stem_stride: Size = 1,
        norm: str = "instance",
        residual: bool = False,
        attention: bool = False,
        upsampling: str = "transposed",
        upsampling_options: Mapping[str, Any] | None = None,
        deep_supervision: bool = False,
    ) -> None:
        strides = (2,) * (len(widths) - 1) if strides is None else strides
        kernels = (3,) * len(widths) if kernels is None else kernels
        if len(widths) < 2 or min(widths) < 1 or len(strides) != len(widths) - 1 or len(kernels) != len(widths):
            raise ValueError(
                f"{len(widths)} widths, {len(strides)} strides and {len(kernels)} kernels: "
                "give at least 2 positive widths, one stride fewer than widths, and as many kernels as widths"
            )
        steps = [per_axis(stride, axes) for stride in strides]
        finest = per_axis(stem_stride, axes)
        stride = tuple(map(prod, zip(finest, *steps, strict=True)))
        super().__init__(axes, in_channels, out_channels, stride=stride, norm=norm)
        stages = list(zip(pairwise(widths), steps, strict=True))
        block = partial(ConvBlock, axes, residual=residual, norm=norm)
        enlarge: Callable[..., nn.Module] = partial(upsampler, upsampling, axes, **(upsampling_options or {}))
        up_block = partial(UpBlock, axes, upsampler=enlarge, attention=attention, residual=residual, norm=norm)
        self.stem = block(in_channels, widths[0], kernel=kernels[0], stride=finest)
        self.downs = nn.ModuleList(
            block(a, b, kernel=kernel, stride=step) for ((a, b), step), kernel in zip(stages, kernels[1:], strict=True)
        )
        self.ups = nn.ModuleList(
            up_block(b, a, kernel=kernel, stride=step)
            for ((a, b), step), kernel in zip(reversed(stages), reversed(kernels[:-1]), strict=True)
        )
        coarse = max(finest) > 1
        self.head = (
            enlarge(widths[0], out_channels, factor=finest) if coarse else CONV[axes](widths[0], out_channels, 1)
        )
        coarser = widths[-2:0:-1] if deep_supervision else ()
        self.deep_heads = nn.ModuleList(CONV[axes](width, out_channels, kernel_size=1) for width in coarser)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        self.check(x.shape)
        whole = x
        features = [self.stem(x)]
        for down in self.downs:
            features.append(down(features[-1]))
        x = features.pop()
        decoded = []
        for up in self.ups:
            x = up(x, features.pop())
            decoded.append(x)
        logits: Tensor = cut(self.head(x), whole)
        if not (self.training and len(self.deep_heads)):
            return logits
        coarse = [head(stage) for head, stage in zip(self.deep_heads, decoded[:-1], strict=True)]
        return [logits, *reversed(coarse)]
