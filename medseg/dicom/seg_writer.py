"""Label maps as DICOM Segmentation objects (SEG), on the very frames of the series that the scan was read from.

PS3.3 A.51 (Segmentation) and A.90 (Label Map Segmentation). highdicom gives the parts: patient and study, segments,
colours, functional groups. They are put together here, because its own `Segmentation` wants a voxel for each label
where labels overlap, patient data without a flaw, and a result for all frames of a multi-frame object.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from highdicom import PixelMeasuresSequence, PlaneOrientationSequence, SOPClass
from highdicom.sr import CodedConcept
from pydicom import Dataset
from pydicom.encaps import encapsulate
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.pixels.encoders.base import RLELosslessEncoder
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, RLELossless, SegmentationStorage
from pydicom.valuerep import format_number_as_ds

from medseg import __version__
from medseg.dicom.frames import OFF_MM, OFF_STEPS, RAS, Producer, labels_on, result_uid
from medseg.dicom.privacy import quiet
from medseg.dicom.seg_segments import MAKER, describe
from medseg.dicom.study import UTF_8, fit, header_to_refer_to, inherit
from medseg.errors import UsageError
from medseg.plan import Label
from medseg.volume import LabelMap, Stack

Pixels = npt.NDArray[np.unsignedinteger[Any]]

SERIES_NUMBER = 900
LABELMAP_CLASS = "1.2.840.10008.5.1.4.1.1.66.7"  # Label Map Segmentation Storage
_DERIVATION = CodedConcept.from_code(codes.DCM.Segmentation)
_PURPOSE = CodedConcept.from_code(codes.DCM.SourceImageForImageProcessingOperation)
_PIXELS = 0x7FE00010
_MOST_BITS = (1 << 35) - 256  # a length field has 32 bits
UNDEFINED = 0xFFFFFFFF
_END = b"\xfe\xff\xdd\xe0\0\0\0\0"  # sequence delimitation item
_FAULTS = (ArithmeticError, AttributeError, LookupError, NotImplementedError, TypeError, ValueError)


def encode_segmentation(
    labels: LabelMap, producer: Producer, *, labelmap: bool = False, description: str = ""
) -> bytes:
    """Return a DICOM SEG file with a segment for each label, on the frames that the scan was read from.

    Parameters
    ----------
    labels : LabelMap
        Its source names the frames; on another grid than theirs, each pixel takes the nearest voxel.
    producer : Producer
        The model, for the UIDs and the identification of the algorithm.
    labelmap : bool
        One frame of segment numbers for each plane (RLE), instead of one of bits for each plane and segment: smaller
        and faster for many labels, but they must not overlap, and older viewers cannot read it.
    description : str
        Series description; "medseg" and the model's name when left out.

    Raises
    ------
    UsageError
        If the labels come from no DICOM series, the series lacks a UID that the object needs, its frames are not
        parallel, or labels overlap in a label map.

    Notes
    -----
    Planes without a voxel of a segment are left out. A result without any voxel holds one empty frame for each
    segment, so that "looked for and not found" can be told from "not looked for". The UIDs depend on the frames, the
    names and values of the labels, and the model alone.
    """
    stack = labels.source.stack if labels.source else None
    if stack is None:
        raise UsageError("the labels come from no DICOM series", hint="write NIfTI, or predict from a DICOM series")
    if not labels.labels:
        raise UsageError("a DICOM SEG needs a label", hint="give a label map with named labels")
    source = header_to_refer_to(stack)
    pixels = labels_on(stack, labels).T
    held = [{*np.flatnonzero(np.bincount(plane.ravel())).tolist()} for plane in pixels]
    overlap = _overlap(labels.labels, set().union(*held))
    if labelmap and overlap:
        raise UsageError("labels overlap, which a label map cannot hold", hint="write a binary DICOM SEG")
    names = [f"{label.value} {label.name}" for label in labels.labels]
    series, instance, organization = (
        result_uid(stack, producer, "labelmap seg" if labelmap else "seg", what, *names)
        for what in ("series", "instance", "dimensions")
    )
    dataset = _object(source, (series, instance), description or f"medseg {producer.name}", labelmap=labelmap)
    dataset.SegmentsOverlap = "YES" if overlap else "NO"
    dataset.SegmentSequence = describe(labels.labels, producer, stack)
    dataset.ReferencedSeriesSequence = [_references(stack, source)]
    dataset.SharedFunctionalGroupsSequence = [_shared_groups(stack, source)]
    dataset.Columns, dataset.Rows = stack.size
    _add_dimensions(dataset, organization, labelmap=labelmap)
    frames, encoded = (_add_labelmap if labelmap else _add_binary)(dataset, labels.labels, pixels, held)
    dataset.NumberOfFrames = len(frames)
    file = io.BytesIO()
    with quiet():
        dataset.save_as(file, enforce_file_format=True)
    return b"".join((file.getvalue(), _frame_groups(frames, stack), encoded))  # in order of their tags


def _overlap(labels: Sequence[Label], present: set[int]) -> bool:
    """Return whether two labels share a voxel."""
    atoms = [atom for label in labels for atom in {*label.atoms} & present]
    return len({*atoms}) < len(atoms)


def _object(source: Dataset, uids: tuple[str, str], description: str, *, labelmap: bool) -> SOPClass:
    """Return the object without segments and frames: same patient, study and frame of reference as the source."""
    dataset = SOPClass(
        study_instance_uid=source.StudyInstanceUID,
        series_instance_uid=uids[0],
        series_number=SERIES_NUMBER,
        sop_instance_uid=uids[1],
        sop_class_uid=LABELMAP_CLASS if labelmap else SegmentationStorage,
        instance_number=1,
        modality="SEG",
        manufacturer=MAKER,
        manufacturer_model_name=MAKER,
        device_serial_number="0",
        software_versions=__version__,
        series_description=fit(description),
        transfer_syntax_uid=RLELossless if labelmap else ExplicitVRLittleEndian,
        specific_character_set=UTF_8,
        patient_id="",
    )
    for element in inherit(source):
        dataset.add(element)
    dataset.FrameOfReferenceUID = source.FrameOfReferenceUID
    dataset.PositionReferenceIndicator = source.get("PositionReferenceIndicator") or ""
    dataset.SegmentationType = "LABELMAP" if labelmap else "BINARY"
    dataset.ImageType = ["DERIVED", "PRIMARY"]
    dataset.ContentLabel = "SEGMENTATION"
    dataset.ContentDescription = fit(description)
    dataset.ContentCreatorName = f"{MAKER}^"
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.PixelRepresentation = 0
    dataset.PresentationLUTShape = "IDENTITY"
    lossy = source.get("LossyImageCompression") == "01"
    dataset.LossyImageCompression = "01" if lossy else "00"
    for keyword in ("LossyImageCompressionRatio", "LossyImageCompressionMethod") if lossy else ():
        if keyword in source:
            dataset[keyword] = source[keyword]
    return dataset


def _references(stack: Stack, source: Dataset) -> Dataset:
    """Return the reference to the series: each object that holds a frame once."""
    series = Dataset()
    series.SeriesInstanceUID = source.SeriesInstanceUID
    objects = {frame.sop_instance: frame.sop_class for frame in stack.frames}
    series.ReferencedInstanceSequence = [_reference(sop_class, instance) for instance, sop_class in objects.items()]
    return series


def _reference(sop_class: str, sop_instance: str) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, sop_instance
    return item


def _shared_groups(stack: Stack, source: Dataset) -> Dataset:
    """Return what all frames share: orientation, size of a pixel, thickness and distance of the planes."""
    affine = stack.affines[0]
    bend = np.abs((stack.affines - affine)[:, :3, :2]).max(axis=0) @ stack.size
    columns = np.linalg.norm(affine[:3, :2], axis=0)
    if bend.max() > 0.1 * columns.min():
        raise UsageError("the frames of the series are not parallel", hint="write the result as NIfTI")
    row, column = (affine[:3, :2] / columns).T @ RAS[:3, :3] + 0.0  # + 0.0: no minus zero
    normal = np.cross(row, column)
    steps = np.diff(stack.affines[:, :3, 3] @ RAS[:3, :3] @ normal)
    step = _step(np.abs(steps))
    groups = Dataset()
    groups.PixelMeasuresSequence = PixelMeasuresSequence(
        pixel_spacing=columns[::-1].tolist(),
        slice_thickness=_thickness(source) or step or float(np.linalg.norm(affine[:3, 2])),
        spacing_between_slices=step,
    )
    groups.PlaneOrientationSequence = PlaneOrientationSequence(
        coordinate_system="PATIENT", image_orientation=[*row.tolist(), *column.tolist()]
    )
    return groups


def _step(rises: npt.NDArray[np.float64]) -> float | None:
    """Return the mm between planes, of which each rise is a multiple: one slice may be missing; None if uneven."""
    if not rises.size:
        return None
    counts = np.rint(rises / rises.min())
    step = float(rises.sum() / counts.sum())
    return step if np.abs(rises - counts * step).max() <= OFF_MM + OFF_STEPS * step else None


def _thickness(source: Dataset) -> float | None:
    """Return the thickness of a slice in mm, where the source tells one."""
    with quiet():
        for holder in ("", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
            try:
                item = source[holder].value[0].PixelMeasuresSequence[0] if holder else source
                thickness = float(item.SliceThickness)
            except _FAULTS:
                continue
            if 0 < thickness < np.inf:
                return thickness
    return None


def _decimals(numbers: Iterable[float]) -> list[str]:
    return [format_number_as_ds(float(number)) for number in numbers]


def _add_dimensions(dataset: Dataset, uid: str, *, labelmap: bool) -> None:
    organization = Dataset()
    organization.DimensionOrganizationUID = uid
    dataset.DimensionOrganizationSequence = [organization]
    dataset.DimensionIndexSequence = []
    pointers = [
        ("ReferencedSegmentNumber", "SegmentIdentificationSequence", "Segment Number"),
        ("ImagePositionPatient", "PlanePositionSequence", "Image Position Patient"),
    ]
    for pointer, group, words in pointers[labelmap:]:
        index = Dataset()
        index.DimensionOrganizationUID = uid
        index.DimensionIndexPointer, index.FunctionalGroupPointer = pointer, group
        index.DimensionDescriptionLabel = words
        dataset.DimensionIndexSequence.append(index)


def _add_labelmap(
    dataset: Dataset, labels: Sequence[Label], pixels: Pixels, held: Sequence[set[int]]
) -> tuple[list[tuple[int, int]], bytes]:
    """Describe frames of segment numbers; return (0, plane) for each frame, and the element of the pixels."""
    background = Dataset()
    background.SegmentNumber, background.SegmentLabel = 0, "Background"
    background.SegmentedPropertyCategoryCodeSequence = [CodedConcept.from_code(codes.DCM.Background)]
    background.SegmentedPropertyTypeCodeSequence = [CodedConcept.from_code(codes.DCM.Background)]
    background.SegmentAlgorithmType = "AUTOMATIC"
    background.SegmentAlgorithmName = dataset.SegmentSequence[0].SegmentAlgorithmName
    dataset.SegmentSequence.insert(0, background)
    dataset.PixelPaddingValue = 0
    table = np.zeros(max(map(max, held)) + 1, np.min_scalar_type(len(labels)))
    for number, label in enumerate(labels, start=1):
        table[[atom for atom in label.atoms if atom < len(table)]] = number
    bits = dataset.BitsAllocated = dataset.BitsStored = table.itemsize * 8
    dataset.HighBit = bits - 1
    used = {atom for label in labels for atom in label.atoms}
    planes = [k for k, atoms in enumerate(held) if atoms & used] or [len(held) // 2]
    frames = [_run_lengths(table[pixels[k]]) for k in planes]
    return [(0, k) for k in planes], _element(_PIXELS, b"OB", encapsulate(frames) + _END, UNDEFINED)


def _run_lengths(plane: Pixels) -> bytes:
    """Return a frame in run lengths. Never by GDCM, which ends the process at frames of a few pixels."""
    plugins = RLELosslessEncoder.available_plugins
    return RLELosslessEncoder.encode(
        np.ascontiguousarray(plane),
        encoding_plugin="pylibjpeg" if "pylibjpeg" in plugins else "pydicom",
        rows=plane.shape[0],
        columns=plane.shape[1],
        number_of_frames=1,
        samples_per_pixel=1,
        bits_allocated=plane.itemsize * 8,
        bits_stored=plane.itemsize * 8,
        pixel_representation=0,
        photometric_interpretation="MONOCHROME2",
    )


def _add_binary(
    dataset: Dataset, labels: Sequence[Label], pixels: Pixels, held: Sequence[set[int]]
) -> tuple[list[tuple[int, int]], bytes]:
    """Describe frames of bits; return (segment number, plane) for each frame, and the element of the pixels."""
    dataset.BitsAllocated = dataset.BitsStored = 1
    dataset.HighBit = 0
    found = [(n, k) for n, label in enumerate(labels, 1) for k, atoms in enumerate(held) if atoms & {*label.atoms}]
    frames = found or [(n, len(held) // 2) for n in range(1, len(labels) + 1)]
    if len(frames) * pixels[0].size > _MOST_BITS:
        raise UsageError("the segments take more than 4 GB as bits", hint="write a label map instead: labelmap=True")
    data = b"".join(_packed(_mask(pixels[k], labels[n - 1].atoms) for n, k in frames))
    return frames, _element(_PIXELS, b"OB", data + b"\0" * (len(data) % 2))


def _mask(plane: Pixels, atoms: Sequence[int]) -> npt.NDArray[np.bool_]:
    return plane == atoms[0] if len(atoms) == 1 else np.isin(plane, atoms)


def _packed(masks: Iterable[npt.NDArray[np.bool_]]) -> Iterator[bytes]:
    """Yield the bits of all masks, one mask directly behind the other, even where one ends within a byte."""
    rest = np.zeros(0, np.bool_)
    for mask in masks:
        bits = np.concatenate([rest, mask.ravel()]) if rest.size else mask.ravel()
        whole = bits.size // 8 * 8
        yield np.packbits(bits[:whole], bitorder="little").tobytes()
        rest = bits[whole:]
    yield np.packbits(rest, bitorder="little").tobytes()


def _frame_groups(frames: Sequence[tuple[int, int]], stack: Stack) -> bytes:
    """Return the per-frame functional groups: (segment number, or 0 in a label map; plane) for each frame.

    As bytes: there may be ten thousand frames, which share a handful of parts, and pydicom would encode each part
    again for each frame.
    """
    ranks = {k: rank for rank, k in enumerate(sorted({k for _, k in frames}), start=1)}
    derivations = {k: _encoded(_derivation(stack, k)) for k in ranks}
    positions = {k: _encoded(_position(stack, k)) for k in ranks}
    segments = {
        n: _encoded(_sequence("SegmentIdentificationSequence", ReferencedSegmentNumber=n))
        for n in {n for n, _ in frames}
    }
    items = []
    for number, k in frames:
        index = struct.pack("<II", number, ranks[k]) if number else struct.pack("<I", ranks[k])
        content = _element(0x00209111, b"SQ", _item(b"\x20\0\x57\x91UL" + struct.pack("<H", len(index)) + index))
        parts = (derivations[k], content, positions[k], segments[number] if number else b"")  # in order of their tags
        items.append(_item(b"".join(parts)))
    return _element(0x52009230, b"SQ", b"".join(items))


def _item(value: bytes) -> bytes:
    return struct.pack("<HHI", 0xFFFE, 0xE000, len(value)) + value


def _element(tag: int, kind: bytes, value: bytes, length: int | None = None) -> bytes:
    """Return an element of a representation with a long length field (PS3.5 section 7.1.2)."""
    return struct.pack("<HH2sHI", tag >> 16, tag & 0xFFFF, kind, 0, len(value) if length is None else length) + value


def _position(stack: Stack, k: int) -> Dataset:
    position = stack.affines[k, :3, 3] @ RAS[:3, :3] + 0.0
    return _sequence("PlanePositionSequence", ImagePositionPatient=_decimals(position))


def _derivation(stack: Stack, k: int) -> Dataset:
    """Return the reference of a plane to the image (or frame of one) on which it lies."""
    frame = stack.frames[k]
    image = _reference(frame.sop_class, frame.sop_instance)
    if frame.number:
        image.ReferencedFrameNumber = frame.number
    image.SpatialLocationsPreserved = "YES"
    image.PurposeOfReferenceCodeSequence = [_PURPOSE]
    return _sequence("DerivationImageSequence", SourceImageSequence=[image], DerivationCodeSequence=[_DERIVATION])


def _sequence(keyword: str, **elements: object) -> Dataset:
    """Return a dataset that holds one sequence of one item with these elements."""
    item, holder = Dataset(), Dataset()
    for name, value in elements.items():
        setattr(item, name, value)
    setattr(holder, keyword, [item])
    return holder


def _encoded(dataset: Dataset) -> bytes:
    file = DicomBytesIO()
    file.is_little_endian, file.is_implicit_VR = True, False
    write_dataset(file, dataset)
    return file.getvalue()
