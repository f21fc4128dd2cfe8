"""Labels that do not follow their image: of another scan, flipped, or shifted.

A small network of random units learns from all cases at once, in closed form, to tell labelled voxels from those
around them by the intensities nearby (an extreme learning machine: Huang et al., Neurocomputing 70, 2006). Each case is
judged by what was learned from others. Nothing is assumed of organ or modality: where labels cannot be told from
intensities, the answers agree with no label, and no case stands out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medseg.boxes import box_around

_FEWEST = 5  # cases that must be there for one to stand out
_UNSURE = 8.0  # over the number of cases: by how much more one of few must stand out
_SCALES = ((0.0, 1), (1.0, 2), (2.0, 5))  # blur in voxels, and the step of the 3 x 3 x 3 neighbours looked at
_MARGIN = 8  # voxels around a label that belong to its surroundings
_BAND = 4  # voxels around a label that are told from it
_MOVES = 2  # voxels by which a label is moved to see whether it fits better there
_LARGEST = 1 << 21  # voxels of the surroundings; larger ones are made coarser
_SAMPLES = (200, 800, 600_000)  # of a case: at least, at most, and of all cases together
_UNITS = 200
_RIDGE = 1e-3
_FOLDS = 5
_LEAST_SPREAD = 0.03  # of the agreement: where all cases agree alike, small differences say nothing
_ODD = 4.5  # deviations below the median at which a case stands out, among very many
_HALF_ODD = 0.5  # for each of two cases whose labels may have been swapped
_SWAP_GAIN = 3.0  # deviations by which two swapped labels fit better together
_USUAL = 3.0  # deviations below the median that an exchanged label may still have
_TOLD = 0.4  # agreement: where labels follow their images no better, none can be said to have been swapped

Mask = npt.NDArray[np.bool_]
Scene = tuple[npt.NDArray[Any], Mask]  # intensities (C, X, Y, Z), and where a label is (X, Y, Z)


@dataclass(frozen=True, eq=False)
class Trace:
    """What is kept of a case: intensities around some voxels in and near its label.

    Parameters
    ----------
    intensities : (N, F) array of float16
        Normalised, at F places around each of N voxels.
    inside : (N, M) array of bool
        Whether the voxel is labelled; and whether it would be if the label were moved, one way after the other.
    """

    intensities: npt.NDArray[np.float16]
    inside: Mask


@dataclass(frozen=True)
class Misfit:
    """A case whose label does not follow its image.

    Parameters
    ----------
    place : int
        Of the case.
    agreement, usual : float
        Of its label with what the image lets expect (1 at best), and the median of all cases.
    deviations : float
        How many robust deviations it lies below the median.
    partner : int, optional
        Place of the case with which it seems to have swapped labels.
    """

    place: int
    agreement: float
    usual: float
    deviations: float
    partner: int | None = None


def trace(scene: Scene, cases: int, *, seed: int) -> Trace | None:
    """Return what is kept of a case; None if nothing, or everything around it, is labelled.

    Parameters
    ----------
    scene : intensities and mask
        In one orientation for all cases.
    cases : int
        How many there are: of many, fewer voxels are kept of each.
    seed : int
        Of the choice of voxels.
    """
    close = _surroundings(*scene)
    if close is None:
        return None
    image, mask = close
    axes = [axis for axis in range(3) if mask.shape[axis] > 1]
    near = ndimage.binary_dilation(mask, iterations=_BAND)
    reach = [max(step for _, step in _SCALES) * (axis in axes) for axis in range(3)]
    padded = np.pad(mask, [(width, width) for width in reach], mode="edge")
    where = np.flatnonzero(np.pad(near, [(width, width) for width in reach]))
    least, most, total = _SAMPLES
    count = max(least, min(most, total // (cases * len(image))))
    if len(where) > count:
        where = np.random.default_rng(seed).choice(where, count, replace=False)
    _, rows, columns = padded.shape
    strides = np.array([rows * columns, columns, 1])
    moves = [0, *(sign * _MOVES * int(strides[axis]) for axis in axes for sign in (1, -1))]
    inside = padded.ravel()[where[:, None] - moves]
    if inside[:, 0].all():
        return None
    neighbours = np.array([step for step in product((-1, 0, 1), repeat=3) if not any(np.delete(step, axes))])
    found = []
    for channel in image:
        for blur, step in _SCALES:
            smooth = ndimage.gaussian_filter(channel, [blur * (axis in axes) for axis in range(3)]) if blur else channel
            flat = np.pad(smooth, [(width, width) for width in reach], mode="edge").ravel()
            found.append(flat[where[:, None] + neighbours @ strides * step])
    return Trace(np.concatenate(found, axis=1).astype(np.float16), inside)


def misfits(
    traces: Sequence[Trace | None], exchangeable: Callable[[int, int], bool], reopen: Callable[[int], Scene]
) -> list[Misfit]:
    """Return the cases whose labels do not follow their images, in their order; none of fewer than 5 cases.

    Parameters
    ----------
    traces : sequence of Trace
        Of each case; None where there is nothing to judge.
    exchangeable : callable
        Whether the labels of two cases, by their places, can have been swapped: of two images of one shape.
    reopen : callable
        From the place of a case to its scene; asked for those that may have been swapped alone.
    """
    widths = Counter(kept.intensities.shape[1] for kept in traces if kept)
    usual = max(widths, key=lambda width: widths[width], default=0)
    kept = {place: one for place, one in enumerate(traces) if one and one.intensities.shape[1] == usual}
    if len(kept) < _FEWEST:
        return []
    judge = _Judge(kept)
    agreements = {place: judge.agreement(one, place) for place, one in kept.items()}
    values = np.array([*agreements.values()])
    median = float(np.median(values))
    spread = max(_LEAST_SPREAD, 1.4826 * float(np.median(np.abs(values - median))))
    certain = 1 + _UNSURE / len(kept)  # of few cases, median and spread are not known well
    below = {place: (median - value) / spread for place, value in agreements.items()}
    swapped: dict[int, int] = {}
    for pair in _pairs(below, exchangeable) if median > _TOLD else ():
        if swapped.keys().isdisjoint(pair):
            crossed = judge.crossed(*pair, reopen)
            gain = sum(crossed) - sum(agreements[place] for place in pair)
            if gain > _SWAP_GAIN * certain * spread and min(crossed) > median - _USUAL * spread:
                swapped |= dict([pair, pair[::-1]])
    return [
        Misfit(place, agreements[place], median, deviations, swapped.get(place))
        for place, deviations in below.items()
        if place in swapped or deviations > _ODD * certain
    ]


class _Judge:
    """What each fold of the cases learns from the others: (F + units + 1) weights."""

    def __init__(self, traces: Mapping[int, Trace]) -> None:
        width = next(iter(traces.values())).intensities.shape[1]
        rng = np.random.default_rng(0)
        self._into = (rng.normal(size=(width, _UNITS)) * 2 / np.sqrt(width)).astype(np.float32)
        self._bias = rng.normal(size=_UNITS).astype(np.float32)
        self._cases = len(traces)
        size = width + _UNITS + 1
        squares, products = np.zeros((_FOLDS, size, size)), np.zeros((_FOLDS, size))
        for place, one in traces.items():
            units = self._units(one)
            squares[place % _FOLDS] += units.T @ units / len(units)
            products[place % _FOLDS] += units.T @ (one.inside[:, 0] * np.float32(2) - 1) / len(units)
        ridge = _RIDGE * len(traces) * np.eye(size)
        self._weights = [
            np.linalg.solve(squares.sum(0) - own + ridge, products.sum(0) - answer).astype(np.float32)
            for own, answer in zip(squares, products, strict=True)
        ]

    def agreement(self, one: Trace, place: int) -> float:
        """Return how well a label agrees with what others let expect, less than 1: also less well when moved."""
        answers = self._units(one) @ self._weights[place % _FOLDS]
        answers = answers - answers.mean()
        inside = one.inside - one.inside.mean(0)
        scale = np.sqrt((answers**2).sum() * (inside**2).sum(0))
        found = answers @ inside / np.maximum(scale, 1e-6)
        return float(2 * found[0] - found[1:].max())

    def crossed(self, one: int, other: int, reopen: Callable[[int], Scene]) -> tuple[float, float]:
        """Return how well the labels of two cases agree with the images of the other."""
        (first, own), (second, its) = reopen(one), reopen(other)
        found = []
        for place, scene in ((one, (first, its)), (other, (second, own))):
            seen = trace(scene, self._cases, seed=place)
            found.append(self.agreement(seen, place) if seen else 0.0)
        return found[0], found[1]

    def _units(self, one: Trace) -> npt.NDArray[np.float32]:
        seen = one.intensities.astype(np.float32)
        return np.concatenate([seen, np.maximum(seen @ self._into + self._bias, 0), np.ones_like(seen[:, :1])], axis=1)


def _pairs(below: Mapping[int, float], exchangeable: Callable[[int, int], bool]) -> list[tuple[int, int]]:
    """Return pairs of cases that may have swapped labels, the oddest first, and not too many."""
    odd = [place for place, deviations in below.items() if deviations > _HALF_ODD]
    odd = sorted(odd, key=lambda place: -below[place])[: 2 * int(np.sqrt(len(below)))]
    pairs = [pair for pair in combinations(odd, 2) if exchangeable(*pair)]
    return sorted(pairs, key=lambda pair: -below[pair[0]] - below[pair[1]])[: max(4, len(below) // 4)]


def _surroundings(image: npt.NDArray[Any], mask: Mask) -> tuple[npt.NDArray[np.float32], Mask] | None:
    """Return the box around a label with a margin: normalised intensities and mask, not larger than it must be."""
    box = box_around(mask)
    if box is None:
        return None
    wide = tuple(slice(max(0, s.start - _MARGIN), s.stop + _MARGIN) for s in box)
    image, mask = image[:, *wide], mask[wide]
    steps = np.ones(3, int)
    while np.prod(-(-np.array(mask.shape) // steps)) > _LARGEST:
        steps[np.argmax(np.array(mask.shape) / steps)] += 1
    if (steps > 1).any():
        mask = _coarser(mask[None], steps)[0] >= 0.5
    return np.stack([_normalised(channel) for channel in _coarser(image, steps)]), mask


def _normalised(channel: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    low, high = np.percentile(channel, (1, 99))
    clipped = np.clip(channel, low, high)
    centred: npt.NDArray[np.float32] = clipped - clipped.mean()
    return centred / np.float32(max(float(centred.std()), 1e-6))


def _coarser(array: npt.NDArray[Any], steps: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Return the means of blocks of voxels (C, X, Y, Z), as a new array; what fills no block is left out."""
    counts = [size // step for size, step in zip(array.shape[1:], steps, strict=True)]
    whole = array[:, *(slice(0, count * step) for count, step in zip(counts, steps, strict=True))]
    sides = [side for pair in zip(counts, steps.tolist(), strict=True) for side in pair]
    means: npt.NDArray[np.float32] = whole.reshape(len(array), *sides).mean(axis=(2, 4, 6), dtype=np.float32)
    return means
