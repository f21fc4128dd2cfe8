"""Where the voxels of a random patch come from: turned, sheared, scaled, shifted and bent; torch and numpy alone.

A motion takes voxels of the patch to voxels of a larger box. Only the patch is computed, however large the box: all
places first, in slabs that stay in the cache, then for each array the values there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import combinations, product
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medseg.errors import ShapeMismatch

Matrix = npt.NDArray[np.float64]
Draws = np.random.RandomState
Key = TypeVar("Key")
_TURN, _SHEAR, _SCALE = np.pi / 12, 0.05, 0.15  # at most, either way
_SHIFT, _SHIFT_SHARE = 4, 0.1  # voxels, and of the patch: the smaller of both
_BEND = 1 / 32  # of the longest side of the patch
_COARSE = 3  # times the finest spacing
_SLAB = 1 << 17  # voxels


class Motion:
    """Random affine motions and bends for one size of patch, within fixed limits.

    Rotations by up to 15 degrees and shears are done in mm. An axis that is more than 3 times as coarse as the finest
    stays as it is.

    Parameters
    ----------
    patch : two or three ints
        Its size.
    spacing : a float for each axis, optional
        Voxel size in mm; of cubes when left out.
    """

    def __init__(self, patch: Sequence[int], spacing: Sequence[float] | None = None) -> None:
        self.patch = tuple(patch)
        self.axes = len(patch)
        self.mm = np.ones(self.axes) if spacing is None else np.array(spacing[: self.axes], np.float64)
        self.fine = self.mm <= _COARSE * self.mm.min()
        self.shift = np.minimum(_SHIFT, _SHIFT_SHARE * np.array(patch)) * self.fine
        self.splines = [_splines(size) for size in patch]

    def affine(self, draws: Draws) -> Matrix:
        """Return a random matrix (axes, axes + 1) from voxels of the patch to voxels of the box, from both centres."""
        pairs = self.axes * (self.axes - 1) // 2
        turns, shears, scales, shifts = np.split(
            draws.uniform(-1, 1, pairs + self.axes * (self.axes + 2)), np.cumsum([pairs, self.axes**2, self.axes])
        )
        matrix = self._rotation(turns) @ self._stretch(shears.reshape(self.axes, self.axes), scales)
        return np.column_stack([matrix * self.mm / self.mm[:, None], shifts * self.shift])

    def bend(self, draws: Draws, device: torch.device) -> Tensor:
        """Return random displacements of all voxels along each axis: (axes, *patch), smooth over a third of it."""
        knots = draws.uniform(-1, 1, (self.axes, *(spline.shape[1] for spline in self.splines)))
        knots[~self.fine] = 0
        most = draws.uniform(0, _BEND * max(self.patch))
        field = along_axes(torch.from_numpy(knots.astype(np.float32)).to(device), self.splines)
        return field * (most / field.abs().amax())

    def reach(self) -> tuple[int, ...]:
        """Return how many voxels beyond the patch any motion may look, to either side along each axis."""
        half = (np.array(self.patch) - 1) / 2
        most = self._stretch(np.ones((self.axes, self.axes)), np.ones(self.axes)) * self.mm / self.mm[:, None]
        turns = product(np.linspace(-1, 1, 5), repeat=self.axes * (self.axes - 1) // 2)
        turned = np.max([abs(self._rotation(turn)) @ most @ half for turn in turns], axis=0)
        beyond = turned - half + self.shift + _BEND * max(self.patch) * self.fine
        return tuple(int(voxels) + 2 for voxels in beyond)

    def _rotation(self, turns: Sequence[float] | Matrix) -> Matrix:
        """Return the rotation in the plane of each two fine axes, one after the other, by shares of the largest."""
        matrix = np.eye(self.axes)
        for pair, turn in zip(combinations(range(self.axes), 2), turns, strict=True):
            if self.fine[[*pair]].all():
                cos, sin = np.cos(turn * _TURN), np.sin(turn * _TURN)
                matrix[:, pair] = matrix[:, pair] @ [[cos, -sin], [sin, cos]]
        return matrix

    def _stretch(self, shears: Matrix, scales: Matrix) -> Matrix:
        """Return scaling and then shears, by shares of the largest."""
        sheared: Matrix = _SHEAR * shears * np.outer(self.fine, self.fine)
        np.fill_diagonal(sheared, 1)
        sheared *= 1 + _SCALE * scales * self.fine
        return sheared


@lru_cache
def reach(patch: tuple[int, ...], spacing: tuple[float, ...] | None = None) -> tuple[int, ...]:
    """Return how many voxels beyond a patch any motion may look, to either side along each axis."""
    return Motion(patch, spacing).reach()


def along_axes(array: Tensor, matrices: Sequence[Matrix | None]) -> Tensor:
    """Return an array (C, *S) multiplied by one matrix along each axis; an axis with None stays as it is."""
    for matrix in matrices:  # each takes the first axis and puts it last; after a round all stand in their places
        if matrix is None:
            array = array.movedim(1, -1)
        else:
            array = torch.tensordot(array, torch.from_numpy(matrix).to(array), dims=([1], [1]))
    return array


def cropped(box: Tensor, patch: Sequence[int], flips: Sequence[int] = ()) -> Tensor:
    """Return the middle of a box (C, *S), mirrored along some axes; numbers with a fraction as float32."""
    starts = _starts(box.shape[1:], patch)
    part = box[(slice(None), *(slice(start, start + size) for start, size in zip(starts, patch, strict=True)))]
    part = part.flip([axis + 1 for axis in flips])  # a copy in any case
    return part.float() if part.is_floating_point() else part


def resampled(
    boxes: Mapping[Key, Tensor], patch: Sequence[int], affine: Matrix, bend: Tensor | None = None
) -> dict[Key, Tensor]:
    """Return a patch of each box (C, *S), with its voxels where the affine and then the bend take them.

    Numbers with a fraction are interpolated linearly, to float32; integers are those of the nearest voxel. Beyond the
    box, its outermost voxels go on.

    Parameters
    ----------
    boxes : mapping to tensors (C, *S)
        All of one size, on one device.
    patch : two or three ints
        Size of the results.
    affine : (axes, axes + 1) array
        From voxels of the patch to voxels of the box, from both centres.
    bend : (axes, *patch) tensor, optional
        Displacements in the box, in voxels.
    """
    first = next(iter(boxes.values()))
    size = first.shape[1:]
    centre = (np.array(patch) - 1) / 2
    offset = affine[:, -1] - affine[:, :-1] @ centre + centre + _starts(size, patch)
    affine = np.column_stack([affine[:, :-1], offset])
    results = {
        key: box.new_empty((len(box), *patch), dtype=torch.float32 if box.is_floating_point() else None)
        for key, box in boxes.items()
    }
    ends = np.nextafter(
        np.array(size, np.float32) - 1, np.float32(0)
    ).tolist()  # below the last voxel: it has a next one
    planes = patch[0] if first.is_cuda else max(1, _SLAB * patch[0] // int(np.prod(patch)))
    for start in range(0, patch[0], planes):
        rows = slice(start, min(start + planes, patch[0]))
        places = _places(rows, patch, affine, first.device)
        if bend is not None:
            places = [place + displacement[rows] for place, displacement in zip(places, bend, strict=True)]
        _fill(results, boxes, rows, [place.clamp_(0, end) for place, end in zip(places, ends, strict=True)])
    return results


def _starts(size: Sequence[int], patch: Sequence[int]) -> list[int]:
    """Return where a patch in the middle of a box starts.

    Raises
    ------
    ShapeMismatch
        If the box is smaller than the patch.
    """
    if len(size) != len(patch) or any(n < p for n, p in zip(size, patch, strict=True)):
        raise ShapeMismatch(f"a box of {tuple(size)} voxels for a patch of {tuple(patch)}", hint="pad the box")
    return [(n - p) // 2 for n, p in zip(size, patch, strict=True)]


def _places(rows: slice, patch: Sequence[int], affine: Matrix, device: torch.device) -> list[Tensor]:
    """Return where some planes of a patch lie in the box: for each of its axes a tensor, in voxels."""
    spans = [range(rows.start, rows.stop), *map(range, patch[1:])]
    lines = [
        torch.arange(span.start, span.stop, dtype=torch.float32, device=device).reshape(-1, *[1] * (len(spans) - axis))
        for axis, span in enumerate(spans, start=1)
    ]
    return [
        sum((line * weight for line, weight in zip(lines[1:], weights, strict=True)), lines[0] * first + offset)
        for first, *weights, offset in affine.tolist()
    ]


def _fill(results: Mapping[Key, Tensor], boxes: Mapping[Key, Tensor], rows: slice, places: Sequence[Tensor]) -> None:
    """Write some planes of the patches: the values at the given places."""
    size = next(iter(boxes.values())).shape[1:]
    steps = [int(np.prod(size[axis + 1 :])) for axis in range(len(size))]
    base = _flat([place.int() for place in places], steps)
    nearest = _flat([(place + 0.5).int() for place in places], steps)
    weights = [place.frac_().flatten() for place in places]
    ups = [sum(on) for on in product(*((0, step if n > 1 else 0) for step, n in zip(steps, size, strict=True)))]
    for key, box in boxes.items():
        corners = box.new_empty((len(ups), len(base)))
        for number, channel in enumerate(box.reshape(len(box), -1)):
            if box.is_floating_point():
                values = _between(channel, base, ups, weights, corners)
            else:
                values = channel.index_select(0, nearest)
            results[key][number, rows] = values.reshape(places[0].shape)


def _flat(indices: Sequence[Tensor], steps: Sequence[int]) -> Tensor:
    """Return numbers of voxels in a flat box."""
    flat = indices[0] * steps[0]
    for index, step in zip(indices[1:], steps[1:], strict=True):
        flat.add_(index, alpha=step)
    return flat.flatten()


def _between(channel: Tensor, base: Tensor, ups: Sequence[int], weights: Sequence[Tensor], corners: Tensor) -> Tensor:
    """Return values between voxel `base` and its neighbours `ups` along each axis, linearly."""
    for corner, up in zip(corners, ups, strict=True):
        torch.index_select(channel[up:], 0, base, out=corner)
    values = corners.float()
    for weight in weights:
        half = len(values) // 2
        values = values[:half].lerp_(values[half:], weight)
    return values[0]


def _splines(size: int) -> Matrix:
    """Return the weight of each knot of a cubic spline at each voxel of an axis: (size, knots)."""
    knots, t = np.divmod(np.arange(size) / max(8, size // 3), 1)
    matrix = np.zeros((size, int(knots[-1]) + 4))
    for number, weight in enumerate([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, 1 + 3 * t + 3 * t**2 - 3 * t**3, t**3]):
        matrix[np.arange(size), knots.astype(int) + number] = weight / 6
    return matrix
