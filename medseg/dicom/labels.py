"""Segmentations and structure sets of any writer as label maps, on the grid of the scan that they were drawn on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, RLELossless

from medseg.dicom.elements import NATIVE, read_elements
from medseg.dicom.frames import grid_of
from medseg.dicom.parts import Damaged, Part, find, holds_dicom
from medseg.dicom.pixels import read_stored
from medseg.dicom.planes import Plane, planes_of, read_dataset
from medseg.dicom.rtstruct_reader import read_structures
from medseg.dicom.rtstruct_reader import source_instances as drawn_on
from medseg.dicom.seg_reader import SEG_CLASSES, read_segmentation
from medseg.dicom.seg_reader import source_instances as made_from
from medseg.dicom.series import rows_of, stack_of
from medseg.gate import HINT_COPY, Gate
from medseg.geometry import Geometry
from medseg.volume import LabelMap, Stack

_PHOTOMETRIC = 0x00280004
STRUCTURES = "1.2.840.10008.5.1.4.1.1.481.3"


def read_dicom_labels(path: Path, *, grid: Geometry | None = None, resample: bool = False) -> LabelMap:
    """Return the label map of a SEG or RTSTRUCT: of a file, or the only one in a folder or zip archive.

    Parameters
    ----------
    path : Path
        The file, folder or archive.
    grid : Geometry, optional
        On which to lay it. Left out: that of the series it refers to where that lies in the same folder or archive,
        else for a SEG the grid of its own frames.
    resample : bool
        Whether the nearest pixel may be taken where the frames of a SEG do not lie on `grid`.

    Raises
    ------
    ScanError
        NOT_LABELS where there is none, SEVERAL_LABELS, NO_GRID, or as the readers say.
    """
    gate = Gate(path)
    found = find(path)
    kinds = [(part, kind) for part in found.parts if (kind := _kind_of(part))]
    if not kinds:
        gate.refuse("NOT_LABELS", "holds no DICOM SEG or RTSTRUCT", "give a label map; a scan is none")
    if len(kinds) > 1:
        gate.refuse("SEVERAL_LABELS", f"holds {len(kinds)} SEG or RTSTRUCT objects", "give the file of one of them")
    part, kind = kinds[0]
    try:
        dataset = read_dataset(part, pixels=True)
        if kind != STRUCTURES:
            _decode_guarded(part, dataset, gate)
    except Damaged as error:
        gate.refuse("DICOM_DAMAGED", f"cannot be read: {error}", HINT_COPY)
    stack = None
    if grid is None:
        around = found.parts if path.is_dir() or part.archive else _beside(path)
        stack = _source(dataset, kind, around)
        grid = grid_of(stack) if stack else None
    if kind == STRUCTURES:
        return read_structures(path, dataset, stack, grid=grid)
    return read_segmentation(path, dataset, grid=grid, resample=resample)


def count_labels(path: Path) -> int:
    """Return how many SEG and RTSTRUCT objects a file, folder or archive of DICOM holds."""
    return sum(bool(_kind_of(part)) for part in find(path).parts)


def _kind_of(part: Part) -> str:
    """Return the SOP class of a SEG or RTSTRUCT, '' of all else."""
    try:
        elements = read_elements(part)
    except (Damaged, OSError):
        return ""
    kind = elements.text(0x00080016) or elements.text(0x00020002)
    return kind if kind == STRUCTURES or kind in SEG_CLASSES else ""


def _decode_guarded(part: Part, dataset: Dataset, gate: Gate) -> None:
    """Replace pixels that a native decoder must unpack by plain ones, unpacked in a process of its own."""
    elements = read_elements(part)
    if elements.syntax in NATIVE or elements.syntax == RLELossless:  # pydicom unpacks the latter in Python
        return
    gray = replace(elements, values={**elements.values, _PHOTOMETRIC: b"MONOCHROME2 "})  # a palette only shows labels
    frames = elements.frames()
    stored = read_stored([Plane(part, gray, number=number) for number in range(1, frames + 1)], gate)
    dataset.PixelData = stored.tobytes()
    dataset["PixelData"].is_undefined_length = False
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian


def _beside(path: Path) -> list[Part]:
    """Return the DICOM files in the folder of a file, and no deeper."""
    files = (other for other in sorted(path.absolute().parent.iterdir()) if not other.is_dir())
    return [Part(file) for file in files if holds_dicom(file)]


def _source(dataset: Dataset, kind: str, parts: Sequence[Part]) -> Stack | None:
    """Return the frames of the series that an object refers to, where all that it names are there."""
    wanted = drawn_on(dataset) if kind == STRUCTURES else made_from(dataset)
    if not wanted:
        return None
    planes: list[Plane] = []
    for part in parts:
        try:
            planes += planes_of(part, read_elements(part))
        except (Damaged, OSError):
            continue  # what cannot be read is not the series that this was drawn on, or has a gap and is no grid
    for row in rows_of(planes):
        for placement in row.placements:
            there = {plane.frame().sop_instance for plane in placement.planes}
            if placement.fault is None and wanted <= there:
                return stack_of(placement)
    return None
