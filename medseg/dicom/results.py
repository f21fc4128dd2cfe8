"""Results as DICOM objects: each is read back and laid onto the scan it was made from before anyone may see it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydicom import dcmread

from medseg.dicom.frames import Producer, grid_of, labels_on
from medseg.dicom.privacy import quiet
from medseg.dicom.rtstruct_reader import read_structures
from medseg.dicom.rtstruct_writer import encode_structures
from medseg.dicom.seg_reader import read_segmentation
from medseg.dicom.seg_writer import encode_segmentation
from medseg.errors import OutputError, ScanError, UsageError
from medseg.geometry import Geometry
from medseg.plan import Label
from medseg.volume import LabelMap, Stack

_EVEN = 0.01  # fraction of the step by which a frame may lie beside a plane
_REPORT = "nothing was written; report it, and use --format nifti meanwhile"
KINDS = ("dicom-seg", "dicom-labelmap", "rtstruct", "sr", "sc")


def encode(
    kinds: Sequence[str], labels: LabelMap, producer: Producer, *, picture: bytes = b"", verdict: str = ""
) -> dict[str, bytes]:
    """Return the DICOM files of a result, by kind.

    Parameters
    ----------
    kinds : sequence of str
        Of `KINDS`: SEG in bits, SEG as label map, RTSTRUCT, structured report of volumes, secondary capture.
    labels : LabelMap
        Its source holds the frames of a DICOM series.
    producer : Producer
        Who made it.
    picture : bytes
        The PNG that 'sc' shows.
    verdict : str
        Of the quality check, for the report.

    Raises
    ------
    UsageError
        If the scan is not DICOM, or lacks what a result must refer to.
    OutputError
        If an object that was read back differs from the label map.
    """
    stack = labels.source.stack if labels.source else None
    if stack is None:
        raise UsageError("the scan is not DICOM, so no DICOM object can refer to it", hint="choose --format nifti")
    names = [(frame.sop_instance, frame.number) for frame in stack.frames]
    if len({*names}) < len(names):
        raise UsageError("slices of the scan share one SOPInstanceUID", hint="choose --format nifti")
    done: dict[str, bytes] = {}
    for kind in kinds:
        match kind:
            case "dicom-seg" | "dicom-labelmap":
                done[kind] = encode_segmentation(labels, producer, labelmap=kind == "dicom-labelmap")
                check(done[kind], labels, kind)
            case "rtstruct":
                done[kind] = encode_structures(labels, producer)
                check(done[kind], labels, kind)
            case "sr":
                from medseg.dicom.sr_writer import encode_report

                segmentation = done.get("dicom-seg")
                done[kind] = encode_report(labels, producer, segmentation=segmentation, verdict=verdict)
            case "sc":
                from medseg.dicom.capture import encode_capture

                done[kind] = encode_capture(picture, stack, producer)
            case _:
                raise UsageError(f"there is no DICOM object {kind!r}", hint=f"choose from: {', '.join(KINDS)}")
    return done


def check(encoded: bytes, labels: LabelMap, kind: str) -> None:
    """Refuse an object that, read back and laid onto the source frames, is not the label map.

    Raises
    ------
    OutputError
        With the number of voxels that differ.
    """
    stack = labels.source.stack if labels.source else None
    if stack is None:
        return
    grid, planes = spread(stack)
    wanted = labels_on(stack, labels)
    try:
        with quiet():
            dataset = dcmread(io.BytesIO(encoded))
            reader = read_structures if kind == "rtstruct" else read_segmentation
            found = reader(Path(kind), dataset, grid=grid)  # not the scan's path, which may name the patient
    except ScanError as error:
        raise OutputError(f"{error.problem} (reading it back)", hint=_REPORT) from None
    if len(found.labels) != len(labels.labels):
        raise OutputError(f"{kind}: read back it has {len(found.labels)} labels", hint=_REPORT)
    own, again = _memberships(labels.labels, found.labels, int(wanted.max()), int(found.array.max()))
    off = 0
    for plane in range(grid.shape[2]):  # one that no frame lies on must be empty
        truth = own[wanted[..., planes.index(plane)]] if plane in planes else 0
        off += int((again[found.array[..., plane]] != truth).sum())
    if off:
        raise OutputError(f"{kind}: read back it differs in {off} voxels from the label map", hint=_REPORT)


def _memberships(
    labels: Sequence[Label], again: Sequence[Label], last: int, last_again: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Return, for the atoms of two label maps, a number for the set of labels that each stands for; 0 for none."""
    numbers: dict[tuple[int, ...], int] = {(): 0}
    tables = []
    for some, highest in ((labels, last), (again, last_again)):
        sets = [tuple(n for n, label in enumerate(some) if atom in label.atoms) for atom in range(highest + 1)]
        tables.append(np.array([numbers.setdefault(those, len(numbers)) for those in sets]))
    return tables[0], tables[1]


def spread(stack: Stack) -> tuple[Geometry, list[int]]:
    """Return an even grid in which every frame has a plane, and which one: frames with a gap between them leave some.

    Raises
    ------
    UsageError
        If the frames lie so unevenly that there is none.
    """
    grid = grid_of(stack)
    if grid is not None:
        return grid, list(range(len(stack.frames)))
    offsets = (stack.affines - stack.affines[0])[:, :3, 3]
    lengths = np.linalg.norm(offsets, axis=1)
    step = float(np.diff(lengths).min())
    numbers = np.rint(lengths / step)
    affine = stack.affines[0].copy()
    affine[:3, 2] = offsets[-1] / numbers[-1]
    if np.abs(offsets - numbers[:, None] * affine[:3, 2]).max() > _EVEN * step:
        raise UsageError("the slices lie too unevenly for a DICOM object", hint="choose --format nifti")
    return Geometry(affine, (*stack.size, int(numbers[-1]) + 1)), [int(number) for number in numbers]
