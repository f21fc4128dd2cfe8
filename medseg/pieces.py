"""Connected pieces of labels: the one place that calls connected-components-3d."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Pieces = npt.NDArray[np.unsignedinteger[Any]]


def connected_pieces(labels: npt.NDArray[Any], *, faces_only: bool = False) -> Pieces:
    """Return a number for each connected piece of one label, from 1 in the order of the array; 0 in the background.

    Voxels of one label that touch by faces, edges or corners are one piece (26 neighbours; 8 in a plane). One pass
    for all labels.

    Parameters
    ----------
    labels : array of bool or unsigned int with 2 or 3 axes
        0 is background.
    faces_only : bool
        Voxels must touch by faces (6 neighbours; 4 in a plane).
    """
    import cc3d

    if not labels.size:
        return np.zeros(labels.shape, np.uint32)
    if labels.dtype == bool:
        labels = labels.view(np.uint8)  # given bool, cc3d 4.1.1 joins or drops pieces where all lies in one row
    neighbours: tuple[Literal[4, 8], Literal[6, 26]] = (4, 6) if faces_only else (8, 26)
    pieces: Pieces = cc3d.connected_components(np.ascontiguousarray(labels), connectivity=neighbours[labels.ndim - 2])
    return pieces
