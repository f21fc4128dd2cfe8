"""Whether scans may be mirrored in training: only if a mirrored one could be one of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

_CELLS = 12  # along each axis
_MARGIN = 0.05  # of correlation by which a scan must be more like the others than its mirror image
_FEWEST = 4  # cases that can tell anything

Coarse = npt.NDArray[np.float32]


def coarse(image: npt.NDArray[Any]) -> Coarse:
    """Return a scan (C, X, Y, Z) as the means over at most 12 x 12 x 12 cells, of mean 0 and norm 1."""
    cells = image.astype(np.float32, copy=False).mean(axis=0)
    for axis in range(3):
        edges = np.unique(np.linspace(0, cells.shape[axis], min(_CELLS, cells.shape[axis]) + 1).astype(int))
        sums = np.add.reduceat(cells, edges[:-1], axis=axis)
        cells = sums / np.diff(edges).reshape([-1 if a == axis else 1 for a in range(3)])
    cells = cells - cells.mean()
    norm = float(np.linalg.norm(cells))
    found: Coarse = cells / norm if norm else cells
    return found


def told_apart(scans: Sequence[Coarse], axis: int) -> float:
    """Return the share of scans that are more like the mean of the others than their mirror images are.

    About 0 where left and right may be swapped, 1 where every scan shows the same side; 0 for fewer than 4 scans of
    one size, which can tell nothing.
    """
    sizes = [scan.shape for scan in scans]
    usual = [scan for scan in scans if scan.shape == max({*sizes}, key=sizes.count)]
    if len(usual) < _FEWEST:
        return 0.0
    total = np.sum(usual, axis=0)
    told = 0
    for scan in usual:
        others = total - scan
        norm = float(np.linalg.norm(others)) or 1.0
        told += float(((scan - np.flip(scan, axis)) * others).sum()) / norm > _MARGIN
    return told / len(usual)
