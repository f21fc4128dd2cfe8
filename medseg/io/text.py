"""Numbers in the text headers of NRRD and MetaImage: read strictly, written to the last bit."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from medseg.gate import HINT_EXPORT, Gate

LPS = np.array([-1.0, -1.0, 1.0])  # turns positions that count to left, back, up into RAS+, and back


def declared_sizes(text: str, axes: str, gate: Gate) -> tuple[int, ...]:
    """Return the two to four sizes that a header declares beside its number of `axes`."""
    words = text.split()
    if not all(re.fullmatch(r"[0-9]{1,18}", word) and int(word) for word in words) or not 2 <= len(words) <= 4:
        gate.refuse("SHAPE", f"declares the impossible size {text[:60]!r}", HINT_EXPORT)
    if axes != str(len(words)):
        gate.refuse("SHAPE", f"declares {axes[:20]} axes and {len(words)} sizes", HINT_EXPORT)
    return tuple(int(word) for word in words)


def numbers(words: list[str], count: int, name: str, gate: Gate) -> npt.NDArray[np.float64]:
    """Return `count` finite numbers, or refuse the field of that name."""
    try:
        values = np.array([float(word) for word in words])
    except ValueError:
        values = np.empty(0)
    if len(values) != count or not np.isfinite(values).all():
        said = " ".join(words)[:60]
        gate.refuse("AFFINE", f"says {name} = {said!r}, which is not {count} finite numbers", HINT_EXPORT)
    return values


def exact(values: npt.ArrayLike) -> Iterable[str]:
    """Yield numbers as text from which the same float64 is read again; never a negative zero."""
    return (f"{value + 0.0:.17g}" for value in np.asarray(values).tolist())
