"""Scans and label maps: voxels over a geometry, as two types, so that interpolation follows from the type."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from medseg.errors import ShapeMismatch, UsageError
from medseg.geometry import Geometry
from medseg.plan import Label
from medseg.strides import slabs, slowest_first

T = TypeVar("T")
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Frame:
    """One DICOM image plane, as far as a result must refer to it.

    Parameters
    ----------
    path : Path
        The file, or the zip archive that holds it.
    member : str
        Its name in the archive; empty for a plain file.
    number : int
        Which frame of a multi-frame object, from 1; 0 for an object of one image.
    sop_class, sop_instance : str
        UIDs of the object.
    """

    path: Path
    member: str
    number: int
    sop_class: str
    sop_instance: str


@dataclass(frozen=True, eq=False)
class Stack:
    """The DICOM frames that a volume was read from, and where they lie.

    They need not form the volume's grid: those of a tilted gantry, or with a gap that was mended, were resampled.

    Parameters
    ----------
    frames : tuple of Frame
        In the order in which they lie along the normal of the image plane.
    affines : (K, 4, 4) array of float64
        For each frame, maps (column, row, 0, 1) to mm, RAS+.
    size : two ints
        Columns and rows of every frame.
    """

    frames: tuple[Frame, ...]
    affines: npt.NDArray[np.float64]
    size: tuple[int, int]


@dataclass(frozen=True)
class Source:
    """Where a volume came from, and what was odd about it.

    Parameters
    ----------
    path : Path
        The file or folder.
    format : str
        "nifti", "nrrd", "mha", "dicom", "png", ...
    warnings : tuple of str
        One sentence for each oddity that was answered without refusing the scan.
    header : bytes
        The raw NIfTI header; empty for other formats. A label map on the same grid is written with the
        same coordinate codes and matrices.
    stack : Stack, optional
        The frames of a DICOM series.
    low_is_bright : bool
        Whether a picture shows low values bright (MONOCHROME1); the values themselves are as they are.
    """

    path: Path
    format: str
    warnings: tuple[str, ...] = ()
    header: bytes = b""
    stack: Stack | None = None
    low_is_bright: bool = False


@dataclass(frozen=True, eq=False)
class Volume:
    """Intensities on a voxel grid: one or more channels over one geometry.

    Parameters
    ----------
    array : (C, I, J, K) array of a real type
        Finite intensities, rescaled to physical ones (HU for CT) where the file says how.
    geometry : Geometry
        Its shape is (I, J, K).
    source : Source, optional
        Where it came from.
    """

    array: Array
    geometry: Geometry
    source: Source | None = None

    def __post_init__(self) -> None:
        _check_shape(self.array.shape[1:], self.geometry, "(C, I, J, K)", self.array)


@dataclass(frozen=True, eq=False)
class LabelMap:
    """Labels on a voxel grid: one integer (atom) per voxel, and the labels as named sets of atoms.

    Parameters
    ----------
    array : (I, J, K) array of an unsigned integer type
        One atom per voxel; 0 is background.
    geometry : Geometry
        Its shape is (I, J, K).
    labels : tuple of Label
        Names, colours and codes; two labels overlap where they share an atom.
    source : Source, optional
        The scan on whose grid the labels lie.
    """

    array: Array
    geometry: Geometry
    labels: tuple[Label, ...] = ()
    source: Source | None = None

    def __post_init__(self) -> None:
        _check_shape(self.array.shape, self.geometry, "(I, J, K)", self.array)
        if self.array.dtype.kind not in "uib":
            raise UsageError(f"labels of type {self.array.dtype}", hint="give an array of whole numbers")

    def label(self, name: str) -> Label:
        """Return the label of that name.

        Raises
        ------
        UsageError
            If there is none.
        """
        for label in self.labels:
            if label.name == name:
                return label
        names = ", ".join(label.name for label in self.labels)
        raise UsageError(f"no label named {name!r}", hint=f"choose one of: {names}")

    def mask(self, name: str) -> npt.NDArray[np.bool_]:
        """Return where the label of that name is: (I, J, K) of bool."""
        atoms = self.label(name).atoms
        return self.array == atoms[0] if len(atoms) == 1 else looked_up(self.place_table([atoms]) > 0, self.array)

    def places(self, groups: Sequence[Sequence[int]]) -> Array:
        """Return (I, J, K), n where an atom of the nth group is (from 1) and 0 elsewhere; no two share an atom."""
        table = self.place_table(groups)
        if self.array.dtype == table.dtype and (table == np.arange(len(table))).all():
            return self.array
        return looked_up(table, self.array)

    def place_table(self, groups: Sequence[Sequence[int]]) -> Array:
        """Return, for each value up to the largest in the array, the n of `places`."""
        table = np.zeros(int(self.array.max()) + 1, np.min_scalar_type(len(groups)))
        for place, atoms in enumerate(groups, start=1):
            table[[atom for atom in atoms if atom < len(table)]] = place
        return table

    def values(self) -> list[int]:
        """Return the atoms that are present, without background."""
        found: list[int] = np.flatnonzero(self._histogram()).tolist()
        return [value for value in found if value]

    def counts(self) -> dict[str, int]:
        """Return the number of voxels of each label."""
        per_atom = self._histogram()
        return {label.name: int(per_atom[list(label.atoms)].sum()) for label in self.labels}

    def _histogram(self) -> npt.NDArray[np.int64]:
        per_atom = np.zeros(65536, np.int64)
        for part in slabs(self.array):  # bincount widens what it counts
            found = np.bincount(self.array[part].ravel(order="K"))[: len(per_atom)]
            per_atom[: len(found)] += found
        return per_atom


def overlaid(masks: Iterable[tuple[Label, Array]], geometry: Geometry, source: Source | None = None) -> LabelMap:
    """Return a label map of masks that may overlap: a voxel holds an atom for each combination that occurs.

    Parameters
    ----------
    masks : pairs of Label and (I, J, K) array of bool
        Labels with distinct names and values; their atoms are set here.
    geometry : Geometry
        The grid of the masks.
    source : Source, optional
        Where they came from.

    Raises
    ------
    UsageError
        If more than 65535 combinations occur.
    """
    array = np.zeros(geometry.shape, np.uint16)
    given: list[Label] = []
    members: dict[int, tuple[int, ...]] = {0: ()}
    for label, mask in masks:
        given.append(label)
        covered = array[mask]
        table = np.arange(int(covered.max(initial=0)) + 1)
        for atom in np.flatnonzero(np.bincount(covered)).tolist():
            combination = (*members[atom], label.value)
            table[atom] = next((known for known, those in members.items() if those == combination), len(members))
            members.setdefault(int(table[atom]), combination)
        if len(members) > 1 << 16:
            raise UsageError("more than 65535 combinations of labels overlap", hint="give fewer labels at once")
        array[mask] = table[covered]
    return _with_own_values(array, given, members, geometry, source)


def _with_own_values(
    array: Array, given: Sequence[Label], members: dict[int, tuple[int, ...]], geometry: Geometry, source: Source | None
) -> LabelMap:
    """Return a label map in which a voxel of one label alone holds the value of that label."""
    values = [label.value for label in given]
    free = (number for number in range(1, 1 << 16) if number not in values)
    table = np.array([0 if not those else those[0] if len(those) == 1 else next(free) for those in members.values()])
    atoms = {value: [value] for value in values}
    for place, those in zip(table.tolist(), members.values(), strict=True):
        for value in those if len(those) > 1 else ():
            atoms[value].append(place)
    labels = tuple(label.model_copy(update={"atoms": tuple(atoms[label.value])}) for label in given)
    dtype = np.min_scalar_type(max([0, *table.tolist(), *values]))
    return LabelMap(looked_up(table.astype(dtype), array), geometry, labels, source)


def looked_up(table: Array, indices: Array) -> Array:
    """Return `table[indices]`, plane by plane in the order of the memory: indexing widens what it is given."""
    found = np.empty_like(indices, table.dtype)
    order = slowest_first(indices)
    for into, plane in zip(found.transpose(order), indices.transpose(order), strict=True):
        into[...] = table.take(plane)
    return found


def disjoint(items: Iterable[T], atoms: Callable[[T], Iterable[int]]) -> list[tuple[T, ...]]:
    """Return items in groups in which no two share an atom, each in the first group that takes it."""
    groups: list[tuple[list[T], set[int]]] = []
    for item in items:
        own = {*atoms(item)}
        group = next((group for group in groups if own.isdisjoint(group[1])), None)
        if group is None:
            groups.append(([item], own))
        else:
            group[0].append(item)
            group[1].update(own)
    return [tuple(members) for members, _ in groups]


def stack_channels(volumes: Sequence[Volume]) -> Volume:
    """Return one volume with the channels of several that lie on one grid.

    Raises
    ------
    ShapeMismatch
        If the grids differ by more than 0.001 mm.
    """
    first = volumes[0]
    if len(volumes) == 1:
        return first
    for other in volumes[1:]:
        apart = first.geometry.distance_to(other.geometry)
        if apart > 1e-3:
            shapes = f"{first.geometry.shape} and {other.geometry.shape}"
            names = f"{_name(first)} and {_name(other)}"
            raise ShapeMismatch(
                f"{names} lie on different grids (shapes {shapes}, corners {apart:.3g} mm apart)",
                hint="resample one channel onto the grid of the other first",
            )
    warnings = tuple(w for volume in volumes if volume.source for w in volume.source.warnings)
    source = replace(first.source, warnings=warnings) if first.source else None
    return Volume(np.concatenate([volume.array for volume in volumes]), first.geometry, source)


def _name(volume: Volume) -> str:
    return str(volume.source.path) if volume.source else "a volume"


def _check_shape(shape: tuple[int, ...], geometry: Geometry, wanted: str, array: Array) -> None:
    if shape != geometry.shape:
        raise ShapeMismatch(
            f"array of shape {array.shape} on a grid of shape {geometry.shape}",
            hint=f"give an array {wanted} whose I, J, K are the grid's",
        )
