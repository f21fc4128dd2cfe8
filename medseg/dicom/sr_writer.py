"""Volumes as a DICOM structured report: a Measurement Report (TID 1500, PS3.16) that an archive keeps beside the scan.

Each label is one measurement group: with a DICOM SEG a volumetric region of interest (TID 1411) that refers to its
segment, else a group of measurements of the images in which the label lies (TID 1501).
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
from highdicom import sr
from highdicom.coding_schemes import CodingSchemeIdentificationItem
from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError
from pydicom.sr.codedict import codes
from pydicom.uid import SegmentationStorage

from medseg import __version__
from medseg.dicom.frames import Producer, labels_on, result_uid, uid_of
from medseg.dicom.privacy import quiet, scrub
from medseg.dicom.study import UTF_8, fit, inherit, study_header
from medseg.errors import OutputError, UsageError
from medseg.plan import Code, Label
from medseg.volume import LabelMap, Stack

Group = sr.VolumetricROIMeasurementsAndQualitativeEvaluations | sr.MeasurementsAndQualitativeEvaluations

SCHEME = "99MEDSEG"  # private codes: labels without a code, by their name, and the verdict of the quality check
SERIES_NUMBER = 902
_MILLILITRES = sr.CodedConcept("mL", "UCUM", "milliliter")
_VERDICTS = {
    "ok": "Quality check passed",
    "check": "Quality check: a person should look",
    "refuse": "Quality check failed: do not use",
}
_SIDES = {"7771000", "24028007", "51440002", "66459002"}  # CID 244: left, right, both, one
_PROCEDURES = {  # CID 100
    "CT": codes.LN.CTUnspecifiedBodyRegion,
    "MR": codes.LN.MRIUnspecifiedBodyRegion,
    "PT": codes.LN.PETUnspecifiedBodyRegion,
    "NM": codes.LN.NMUnspecifiedBodyRegion,
}
_SEGMENTATIONS = {SegmentationStorage, "1.2.840.10008.5.1.4.1.1.66.7"}  # and Label Map Segmentation
_HINT_SEG = "give the DICOM SEG that medseg wrote for the same labels, or none"


def encode_report(
    labels: LabelMap,
    producer: Producer,
    *,
    segmentation: bytes | None = None,
    verdict: str = "",
    description: str = "",
) -> bytes:
    """Return a DICOM file: a Comprehensive 3D SR with the volume in mL of each label, not verified by anyone.

    Parameters
    ----------
    labels : LabelMap
        Made from a DICOM series; a label without voxels is reported with 0 mL.
    producer : Producer
        The model: the observer and the algorithm of the report.
    segmentation : bytes, optional
        The DICOM SEG of the same labels: segment n is the nth label. The groups then refer to its segments.
    verdict : str
        Of the quality check: 'ok', 'check' or 'refuse'; a qualitative evaluation in each group.
    description : str
        Of the series; the model's name when left out.

    Raises
    ------
    UsageError
        If the labels do not come from a DICOM series, there are none, the scan lacks its UIDs, or `segmentation` is
        not a SEG of them.
    OutputError
        If the header of the scan does not allow a report.
    """
    stack = labels.source.stack if labels.source else None
    if stack is None or not labels.labels:
        raise UsageError(
            "a report needs labels of a DICOM series", hint="segment a DICOM series, or write a table instead"
        )
    if verdict and verdict not in _VERDICTS:
        raise UsageError(f"no verdict {verdict!r}", hint=f"choose one of: {', '.join(_VERDICTS)}")
    source = study_header(stack)
    segments = _read_segments(segmentation, source, len(labels.labels)) if segmentation else None
    case = _Case(labels, stack, producer, source, segments)
    buffer = io.BytesIO()
    try:
        with quiet():
            groups = [_group(found, producer, verdict) for found in _findings(case)]
            report = _report(case, groups, fit(description) or fit(f"medseg {producer.name}"))
            report.save_as(buffer, enforce_file_format=True)
    except (ValueError, TypeError, AttributeError, LookupError) as error:
        raise OutputError(
            f"the report cannot be made from the scan's header ({scrub(error)})",
            hint="write the volumes as a table, and tell us of this",
        ) from None
    return buffer.getvalue()


@dataclass(frozen=True)
class _Case:
    """Labels, the frames they were made from, by whom, the scan's header, and the SEG where there is one."""

    labels: LabelMap
    stack: Stack
    producer: Producer
    source: Dataset
    segments: Dataset | None

    def uid(self, *parts: str) -> str:
        """Return a UID of this result: of its labels and of the SEG that it refers to as well."""
        names = [label.name for label in self.labels.labels]
        seg = [self.segments.SOPInstanceUID] if self.segments else []
        return result_uid(self.stack, self.producer, "sr", *parts, *names, *seg)


@dataclass(frozen=True)
class _Finding:
    """One label: its volume, by which UID it is tracked, and where it is: a segment, or images."""

    label: Label
    ml: float
    tracking: str
    segment: sr.ReferencedSegment | None
    images: tuple[sr.SourceImageForMeasurementGroup, ...]


def _findings(case: _Case) -> Iterator[_Finding]:
    labels, segments = case.labels, case.segments
    counts = labels.counts()
    planes = [] if segments else [np.bincount(plane.ravel()) for plane in labels_on(case.stack, labels).T]
    for number, label in enumerate(labels.labels, start=1):
        ml = float(f"{counts[label.name] * labels.geometry.voxel_volume / 1000:.9g}")
        tracking = result_uid(case.stack, case.producer, "tracking", label.name)
        if segments is None:
            lies = [any(per_atom[atom : atom + 1].any() for atom in label.atoms) for per_atom in planes]
            yield _Finding(label, ml, tracking, None, tuple(_images(case.stack, lies)))
        else:
            tracking = segments.SegmentSequence[number - 1].get("TrackingUID") or tracking
            series = sr.SourceSeriesForSegmentation(case.source.SeriesInstanceUID)  # one item, not one for each slice
            where = sr.ReferencedSegment(
                segments.SOPClassUID, segments.SOPInstanceUID, segment_number=number, source_series=series
            )
            yield _Finding(label, ml, tracking, where, ())


def _images(stack: Stack, lies: Sequence[bool]) -> Iterator[sr.SourceImageForMeasurementGroup]:
    """Yield a reference to each object that holds one of the frames, with their numbers where it holds several."""
    numbers: dict[tuple[str, str], list[int]] = {}
    for frame, chosen in zip(stack.frames, lies, strict=True):
        if chosen:
            numbers.setdefault((frame.sop_class, frame.sop_instance), []).append(frame.number)
    for (sop_class, sop_instance), frames in numbers.items():
        yield sr.SourceImageForMeasurementGroup(sop_class, sop_instance, sorted(filter(None, frames)) or None)


def _group(found: _Finding, producer: Producer, verdict: str) -> Group:
    label = found.label
    concept = concept_of(label)
    parts: dict[str, Any] = {
        "tracking_identifier": sr.TrackingIdentifier(found.tracking, fit(label.name) or concept.meaning),
        "finding_type": concept,
        "finding_sites": [_site(concept, label.modifier)] if label.modifier else None,
        "algorithm_id": sr.AlgorithmIdentification(
            _told(producer.name),
            _told(producer.version),
            parameters=[f"sha256 of the weights: {_told(producer.sha256)}"],
            manufacturer="medseg",
        ),
        "measurements": [
            sr.Measurement(
                codes.SCT.Volume, found.ml, _MILLILITRES, method=codes.DCM.SumOfSegmentedVoxelMethodForVolume
            )
        ],
    }
    if verdict:
        value = sr.CodedConcept(f"QC-{verdict}".upper(), SCHEME, _VERDICTS[verdict])
        parts["qualitative_evaluations"] = [sr.QualitativeEvaluation(codes.DCM.QualityAssessment, value)]
    if found.segment is None:
        return sr.MeasurementsAndQualitativeEvaluations(**parts, source_images=found.images)
    return sr.VolumetricROIMeasurementsAndQualitativeEvaluations(**parts, referenced_segment=found.segment)


def concept_of(label: Label) -> sr.CodedConcept:
    """Return the code of a label, or a private one that depends on nothing but its name."""
    name = fit(label.name) or f"label {label.value}"
    if label.code is None:
        return sr.CodedConcept(sha256(label.name.encode()).hexdigest()[:16], SCHEME, name)
    return _concept(label.code, name)


def _concept(code: Code, otherwise: str) -> sr.CodedConcept:
    return sr.CodedConcept(fit(code.value), fit(code.scheme, 16), fit(code.meaning) or otherwise)


def _site(concept: sr.CodedConcept, modifier: Code) -> sr.FindingSite:
    """Return where the finding is: the template keeps a side, or another modifier, with the site alone."""
    coded = _concept(modifier, "modifier")
    if modifier.value in _SIDES:
        return sr.FindingSite(concept, laterality=coded)
    return sr.FindingSite(concept, topographical_modifier=coded)


def _report(case: _Case, groups: Sequence[Group], description: str) -> sr.Comprehensive3DSR:
    producer, source = case.producer, case.source
    english = sr.LanguageOfContentItemAndDescendants(sr.CodedConcept("en", "RFC5646", "English"))
    return sr.Comprehensive3DSR(
        evidence=[*_evidence(case.stack, source), *([case.segments] if case.segments else [])],
        content=sr.MeasurementReport(
            observation_context=sr.ObservationContext(observer_device_context=_observer(producer)),
            procedure_reported=_PROCEDURES.get(source.get("Modality", ""), codes.SCT.ImagingProcedure),
            imaging_measurements=groups,
            title=codes.DCM.ImagingMeasurementReport,
            language_of_content_item_and_descendants=english,
        ),
        series_instance_uid=case.uid("series"),
        series_number=SERIES_NUMBER,
        sop_instance_uid=case.uid(),
        instance_number=1,
        manufacturer="medseg",
        is_complete=True,  # all that was asked is in it; final and verified are for people to say
        series_description=description,
        manufacturer_model_name=_told(producer.name),
        software_versions=(__version__, _told(producer.version)),
        device_serial_number=_told(producer.sha256),
        coding_schemes=[CodingSchemeIdentificationItem(SCHEME, name="medseg", responsible_organization="medseg")],
        specific_character_set=UTF_8,
    )


def _observer(producer: Producer) -> sr.ObserverContext:
    device = sr.DeviceObserverIdentifyingAttributes(
        uid=uid_of("medseg", producer.name, producer.version, producer.sha256),
        name=fit(f"{producer.name} {producer.version}") or "unknown",
        manufacturer_name="medseg",
        model_name=_told(producer.name),
        serial_number=_told(producer.version),
    )
    return sr.ObserverContext(codes.DCM.Device, device)


def _told(text: str) -> str:
    return fit(text) or "unknown"


def _evidence(stack: Stack, source: Dataset) -> list[Dataset]:
    """Return the source, and what is needed to refer to the other objects of its series."""
    first = inherit(source)  # highdicom copies all that it finds of patient and study: history, physicians, comments
    for keyword in ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID"):
        first.add(source[keyword])
    found = {source.SOPInstanceUID: first}
    for frame in stack.frames:
        if frame.sop_instance not in found:
            other = found[frame.sop_instance] = Dataset()
            other.SOPClassUID, other.SOPInstanceUID = frame.sop_class, frame.sop_instance
            other.StudyInstanceUID, other.SeriesInstanceUID = source.StudyInstanceUID, source.SeriesInstanceUID
    return list(found.values())


def _read_segments(segmentation: bytes, source: Dataset, count: int) -> Dataset:
    """Return the dataset of a SEG, without its pixels, or refuse one that is not of these labels."""
    try:
        with quiet():
            found = dcmread(io.BytesIO(segmentation), stop_before_pixels=True)
            found.SegmentSequence = [
                s for s in found.SegmentSequence if s.SegmentNumber
            ]  # 0: background of a label map
            numbers = [int(segment.SegmentNumber) for segment in found.SegmentSequence]
            studies = {found.StudyInstanceUID, source.StudyInstanceUID}
            known = found.SOPClassUID in _SEGMENTATIONS
    except (InvalidDicomError, ValueError, TypeError, AttributeError, EOFError) as error:
        raise UsageError(f"the segmentation is no DICOM SEG ({scrub(error)})", hint=_HINT_SEG) from None
    if not known or len(studies) > 1:
        problem = "belongs to another study" if known else "is no DICOM SEG"
        raise UsageError(f"the segmentation {problem}", hint=_HINT_SEG)
    if numbers != list(range(1, count + 1)):
        raise UsageError(f"the segmentation has {len(numbers)} segments for {count} labels", hint=_HINT_SEG)
    return found
