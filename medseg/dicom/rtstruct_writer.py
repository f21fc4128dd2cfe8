"""RT Structure Sets out: the labels of a scan as closed contours on its slices, for planning systems and viewers.

DICOM PS3.3 A.19 and C.8.8.5 to C.8.8.8. Each piece of a label on a slice is one CLOSED_PLANAR contour; holes are
joined to it by a slit (a keyhole), as many programs fill a hole that is a contour of its own.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256

import numpy as np
import numpy.typing as npt
from pydicom import DataElement, Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage

from medseg import __version__
from medseg.dicom.contours import Mask, Points, enclosed, outlines
from medseg.dicom.frames import RAS, Producer, labels_on, result_uid
from medseg.dicom.study import fit, header_to_refer_to, inherit
from medseg.errors import UsageError
from medseg.plan import Code, Label
from medseg.volume import Frame, LabelMap, Stack

_STUDY_CLASS = "1.2.840.10008.3.1.2.3.1"  # Detached Study Management: retired, and still what readers expect here
_SERIES_NUMBER = 900
_MOST_BYTES = 65534  # of one value in Explicit VR, where its VR has a length of two bytes


@dataclass(frozen=True)
class _Contour:
    """A closed contour: the frame on which it lies, its points as the text of a DS, and their number."""

    frame: Frame
    text: str
    count: int


def encode_structures(
    labels: LabelMap, producer: Producer, *, description: str = "", made: datetime | None = None
) -> bytes:
    """Return a label map as an RT Structure Set: the bytes of a DICOM file, Explicit VR Little Endian.

    Each label is a structure, with its value as ROINumber; labels may overlap, and an empty one has no contours. A
    reader that fills what the contours enclose, by pixel centres, finds exactly the label map again. The UIDs follow
    from the frames, the model and the contours: the same result has the same UIDs.

    Parameters
    ----------
    labels : LabelMap
        Labels of a scan that was read from DICOM: `labels.source.stack` names its frames.
    producer : Producer
        The model.
    description : str
        SeriesDescription; "medseg" and the name of the model when left out.
    made : datetime, optional
        StructureSetDate and StructureSetTime; now when left out.

    Raises
    ------
    UsageError
        If the labels do not come from DICOM, there are none, or the scan lacks a UID that must be referred to.
    """
    stack = labels.source.stack if labels.source else None
    if stack is None or not stack.frames:
        raise UsageError("these labels do not lie on DICOM images", hint="give a DICOM scan, or write another format")
    if not labels.labels:
        raise UsageError("a structure set needs at least one label", hint="give the label map its table of labels")
    source = header_to_refer_to(stack)
    atoms = np.ascontiguousarray(labels_on(stack, labels).transpose(2, 0, 1))  # planes are what is looked at
    structures = [[*_contours(np.isin(atoms, label.atoms), stack)] for label in labels.labels]
    names = _names(labels.labels)
    dataset = _frame_of(source, producer, description, made or datetime.now().astimezone())
    _add_uids(dataset, stack, producer, _digest(names, labels.labels, structures))
    dataset.ReferencedFrameOfReferenceSequence = [_images(source, stack)]
    about = fit(f"{producer.name} {producer.version}", 64)
    uid = source.FrameOfReferenceUID
    dataset.StructureSetROISequence = [
        _structure(label.value, name, uid, about) for label, name in zip(labels.labels, names, strict=True)
    ]
    dataset.ROIContourSequence = [
        _drawing(label, contours) for label, contours in zip(labels.labels, structures, strict=True)
    ]
    dataset.RTROIObservationsSequence = [
        _observation(number, label) for number, label in enumerate(labels.labels, start=1)
    ]
    return _encoded(dataset)


def _contours(mask: Mask, stack: Stack) -> Iterator[_Contour]:
    """Yield the contours of one label on (frames, columns, rows), as texts that a DS can hold."""
    for k in np.flatnonzero(mask.any(axis=(1, 2))):
        for points, text in _texts(mask[k], stack.affines[k]):
            yield _Contour(stack.frames[k], text, len(points))


def _texts(mask: Mask, affine: npt.NDArray[np.float64]) -> Iterator[tuple[Points, str]]:
    """Yield the outlines of a mask and their points as text; a piece whose text is too long is cut into halves."""
    for ring in outlines(mask):
        text = _coordinates(ring @ affine[:3, :2].T + affine[:3, 3])
        if len(text) <= _MOST_BYTES:
            yield ring, text
            continue
        box, corner = enclosed([ring], [0], (1, *mask.shape))
        for half in np.array_split(np.arange(box.shape[1]), 2):
            part = np.zeros_like(mask)
            columns, rows = half + corner[1], np.arange(box.shape[2]) + corner[2]
            part[np.ix_(columns, rows)] = box[0, half]
            yield from _texts(part, affine)


def _coordinates(points: Points) -> str:
    """Return points in mm, RAS+, as the text of a DS in LPS+: at most six decimals and 16 characters each."""
    return "\\".join(map(_decimal, (points @ RAS[:3, :3]).ravel().tolist()))


def _decimal(mm: float) -> str:
    text = f"{mm:.6f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text if len(text) <= 16 else f"{mm:.8e}"


def _frame_of(source: Dataset, producer: Producer, description: str, made: datetime) -> Dataset:
    """Return a structure set without structures: patient, study, equipment, and what the set is called."""
    dataset = inherit(source)
    dataset.FrameOfReferenceUID = source.FrameOfReferenceUID
    dataset.PositionReferenceIndicator = source.get("PositionReferenceIndicator") or ""
    dataset.SOPClassUID = RTStructureSetStorage
    dataset.Modality = "RTSTRUCT"
    dataset.SeriesNumber = _SERIES_NUMBER
    dataset.InstanceNumber = 1
    dataset.SeriesDescription = fit(description or f"medseg {producer.name}", 64)
    dataset.OperatorsName = ""
    dataset.Manufacturer = "medseg"
    dataset.ManufacturerModelName = fit(producer.name, 64)
    dataset.SoftwareVersions = [f"medseg {__version__}", fit(producer.version, 64)]
    dataset.StructureSetLabel = fit(producer.name, 16)
    dataset.StructureSetDate = dataset.SeriesDate = f"{made:%Y%m%d}"
    dataset.StructureSetTime = dataset.SeriesTime = f"{made:%H%M%S}"
    dataset.ApprovalStatus = "UNAPPROVED"
    return dataset


def _add_uids(dataset: Dataset, stack: Stack, producer: Producer, digest: str) -> None:
    dataset.SeriesInstanceUID = result_uid(stack, producer, "rtstruct", "series")
    dataset.SOPInstanceUID = result_uid(stack, producer, "rtstruct", "instance", digest)


def _digest(names: Sequence[str], labels: Sequence[Label], structures: Sequence[Sequence[_Contour]]) -> str:
    content = sha256()
    for name, label, contours in zip(names, labels, structures, strict=True):
        content.update(repr((name, label.value, label.rgb, [str(code) for code in label.codes])).encode())
        for contour in contours:
            content.update(f"{contour.frame.sop_instance}#{contour.frame.number}:{contour.text}\n".encode())
    return content.hexdigest()


def _images(source: Dataset, stack: Stack) -> Dataset:
    """Return the item that says which frame of reference, study, series and images the structures refer to."""
    series = Dataset()
    series.SeriesInstanceUID = source.SeriesInstanceUID
    series.ContourImageSequence = [
        _reference(sop_class, instance)
        for instance, sop_class in {frame.sop_instance: frame.sop_class for frame in stack.frames}.items()
    ]
    study = _reference(_STUDY_CLASS, source.StudyInstanceUID)
    study.RTReferencedSeriesSequence = [series]
    item = Dataset()
    item.FrameOfReferenceUID = source.FrameOfReferenceUID
    item.RTReferencedStudySequence = [study]
    return item


def _reference(sop_class: str, instance: str, number: int = 0) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = sop_class
    item.ReferencedSOPInstanceUID = instance
    if number:
        item.ReferencedFrameNumber = number
    return item


def _structure(number: int, name: str, uid: str, about: str) -> Dataset:
    item = Dataset()
    item.ROINumber = number
    item.ReferencedFrameOfReferenceUID = uid
    item.ROIName = name
    item.ROIGenerationAlgorithm = "AUTOMATIC"
    item.ROIGenerationDescription = about
    return item


def _drawing(label: Label, contours: Sequence[_Contour]) -> Dataset:
    item = Dataset()
    item.ROIDisplayColor = list(label.rgb)
    item.ReferencedROINumber = label.value
    if contours:
        item.ContourSequence = [_contour(contour) for contour in contours]
    return item


def _contour(contour: _Contour) -> Dataset:
    item = Dataset()
    item.ContourImageSequence = [_reference(contour.frame.sop_class, contour.frame.sop_instance, contour.frame.number)]
    item.ContourGeometricType = "CLOSED_PLANAR"
    item.NumberOfContourPoints = contour.count
    item.add(DataElement("ContourData", "DS", contour.text, already_converted=True))  # pydicom would parse each number
    return item


def _observation(number: int, label: Label) -> Dataset:
    item = Dataset()
    item.ObservationNumber = number
    item.ReferencedROINumber = label.value
    if label.code:
        item.RTROIIdentificationCodeSequence = [_code(label.code)]
        if label.modifier:
            item.RTROIIdentificationCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [_code(label.modifier)]
    item.RTROIInterpretedType = "ORGAN"
    item.ROIInterpreter = ""
    return item


def _code(code: Code) -> Dataset:
    item = Dataset()
    setattr(item, "CodeValue" if len(code.value) <= 16 else "LongCodeValue", code.value)
    item.CodingSchemeDesignator = fit(code.scheme, 16)
    item.CodeMeaning = fit(code.meaning, 64)
    return item


def _names(labels: Sequence[Label]) -> list[str]:
    """Return the names of labels as ROIName can hold them: at most 64 characters, no two alike."""
    names: list[str] = []
    for label in labels:
        name = fit(label.name, 64) or "label"
        names.append(name if name not in names else f"{name[:58]} {label.value}")
    return names


def _encoded(dataset: Dataset) -> bytes:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta = meta
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()
