"""Hypercolumns: every voxel classified by the features of all depths above it, in 2D and 3D."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medseg.networks.architecture import Architecture
from medseg.networks.blocks import cut, pool, vgg_stages
from medseg.networks.layers import CONV
from medseg.networks.upsampling import Linear


class Hypercolumn(Architecture):
    """Hypercolumn network (Hariharan, Arbeláez, Girshick and Malik 2015) on the stages of VGG-16.

    Maps (B, in_channels, *S) to logits (B, out_channels, *S), for any S.

    A voxel's hypercolumn is the vector of the features of several depths, each interpolated to the voxel. A linear
    classifier on it is a sum of one classifier per depth, and interpolation is linear too; so each depth is
    classified at its own resolution by a 1x1 convolution, then upsampled, then summed (section 3.2 of the paper).
    The hypercolumn itself, thousands of channels at full size, is never built.

    Parameters
    ----------
    axes : 2 or 3
        Spatial axes.
    in_channels, out_channels : int
        Channels of the input; labels and background.
    width : int, optional
        Channels of the first stage; 32 in 2D, 16 in 3D when left out, 64 in VGG-16.
    stages : sequence of int
        Depths that make the hypercolumn, 1 (full resolution) to 5 (stride 16).
    grid : int
        Location-specific classifiers: this many along each axis, spread evenly over the input, their answers
        interpolated between them. 1: the same classifier everywhere. Meant for inputs that show an object in
        a known place; with a sliding window, the place is that in the window.
    norm : str
        'group', 'batch', 'instance' or 'none'.
    """

    def __init__(
        self,
        axes: int,
        in_channels: int,
        out_channels: int,
        *,
        width: int | None = None,
        stages: Sequence[int] = (1, 2, 3, 4, 5),
        grid: int = 1,
        norm: str = "group",
    ) -> None:
        if not stages or not set(stages) <= {1, 2, 3, 4, 5} or grid < 1:
            raise ValueError(f"stages {list(stages)} and grid {grid}: give stages from 1 to 5, and a positive grid")
        super().__init__(axes, in_channels, out_channels, stride=(2 ** (max(stages) - 1),) * axes, norm=norm)
        self.grid = grid
        widths, self.stages = vgg_stages(axes, in_channels, width, norm=norm)
        self.stages = self.stages[: max(stages)]
        self.pool = pool(axes)
        self.classifiers = nn.ModuleDict(
            {str(n): CONV[axes](widths[n - 1], out_channels * grid**axes, 1) for n in sorted(set(stages))}
        )
        self.enlarge = nn.ModuleDict({n: Linear((2 ** (int(n) - 1),) * axes) for n in self.classifiers})

    def forward(self, x: Tensor) -> Tensor:
        self.check(x.shape)
        image, scores = x, x.new_zeros(())
        for number, stage in enumerate(self.stages, start=1):
            x = stage(x if number == 1 else self.pool(x))
            if (depth := str(number)) in self.classifiers:
                scores = scores + cut(self.enlarge[depth](self.classifiers[depth](x)), image)
        return scores if self.grid == 1 else self._between_classifiers(scores)

    def _between_classifiers(self, scores: Tensor) -> Tensor:
        """Return (B, out_channels, *S): for each voxel, the scores of the classifiers around it, interpolated."""
        size = scores.shape[2:]
        scores = scores.unflatten(1, (self.out_channels, *[self.grid] * self.axes))
        for axis, count in enumerate(size):
            at = (torch.arange(count, device=scores.device) + 0.5) * self.grid / count - 0.5
            number = torch.arange(self.grid, device=scores.device)[:, None]
            near = (1 - (at.clamp(0, self.grid - 1) - number).abs()).clamp(min=0)  # (grid, count)
            others = [1] * (self.axes - axis - 1)  # grid axes that are still to be summed
            place = [count if other == axis else 1 for other in range(self.axes)]
            scores = (scores * near.reshape(self.grid, *others, *place)).sum(dim=2)
        return scores
