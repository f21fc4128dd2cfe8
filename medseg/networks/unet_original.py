"""U-Net as first published: unpadded convolutions, crops, and the overlap-tile strategy; in 2D and 3D."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from medseg.errors import ShapeMismatch
from medseg.networks.architecture import Architecture
from medseg.networks.blocks import cut, he_, norm_layer
from medseg.networks.layers import CONV, MAX_POOL
from medseg.networks.upsampling import upsampler


class UNetOriginal(Architecture):
    """The U-Net of figure 1 of Ronneberger et al. 2015, and that of figure 2 of Çiçek et al. 2016 in 3D.

    Each convolution of kernel 3 takes one voxel off every side, so an output voxel has only ever seen real ones:
    572 x 572 gives 388 x 388; in 3D 132 x 132 x 116 gives 44 x 44 x 28.

    Parameters
    ----------
    axes : 2 or 3
        Spatial axes.
    in_channels, out_channels : int
        Channels of the input; labels and background.
    width : int
        Channels of the first stage, doubled by each further one; 64 in the papers, which is 31 M parameters in 2D,
        19 M in 3D.
    stages : int, optional
        Resolutions: 5 in 2D, 4 in 3D when left out, as in the papers.
    norm : str, optional
        'none' in 2D, 'batch' in 3D when left out, as in the papers; else 'instance' or 'group'.
    border : 'mirror' or 'none'
        'mirror': the overlap-tile strategy. The input is continued by its mirror image, so that the output has the
        size of the input. 'none': the output is smaller, and sizes that a pooling would not halve evenly are refused.
    dropout : float
        After the coarsest stage.
    """

    def __init__(
        self,
        axes: int,
        in_channels: int,
        out_channels: int,
        *,
        width: int = 64,
        stages: int | None = None,
        norm: str | None = None,
        border: str = "mirror",
        dropout: float = 0.5,
    ) -> None:
        stages = {2: 5, 3: 4}[axes] if stages is None else stages
        norm = {2: "none", 3: "batch"}[axes] if norm is None else norm
        if border not in ("mirror", "none") or stages < 2 or width < 2:
            raise ValueError(
                f"border {border!r}, {stages} stages, width {width}: give mirror or none, and at least 2 each"
            )
        stride = (2 ** (stages - 1),) * axes
        super().__init__(axes, in_channels, out_channels, stride=stride, norm="none")  # never fewer than 4 voxels there
        self.border, self.stages = border, stages
        widths = [width * 2**stage for stage in range(stages)]
        firsts = widths if axes == 2 else [width // 2 for width in widths]  # 3D: doubled before the pooling already
        self.downs = nn.ModuleList(
            _pair(axes, a, between, b, norm)
            for a, between, b in zip([in_channels, *widths[:-1]], firsts, widths, strict=True)
        )
        self.pool = MAX_POOL[axes](2)
        self.dropout = nn.Dropout(dropout)
        self.enlarge, self.ups = nn.ModuleList(), nn.ModuleList()
        for a, b in reversed(list(pairwise(widths))):
            kept = a if axes == 2 else b  # 3D: the way up keeps its channels
            self.enlarge.append(upsampler("transposed", axes, b, kept, factor=(2,) * axes))
            self.ups.append(_pair(axes, kept + a, a, a, norm))
        self.head = CONV[axes](width, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        self.check(x.shape)
        image = x
        if self.keeps_size:
            x = self._mirrored(x)
        features = [self.downs[0](x)]
        for down in self.downs[1:]:
            features.append(down(self.pool(features[-1])))
        x = self.dropout(features.pop())
        for enlarge, up in zip(self.enlarge, self.ups, strict=True):
            x = enlarge(x)
            x = up(torch.cat((_middle(features.pop(), x.shape[2:]), x), dim=1))
        logits: Tensor = self.head(x)
        return cut(logits, image) if self.keeps_size else logits

    @property
    def size_rule(self) -> str:
        """The sizes that it takes, in words."""
        valid = f"{self._input_size(1)} + {self.stride[0]} n"
        return f"any (with border 'none': {valid})" if self.keeps_size else valid

    @property
    def keeps_size(self) -> bool:
        """Whether the logits have the size of the input."""
        return self.border == "mirror"

    def check(self, shape: Sequence[int]) -> None:
        """Refuse an input of a shape that the network cannot take, naming the nearest sizes that it can."""
        super().check(shape)
        if not self.keeps_size:
            for size in shape[2:]:
                if size not in (nearest := self.valid_sizes(size)):
                    raise ShapeMismatch(
                        f"input of size {tuple(shape[2:])} does not fit without a border",
                        hint=f"instead of {size} give {' or '.join(map(str, nearest))}, or choose border='mirror'",
                    )

    @property
    def margin(self) -> int:
        """Voxels that the unpadded convolutions take off each side of an axis: by default 92 in 2D, 44 in 3D."""
        step = self.stride[0]
        return 4 * (step - 1) + 2 * step

    def valid_sizes(self, size: int) -> tuple[int, ...]:
        """Return `size` if it fits without a border, else the nearest smaller and larger sizes that do."""
        step = self.stride[0]
        smallest = self._input_size(1)
        below = size - (size - smallest) % step
        if below == size:
            return (size,) if size >= smallest else (smallest,)
        return (below, below + step) if size > smallest else (smallest,)

    def _input_size(self, size: int) -> int:
        """Return the smallest valid input whose output has at least `size` voxels."""
        step = self.stride[0]
        cells = (size + 5 * (step - 1)) // step  # rounded up, and positive throughout: ONNX divides towards zero
        return step * cells - 4 * (step - 1) + 2 * self.margin

    def _mirrored(self, x: Tensor) -> Tensor:
        for axis, size in enumerate(x.shape[2:], start=2):
            at = torch.arange(-self.margin, self._input_size(size) - self.margin, device=x.device).abs()
            period = max(1, 2 * (size - 1))
            at = torch.remainder(at, torch.full_like(at, period))  # a number would not be exported to ONNX
            x = x.index_select(axis, torch.minimum(at, period - at) if size > 1 else torch.zeros_like(at))
        return x


def _pair(axes: int, in_channels: int, between: int, out_channels: int, norm: str) -> nn.Sequential:
    """Return two unpadded convolutions of kernel 3, each with norm and ReLU."""
    layers: list[nn.Module] = []
    for a, b in ((in_channels, between), (between, out_channels)):
        layers += [he_(CONV[axes](a, b, 3)), norm_layer(norm, axes, b), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def _middle(x: Tensor, size: torch.Size) -> Tensor:
    starts = [(have - want) // 2 for have, want in zip(x.shape[2:], size, strict=True)]
    box = [slice(start, start + want) for start, want in zip(starts, size, strict=True)]
    return x[(slice(None), slice(None), *box)]
