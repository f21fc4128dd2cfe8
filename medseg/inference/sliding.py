"""The sliding window: where windows lie, how they are blended, and one pass over a prepared scan.

Placement and weights are those of MONAI's `sliding_window_inference` with mode "gaussian", so that either gives
the same answer for the same network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from math import ceil

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medseg.errors import PlanError
from medseg.geometry import tuple_of_three
from medseg.prepare import Prepared

Network = Callable[[Tensor], Tensor]
_SIGMA = 0.125  # of the window's size
_LEAST_WEIGHT = 1e-3


def window_starts(size: int, patch: int, overlap: float) -> list[int]:
    """Return the first voxel of each window along an axis; the last window ends with the axis.

    >>> window_starts(10, 4, 0.5)
    [0, 2, 4, 6]
    """
    step = max(1, int(patch * (1 - overlap)))
    return [min(number * step, max(0, size - patch)) for number in range(ceil(max(0, size - patch) / step) + 1)]


def gaussian_weights(patch: Sequence[int]) -> Tensor:
    """Return how much each voxel of a window counts: (I, J, K), 1 at the centre, at least 0.001 (Isensee 2021)."""
    weights = torch.ones(())
    for size in patch:
        x = torch.arange(size, dtype=torch.float32) - (size - 1) / 2
        weights = weights[..., None] * torch.exp(x**2 / (-2 * (size * _SIGMA) ** 2))
    return weights.clamp(min=_LEAST_WEIGHT)


def slide(
    network: Network,
    prepared: Prepared,
    patch: tuple[int, int, int],
    *,
    overlap: float,
    axes: int,
    device: torch.device,
    batch: int,
    progress: Callable[[float], None] | None = None,
) -> npt.NDArray[np.float32]:
    """Return the blended logits (L, I, J, K) of a network on a prepared scan.

    A patch larger than the scan is filled up with zeros (the mean intensity) on both sides.

    Parameters
    ----------
    network : callable
        (B, C, I, J, K) to (B, L, I, J, K); (B, C, I, J) to (B, L, I, J) when `axes` is 2.
    prepared : Prepared
        The scan on the plan's grid.
    patch : three ints
        Size of the window.
    overlap : float
        Fraction that neighbouring windows share.
    axes : 2 or 3
        Spatial axes of the network; with 2, windows have one slice.
    device : torch.device
        Where the network is.
    batch : int
        Windows in one call of the network.
    progress : callable
        Called with the fraction done.
    """
    shape = prepared.geometry.shape
    before = tuple_of_three(max(0, p - n) // 2 for p, n in zip(patch, shape, strict=True))
    padded = tuple_of_three(max(p, n) for p, n in zip(patch, shape, strict=True))
    weights = gaussian_weights(patch)
    blended = torch.empty(0)
    counts = torch.zeros(padded)
    corners = list(product(*(window_starts(n, p, overlap) for n, p in zip(padded, patch, strict=True))))
    with torch.inference_mode():
        for done, group in enumerate(_groups(corners, batch), start=1):
            windows = torch.from_numpy(np.stack([_window(prepared, corner, patch, before) for corner in group]))
            windows = windows.to(device)
            logits = network(windows[..., 0])[..., None] if axes == 2 else network(windows)
            logits = logits.float().cpu()
            if logits.shape[2:] != patch:
                raise PlanError(
                    f"the network gives {tuple(logits.shape[2:])} voxels for a window of {patch}",
                    hint="give a network that keeps the size of its input",
                )
            if not len(blended):
                blended = torch.zeros((logits.shape[1], *padded))
            for corner, answer in zip(group, logits, strict=True):
                box = tuple(slice(a, a + p) for a, p in zip(corner, patch, strict=True))
                blended[(slice(None), *box)].addcmul_(answer, weights)
                counts[box] += weights
            if progress:
                progress(min(1.0, done * batch / len(corners)))
        blended /= counts
    inner = tuple(slice(a, a + n) for a, n in zip(before, shape, strict=True))
    return blended[(slice(None), *inner)].numpy()


def _groups(corners: Sequence[tuple[int, ...]], count: int) -> Iterator[Sequence[tuple[int, ...]]]:
    for start in range(0, len(corners), count):
        yield corners[start : start + count]


def _window(
    prepared: Prepared, corner: Sequence[int], patch: Sequence[int], before: Sequence[int]
) -> npt.NDArray[np.float32]:
    """Return one window (C, I, J, K) of the normalised scan, zero outside it."""
    start = [a - b for a, b in zip(corner, before, strict=True)]
    stop = [a + p for a, p in zip(start, patch, strict=True)]
    shape = prepared.geometry.shape
    inside = [(max(0, a), min(n, b)) for a, b, n in zip(start, stop, shape, strict=True)]
    values = prepared.window([a for a, _ in inside], [b for _, b in inside])
    pads = [(a - s, e - b) for (a, b), s, e in zip(inside, start, stop, strict=True)]
    return np.pad(values, [(0, 0), *pads]) if any(map(any, pads)) else values
