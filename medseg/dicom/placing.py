"""The geometry gate: where the planes of a volume lie, from their positions alone, or why that must not be trusted.

Distances are measured between positions projected on the normal of the image plane (PS3.3 C.7.6.2.1.1); neither
SliceThickness, nor SpacingBetweenSlices, nor SliceLocation, nor the order of files or instance numbers says where
a slice is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg.dicom.frames import OFF_MM, OFF_STEPS, axes_of, plane_affine
from medseg.dicom.planes import Plane
from medseg.dicom.split import SAME_POSITION, normal_of
from medseg.gate import SPACING_LIMITS

Array = npt.NDArray[Any]

_EVEN = 0.01  # fraction of the step by which distances of slices may differ; 0.01 mm where that is more
_SQUARE = 2e-3  # deviation of the axes from unit length and right angles
_MOST_ADDED = 1.0  # slices that --repair may add for each that is there
_STRAIGHT = 0.1  # fraction of a pixel by which the last slice may lie beside the normal of the first
_MAX_TILT = 45.0  # degrees


@dataclass(frozen=True)
class Fault:
    """Why a volume is refused: a stable code, what was found and where, what to do, and whether --repair can help."""

    code: str
    problem: str
    hint: str
    repairable: bool = False


@dataclass(frozen=True, eq=False)
class Placement:
    """Where the planes of one volume lie.

    Parameters
    ----------
    planes : tuple of Plane
        In order along the normal, one for each position.
    twins : tuple of (int, Plane)
        Further planes at the position of a kept one; they must hold the same pixels.
    along : (K,) array
        Positions along the normal, in mm from the first.
    drift : (K, 2) array
        How far each plane lies beside the normal through the first, in mm along its rows and columns.
    step : float
        Distance of slices in mm: of all where they are even, else the smallest.
    tilt : float
        Angle in degrees between the normal and the line through the positions.
    fault : Fault, optional
        Why the volume must not be used as it is.
    picture : bool
        Whether it is one radiograph, which lies nowhere and has no physical size.
    """

    planes: tuple[Plane, ...]
    twins: tuple[tuple[int, Plane], ...] = ()
    along: Array = field(default_factory=lambda: np.zeros(1))
    drift: Array = field(default_factory=lambda: np.zeros((1, 2)))
    step: float = 1.0
    tilt: float = 0.0
    fault: Fault | None = None
    picture: bool = False

    @property
    def even(self) -> bool:
        """Whether all slices lie equally far apart."""
        return self.fault is None or not self.fault.repairable or len(self.planes) < 3

    def affines(self) -> Array:
        """Return for each plane (column, row, 0, 1) to mm, RAS+: (K, 4, 4)."""
        first = self.planes[0]
        return np.stack(
            [plane_affine(plane.position, first.orientation, first.spacing, self.step) for plane in self.planes]
        )


def place(planes: Sequence[Plane]) -> Placement:
    """Return where the planes of one volume lie, with the fault that forbids to use them, if there is one."""
    if len(planes) == 1 and planes[0].radiograph and not planes[0].placeless:
        return Placement(tuple(planes), picture=True)
    fault = _unplaced(planes)
    if fault:
        return Placement(tuple(planes), fault=fault)
    normal = normal_of(planes[0])
    positions = np.array([plane.position for plane in planes])
    order = np.lexsort(([plane.instance for plane in planes], positions @ normal))
    along = (positions @ normal)[order]
    new = np.concatenate([[True], np.diff(along) > SAME_POSITION])
    kept = tuple(planes[index] for index in order[new])
    ranks = np.cumsum(new) - 1
    twins = tuple((int(ranks[n]), planes[index]) for n, index in enumerate(order) if not new[n])
    along, beside = along[new] - along[0], positions[order[new]] - positions[order[0]]
    drift = beside @ np.array(axes_of(kept[0].orientation)).T
    step, fault = _step(kept, along)
    tilt, crooked = _tilt(kept, along, drift)
    return Placement(kept, twins, along, drift, step, tilt, crooked or fault)


def _unplaced(planes: Sequence[Plane]) -> Fault | None:
    """Return the fault of planes that do not say where they lie."""
    if any(plane.placeless for plane in planes):
        return Fault(
            "MULTIFRAME",
            f"an object of {planes[0].elements.frames()} frames does not say where they lie",
            "export it as enhanced multi-frame, or as single slices",
        )
    if len({plane.reference for plane in planes}) > 1:
        return Fault(
            "MIXED_FRAME_OF_REFERENCE",
            "has slices in different frames of reference, whose positions cannot be compared",
            "export each part as a series of its own",
        )
    for plane in planes:
        missing = [
            name
            for name, value in (
                ("ImagePositionPatient", plane.position),
                ("ImageOrientationPatient", plane.orientation),
                ("PixelSpacing", plane.spacing),
            )
            if not value
        ]
        if missing:
            return Fault(
                "NO_POSITION",
                f"{plane.name} has no valid {' and no valid '.join(missing)}",
                "export the series again from its source; a distance is never guessed",
            )
        row, column = np.array(plane.orientation[:3]), np.array(plane.orientation[3:])
        lengths = np.linalg.norm(row), np.linalg.norm(column)
        if max(abs(lengths[0] - 1), abs(lengths[1] - 1), abs(row @ column)) > _SQUARE or min(plane.spacing) <= 0:
            return Fault(
                "GEOM_ORIENTATION",
                f"{plane.name} has axes that are not at right angles, or a spacing that is not positive",
                "export the series again from its source",
            )
    return None


def _step(planes: Sequence[Plane], along: Array) -> tuple[float, Fault | None]:
    """Return the distance of slices, and the fault of distances that differ."""
    if len(planes) == 1:
        given = (planes[0].thickness, planes[0].between)
        return next((mm for mm in given if mm and SPACING_LIMITS[0] <= mm <= SPACING_LIMITS[1]), 1.0), None
    steps = np.diff(along)
    mean, smallest = float(steps.mean()), float(steps.min())
    if len(planes) == 2:
        return mean, _unconfirmed(planes, mean)
    beside = np.abs(along - mean * np.arange(len(along))).max()
    if np.abs(steps - mean).max() <= _allowed(mean) and beside <= OFF_MM / 2 + OFF_STEPS / 2 * mean:
        return mean, None
    typical = float(np.median(steps))
    base = typical if np.abs(steps - typical).min() <= _allowed(typical) else smallest
    times = steps / base
    whole = (np.abs(times - np.rint(times)) * base <= _allowed(base) * np.rint(times)) & (times > 0.5)
    gaps = np.flatnonzero(np.rint(times) > 1)
    worst = int(np.abs(steps - base).argmax())
    where = f"between {planes[worst].name} and {planes[worst + 1].name} (at {along[worst]:.4g} mm from the first)"
    if whole.all() and 0 < len(gaps) <= max(1, len(steps) // 4):
        missing = int((np.rint(times[gaps]) - 1).sum())
        problem = f"{missing} slice{'s are' if missing > 1 else ' is'} missing, {where}: {steps[worst]:.4g} mm apart"
        return base, _uneven("GEOM_MISSING_SLICE", f"{problem} instead of {base:.4g}", along, base)
    problem = f"slices lie {smallest:.4g} to {steps.max():.4g} mm apart, furthest off {where}"
    return smallest, _uneven("GEOM_VARIABLE_SPACING", problem, along, smallest)


def _allowed(step: float) -> float:
    """Return by how many mm the distance of two slices may differ from the step."""
    return max(_EVEN * step, min(0.01, step / 10))


def _uneven(code: str, problem: str, along: Array, step: float) -> Fault:
    """Return the fault of uneven slices; only so much can be repaired."""
    added = float(along[-1]) / step + 1 - len(along)
    if step >= SPACING_LIMITS[0] and added <= _MOST_ADDED * len(along):
        hint = "get the whole series, or resample it onto even spacing with --repair"
        return Fault(code, problem, hint, repairable=True)
    return Fault(code, problem, "get the whole series; too much of it is missing for --repair")


def _unconfirmed(planes: Sequence[Plane], step: float) -> Fault | None:
    """Return the fault of two slices whose distance nothing confirms: one may be missing between them."""
    first = planes[0]
    if first.between:
        confirmed = abs(first.between - step) <= _allowed(step)
    else:
        confirmed = first.thickness is not None and step <= 1.5 * first.thickness
    if confirmed:
        return None
    return Fault(
        "GEOM_TOO_FEW_SLICES",
        f"has two slices, {step:.4g} mm apart, and nothing that says whether one is missing between them",
        "get the whole series, or accept the distance with --repair",
        repairable=True,
    )


def _tilt(planes: Sequence[Plane], along: Array, drift: Array) -> tuple[float, Fault | None]:
    """Return the angle of the gantry in degrees, and the fault of planes that lie on no straight line."""
    length = float(along[-1])
    if not length:
        return 0.0, None
    slope = along @ drift / (along @ along)  # drift per mm, of a line through the first plane
    off = np.abs(drift - along[:, None] * slope).max(axis=1)
    pixel = min(planes[0].spacing)
    step = length / (len(planes) - 1)
    if off.max() > min(max(_STRAIGHT * pixel, OFF_MM / 2), OFF_MM / 2 + OFF_STEPS / 2 * step):
        worst = int(off.argmax())
        return 0.0, Fault(
            "GEOM_NOT_ALIGNED",
            f"the slices lie on no straight line: {planes[worst].name} is {off[worst]:.3g} mm beside it",
            "export the series again from its source",
        )
    if np.abs(drift).max() <= _STRAIGHT * pixel:
        return 0.0, None
    tilt = float(np.degrees(np.arctan(np.linalg.norm(slope))))
    if tilt > _MAX_TILT:
        return tilt, Fault(
            "GEOM_TILT", f"is tilted by {tilt:.1f} degrees", f"medseg straightens tilts up to {_MAX_TILT:g} degrees"
        )
    return tilt, None
