"""Fully convolutional networks: FCN-32s, FCN-16s and FCN-8s, in 2D and 3D."""

from __future__ import annotations

from torch import Tensor, nn

from medseg.networks.architecture import Architecture
from medseg.networks.blocks import cut, he_, pool, vgg_stages
from medseg.networks.layers import CONV
from medseg.networks.upsampling import Linear, learned_linear

_SKIPS = {32: 0, 16: 1, 8: 2}  # stride of the finest scores: how many poolings are scored too


class FCN(Architecture):
    """FCN-32s, -16s or -8s (Long, Shelhamer and Darrell 2015): VGG-16 as convolutions, and scores of three depths.

    Maps (B, in_channels, *S) to logits (B, out_channels, *S), for any S.

    The authors padded the input by 100 pixels, so that their unpadded fc6 had something to see, and cut the scores
    with offsets found by following centres through the layers: 19 for 32s; 5 and 27 for 16s; 5, 9 and 31 for 8s. Each
    makes up for exactly that padding. Here fc6 is padded by half its kernel and poolings keep half-filled cells, so
    cell a of stride s always lies over voxels s * a to s * a + s - 1, interpolation leaves centres in their place,
    and every offset is 0.

    Parameters
    ----------
    axes : 2 or 3
        Spatial axes.
    in_channels, out_channels : int
        Channels of the input; labels and background.
    finest : 32, 16 or 8
        Stride of the finest scores: those of fc7 alone, with pool4, or with pool4 and pool3.
    width : int, optional
        Channels of the first stage; 32 in 2D, 16 in 3D when left out. In the paper 64, which is 134 M parameters.
    fc_width : int, optional
        Channels of fc6 and fc7; 64 * width when left out, as in the paper.
    fc_kernel : int, optional
        Kernel of fc6, odd: 7 in 2D, as in the paper, 3 in 3D when left out.
    dropout : float
        After fc6 and fc7.
    norm : str
        'group', 'batch', 'instance', or 'none' as in the paper, which began from a trained VGG-16.
    learned : bool
        Upsampling by transposed convolutions that begin as linear interpolation, instead of fixed interpolation.
    """

    def __init__(
        self,
        axes: int,
        in_channels: int,
        out_channels: int,
        *,
        finest: int = 8,
        width: int | None = None,
        fc_width: int | None = None,
        fc_kernel: int | None = None,
        dropout: float = 0.5,
        norm: str = "group",
        learned: bool = False,
    ) -> None:
        super().__init__(axes, in_channels, out_channels, stride=(32,) * axes, norm=norm)
        fc_kernel = {2: 7, 3: 3}[axes] if fc_kernel is None else fc_kernel
        if finest not in _SKIPS or fc_kernel < 1 or fc_kernel % 2 == 0:
            raise ValueError(f"finest {finest} and fc_kernel {fc_kernel}: give 32, 16 or 8, and an odd kernel")
        widths, self.stages = vgg_stages(axes, in_channels, width, norm=norm)
        fc_width = 64 * widths[0] if fc_width is None else fc_width
        if fc_width < 1:
            raise ValueError(f"fc_width {fc_width}: give a positive one")
        self.pool = pool(axes)
        self.fc6 = he_(CONV[axes](widths[4], fc_width, fc_kernel, padding=fc_kernel // 2))
        self.fc7 = he_(CONV[axes](fc_width, fc_width, 1))
        self.act, self.dropout = nn.ReLU(inplace=True), nn.Dropout(dropout)
        self.score = CONV[axes](fc_width, out_channels, 1)
        skips = [widths[3], widths[2]][: _SKIPS[finest]]  # of pool4, pool3
        self.skip_scores = nn.ModuleList(_zero(CONV[axes](channels, out_channels, 1)) for channels in skips)

        def upsampling(factor: int) -> nn.Module:
            return learned_linear(axes, out_channels, factor) if learned else Linear((factor,) * axes)

        self.twice = nn.ModuleList(upsampling(2) for _ in skips)
        self.to_input = upsampling(finest)

    def forward(self, x: Tensor) -> Tensor:
        self.check(x.shape)
        image, pools = x, []
        for stage in self.stages:
            x = self.pool(stage(x))
            pools.append(x)
        for fc in (self.fc6, self.fc7):
            x = self.dropout(self.act(fc(x)))
        score = self.score(x)
        _, _, pool3, pool4, _ = pools
        for twice, skip_score, features in zip(self.twice, self.skip_scores, (pool4, pool3), strict=False):
            score = cut(twice(score), features) + skip_score(features)
        return cut(self.to_input(score), image)


def _zero(conv: nn.Module) -> nn.Module:
    """Initialise the scores of a skip with zero: a finer net begins with the answer of the coarser one."""
    for parameter in conv.parameters():
        nn.init.zeros_(parameter)
    return conv
