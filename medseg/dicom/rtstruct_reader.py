"""RT Structure Sets in, by any writer: closed contours become a label map on the grid of a scan.

DICOM PS3.3 C.8.8.5 to C.8.8.8. What a structure's contours enclose in one plane is decided by even and odd: a
pixel is inside where its centre lies within an odd number of them. That reads holes that are joined by a slit
(keyholes) as well as holes that are contours of their own (in the standard, CLOSEDPLANAR_XOR). A centre on a contour
is inside (`contours.enclosed`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from pydicom import Dataset
from pydicom.uid import RTStructureSetStorage

from medseg.dicom.contour_planes import Planes
from medseg.dicom.contours import Mask, Points, enclosed
from medseg.dicom.frames import RAS, grid_of, header
from medseg.dicom.privacy import quiet
from medseg.dicom.study import UNREADABLE
from medseg.errors import GeometryError, ScanError, UsageError
from medseg.gate import HINT_EXPORT, Gate
from medseg.geometry import Geometry
from medseg.plan import Code, Label
from medseg.volume import LabelMap, Source, Stack, overlaid

_CLOSED = {"CLOSED_PLANAR", "CLOSEDPLANAR_XOR", "CLOSED_PLANAR_XOR"}
_FURTHEST = 1e6  # mm; no patient is a kilometre away
_SENTENCES = {
    "open": "{} contours are points, open lines or of an unknown kind; they are left out",
    "short": "{} contours have fewer than three points; they hold the pixels whose centres they pass",
    "twice": "{} contours are stored twice; they are taken once",
    "outside": "{} contours lie outside the slices of the grid; they are left out",
    "between": "{} contours lie between the slices of the grid; they are drawn on the nearest slice",
    "crowded": "{} contours lie so close that others are nearer to the same slice; they are left out",
    "cut": "{} contours reach beyond the edge of the slices; what lies outside is left out",
    "coarse": "{} structures are drawn on every second slice or fewer; the slices between are left empty",
}


@dataclass(frozen=True)
class _Structure:
    """A structure as the file has it: its label without atoms, its frame of reference, contours in mm, RAS+."""

    label: Label
    frame: str
    contours: list[Points] = field(default_factory=list)


def read_structures(
    path: Path, dataset: Dataset, stack: Stack | None = None, *, grid: Geometry | None = None
) -> LabelMap:
    """Return the structures of an RT Structure Set as a label map: a label for each, in the order of the file.

    Values are the ROINumbers where all are distinct and within 1 to 65535, otherwise 1, 2, ... A structure without
    contours is an empty label. Structures may overlap.

    Parameters
    ----------
    path : Path
        The file, for what is said about it.
    dataset : Dataset
        Its content.
    stack : Stack, optional
        The frames of the scan on which the structures were drawn.
    grid : Geometry, optional
        The grid of the label map; that of the frames when left out.

    Raises
    ------
    ScanError
        HEADER: the file is damaged or no structure set. NO_GRID: neither frames nor a grid are given, or the
        frames form none. FRAME_OF_REFERENCE: the frames are not those of the structures. CONTOUR_NOT_PLANAR,
        GEOM_OBLIQUE: contours that no plane of the grid can hold.
    """
    gate = Gate(path)
    tally: Counter[str] = Counter()
    try:
        with quiet():
            structures = _structures(dataset, gate, tally)
    except ScanError:
        raise
    except UNREADABLE as error:
        gate.refuse("HEADER", f"is a damaged structure set ({type(error).__name__} in its elements)", HINT_EXPORT)
    onto = grid or _grid(stack, gate)
    if stack is not None:
        _check_frame_of_reference(structures, stack, gate)
    planes = Planes([points for structure in structures for points in structure.contours], onto, gate)
    source = Source(path, "dicom", stack=stack)
    try:
        labels = overlaid(((one.label, _mask(one, planes, tally)) for one in structures), onto, source)
    except UsageError as error:
        gate.refuse("NOT_LABELS", error.problem, "split the structure set into smaller ones")
    for kind, sentence in _SENTENCES.items():
        if tally[kind]:
            gate.warn(sentence.format(tally[kind]))
    return replace(labels, source=replace(source, warnings=tuple(gate.warnings)))


def source_instances(dataset: Dataset) -> set[str]:
    """Return the SOPInstanceUIDs of the images that a structure set refers to, as far as they can be read."""
    return {str(uid) for series in _series(dataset) for uid in _uids(series)} | {
        str(uid)
        for drawing in _items(dataset, "ROIContourSequence")
        for contour in _items(drawing, "ContourSequence")
        for uid in _uids(contour)
    }


def _series(dataset: Dataset) -> Iterator[Dataset]:
    for frame in _items(dataset, "ReferencedFrameOfReferenceSequence"):
        for study in _items(frame, "RTReferencedStudySequence"):
            yield from _items(study, "RTReferencedSeriesSequence")


def _uids(item: Dataset) -> Iterator[str]:
    for image in _items(item, "ContourImageSequence"):
        if uid := _string(image, "ReferencedSOPInstanceUID"):
            yield uid


def _structures(dataset: Dataset, gate: Gate, tally: Counter[str]) -> list[_Structure]:
    if dataset.get("SOPClassUID") != RTStructureSetStorage:
        gate.refuse("HEADER", "is no RT Structure Set", "give a DICOM file of modality RTSTRUCT")
    for keyword in ("StructureSetROISequence", "ROIContourSequence"):
        if not _items(dataset, keyword):
            gate.refuse("HEADER", f"has no {keyword}", HINT_EXPORT)
    items = _items(dataset, "StructureSetROISequence")
    numbers = [int(item.ROINumber) for item in items]
    if len({*numbers}) < len(numbers) or len(numbers) > 0xFFFF:
        gate.refuse("HEADER", "gives one ROINumber to two structures", HINT_EXPORT)
    kept = all(1 <= number <= 0xFFFF for number in numbers)
    colors = {_number(d, "ReferencedROINumber"): _color(d) for d in _items(dataset, "ROIContourSequence")}
    codes = {_number(o, "ReferencedROINumber"): _codes(o) for o in _items(dataset, "RTROIObservationsSequence")}
    found: dict[int, _Structure] = {}
    names: set[str] = set()
    for place, (number, item) in enumerate(zip(numbers, items, strict=True), start=1):
        value = number if kept else place
        name = _free(_string(item, "ROIName") or f"structure {value}", names)
        names.add(name)
        code, modifier = codes.get(number, (None, None))
        label = Label(value=value, name=name, color=colors.get(number), code=code, modifier=modifier)
        found[number] = _Structure(label, _string(item, "ReferencedFrameOfReferenceUID"))
    for drawing in _items(dataset, "ROIContourSequence"):
        number = int(drawing.ReferencedROINumber)
        if number not in found:
            gate.refuse("HEADER", "draws a structure that it does not list", HINT_EXPORT)
        found[number].contours.extend(_contours(drawing, gate, tally))
    return [_without_twins(structure, tally) for structure in found.values()]


def _contours(drawing: Dataset, gate: Gate, tally: Counter[str]) -> Iterator[Points]:
    """Yield the closed contours of a structure; count those that enclose nothing."""
    for item in _items(drawing, "ContourSequence"):
        kind = _string(item, "ContourGeometricType")
        if not kind:
            gate.refuse("HEADER", "has a contour without ContourGeometricType", HINT_EXPORT)
        if kind not in _CLOSED:
            tally["open"] += 1
            continue
        points = _points(item, gate)
        tally["short"] += len(points) < 3
        yield points


def _points(item: Dataset, gate: Gate) -> Points:
    """Return the points of a contour: (n, 3) in mm, RAS+. Not through pydicom, which is slow with numbers."""
    element = item.get_item("ContourData")
    raw = element.value if element is not None else None
    if isinstance(raw, str):
        raw = raw.encode()
    parts = raw.strip(b" \0").split(b"\\") if isinstance(raw, bytes) else raw
    if not parts:
        gate.refuse("HEADER", "has a contour without ContourData", HINT_EXPORT)
    numbers = np.array([float(part) for part in parts])
    if len(numbers) % 3:
        gate.refuse("HEADER", f"has a contour of {len(numbers)} coordinates, no multiple of three", HINT_EXPORT)
    if not (np.abs(numbers) <= _FURTHEST).all():  # False for NaN too
        gate.refuse("HEADER", "has a contour with coordinates that are no positions in mm", HINT_EXPORT)
    declared = item.get("NumberOfContourPoints")
    if declared is not None and int(declared) != len(numbers) // 3:
        gate.refuse(
            "HEADER", f"has a contour that declares {int(declared)} points and holds {len(numbers) // 3}", HINT_EXPORT
        )
    points: Points = numbers.reshape(-1, 3) @ RAS[:3, :3]
    return points


def _without_twins(structure: _Structure, tally: Counter[str]) -> _Structure:
    """Return a structure in which no contour is stored twice; two alike would enclose nothing by even and odd."""
    once = {points.tobytes(): points for points in structure.contours}
    tally["twice"] += len(structure.contours) - len(once)
    return replace(structure, contours=list(once.values()))


def _mask(structure: _Structure, planes: Planes, tally: Counter[str]) -> Mask:
    """Return where a structure is: (I, J, K) of bool on the grid."""
    drawing = planes.draw(structure.contours, tally)
    order = [planes.axis, *(axis for axis in range(3) if axis != planes.axis)]
    shape = planes.grid.shape
    box, corner = enclosed(drawing.rings, drawing.planes, (shape[order[0]], shape[order[1]], shape[order[2]]))
    mask = np.zeros(shape, np.bool_)
    place = tuple(slice(start, start + size) for start, size in zip(corner, box.shape, strict=True))
    mask.transpose(order)[place] = box
    return mask


def _grid(stack: Stack | None, gate: Gate) -> Geometry:
    if stack is None:
        gate.refuse(
            "NO_GRID",
            "is a structure set, whose contours need the grid of a scan",
            "give the folder that holds its scan too, or --grid SCAN",
        )
    try:
        grid = grid_of(stack)
    except GeometryError:
        grid = None  # slices in one place
    if grid is None:
        gate.refuse("NO_GRID", "belongs to a scan whose slices are not evenly spaced", "give --grid SCAN")
    return grid


def _check_frame_of_reference(structures: list[_Structure], stack: Stack, gate: Gate) -> None:
    try:
        with quiet():
            own = _string(header(stack.frames[0]), "FrameOfReferenceUID")
    except UNREADABLE:
        own = ""  # the scan says nothing of its frame of reference
    theirs = {structure.frame for structure in structures if structure.contours} - {""}
    if own and theirs - {own}:
        gate.refuse(
            "FRAME_OF_REFERENCE",
            "was drawn in another frame of reference than that of the scan",
            "give the scan on which it was drawn, or --grid SCAN",
        )


def _items(item: Dataset, keyword: str) -> list[Dataset]:
    """Return the items of a sequence; none where it is missing or no sequence."""
    try:
        with quiet():
            value = item.get(keyword)
        return [one for one in value or () if isinstance(one, Dataset)]
    except UNREADABLE:
        return []


def _string(item: Dataset, keyword: str) -> str:
    """Return a value as text; empty where it is missing or cannot be read."""
    try:
        with quiet():
            value = item.get(keyword)
        return "".join(character for character in str(value or "") if character.isprintable()).strip()
    except UNREADABLE:
        return ""


def _number(item: Dataset, keyword: str) -> int | None:
    try:
        return int(_string(item, keyword))
    except ValueError:
        return None


def _free(name: str, taken: set[str]) -> str:
    """Return a name that is not taken: itself, or with the first number that makes it so."""
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name} ({number})"
    return free


def _color(drawing: Dataset) -> tuple[int, int, int] | None:
    try:
        red, green, blue = (int(part) for part in drawing.get("ROIDisplayColor") or ())
    except UNREADABLE:
        return None
    return (red, green, blue) if all(0 <= part <= 255 for part in (red, green, blue)) else None


def _codes(observation: Dataset) -> tuple[Code | None, Code | None]:
    """Return the code of what a structure is, and its modifier."""
    items = _items(observation, "RTROIIdentificationCodeSequence")
    if not items:
        return None, None
    modifiers = _items(items[0], "SegmentedPropertyTypeModifierCodeSequence")
    code = _code(items[0])
    return code, _code(modifiers[0]) if code and modifiers else None


def _code(item: Dataset) -> Code | None:
    value = next((text for word in ("CodeValue", "LongCodeValue", "URNCodeValue") if (text := _string(item, word))), "")
    scheme, meaning = (_string(item, word) for word in ("CodingSchemeDesignator", "CodeMeaning"))
    return Code(value=value, scheme=scheme, meaning=meaning) if value else None
