"""Where a voxel grid lies in the patient: affine and shape, apart from the voxels.

World coordinates are RAS+ millimetres everywhere in medseg: x grows to the patient's right, y to the
front (anterior), z to the head (superior). Readers convert to it at the border; nothing inside asks again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import permutations, product
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from medseg.errors import GeometryError

T = TypeVar("T")
Affine = npt.NDArray[np.float64]

_LETTERS = ("LR", "PA", "IS")  # towards minus and plus x, y, z
_SIGNED_ORDERS = tuple(product(permutations((0, 1, 2)), product((1, -1), repeat=3)))  # all 48


@dataclass(frozen=True)
class AxisOrder:
    """A permutation and flips of the three voxel axes: one of the 48 ways to store the same grid.

    New axis `a` is old axis `axes[a]`, run backwards where `flips[a]`.
    """

    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]

    def apply(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return a view of `array` whose last three axes are in the new order."""
        lead = array.ndim - 3
        turned = array.transpose(*range(lead), *(lead + axis for axis in self.axes))
        steps: tuple[Any, ...] = (..., *(slice(None, None, -1 if flip else 1) for flip in self.flips))
        view: npt.NDArray[Any] = turned[steps]
        return view

    def inverse(self) -> AxisOrder:
        """Return the order that brings the new axes back to the old ones."""
        back = tuple_of_three(self.axes.index(axis) for axis in range(3))
        return AxisOrder(back, tuple_of_three(self.flips[axis] for axis in back))


@dataclass(frozen=True, eq=False)
class Geometry:
    """Where a voxel grid lies in the patient.

    Parameters
    ----------
    affine : (4, 4) array of float64
        Maps the centre of voxel (i, j, k, 1) to (x, y, z, 1) in mm, RAS+.
    shape : three ints
        Voxels along i, j, k; each at least 1.
    physical : bool
        False for a picture without a physical size: one unit is then a pixel, and there are no mm.

    Raises
    ------
    GeometryError
        If the affine is singular or not finite, or an axis is empty.

    Examples
    --------
    >>> grid = Geometry(np.diag([0.8, 0.8, 2.5, 1.0]), shape=(512, 512, 120))
    >>> grid.spacing, grid.orientation
    ((0.8, 0.8, 2.5), 'RAS')
    """

    affine: Affine
    shape: tuple[int, int, int]
    physical: bool = True

    def __post_init__(self) -> None:
        affine = np.array(self.affine, dtype=np.float64)
        if affine.shape != (4, 4) or not np.isfinite(affine).all() or (affine[3] != (0, 0, 0, 1)).any():
            raise GeometryError(
                f"affine {affine.tolist()} is not a finite 4 x 4 matrix ending in 0 0 0 1",
                hint="repair the header of the scan",
            )
        columns = np.linalg.norm(affine[:3, :3], axis=0)
        if not columns.all() or abs(np.linalg.det(affine[:3, :3] / columns)) < 1e-4:
            raise GeometryError(
                f"affine {affine[:3, :3].tolist()} is singular: its voxel axes do not span space",
                hint="repair the header of the scan",
            )
        shape = tuple_of_three(int(n) for n in self.shape)
        if min(shape) < 1:
            raise GeometryError(f"shape {shape} has an empty axis", hint="give at least one voxel along each axis")
        affine.flags.writeable = False
        object.__setattr__(self, "affine", affine)
        object.__setattr__(self, "shape", shape)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance in mm (pixels for a picture) between neighbouring voxels along i, j, k."""
        return tuple_of_three(np.linalg.norm(self.affine[:3, :3], axis=0).tolist())

    @property
    def origin(self) -> tuple[float, float, float]:
        """Position in mm of the centre of voxel (0, 0, 0)."""
        return tuple_of_three(self.affine[:3, 3].tolist())

    @property
    def direction(self) -> Affine:
        """Unit vectors (as columns) along which i, j, k grow: (3, 3)."""
        columns: Affine = self.affine[:3, :3] / self.spacing
        return columns

    @property
    def extent(self) -> tuple[float, float, float]:
        """Size in mm of the box of voxels along i, j, k (outer faces)."""
        return tuple_of_three(n * mm for n, mm in zip(self.shape, self.spacing, strict=True))

    @property
    def voxel_volume(self) -> float:
        """Volume of one voxel in cubic mm; exact for sheared grids too."""
        return float(abs(np.linalg.det(self.affine[:3, :3])))

    @property
    def orientation(self) -> str:
        """Three letters that say where i, j, k point to, such as 'RAS' or 'LPI'."""
        back = self.order_to("RAS").inverse()
        return "".join(_LETTERS[world][not flip] for world, flip in zip(back.axes, back.flips, strict=True))

    @property
    def shear(self) -> float:
        """Largest deviation from a right angle between two voxel axes, in degrees."""
        cosines = self.direction.T @ self.direction - np.eye(3)
        return float(np.degrees(np.arcsin(min(1.0, np.abs(cosines).max()))))

    def order_to(self, orientation: str) -> AxisOrder:
        """Return the axis order that brings this grid closest to `orientation`.

        Of the 48 orders, the one whose axes lie nearest the anatomical ones. The choice depends on the
        grid as a set of points only: all 48 stored forms of one oblique grid end in the same form, even
        where an axis lies at exactly 45 degrees.
        """
        direction = self.direction
        candidates = (
            (direction[:, list(axes)] * signs, AxisOrder(tuple_of_three(axes), tuple_of_three(s < 0 for s in signs)))
            for axes, signs in _SIGNED_ORDERS
        )
        _, ras = max(candidates, key=lambda item: (np.trace(item[0]), *item[0].ravel()))
        if orientation == "RAS":
            return ras
        wanted, flipped = parse_orientation(orientation)
        return AxisOrder(
            tuple_of_three(ras.axes[axis] for axis in wanted),
            tuple_of_three(ras.flips[axis] != flip for axis, flip in zip(wanted, flipped, strict=True)),
        )

    def reordered(self, order: AxisOrder) -> Geometry:
        """Return the same points in space, stored in another axis order; exact, no arithmetic but a sum."""
        affine = np.eye(4)
        affine[:3, :3] = self.affine[:3, list(order.axes)] * np.where(order.flips, -1.0, 1.0)
        last = np.where(np.array(order.flips), np.array(self.shape)[list(order.axes)] - 1, 0)
        affine[:3, 3] = self.affine[:3, 3] + self.affine[:3, list(order.axes)] @ last
        return Geometry(affine, tuple_of_three(self.shape[axis] for axis in order.axes), self.physical)

    def cropped(self, start: tuple[int, int, int], stop: tuple[int, int, int]) -> Geometry:
        """Return the grid of the voxels from `start` (included) to `stop` (excluded); may reach outside."""
        affine = self.affine.copy()
        affine[:3, 3] += affine[:3, :3] @ np.array(start)
        return Geometry(affine, tuple_of_three(b - a for a, b in zip(start, stop, strict=True)), self.physical)

    def respaced(self, spacing: tuple[float, float, float]) -> Geometry:
        """Return a grid of exactly `spacing` mm that covers the same box, centred on the same point."""
        old = np.array(self.spacing)
        shape = np.maximum(1, np.ceil(np.array(self.shape) * old / spacing - 0.01).astype(int))
        affine = self.affine.copy()
        affine[:3, :3] *= np.array(spacing) / old
        centre = self.to_world((np.array(self.shape) - 1) / 2)
        affine[:3, 3] = centre - affine[:3, :3] @ ((shape - 1) / 2)
        return Geometry(affine, tuple_of_three(shape.tolist()), self.physical)

    def to_world(self, index: npt.ArrayLike) -> Affine:
        """Return the positions in mm (..., 3) of voxel indices (..., 3)."""
        world: Affine = np.asarray(index, dtype=np.float64) @ self.affine[:3, :3].T + self.affine[:3, 3]
        return world

    def to_index(self, world: npt.ArrayLike) -> Affine:
        """Return the (fractional) voxel indices (..., 3) of positions in mm (..., 3)."""
        offset = np.asarray(world, dtype=np.float64) - self.affine[:3, 3]
        return offset @ np.linalg.inv(self.affine[:3, :3]).T

    def distance_to(self, other: Geometry) -> float:
        """Return how far in mm the corners of two grids of one shape lie apart at most; inf if shapes differ."""
        if self.shape != other.shape:
            return float("inf")
        corners = np.array(list(product(*((0, n - 1) for n in self.shape))))
        return float(np.linalg.norm(self.to_world(corners) - other.to_world(corners), axis=1).max())

    def same_as(self, other: Geometry, *, tolerance: float = 1e-3) -> bool:
        """Return whether two grids have one shape and no corner further apart than `tolerance` mm."""
        return self.distance_to(other) <= tolerance


def parse_orientation(letters: str) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """Return, for each of three letters such as 'LPI', its world axis and whether it points to minus.

    Raises
    ------
    GeometryError
        If the letters do not name each of the three axes once.
    """
    axes = [next((axis for axis, pair in enumerate(_LETTERS) if letter in pair), -1) for letter in letters]
    if sorted(axes) != [0, 1, 2]:
        raise GeometryError(
            f"orientation {letters!r} does not name each axis once",
            hint="give one of L/R, one of P/A and one of I/S, such as RAS",
        )
    return tuple_of_three(axes), tuple_of_three(
        letter == _LETTERS[axis][0] for letter, axis in zip(letters, axes, strict=True)
    )


def tuple_of_three(items: Iterable[T]) -> tuple[T, T, T]:
    """Return three items as a tuple whose length the type checker knows."""
    first, second, third = items
    return first, second, third
