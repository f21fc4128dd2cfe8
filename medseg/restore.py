"""From the network's answer back to the scan's own grid, plane by plane.

Nothing here knows what `prepare` did: two geometries are related. Each voxel of the scan gets the label whose linearly
interpolated logit is largest. Beside the planes that are needed at the moment, memory does not grow with the number of
labels. Outside the field of view is background with probability 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg.boxes import box_around
from medseg.errors import GeometryError, ShapeMismatch
from medseg.geometry import AxisOrder, Geometry, tuple_of_three
from medseg.kernels import CERTAIN, Host, Place
from medseg.kernels.plain import plane_between
from medseg.plan import Plan
from medseg.resampling import Taps, coordinates, interpolate

Labels = npt.NDArray[np.unsignedinteger[Any]]
_BLOCK = 16  # planes that `restore` looks at together
Settled = tuple[Any, Any]  # a plane (M, B, C) of logits, and the largest channel (B, C) of each voxel


@dataclass(frozen=True)
class Placement:
    """Where the voxels of a scan lie on a grid whose axes they share.

    Parameters
    ----------
    shape : three ints
        Of the scan as it is stored.
    order : AxisOrder
        Brings the scan's axes along those of the grid.
    box : three slices
        The voxels, in that order, which the grid covers: its voxels and half a voxel around them.
    taps : three Taps
        Of those voxels, along each axis of the grid.
    """

    shape: tuple[int, int, int]
    order: AxisOrder
    box: tuple[slice, slice, slice]
    taps: tuple[Taps, Taps, Taps]

    @classmethod
    def of(cls, grid: Geometry, onto: Geometry) -> Placement:
        """Return where the voxels of `onto` lie on `grid`.

        Raises
        ------
        GeometryError
            If the grids do not share their axes.
        """
        order = _order_along(grid, onto)
        box, taps = [], []
        for count, at in zip(grid.shape, coordinates(grid, onto.reordered(order)), strict=True):
            inside = np.flatnonzero((at >= -0.5 - 1e-6) & (at <= count - 0.5 + 1e-6))
            start, stop = (int(inside[0]), int(inside[-1]) + 1) if inside.size else (0, 0)
            box.append(slice(start, stop))
            taps.append(Taps.of(count, at[start:stop]))
        return cls(onto.shape, order, tuple_of_three(box), tuple_of_three(taps))

    def covered(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return a view of (..., *shape) with the axes of the grid, of the voxels that the grid covers."""
        view: npt.NDArray[Any] = self.order.apply(array)[(..., *self.box)]
        return view


class Restorer:
    """Takes settled planes of a grid one after the other, and writes the planes of the scan that lie between them.

    Parameters
    ----------
    placement : Placement
        Of the scan on the grid.
    atoms : sequence of int
        What each channel means: the value of a voxel where it is largest.
    axes : three ints
        Axes of the grid along planes, rows and columns.
    place : Place
        Where the planes live.
    probabilities : bool
        Write the softmax of the interpolated logits too.
    temperature : float
        They are divided by it before.

    Attributes
    ----------
    labels : (I, J, K) array of an unsigned integer type
        On the scan's grid.
    probabilities : (L, I, J, K) array of float32, or None
        On the scan's grid.
    """

    def __init__(
        self,
        placement: Placement,
        atoms: Sequence[int],
        *,
        axes: tuple[int, int, int] = (0, 1, 2),
        place: Place,
        probabilities: bool = False,
        temperature: float = 1.0,
    ) -> None:
        self.atoms = np.array(atoms).astype(np.min_scalar_type(max(atoms)))
        self.place = place
        self._temperature = temperature
        self.labels: Labels = np.zeros(placement.shape, self.atoms.dtype, order="F")
        self.probabilities: Any = None
        self._labels = placement.covered(self.labels).transpose(axes)
        self._shares: npt.NDArray[np.float32] | None = None
        if probabilities:
            self.probabilities = np.zeros((len(atoms), *placement.shape), np.float32)
            self.probabilities[0] = 1
            self._shares = placement.covered(self.probabilities).transpose(0, *(1 + axis for axis in axes))
        self._taps = [placement.taps[axis] for axis in axes]
        self.strip(0, int(placement.taps[axes[1]].upper.max(initial=0)) + 1)

    def strip(self, start: int, stop: int) -> None:
        """Begin again at the first plane, with the rows of the grid from `start` to `stop` alone.

        Points between the last row and the next one belong to the next strip, which begins with that last row.
        """
        taps, last = self._taps[1], int(self._taps[1].upper.max(initial=0))
        within = np.flatnonzero((taps.lower >= start) & ((taps.lower < stop - 1) | (stop > last)))
        self._rows = slice(int(within[0]), int(within[-1]) + 1) if within.size else slice(0, 0)
        part = taps.part(self._rows.start, self._rows.stop)
        part = Taps(part.lower - start, part.upper - start, part.fraction)
        self._row_taps, self._column_taps = self._put(part), self._put(self._taps[2])
        self._exact = part.exact and self._taps[2].exact
        self._known: dict[int, Settled] = {}
        self._next = 0

    def take(self, first: int, planes: Sequence[Settled]) -> None:
        """Write all planes of the scan for which the grid's are there now.

        Parameters
        ----------
        first : int
            Number of the first of these planes; the ones before it have been given.
        planes : sequence of ((M, B, C) array, (B, C) array)
            Logits, and the largest channel of each voxel.
        """
        self._known |= {first + number: plane for number, plane in enumerate(planes)}
        there = first + len(planes)
        stop = int(np.searchsorted(self._taps[0].upper, there))
        if self._rows.stop > self._rows.start and len(self._taps[2].lower):
            self.place.each(self._write, range(self._next, stop))
        self._next = max(self._next, stop)
        if planes:
            plane, labels = planes[-1]
            self._known = {there - 1: (plane + 0, labels + 0)}  # the next plane of the scan may need it

    def _write(self, number: int) -> None:
        taps = self._taps[0]
        below, above = self._known[int(taps.lower[number])], self._known[int(taps.upper[number])]
        fraction = float(taps.fraction[number])
        rows, columns, count = self._row_taps, self._column_taps, len(self.atoms)
        logits = below[0][:count], above[0][:count]
        if self._exact and not fraction:
            found = below[1][: len(rows[0]), : len(columns[0])]
        else:
            found = self.place.zeros((len(rows[0]), len(columns[0])), label_type(count))
            self.place.between(logits, (below[1], above[1]), fraction, rows, columns, found)
        self._labels[number, self._rows] = self.atoms[self.place.get(found)]
        if self._shares is not None:
            values = self.place.get(plane_between(logits, fraction, rows, columns))
            unseen = (values[0] == CERTAIN) & ~values[1:].any(axis=0)
            values = softmax(values, self._temperature)
            values[0][unseen], values[1:][:, unseen] = 1, 0
            self._shares[:, number, self._rows] = values

    def _put(self, taps: Taps) -> tuple[Any, Any, Any]:
        return self.place.put(taps.lower), self.place.put(taps.upper), self.place.put(taps.fraction)


def softmax(logits: npt.NDArray[np.floating[Any]], temperature: float) -> npt.NDArray[np.floating[Any]]:
    """Return the probabilities (L, ...) of logits over a temperature."""
    shares = np.exp((logits - logits.max(axis=0)) / temperature)
    probabilities: npt.NDArray[np.floating[Any]] = shares / shares.sum(axis=0)
    return probabilities


def label_type(channels: int) -> type[np.unsignedinteger[Any]]:
    """Return the smallest type that holds the numbers of that many channels."""
    return np.uint8 if channels <= 256 else np.uint16


def restore(logits: npt.NDArray[np.float32], grid: Geometry, onto: Geometry, plan: Plan | None = None) -> Labels:
    """Return the label of each voxel of a scan: where the interpolated logits are largest.

    Parameters
    ----------
    logits : (L, A, B, C) array of float32
        One channel for background and each label, on `grid`.
    grid : Geometry
        Where the logits lie.
    onto : Geometry
        The scan's; its voxel axes run along those of `grid`, in any order and direction.
    plan : Plan, optional
        Whose atoms the channels are.

    Returns
    -------
    (I, J, K) array of an unsigned integer type
        Atoms of the plan, or without one numbers of channels; 0 for background, on `onto`.

    Raises
    ------
    GeometryError
        If the grids do not share their axes.
    ShapeMismatch
        If the logits do not lie on `grid`.
    """
    atoms = plan.atoms if plan else range(1, len(logits))
    return _restored(logits, grid, onto, [0, *atoms]).labels


def restore_probabilities(logits: npt.NDArray[np.float32], grid: Geometry, onto: Geometry) -> npt.NDArray[np.float32]:
    """Return the softmax (L, I, J, K) of the interpolated logits on `onto`; outside `grid` background has 1.

    Their largest channel is the label that `restore` returns.
    """
    shares: npt.NDArray[np.float32] = _restored(
        logits, grid, onto, range(len(logits)), probabilities=True
    ).probabilities
    return shares


def _restored(
    logits: npt.NDArray[np.float32],
    grid: Geometry,
    onto: Geometry,
    atoms: Sequence[int],
    *,
    probabilities: bool = False,
) -> Restorer:
    if logits.shape[1:] != grid.shape:
        raise ShapeMismatch(f"logits of shape {logits.shape} on a grid of shape {grid.shape}", hint="give that grid")
    restorer = Restorer(Placement.of(grid, onto), atoms, place=Host(), probabilities=probabilities)
    for start in range(0, len(logits[0]), _BLOCK):
        planes = np.ascontiguousarray(np.moveaxis(logits[:, start : start + _BLOCK], 1, 0))
        labels = planes.argmax(axis=1).astype(label_type(len(logits)))
        restorer.take(start, list(zip(planes, labels, strict=True)))
    return restorer


def resample_labels(channels: npt.NDArray[np.uint8], grid: Geometry, onto: Geometry) -> npt.NDArray[np.uint8]:
    """Return channel numbers of `grid` at the voxels of `onto`: there, the one whose interpolated share is largest.

    The answer of `restore` to one channel of 0 and 1 for each number, but each number is looked at in the box around
    it alone, so that neither time nor memory grows with how many there are.

    Parameters
    ----------
    channels : (A, B, C) array of uint8
        On `grid`.
    grid, onto : Geometry
        As in `restore`.
    """
    placement = Placement.of(grid, onto)
    best = np.zeros([span.stop - span.start for span in placement.box], np.float32)
    label = np.zeros(best.shape, np.uint8)
    for number in np.flatnonzero(np.bincount(channels.ravel(), minlength=1)).tolist():
        mask = channels == number
        reach, taps, part = _reached(mask, placement.taps)
        share = interpolate(mask[part].astype(np.float32), taps)
        larger = share > best[reach]
        label[reach][larger] = number
        np.maximum(best[reach], share, out=best[reach])
    labels = np.zeros(placement.shape, np.uint8, order="F")
    placement.covered(labels)[:] = label
    return labels


def _reached(
    mask: npt.NDArray[np.bool_], taps: tuple[Taps, Taps, Taps]
) -> tuple[tuple[slice, ...], list[Taps], tuple[slice, ...]]:
    """Return which voxels a mask that is not empty can reach, and from which part of it they are interpolated."""
    box = box_around(mask)
    reach, parts, inside = [], [], []
    for axis, (tap, count) in enumerate(zip(taps, mask.shape, strict=True)):
        low, high = (box[axis].start, box[axis].stop - 1) if box else (0, -1)
        near = np.flatnonzero((tap.upper >= low) & (tap.lower <= high))
        start, stop = (int(near[0]), int(near[-1]) + 1) if near.size else (0, 0)
        first, last = max(0, low - 1), min(count, high + 2)
        part = tap.part(start, stop)
        reach.append(slice(start, stop))
        parts.append(Taps(part.lower - first, part.upper - first, part.fraction))
        inside.append(slice(first, last))
    return tuple(reach), parts, tuple(inside)


def _order_along(grid: Geometry, onto: Geometry) -> AxisOrder:
    """Return the order that makes the axes of `onto` run along those of `grid`."""
    relation = np.linalg.solve(grid.affine, onto.affine)[:3, :3]
    axes = tuple_of_three(int(axis) for axis in np.abs(relation).argmax(axis=1))
    if sorted(axes) != [0, 1, 2]:
        raise GeometryError("the grids do not run along the same axes", hint="give the grid that prepare() returned")
    return AxisOrder(axes, tuple_of_three(bool(relation[row, axis] < 0) for row, axis in enumerate(axes)))
