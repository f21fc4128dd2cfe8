"""Random changes of an image's intensities: (C, *S) float32 on any device, to another of that size.

Each takes the image and a source of random numbers. The magnitudes are those that trained the shipped models. What
differs from channel to channel is drawn for each.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from medseg.transforms.motion import Draws, Matrix, along_axes


def blurred(image: Tensor, draws: Draws, *, fine: Sequence[bool]) -> Tensor:
    """Return the image after a Gaussian of 0.4 to 1 voxels along each fine axis."""
    deviations = draws.uniform(0.4, 1, len(fine))
    return along_axes(
        image, [_gaussian(n, s) if on else None for n, s, on in zip(image.shape[1:], deviations, fine, strict=True)]
    )


def coarsened(image: Tensor, draws: Draws, *, fine: Sequence[bool]) -> Tensor:
    """Return the image as if seen with 0.5 to 1 times as many voxels along each fine axis."""
    zoom = draws.uniform(0.5, 1)
    return along_axes(image, [_low(n, zoom) if on else None for n, on in zip(image.shape[1:], fine, strict=True)])


def noisy(image: Tensor, draws: Draws) -> Tensor:
    """Return the image with Gaussian noise of a deviation up to 0.15; the numbers are the CPU's on any device."""
    deviation = draws.uniform(0, 0.15)
    generator = torch.Generator().manual_seed(int(draws.randint(1 << 31)))
    return torch.add(image, torch.randn(image.shape, generator=generator).to(image.device), alpha=deviation)


def scaled(image: Tensor, draws: Draws) -> Tensor:
    """Return the image times 0.75 to 1.25."""
    return image * _per_channel(image, draws, 0.75, 1.25)


def shifted(image: Tensor, draws: Draws) -> Tensor:
    """Return the image, up to 0.2 brighter or darker."""
    return image + _per_channel(image, draws, -0.2, 0.2)


def curved(image: Tensor, draws: Draws) -> Tensor:
    """Return the image to the power of 0.7 to 1.5 between its extremes, with the mean and deviation it had."""
    axes = tuple(range(1, image.ndim))
    low, high = image.amin(axes, keepdim=True), image.amax(axes, keepdim=True)
    within = (image - low) * (1 / (high - low + 1e-7))
    curve = within.log_().mul_(_per_channel(image, draws, 0.7, 1.5)).exp_()  # a sixth of the time of a power
    mean, spread = _mean_and_deviation(image)
    new_mean, new_spread = _mean_and_deviation(curve)
    return curve.sub_(new_mean).mul_(spread / (new_spread + 1e-8)).add_(mean)


def _mean_and_deviation(image: Tensor) -> tuple[Tensor, Tensor]:
    axes = tuple(range(1, image.ndim))
    mean = image.mean(axes, keepdim=True)
    return mean, (image - mean).square_().mean(axes, keepdim=True).sqrt_()  # torch.std takes fifteen times as long


def _per_channel(image: Tensor, draws: Draws, low: float, high: float) -> Tensor:
    values = torch.from_numpy(draws.uniform(low, high, len(image)).astype(np.float32))
    return values.to(image.device).reshape(-1, *[1] * (image.ndim - 1))


def _gaussian(size: int, deviation: float) -> Matrix:
    """Return the weight of each voxel of an axis in each blurred one."""
    at = np.arange(size)
    weights = np.exp(-(at**2) / (2 * deviation**2))
    weights[weights < 1e-6] = 0  # the smallest numbers slow a product down forty times
    matrix: Matrix = weights[abs(at - at[:, None])]
    matrix /= matrix.sum(axis=1, keepdims=True)
    return matrix


def _low(size: int, zoom: float) -> Matrix:
    """Return the weight of each voxel of an axis in each one after the nearest of fewer, and linear interpolation."""
    count = max(1, round(size * zoom))
    seen = ((np.arange(count) + 0.5) * size / count).astype(int)
    place = np.clip((np.arange(size) + 0.5) * count / size - 0.5, 0, count - 1)
    below = place.astype(int)
    matrix = np.zeros((size, size))
    matrix[np.arange(size), seen[below]] = 1 - (place - below)
    matrix[np.arange(size), seen[np.minimum(below + 1, count - 1)]] += place - below
    return matrix
