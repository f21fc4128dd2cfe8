"""Bringing a prediction onto the grid of its reference: never silently, if the grids differ."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medseg.errors import GeometryError
from medseg.geometry import Geometry, tuple_of_three
from medseg.volume import LabelMap

_SAME = 0.01  # of a voxel: header rounding, not another grid
_SHEAR = 0.1  # degrees


def on_grid_of(reference: LabelMap, prediction: LabelMap, *, resample: bool = False) -> tuple[LabelMap, bool]:
    """Return the prediction on the reference's grid, and whether it had to be resampled.

    A grid that is merely stored in another order (flipped or permuted axes) is brought over without any loss.

    Parameters
    ----------
    reference, prediction : LabelMap
        Of one patient.
    resample : bool
        Whether the nearest voxel of the prediction may be taken where the grids differ.

    Raises
    ------
    GeometryError
        If the grids differ and `resample` is not set, they have nothing in common, or one has no physical size.
    """
    own, wanted = prediction.geometry, reference.geometry
    if own.physical != wanted.physical:
        bare = "prediction" if wanted.physical else "reference"
        raise GeometryError(f"the {bare} has no physical size, the other has", hint="give both as NIfTI or both as PNG")
    if own.physical and own.same_as(wanted, tolerance=_allowed(wanted)):
        return replace(prediction, geometry=wanted), False
    orders = own.order_to("RAS"), wanted.order_to("RAS")
    if own.physical and own.reordered(orders[0]).same_as(wanted.reordered(orders[1]), tolerance=_allowed(wanted)):
        array = np.empty_like(reference.array, prediction.array.dtype)  # laid out in memory as the reference is
        array[...] = orders[1].inverse().apply(orders[0].apply(prediction.array))
        return replace(prediction, array=array, geometry=wanted), False
    if not own.physical and own.shape == wanted.shape:
        return prediction, False
    if not (resample and own.physical):
        hint = "bring one to the grid of the other" + (", or add --resample" if own.physical else "")
        raise GeometryError(_difference(own, wanted), hint=hint)
    return _resampled(prediction, wanted), True


def on_common_grid(one: LabelMap, other: LabelMap) -> tuple[LabelMap, LabelMap]:
    """Return both on the box that holds both, where they are parts of one lattice of voxels; else as they are.

    A DICOM SEG holds its non-empty slices only: what lies outside is background, in either of them.
    """
    turned = [replace(m, array=o.apply(m.array), geometry=m.geometry.reordered(o))
              for m in (one, other) for o in [m.geometry.order_to("RAS")]]  # fmt: skip
    grids = [m.geometry for m in turned]
    relation = np.linalg.solve(grids[0].affine, grids[1].affine)
    start = np.rint(relation[:3, 3]).astype(int)
    reach = np.abs(relation[:3, :3] - np.eye(3)) @ np.array(grids[1].shape) + np.abs(relation[:3, 3] - start)
    if reach.max() > _SAME * 5:
        return one, other
    low = np.minimum(0, start)
    high = np.maximum(grids[0].shape, start + grids[1].shape)
    box = grids[0].cropped(tuple_of_three(low.tolist()), tuple_of_three(high.tolist()))
    first, second = (_padded(m, at - low, box) for m, at in zip(turned, (np.zeros(3, int), start), strict=True))
    return first, second


def _padded(labels: LabelMap, start: npt.NDArray[np.int64], onto: Geometry) -> LabelMap:
    array = np.zeros(onto.shape, labels.array.dtype)
    i, j, k = (slice(first, first + count) for first, count in zip(start, labels.geometry.shape, strict=True))
    array[i, j, k] = labels.array
    return replace(labels, array=array, geometry=onto)


def check_axes(geometry: Geometry) -> None:
    """Refuse a grid whose axes are not at right angles: distances in it do not follow from its spacing.

    Raises
    ------
    GeometryError
        If two axes are more than 0.1 degrees off.
    """
    if geometry.shear > _SHEAR:
        raise GeometryError(
            f"the voxel axes are {geometry.shear:.2g} degrees off the right angle, so distances would be wrong",
            hint="resample both onto a grid with right angles, or ask for --metrics dice,iou",
        )


def _allowed(geometry: Geometry) -> float:
    return _SAME * min(geometry.spacing)


def _difference(own: Geometry, wanted: Geometry) -> str:
    """Return how far two grids are from one another."""
    if not own.physical:
        return f"the prediction has {_size(own.shape)} pixels, the reference {_size(wanted.shape)}"
    if own.shape == wanted.shape and own.orientation == wanted.orientation:
        apart = own.distance_to(wanted)
        return f"prediction and reference lie on different grids: their corners are up to {apart:.3g} mm apart"
    centres = [grid.to_world((np.array(grid.shape) - 1) / 2) for grid in (own, wanted)]
    grids = [f"{_size(grid.shape)} voxels of {_size(grid.spacing)} mm, {grid.orientation}" for grid in (own, wanted)]
    apart = float(np.linalg.norm(centres[0] - centres[1]))
    return f"prediction ({grids[0]}) and reference ({grids[1]}) lie on different grids, centres {apart:.3g} mm apart"


def _size(numbers: tuple[float, ...]) -> str:
    return " x ".join(f"{number:.4g}" for number in numbers)


def _resampled(prediction: LabelMap, onto: Geometry) -> LabelMap:
    relation = np.linalg.solve(prediction.geometry.affine, onto.affine).round(9)
    corners = np.stack(np.meshgrid(*([0, n - 1] for n in onto.shape), indexing="ij"), axis=-1).reshape(-1, 3)
    at = corners @ relation[:3, :3].T + relation[:3, 3]
    if (at.max(axis=0) < -0.5).any() or (at.min(axis=0) > np.array(prediction.geometry.shape) - 0.5).any():
        raise GeometryError(
            f"{_difference(prediction.geometry, onto)}; they have no point in common",
            hint="check which files are paired",
        )
    array = ndimage.affine_transform(
        prediction.array, relation[:3, :3], relation[:3, 3], onto.shape, order=0, mode="grid-constant", prefilter=False
    )
    return replace(prediction, array=array, geometry=onto)
