"""The box around what is not background."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Box = tuple[slice, ...]


def box_around(array: npt.NDArray[Any]) -> Box | None:
    """Return the smallest box that holds everything that is not 0, a slice for each axis; None if all is 0.

    Examples
    --------
    >>> box_around(np.array([[0, 0, 0], [0, 3, 3]]))
    (slice(1, 2, None), slice(1, 3, None))
    """
    spans = []
    for axis in range(array.ndim):
        hit = np.flatnonzero(array.any(axis=tuple(other for other in range(array.ndim) if other != axis)))
        if not len(hit):
            return None
        spans.append(slice(int(hit[0]), int(hit[-1]) + 1))
    return tuple(spans)
