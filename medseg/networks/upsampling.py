"""Four ways to enlarge features, by name, and a measure of the checkerboard that a bad one leaves.

| name | what it does |
|---|---|
| `transposed` | transposed convolution; its kernel must be a multiple of the stride, or it overlaps unevenly |
| `resize` | nearest or linear interpolation, then a convolution (Odena et al. 2016) |
| `shuffle` | convolution to one channel per new voxel, then sub-pixel shuffle (Shi et al. 2016), ICNR initialisation |
| `linear` | fixed bilinear or trilinear interpolation; a 1x1 convolution before it changes the channels |

Each maps (B, in_channels, *S) to (B, out_channels, *S * factor): input voxel a lies under output voxels
factor * a to factor * (a + 1) - 1, so that nothing shifts.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from medseg.errors import ShapeMismatch
from medseg.networks.layers import CONV, TRANSPOSED, Layer

_LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


def upsampler(
    name: str, axes: int, in_channels: int, out_channels: int, *, factor: Sequence[int], **options: Any
) -> nn.Module:
    """Return a layer that enlarges (B, in_channels, *S) to (B, out_channels, *S * factor).

    Parameters
    ----------
    name : str
        A key of `UPSAMPLERS`.
    factor : sequence of int
        Output voxels for each input voxel, one number per axis.
    options
        Of the way: `kernel` of 'transposed' (the stride when left out), `mode` of 'resize'.

    Raises
    ------
    ValueError
        If there is no such way, or its kernel overlaps unevenly.
    """
    if name not in UPSAMPLERS:
        raise ValueError(f"upsampling {name!r} is unknown: choose one of {', '.join(UPSAMPLERS)}")
    return UPSAMPLERS[name](axes, in_channels, out_channels, factor=tuple(factor), **options)


def transposed(
    axes: int, in_channels: int, out_channels: int, *, factor: Sequence[int], kernel: int | Sequence[int] | None = None
) -> nn.Module:
    """Return a transposed convolution whose every output voxel hears equally many input voxels.

    Raises
    ------
    ValueError
        If the kernel is not a multiple of the stride (it would overlap unevenly: Odena et al. 2016), or cannot be
        centred on it.
    """
    kernels = tuple(factor) if kernel is None else (kernel,) * axes if isinstance(kernel, int) else tuple(kernel)
    for size, stride in zip(kernels, factor, strict=True):
        if size % stride or (size - stride) % 2:
            step = stride * (1 + stride % 2)  # an odd stride and an even multiple of it have no common middle
            below = size - (size - stride) % step
            right = " or ".join(str(n) for n in (below, below + step) if n >= stride)
            why = "overlaps unevenly" if size % stride else "cannot be centred"
            raise ValueError(f"kernel {size} {why} at stride {stride}: use {right}")
    padding = tuple((size - stride) // 2 for size, stride in zip(kernels, factor, strict=True))
    return TRANSPOSED[axes](in_channels, out_channels, kernels, tuple(factor), padding)


def resize(
    axes: int, in_channels: int, out_channels: int, *, factor: Sequence[int], mode: str = "nearest"
) -> nn.Module:
    """Return an interpolation ('nearest' or 'linear') followed by a convolution of kernel 3."""
    if mode not in ("nearest", "linear"):
        raise ValueError(f"mode {mode!r} is unknown: choose nearest or linear")
    larger = Linear(factor) if mode == "linear" else nn.Upsample(scale_factor=tuple(map(float, factor)))
    return nn.Sequential(larger, CONV[axes](in_channels, out_channels, 3, padding=1))


def linear(axes: int, in_channels: int, out_channels: int, *, factor: Sequence[int]) -> nn.Module:
    """Return a fixed interpolation, after a 1x1 convolution where the number of channels changes."""
    larger = Linear(factor)
    if in_channels == out_channels:
        return larger
    return nn.Sequential(CONV[axes](in_channels, out_channels, 1), larger)  # the two commute; this way is cheaper


class Linear(nn.Module):
    """Bilinear or trilinear interpolation by a whole factor per axis, voxel centres in their place."""

    def __init__(self, factor: Sequence[int]) -> None:
        super().__init__()
        self.factor = tuple(map(float, factor))

    def forward(self, x: Tensor) -> Tensor:
        return functional.interpolate(x, scale_factor=self.factor, mode=_LINEAR[x.ndim - 2], align_corners=False)


class Shuffle(nn.Module):
    """Convolution to one channel per new voxel, and their rearrangement in space (Shi et al. 2016).

    ICNR initialisation (Aitken et al. 2017): all voxels of a cell begin with the same weights, so that the layer
    begins as nearest interpolation after a convolution, without a checkerboard.
    """

    def __init__(self, axes: int, in_channels: int, out_channels: int, *, factor: Sequence[int]) -> None:
        super().__init__()
        self.factor = tuple(factor)
        self.conv = CONV[axes](in_channels, out_channels * prod(factor), 3, padding=1)
        with torch.no_grad():
            for parameter in self.conv.parameters():
                cells = parameter.view(out_channels, prod(factor), *parameter.shape[1:])
                cells.copy_(cells[:, :1].expand_as(cells).clone())

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        batch, _, *size = y.shape
        axes = len(size)
        y = y.reshape(batch, -1, *self.factor, *size)
        order = [number for axis in range(axes) for number in (2 + axes + axis, 2 + axis)]  # size, factor, size, ...
        larger = [n * f for n, f in zip(size, self.factor, strict=True)]
        return y.permute(0, 1, *order).reshape(batch, -1, *larger)


UPSAMPLERS: dict[str, Layer] = {
    "transposed": transposed,
    "resize": resize,
    "shuffle": Shuffle,
    "linear": linear,
}


def learned_linear(axes: int, channels: int, factor: int) -> nn.Module:
    """Return a transposed convolution, one per channel, that begins as linear interpolation by an even factor.

    Long, Shelhamer and Darrell 2015, section 3.3. At the border it fades towards zero where `Linear` repeats the
    outermost voxels.
    """
    layer = TRANSPOSED[axes](channels, channels, 2 * factor, factor, factor // 2, groups=channels, bias=False)
    x = (torch.arange(2 * factor) + 0.5) / factor
    tent = torch.ones(())
    for _ in range(axes):
        tent = tent[..., None] * torch.minimum(x, 2 - x)
    layer.weight = nn.Parameter(tent.repeat(channels, 1, *[1] * axes))
    return layer


def checkerboard_energy(image: Tensor, stride: int) -> float:
    """Return the share of an image's spectral power that lies at the frequency of the stride and its harmonics.

    0: no checkerboard, 1: nothing but one. The mean (frequency 0) does not count; a constant image has 0. White
    noise has about stride ** axes / n, n its number of voxels.

    Parameters
    ----------
    image : Tensor (*S)
        Every axis at least one stride long; what overhangs a multiple of it is left out.
    stride : int
        Period of the suspected pattern in voxels, at least 2.

    Raises
    ------
    ShapeMismatch
        If an axis is shorter than the stride.

    Notes
    -----
    The power at those frequencies is the variance of the mean image of one period (Parseval).

    Examples
    --------
    >>> rows = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    >>> checkerboard_energy(rows.repeat(4, 4), stride=2)
    1.0
    >>> checkerboard_energy(torch.arange(8.0).repeat(8, 1) // 2, stride=2)
    0.0
    """
    if min(image.shape) < stride:
        raise ShapeMismatch(f"image of shape {tuple(image.shape)}", hint=f"give at least {stride} voxels along an axis")
    image = image.detach().double()[tuple(slice(size // stride * stride) for size in image.shape)]
    image = image - image.mean()
    cells = image.reshape([n for size in image.shape for n in (size // stride, stride)])
    period = cells.mean(dim=tuple(range(0, cells.ndim, 2)))
    total = float(image.square().mean())
    return float(period.square().mean()) / total if total > 0 else 0.0
