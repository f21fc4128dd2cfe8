"""A folder of DICOM as a table of volumes, each with a verdict; and one of them as a `Volume`.

Which volume is read when none is asked for: the only one that is no localizer, no picture of a screen and no
projection. With several, nothing is guessed: the table and the option to use are the answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np

from medseg.dicom.elements import read_elements
from medseg.dicom.frames import grid_of
from medseg.dicom.parts import LOST, Damaged, Found, Part, find
from medseg.dicom.pixels import read_stored
from medseg.dicom.placing import Placement, place
from medseg.dicom.planes import IMAGES, Plane, description, no_scan, planes_of
from medseg.dicom.reslice import needs_reslice, resliced
from medseg.dicom.split import moments, normal_of, split
from medseg.dicom.suv import suv_factor
from medseg.dicom.values import AIR, keep_stored_bits, physical, with_air
from medseg.gate import HINT_COPY, Gate
from medseg.geometry import Geometry
from medseg.volume import Source, Stack, Volume

_SECONDARY = (IMAGES + "7", IMAGES + "7.1", IMAGES + "7.2", IMAGES + "7.3", IMAGES + "7.4")
_DIRECTORY = "1.2.840.10008.1.3.10"
_OTHER_DIRECTION = 0.9  # cosine of the angle between normals
_PROJECTIONS = {"MIP", "MINIP", "PROJECTION IMAGE"}


@dataclass(frozen=True, eq=False)
class Row:
    """One volume of a study, or several that were taken at the same positions one after the other.

    Parameters
    ----------
    number : int
        By which it is chosen, from 1.
    placements : tuple of Placement
        Where the planes of each volume lie.
    aside : str
        Why it is not picked by itself; empty for a scan.
    """

    number: int
    placements: tuple[Placement, ...]
    aside: str = ""

    @property
    def first(self) -> Plane:
        """One of its planes."""
        return self.placements[0].planes[0]

    @property
    def slices(self) -> str:
        """How many slices it has: '120', or '30 x 8' for eight volumes."""
        count = len(self.placements[0].planes)
        return str(count) if len(self.placements) == 1 else f"{count} x {len(self.placements)}"

    @property
    def spacing(self) -> str:
        """Pixel spacing along columns and rows, and distance of slices, in mm."""
        if not self.first.spacing:
            return "?"
        numbers = (self.first.spacing[1], self.first.spacing[0], self.placements[0].step)
        return " x ".join(f"{mm:.4g}" for mm in numbers)

    @property
    def verdict(self) -> str:
        """'ok', a code with what is wrong, what will be done about it, or why it is not picked by itself."""
        if self.aside:
            return f"passed over: {self.aside}"
        if self.placements[0].picture:
            return "ok, a radiograph: a picture without a place in the patient"
        faults = [placement.fault for placement in self.placements if placement.fault]
        if faults:
            return f"{faults[0].code}: {faults[0].problem}"
        said = [f"ok, tilted by {tilt:.1f} degrees (GEOM_TILT): is straightened" for tilt in [self._tilt()] if tilt]
        twins = sum(len(placement.twins) for placement in self.placements)
        if twins:
            said.append(f"ok, if {twins} slices at the position of another are the same")
        return "; ".join(said) or "ok"

    def _tilt(self) -> float:
        return max(placement.tilt for placement in self.placements)

    def line(self) -> str:
        """Return the row as people read it."""
        first = self.first
        text = f"{first.modality}  {description(first.elements) or '-'}"
        slices = "1 slice" if self.slices == "1" else f"{self.slices} slices"
        return f"{self.number}  {text}  {slices}  {self.spacing} mm  {self.verdict}"


@dataclass(frozen=True, eq=False)
class Survey:
    """What a folder, archive or file holds: rows to choose from, and what was passed over, counted by kind."""

    path: Path
    rows: tuple[Row, ...] = ()
    passed: Counter[str] = field(default_factory=Counter)

    def passed_over(self) -> str:
        """Return what was passed over as a sentence; empty where nothing was."""
        return ", ".join(f"{count} {kind}" for kind, count in sorted(self.passed.items()))


def survey(path: Path) -> Survey:
    """Return the volumes in a folder of any depth, a zip archive or a file.

    Raises
    ------
    ScanError
        If a DICOM file is damaged: it may be a slice of any series.
    """
    return survey_of(find(path), path)


def survey_of(found: Found, path: Path) -> Survey:
    """Return the volumes that objects make up; `path` is what messages call them.

    Raises
    ------
    ScanError
        If one of them is damaged.
    """
    gate = Gate(path)
    passed = found.passed
    planes: list[Plane] = []
    for part in found.parts:
        some = _planes_in(part, passed, gate)
        if isinstance(some, Damaged):
            if _has_preamble(part):
                gate.refuse("DICOM_DAMAGED", f"holds a DICOM file that cannot be read: {some}", HINT_COPY)
            passed["files of other kinds"] += 1
        else:
            planes += some
    return Survey(path, rows_of(planes), passed)


def choose(found: Survey, series: str | None = None) -> Row:
    """Return the row that was asked for, by number, series UID or description; or the only scan.

    Raises
    ------
    ScanError
        If nothing or more than one row fits; the hint says how to choose.
    """
    gate = Gate(found.path)
    if not found.rows:
        passed = found.passed_over()
        what = "holds no DICOM images" + (f" ({passed})" if passed else "")
        gate.refuse("NO_IMAGES", what, "give a folder of slices")
    if series is not None:
        fits = [row for row in found.rows if _fits(row, series)]
        if not fits:
            gate.refuse("NO_SERIES", f"holds no series {series!r}", _choice(found.rows))
        if len(fits) > 1:
            gate.refuse("SEVERAL_SERIES", f"holds {len(fits)} volumes of series {series!r}", _choice(fits))
        return fits[0]
    scans = [row for row in found.rows if not row.aside] or list(found.rows)
    if len(scans) > 1:
        gate.refuse("SEVERAL_SERIES", f"holds {len(scans)} volumes", _choice(scans))
    return scans[0]


def read_series(
    path: Path,
    *,
    series: str | None = None,
    volume: int | None = None,
    repair: bool = False,
    suv: bool = False,
) -> Volume:
    """Return one volume of a folder, zip archive or file of DICOM.

    Parameters
    ----------
    path : Path
        Where to look.
    series : str, optional
        Row number of the table, series UID, or series description.
    volume : int, optional
        Which of several volumes at the same positions, from 0.
    repair : bool
        Interpolate over gaps and uneven spacing instead of refusing them.
    suv : bool
        PET as standardised uptake values by body weight instead of Bq/mL.

    Raises
    ------
    ScanError
        With a stable code for the reason.
    """
    found = survey(path)
    return read_row(found, choose(found, series), volume=volume, repair=repair, suv=suv)


def read_row(found: Survey, row: Row, *, volume: int | None = None, repair: bool = False, suv: bool = False) -> Volume:
    """Return one volume of what was surveyed, as `read_series` does."""
    gate = Gate(found.path)
    placement = row.placements[gate.choose_volume(volume, len(row.placements))]
    if placement.fault and not (repair and placement.fault.repairable):
        gate.refuse(placement.fault.code, placement.fault.problem, placement.fault.hint)
    aside = dict(Counter(other.aside for other in found.rows if other.aside and other is not row))
    lost = {kind: count for kind, count in found.passed.items() if kind in LOST}
    for kind, count in sorted((aside | lost).items()):
        gate.warn(f"passed over: {count} {kind}")
    return _read(placement, gate, suv=suv)


def _read(placement: Placement, gate: Gate, *, suv: bool) -> Volume:
    planes = placement.planes
    if any("MOSAIC" in plane.image_type for plane in planes):
        gate.refuse("MOSAIC", "holds mosaics, many slices in one picture", "convert it with dcm2niix, give the .nii.gz")
    _compare_twins(placement, gate)
    values = physical(read_stored(planes, gate), planes, gate)
    if suv and values.ndim == 4:
        gate.refuse("NO_SUV", "is in colour", "read it without SUV")
    if suv:
        factors = [suv_factor(plane, gate) for plane in planes]
        values = values * np.array(factors, np.float32)[:, None, None]
    bright = planes[0].elements.text(0x00280004) == "MONOCHROME1"
    if placement.picture:
        array = values.transpose(2, 1, 0)[None] if values.ndim == 3 else values.transpose(3, 2, 1, 0)
        grid = Geometry(np.eye(4), (*planes[0].size, 1), physical=False)
        return Volume(array, grid, Source(gate.path, "dicom", tuple(gate.warnings), low_is_bright=bright))
    stack = stack_of(placement)
    _say_what_is_odd(placement, gate)
    if needs_reslice(placement):
        if values.ndim == 4:
            gate.refuse("GEOM_TILT", "is in colour and tilted", "convert it to gray values first")
        values = with_air(values) if planes[0].modality == "CT" else values
        outside = float(AIR) if planes[0].modality == "CT" else float(values.min())
        values, geometry = resliced(values, placement, gate, outside=outside)
    else:
        geometry = _grid(stack, gate)
    array = values.transpose(2, 1, 0)[None] if values.ndim == 3 else values.transpose(3, 2, 1, 0)
    gate.geometry(geometry.affine, geometry.shape)
    return Volume(array, geometry, Source(gate.path, "dicom", tuple(gate.warnings), b"", stack, bright))


def _grid(stack: Stack, gate: Gate) -> Geometry:
    """Return the grid of slices that the gate has found to be even."""
    grid = grid_of(stack)
    if grid is None:
        gate.refuse("GEOM_VARIABLE_SPACING", "its slices lie on no even grid", "export the series again")
    return grid


def _compare_twins(placement: Placement, gate: Gate) -> None:
    """Refuse slices at the position of another one that differ from it."""
    if not placement.twins:
        return
    pairs = [(placement.planes[n], twin) for n, twin in placement.twins]
    both = [plane for pair in pairs for plane in pair]
    stored = read_stored(both, gate)
    for pixels, plane in zip(stored, both, strict=True):
        keep_stored_bits(pixels, plane, gate)
    for number, (kept, twin) in enumerate(pairs):
        same = (kept.slope, kept.intercept) == (twin.slope, twin.intercept)
        if not same or not np.array_equal(stored[2 * number], stored[2 * number + 1]):
            gate.refuse(
                "DUP_POSITION",
                f"{twin.name} and {kept.name} lie at the same position and differ",
                "export the series again, or give the folder of one of them",
            )
    gate.warn(f"{len(pairs)} slices repeat another one and were passed over")


def _say_what_is_odd(placement: Placement, gate: Gate) -> None:
    planes = placement.planes
    if placement.fault:
        gate.warn(f"repaired ({placement.fault.code}): {placement.fault.problem}")
    if placement.tilt:
        gate.warn(f"the gantry was tilted by {placement.tilt:.1f} degrees (GEOM_TILT); the slices were straightened")
    if len(planes) == 1:
        gate.warn(f"holds one slice; it is taken to be {placement.step:g} mm thick")
    numbers = [plane.elements.text(0x00200012) for plane in planes]
    changes = sum(one != other for one, other in pairwise(numbers))
    if len(planes) > 3 and changes > 2 * len({*numbers}):
        gate.warn(f"slices of {len({*numbers})} acquisitions alternate; they may be two passes, half a step apart")
    between = planes[0].between or 0
    if len(planes) > 1 and between and round(placement.step / between) > 1:
        times = placement.step / between
        if abs(times - round(times)) < 0.01 * times:
            gate.warn(f"its header says {between:g} mm between slices, they lie {placement.step:g} mm apart")
    announced = planes[0].elements.number(0x00201002) or 0
    there = len(planes) + len(placement.twins)
    if announced > there and not planes[0].number:
        gate.warn(f"its header announces {announced:g} images in the acquisition, {there} are there")


def _planes_in(part: Part, passed: Counter[str], gate: Gate) -> list[Plane] | Damaged:
    """Return the planes of an object; what is no scan is counted instead."""
    try:
        elements = read_elements(part)
        other = no_scan(elements)
        planes = [] if other else planes_of(part, elements)
    except Damaged as error:
        return error
    except OSError as error:
        gate.refuse("UNREADABLE", f"holds a file that cannot be read: {error.strerror}", "check the permissions")
    if not planes:
        passed[other or "DICOM objects without pixels"] += 1
    return planes


def _has_preamble(part: Part) -> bool:
    if part.archive is not None:
        return True  # only what has one was taken out of an archive, or it is damaged itself
    with part.open() as file:
        file.seek(128)
        return file.read(4) == b"DICM"


def stack_of(placement: Placement) -> Stack:
    """Return the frames of a volume and where they lie, for results to refer to."""
    return Stack(tuple(plane.frame() for plane in placement.planes), placement.affines(), placement.planes[0].size)


def rows_of(planes: Sequence[Plane]) -> tuple[Row, ...]:
    """Return the volumes that planes make up, by series number."""
    groups = [tuple(_placed(group)) for group in split(planes)]
    groups.sort(key=_order)
    largest: dict[tuple[str, str], Placement] = {}
    for first, *_ in groups:
        rival = largest.setdefault(first.planes[0].series, first)
        if len(first.planes) > len(rival.planes):
            largest[first.planes[0].series] = first
    return tuple(
        Row(number, group, _aside(group, largest[group[0].planes[0].series])) for number, group in enumerate(groups, 1)
    )


def _placed(group: Sequence[Plane]) -> Iterator[Placement]:
    """Yield where the planes of each moment of a volume lie; copies of one object stay with it."""
    copies: dict[Hashable, list[Plane]] = {}
    for plane in group:
        instance = plane.frame().sop_instance or plane.part
        copies.setdefault((instance, plane.number, plane.position), []).append(plane)
    for moment in moments([first for first, *_ in copies.values()]):
        keys = ((plane.frame().sop_instance or plane.part, plane.number, plane.position) for plane in moment)
        yield place([plane for key in keys for plane in copies[key]])


def _order(group: tuple[Placement, ...]) -> tuple[float, str, float]:
    plane = group[0].planes[0]
    return plane.elements.number(0x00200011) or 0, plane.series[1], plane.instance


def _aside(group: tuple[Placement, ...], largest: Placement) -> str:
    """Return why a volume is not picked by itself."""
    plane, main = group[0].planes[0], largest.planes[0]
    kinds = {part.upper() for part in plane.image_type}
    if "LOCALIZER" in kinds:
        return "localizers"
    if plane.frame().sop_class in _SECONDARY or any("SCREEN" in kind for kind in kinds):
        return "secondary captures"
    if kinds & _PROJECTIONS:
        return "projections"
    if plane.placeless:
        return "objects of several frames that do not say where they lie"
    alone = len(group) == 1 and len(group[0].planes) == 1 and not group[0].twins
    sound = group[0].fault is None and largest.fault is None and len(largest.planes) >= 5
    if alone and sound and abs(float(normal_of(plane) @ normal_of(main))) < _OTHER_DIRECTION:
        return "single slices across a volume of the same series"
    return ""


def _fits(row: Row, series: str) -> bool:
    if series.isascii() and series.isdigit():
        return row.number == int(series)
    return series == row.first.series[1] or series.casefold() == description(row.first.elements).casefold()


def _choice(rows: Sequence[Row]) -> str:
    shown = "\n".join(f"  {row.line()}" for row in rows[:30])
    return f"choose one with --series N:\n{shown}"
