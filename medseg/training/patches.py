"""Where random patches lie, and the boxes around them that the augmentation takes; of a case on disk, only those."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg.training.stored import Stored
from medseg.transforms.motion import reach

IGNORE = 255  # in a target: nothing is learned there
_POINTS = 2000  # of each label
_TRIES = 20

Points = Mapping[int, npt.NDArray[np.int32]]
Start = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Sample:
    """A case on the plan's grid, in memory or memory-mapped.

    Parameters
    ----------
    image : (C, I, J, K) array of float16 or float32
        Normalised intensities.
    target : (1, I, J, K) array of uint8
        Channel numbers: 0 for background, n for atom n - 1 of the plan, `IGNORE` where nobody has drawn.
    weights : (1, I, J, K) array of float32, optional
        How much each voxel counts in the border-weighted loss.
    points : mapping of int to (n, 3) arrays, optional
        Voxels of each label (`points_of`); looked for in the target when left out.
    """

    image: npt.NDArray[np.floating[Any]] | Stored
    target: npt.NDArray[np.uint8] | Stored
    weights: npt.NDArray[np.float32] | None = None
    points: Points = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.points:
            object.__setattr__(self, "points", points_of(self.target))


def points_of(target: npt.NDArray[np.uint8] | Stored) -> dict[int, npt.NDArray[np.int32]]:
    """Return voxels (n, 3) of each label in a target (1, I, J, K): at most 2000, evenly drawn; none of background."""
    flat = np.asarray(target).reshape(-1)
    voxels = np.flatnonzero((flat != 0) & (flat != IGNORE))
    numbers = flat[voxels]
    found = {}
    for number, count in enumerate(np.bincount(numbers)):
        if count:
            own = voxels[numbers == number]
            chosen = own[np.linspace(0, count - 1, min(count, _POINTS)).astype(int)]
            found[number] = np.stack(np.unravel_index(chosen, target.shape[1:]), axis=1).astype(np.int32)
    return found


def draw(
    sample: Sample,
    patch: Sequence[int],
    axes: int,
    rng: np.random.Generator,
    *,
    foreground: float = 0.5,
    weighted: bool = False,
    spacing: Sequence[float] | None = None,
) -> dict[str, npt.NDArray[Any]]:
    """Return a box around a random patch, as `augmentation` takes it: `image`, `label` and, if asked for, `weights`.

    The patch lies in the scan, or about its middle where the scan is smaller. The box goes on for `reach` voxels to
    either side, but not further than the scan and a margin of zeros; beyond the scan, all is 0.

    Parameters
    ----------
    sample : Sample
        The case; nothing outside the box is read.
    patch : two or three ints
        Size of the patch.
    axes : 2 or 3
        With 2, the box lies in one slice along k and has no axis k.
    rng : numpy.random.Generator
        Source of random numbers.
    foreground : float
        Share of patches around a voxel of a label; each label of the case has the same chance. The others lie anywhere,
        but if possible not in the middle of nowhere drawn.
    weighted : bool
        With the weights of the sample.
    spacing : three floats, optional
        Voxel size in mm, as `augmentation` is told.

    Returns
    -------
    dict
        Arrays (C, *box) of the sample's own types.
    """
    size = (*patch[:axes], 1)[:3]
    if sample.points and rng.random() < foreground:
        start = _around(_some_point(sample.points, rng), size, sample.target.shape[1:])
    else:
        start = _anywhere(sample.target, size, rng)
    margins = (*reach(tuple(patch[:axes]), spacing and tuple(spacing[:axes])), 0)[:3]
    parts = {"image": sample.image, "label": sample.target}
    if weighted and sample.weights is not None:
        parts["weights"] = sample.weights
    return {key: _flattened(_box(array, start, size, margins), axes) for key, array in parts.items()}


def centred(
    sample: Sample, patch: Sequence[int], axes: int
) -> tuple[npt.NDArray[np.floating[Any]], npt.NDArray[np.uint8]]:
    """Return image and target of the patch in the middle of all that is labelled, or of the scan; nothing is random."""
    size, shape = (*patch[:axes], 1)[:3], sample.target.shape[1:]
    voxels = np.concatenate([*sample.points.values()]) if sample.points else np.array([shape]) // 2
    start = _around(np.median(voxels, axis=0).astype(int), size, shape)
    image, target = (_flattened(_box(array, start, size, (0, 0, 0)), axes) for array in (sample.image, sample.target))
    return image, target


def _some_point(points: Points, rng: np.random.Generator) -> npt.NDArray[np.int32]:
    own = points[sorted(points)[rng.integers(len(points))]]
    point: npt.NDArray[np.int32] = own[rng.integers(len(own))]
    return point


def _around(point: npt.NDArray[np.integer], size: Sequence[int], shape: Sequence[int]) -> Start:
    """Return where a patch starts that has a voxel as near to its middle as the scan allows."""
    return tuple(
        min(max(int(at) - p // 2, 0), n - p) if n >= p else (n - p + 1) // 2
        for at, p, n in zip(point, size, shape, strict=True)
    )


def _anywhere(target: npt.NDArray[np.uint8] | Stored, size: Sequence[int], rng: np.random.Generator) -> Start:
    """Return where a patch starts whose middle somebody has drawn; after some tries, any patch."""
    shape = target.shape[1:]
    for _ in range(_TRIES):
        start = tuple(
            int(rng.integers(n - p + 1)) if n >= p else (n - p + 1) // 2 for n, p in zip(shape, size, strict=True)
        )
        middle = tuple(min(first + p // 2, n - 1) for first, p, n in zip(start, size, shape, strict=True))
        if target[(0, *middle)] != IGNORE:
            break
    return start


def _box(
    array: npt.NDArray[Any] | Stored, start: Sequence[int], size: Sequence[int], margins: Sequence[int]
) -> npt.NDArray[Any]:
    """Return the part of an array (C, I, J, K) in a patch and its margins, the same to both sides; 0 outside it."""
    shape = array.shape[1:]
    kept = [
        min(margin, max(first + 1, n + 1 - first - p, 0))  # one voxel of zeros is enough: the augmentation repeats it
        for margin, first, p, n in zip(margins, start, size, shape, strict=True)
    ]
    low = [first - margin for first, margin in zip(start, kept, strict=True)]
    high = [first + p + margin for first, p, margin in zip(start, size, kept, strict=True)]
    inside = [slice(max(a, 0), min(b, n)) for a, b, n in zip(low, high, shape, strict=True)]
    onto = [slice(span.start - a, span.stop - a) for span, a in zip(inside, low, strict=True)]
    box = np.zeros((len(array), *(b - a for a, b in zip(low, high, strict=True))), array.dtype)
    box[(slice(None), *onto)] = array[(slice(None), *inside)]
    return box


def _flattened(box: npt.NDArray[Any], axes: int) -> npt.NDArray[Any]:
    return box[..., 0] if axes == 2 else box
