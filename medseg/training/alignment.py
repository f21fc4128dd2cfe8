"""Laying a reference on the grid of its scan: without loss, within rounding noise where that is asked for, or not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from medseg.errors import GeometryError
from medseg.evaluation.grids import on_grid_of
from medseg.geometry import AxisOrder, Geometry, tuple_of_three
from medseg.volume import LabelMap

_SAME = 0.01  # of a voxel: the rounding of a header
_ROUNDING = 0.1  # of a voxel: what tools leave when they write a grid again; beyond it, it is another grid


class RoundingError(GeometryError):
    """A reference that lies off its scan's grid by no more than rounding noise; `fix` accepts it."""


def laid(reference: LabelMap, onto: Geometry, *, fix: bool = False) -> LabelMap:
    """Return a reference on the grid of its scan.

    A grid that is stored in another axis order, or that differs by up to 0.01 voxel, is brought over without loss.

    Parameters
    ----------
    reference : LabelMap
        As it lies in its file.
    onto : Geometry
        Of the scan.
    fix : bool
        Whether a grid off by up to 0.1 voxel may be taken for that of the scan. One of another shape, which is a part
        of the scan's grid or fills the same box, is resampled by its nearest voxels; outside it is background.

    Raises
    ------
    RoundingError
        If the grid is off by 0.01 to 0.1 voxel, or of another shape within 0.1 voxel, and `fix` is not set.
    GeometryError
        If it is another grid, one of the two has no physical size, or labelled voxels lie outside the scan.
    """
    own = reference.geometry
    if own.physical != onto.physical:
        has, lacks = ("image", "label") if onto.physical else ("label", "image")
        raise GeometryError(f"the {has} has a size in mm, the {lacks} has none", hint="give both in one format")
    order = _order(own, onto) if own.physical else AxisOrder((0, 1, 2), (False, False, False))
    turned = replace(reference, array=order.apply(reference.array), geometry=own.reordered(order))
    alike = turned.geometry.shape == onto.shape
    off = _apart(turned.geometry, onto) if own.physical else 0.0 if alike else np.inf
    if off > _ROUNDING:
        raise GeometryError(_difference(turned.geometry, onto), hint="check that they belong together")
    if alike and (fix or off <= _SAME):
        return replace(turned, geometry=onto)
    if not fix:
        hint = "it is rounding noise; accept it with --fix" if alike else "if that is meant, lay it there with --fix"
        raise RoundingError(_difference(turned.geometry, onto), hint=hint)
    return _resampled(turned, onto)


def _order(own: Geometry, onto: Geometry) -> AxisOrder:
    """Return the axis order that brings `own` closest to `onto`; as it is, where that is not to be told."""
    cosines = own.direction.T @ onto.direction
    axes = np.abs(cosines).argmax(axis=0).tolist()
    if sorted(axes) != [0, 1, 2]:
        axes = [0, 1, 2]
    return AxisOrder(tuple_of_three(axes), tuple_of_three(bool(cosines[a, b] < 0) for b, a in enumerate(axes)))


def _apart(own: Geometry, onto: Geometry) -> float:
    """Return how far two grids of one axis order lie apart at most, in voxels of the finer one.

    Of one shape: between their corners. Of two shapes: between the outer corners of their boxes, or where one is a
    part of the other between their voxels.
    """
    finest = min(*own.spacing, *onto.spacing)
    if own.shape == onto.shape:
        return own.distance_to(onto) / finest
    return min(_box(own).distance_to(_box(onto)) / finest, _off_lattice(own, onto))


def _box(grid: Geometry) -> Geometry:
    """Return a grid of two voxels along each axis, whose centres are the outer corners of another grid."""
    affine = grid.affine.copy()
    affine[:3, 3] -= affine[:3, :3] @ np.full(3, 0.5)
    affine[:3, :3] *= grid.shape
    return Geometry(affine, (2, 2, 2))


def _off_lattice(own: Geometry, onto: Geometry) -> float:
    """Return how far in voxels the voxels of two grids, one a part of the other, lie apart; infinity for all others."""
    relation = np.linalg.solve(own.affine, onto.affine)
    start = np.rint(relation[:3, 3])
    stop = start + onto.shape
    part = ((start <= 0) & (stop >= own.shape)).all() or ((start >= 0) & (stop <= own.shape)).all()
    if not part:
        return float("inf")
    drift = np.abs(relation[:3, :3] - np.eye(3)) @ np.maximum(own.shape, onto.shape)
    return float((drift + np.abs(relation[:3, 3] - start)).max())


def _resampled(turned: LabelMap, onto: Geometry) -> LabelMap:
    """Return a reference of another shape by its nearest voxels; no labelled voxel of a part of the grid is lost."""
    empty = LabelMap(np.broadcast_to(np.zeros((), np.uint8), onto.shape), onto)
    moved, _ = on_grid_of(empty, turned, resample=True)
    lost = np.count_nonzero(turned.array) - np.count_nonzero(moved.array)
    if lost > 0 and _off_lattice(turned.geometry, onto) <= _ROUNDING:
        raise GeometryError(
            f"{_difference(turned.geometry, onto)}; {lost} labelled voxels lie outside the image",
            hint="check that they belong together",
        )
    return moved


def _difference(own: Geometry, onto: Geometry) -> str:
    """Return how far the grids of a label and its image, of one axis order, are from one another."""
    if not own.physical:
        return f"the label has {_size(own.shape)} pixels, the image {_size(onto.shape)}"
    if own.shape == onto.shape:
        mm, off = own.distance_to(onto), _apart(own, onto)
        return f"label and image lie on different grids: their corners are up to {mm:.3g} mm ({off:.2g} voxels) apart"
    label, image = (
        f"{_size(grid.shape)} voxels of {_size(grid.spacing)} mm, {grid.orientation}" for grid in (own, onto)
    )
    if _apart(own, onto) <= _ROUNDING:
        what = "holds that" if np.prod(own.shape) > np.prod(onto.shape) else "is a part of that"
        why = f"the label's grid {what} of the image, and outside it would be background"
        said = "they fill one box" if _off_lattice(own, onto) > _ROUNDING else why
        return f"label ({label}) and image ({image}) differ in shape: {said}"
    centres = [grid.to_world((np.array(grid.shape) - 1) / 2) for grid in (own, onto)]
    mm = float(np.linalg.norm(centres[0] - centres[1]))
    return f"label ({label}) and image ({image}) lie on different grids, their centres {mm:.3g} mm apart"


def _size(numbers: tuple[float, ...]) -> str:
    return " x ".join(f"{number:.4g}" for number in numbers)
