"""Volumes as a structured report: counted by hand, read by highdicom, DCMTK and dcmqi, held up to the validator."""

import io
import json
import os
import shutil
import subprocess
from pathlib import Path

import highdicom
import numpy as np
import pytest
from conftest import rotation
from phantoms import body, headers, organ, series, stack_of, store
from pydicom import dcmread
from pydicom.sr.codedict import codes

from medseg.dicom.frames import Producer, grid_of
from medseg.dicom.seg_writer import encode_segmentation
from medseg.dicom.sr_writer import encode_report
from medseg.errors import UsageError
from medseg.geometry import Geometry
from medseg.plan import Code, Label
from medseg.volume import LabelMap, Source, Stack, overlaid

PRODUCER = Producer("abdomen", "1.2", "ab" * 32)
KIDNEY = Label(
    value=1,
    name="kidney_left",
    code=Code(value="64033007", meaning="Kidney"),
    modifier=Code(value="7771000", meaning="Left"),
)
SPOT, NOTHING = Label(value=2, name="spot"), Label(value=7, name="nothing")
LABELS = (KIDNEY, SPOT, NOTHING)


def labelled(folder, *, labels=LABELS, shape=(40, 32, 12), **options) -> LabelMap:
    """Return a label map on the frames of a new series: an organ, one voxel in a corner, and a label without voxels."""
    stack = stack_of(store(series(body(shape), **options), folder / "scan"))
    geometry = grid_of(stack)
    array = np.zeros(shape, np.uint8)
    array[organ(shape)] = 1
    array[0, 0, 0] = 2
    return LabelMap(array, geometry, labels, Source(folder, "dicom", stack=stack))


def segmented(labels: LabelMap) -> bytes:
    """Return a DICOM SEG of the labels, made by highdicom alone."""
    algorithm = highdicom.AlgorithmIdentificationSequence("a", codes.DCM.ArtificialIntelligence, "1")
    segments = [
        highdicom.seg.SegmentDescription(
            number, label.name, codes.SCT.AnatomicalStructure, codes.SCT.Liver, "AUTOMATIC",
            algorithm_identification=algorithm, tracking_uid=f"1.2.3.{number}", tracking_id=label.name,
        )
        for number, label in enumerate(labels.labels, start=1)
    ]  # fmt: skip
    pixels = np.stack([labels.mask(label.name) for label in labels.labels], axis=-1).astype(np.uint8)
    seg = highdicom.seg.Segmentation(
        headers(labels.source.stack), pixels.transpose(2, 1, 0, 3), "BINARY", segments,
        "1.2.3.100", 1, "1.2.3.101", 1, "m", "m", "1", "1",
    )  # fmt: skip
    buffer = io.BytesIO()
    seg.save_as(buffer)
    return buffer.getvalue()


def read(encoded: bytes):
    return highdicom.sr.Comprehensive3DSR.from_dataset(dcmread(io.BytesIO(encoded)))


def groups_of(encoded: bytes):
    content = read(encoded).content
    return content.get_volumetric_roi_measurement_groups() or content.get_image_measurement_groups()


def volumes_of(encoded: bytes) -> list[float]:
    measurements = [group.get_measurements() for group in groups_of(encoded)]
    assert {str(m.unit) for each in measurements for m in each} == {str(measurements[0][0].unit)}
    assert measurements[0][0].unit.value == "mL"
    assert all(m.name == codes.SCT.Volume for each in measurements for m in each)
    return [measurement.value for (measurement,) in measurements]


TURNED = tuple(np.round(rotation(3)[:2].ravel(), 8).tolist())
KINDS = {
    "axial": {},
    "one slice": {"shape": (40, 32, 1)},
    "sagittal": {"orientation": (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)},
    "coronal": {"orientation": (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)},
    "flipped": {"orientation": (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0)},
    "oblique": {"orientation": TURNED},
    "tilted": {"slant": (0.0, 0.7, 0.0)},
    "thick": {"spacing": (0.31, 0.37), "step": 7.5},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("with_seg", [False, True])
def test_volumes_are_voxels_times_their_size(tmp_path, kind, with_seg):
    labels = labelled(tmp_path, **KINDS[kind])
    spacing, step = KINDS[kind].get("spacing", (0.8, 0.9)), KINDS[kind].get("step", 2.5)
    voxel = spacing[0] * spacing[1] * (1.0 if kind == "one slice" else step) / 1000
    counts = [(labels.array == value).sum() for value in (1, 2, 7)]
    assert counts[1:] == [1, 0]
    found = volumes_of(encode_report(labels, PRODUCER, segmentation=segmented(labels) if with_seg else None))
    np.testing.assert_allclose(found, [count * voxel for count in counts], rtol=1e-6)


def test_overlapping_labels_each_have_their_own_volume(tmp_path):
    known = labelled(tmp_path)
    masks = [np.zeros(known.geometry.shape, bool) for _ in range(2)]
    masks[0][:10, :10, :5] = True
    masks[1][5:15, :10, :5] = True
    whole = overlaid(zip((KIDNEY, SPOT), masks, strict=True), known.geometry, known.source)
    np.testing.assert_allclose(volumes_of(encode_report(whole, PRODUCER)), [0.9, 0.9], rtol=1e-6)  # 500 x 1.8 mm3


def test_labels_on_another_grid_than_the_frames_keep_their_own_voxels(tmp_path):
    stack = labelled(tmp_path).source.stack
    geometry = Geometry(grid_of(stack).affine @ np.diag([2.0, 2.0, 2.0, 1.0]), (20, 16, 6))
    array = np.zeros(geometry.shape, np.uint8)
    array[5, 5, 2] = 1
    encoded = encode_report(LabelMap(array, geometry, (KIDNEY,), Source(tmp_path, "dicom", stack=stack)), PRODUCER)
    np.testing.assert_allclose(volumes_of(encoded), [8 * 1.8 / 1000], rtol=1e-6)
    assert {image.referenced_sop_instance_uid for image in groups_of(encoded)[0].source_images} >= {
        stack.frames[4].sop_instance
    }


def test_codes_sides_and_names_are_told(tmp_path):
    lesion = Label(value=3, name="tumour", code=Code(value="108369006", meaning="Tumor", scheme="SCT"))
    upper = Label(value=4, name="lobe", code=KIDNEY.code, modifier=Code(value="261183002", meaning="Upper"))
    groups = groups_of(encode_report(labelled(tmp_path, labels=(KIDNEY, SPOT, lesion, upper)), PRODUCER))
    assert [(g.finding_type.value, g.finding_type.scheme_designator) for g in groups][::2] == [
        ("64033007", "SCT"),
        ("108369006", "SCT"),
    ]
    assert (groups[1].finding_type.scheme_designator, groups[1].finding_type.meaning) == ("99MEDSEG", "spot")
    (site,) = groups[0].finding_sites
    assert (site.value.value, site.laterality.value, site.topographical_modifier) == ("64033007", "7771000", None)
    assert (groups[3].finding_sites[0].laterality, groups[3].finding_sites[0].topographical_modifier.value) == (
        None,
        "261183002",
    )
    assert not groups[1].finding_sites
    assert not groups[2].finding_sites
    assert [g.tracking_identifier for g in groups] == ["kidney_left", "spot", "tumour", "lobe"]
    assert len({g.tracking_uid for g in groups}) == 4


@pytest.mark.parametrize("name", ["x" * 200, "a\\b", "左腎", "line\nbreak", "\\", "naïve^=^"])
def test_odd_names_make_a_legal_code(tmp_path, name):
    encoded = encode_report(labelled(tmp_path, labels=(Label(value=1, name=name), SPOT)), PRODUCER)
    first, second = (group.finding_type for group in groups_of(encoded))
    assert 0 < len(first.meaning) <= 64
    assert not {"\\", "\n"} & {*first.meaning}
    assert first.value != second.value
    if name == "左腎":
        assert first.meaning == name


def test_private_codes_depend_on_the_name_alone(tmp_path):
    one = groups_of(encode_report(labelled(tmp_path / "1"), PRODUCER))[1]
    other = Label(value=1, name="spot")
    two = groups_of(encode_report(labelled(tmp_path / "2", labels=(other,)), Producer("b", "2", "cd" * 32)))[0]
    assert one.finding_type == two.finding_type


def test_each_group_refers_to_its_segment_and_to_the_series(tmp_path):
    labels = labelled(tmp_path)
    encoded = encode_report(labels, PRODUCER, segmentation=segmented(labels))
    for number, group in enumerate(groups_of(encoded), start=1):
        segment = group.referenced_segment
        assert segment.referenced_sop_instance_uid == "1.2.3.101"
        assert segment.referenced_segment_numbers == [number]
        assert segment.source_series_for_segmentation.value == headers(labels.source.stack)[0].SeriesInstanceUID
        assert group.tracking_uid == f"1.2.3.{number}"  # the SEG's own
    evidence = {uids[2] for uids in read(encoded).get_evidence()}
    assert evidence == {"1.2.3.101", *(frame.sop_instance for frame in labels.source.stack.frames)}


@pytest.mark.parametrize("labelmap", [False, True])
def test_it_refers_to_the_segments_that_medseg_writes(tmp_path, labelmap):
    labels = labelled(tmp_path)
    seg = encode_segmentation(labels, PRODUCER, labelmap=labelmap)
    numbers = {s.SegmentLabel: s.SegmentNumber for s in dcmread(io.BytesIO(seg)).SegmentSequence}
    encoded = encode_report(labels, PRODUCER, segmentation=seg)
    np.testing.assert_allclose(volumes_of(encoded), [(labels.array == 1).sum() * 1.8 / 1000, 0.0018, 0])
    for group, label in zip(groups_of(encoded), LABELS, strict=True):
        assert group.referenced_segment.referenced_segment_numbers == [numbers[label.name]]


def test_without_a_segmentation_each_group_refers_to_the_images_in_which_it_lies(tmp_path):
    labels = labelled(tmp_path)
    frames = labels.source.stack.frames
    groups = groups_of(encode_report(labels, PRODUCER))
    for group, label in zip(groups, LABELS, strict=True):
        lies = labels.mask(label.name).any(axis=(0, 1))
        expected = {frame.sop_instance for frame, there in zip(frames, lies, strict=True) if there}
        assert {image.referenced_sop_instance_uid for image in group.source_images} == expected


def test_frames_of_one_object_are_told_by_number(tmp_path):
    labels = labelled(tmp_path)
    stack = labels.source.stack
    first = stack.frames[0]
    frames = tuple(type(first)(first.path, "", 12 - k, first.sop_class, first.sop_instance) for k in range(12))
    source = Source(tmp_path, "dicom", stack=Stack(frames, stack.affines, stack.size))
    groups = groups_of(encode_report(LabelMap(labels.array, labels.geometry, LABELS, source), PRODUCER))
    (image,) = groups[1].source_images
    assert image.referenced_frame_numbers == [12]
    (image,) = groups[0].source_images
    lies = labels.mask("kidney_left").any(axis=(0, 1))
    assert image.referenced_frame_numbers == sorted(12 - k for k in np.flatnonzero(lies).tolist())


def test_who_made_it_and_that_nobody_verified_it(tmp_path):
    labels = labelled(tmp_path)
    found = read(encode_report(labels, PRODUCER, description="volumes"))
    assert (found.VerificationFlag, found.CompletionFlag, found.PreliminaryFlag) == (
        "UNVERIFIED",
        "COMPLETE",
        "PRELIMINARY",
    )
    assert found.SeriesDescription == "volumes"
    (observer,) = found.content.get_observer_contexts()
    assert observer.observer_type == codes.DCM.Device
    attributes = observer.observer_identifying_attributes
    assert (attributes.manufacturer_name, attributes.model_name, attributes.serial_number) == (
        "medseg",
        "abdomen",
        "1.2",
    )
    text = str(found)
    assert "ab" * 32 in text
    source = headers(labels.source.stack)[0]
    for keyword in ("PatientName", "PatientID", "StudyInstanceUID", "AccessionNumber"):
        assert found[keyword].value == source[keyword].value
    assert found.SeriesInstanceUID != source.SeriesInstanceUID


@pytest.mark.parametrize("verdict", ["ok", "check", "refuse"])
def test_the_verdict_is_an_evaluation_in_each_group(tmp_path, verdict):
    for group in groups_of(encode_report(labelled(tmp_path), PRODUCER, verdict=verdict)):
        (evaluation,) = group.get_qualitative_evaluations()
        assert evaluation.name == codes.DCM.QualityAssessment
        assert evaluation.value.value == f"QC-{verdict.upper()}"


def test_uids_are_the_same_again_and_others_for_other_results(tmp_path):
    labels = labelled(tmp_path)
    some = LabelMap(labels.array, labels.geometry, LABELS[:1], labels.source)
    encoded = [
        encode_report(labels, PRODUCER),
        encode_report(labels, PRODUCER, segmentation=segmented(labels)),
        encode_report(labels, Producer("abdomen", "1.3", "ab" * 32)),
        encode_report(some, PRODUCER),
    ]
    again = read(encode_report(labels, PRODUCER))
    found = [(read(one).SOPInstanceUID, read(one).SeriesInstanceUID) for one in encoded]
    assert found[0] == (again.SOPInstanceUID, again.SeriesInstanceUID)
    assert len({uid for pair in found for uid in pair}) == 8


def test_labels_that_make_no_report_are_refused(tmp_path):
    labels = labelled(tmp_path)
    with pytest.raises(UsageError, match="DICOM series"):
        encode_report(LabelMap(labels.array, labels.geometry, LABELS), PRODUCER)
    with pytest.raises(UsageError, match="DICOM series"):
        encode_report(LabelMap(labels.array, labels.geometry, (), labels.source), PRODUCER)
    with pytest.raises(UsageError, match="no verdict 'fine'"):
        encode_report(labels, PRODUCER, verdict="fine")


def test_a_segmentation_of_something_else_is_refused(tmp_path):
    labels = labelled(tmp_path / "1")
    seg = segmented(labels)
    other = labelled(tmp_path / "2", uid="1.2.3")
    some = LabelMap(labels.array, labels.geometry, LABELS[:2], labels.source)
    image = labels.source.stack.frames[0].path.read_bytes()
    for case, encoded, match in [
        (other, seg, "another study"),
        (some, seg, "3 segments for 2 labels"),
        (labels, image, "no DICOM SEG"),
        (labels, b"nonsense", "no DICOM SEG"),
        (labels, seg[:400], "no DICOM SEG"),
    ]:
        with pytest.raises(UsageError, match=match):
            encode_report(case, PRODUCER, segmentation=encoded)


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID"])
def test_a_scan_without_its_uids_is_refused_by_the_name_of_the_attribute(tmp_path, keyword):
    labels = labelled(tmp_path)
    path = labels.source.stack.frames[0].path
    dataset = dcmread(path)
    del dataset[keyword]
    dataset.save_as(path)
    with pytest.raises(UsageError, match=keyword):
        encode_report(labels, PRODUCER)


HEADERS = {
    "as it should be": {},
    "nothing known": dict.fromkeys(
        ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID")
    ),
    "latin": {"PatientName": "Müller^Jürgen", "SpecificCharacterSet": "ISO_IR 100"},
    "japanese": {"PatientName": "Yamada^Tarou=山田^太郎", "SpecificCharacterSet": ["", "ISO 2022 IR 87"]},
    "another modality": {"Modality": "MR"},
}


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("with_seg", [False, True])
def test_the_validator_finds_no_error(tmp_path, header, with_seg):
    if not shutil.which("dciodvfy"):
        pytest.skip("dciodvfy is not installed")
    labels = labelled(tmp_path, **HEADERS[header])
    seg = segmented(labels) if with_seg and header not in {"nothing known", "japanese"} else None  # highdicom
    path = tmp_path / "report.dcm"
    path.write_bytes(encode_report(labels, PRODUCER, segmentation=seg, verdict="check"))
    said = subprocess.run(["dciodvfy", path], capture_output=True, text=True, check=False).stderr
    assert "Comprehensive3DSR" in said
    assert "Error" not in said
    name = HEADERS[header].get("PatientName", "Doe^Jane")
    assert str(dcmread(path).PatientName or "") == (name or "")


@pytest.mark.parametrize("with_seg", [False, True])
def test_dcmtk_shows_the_volumes(tmp_path, with_seg):
    program = shutil.which("dsrdump")
    if not program:
        pytest.skip("dsrdump is not installed")
    labels, path = labelled(tmp_path), tmp_path / "report.dcm"
    path.write_bytes(encode_report(labels, PRODUCER, segmentation=segmented(labels) if with_seg else None))
    shown = subprocess.run([program, path], capture_output=True, text=True, check=True).stdout
    count = (labels.array == 1).sum()
    for ml in (count * 1.8 / 1000, 0.0018, 0.0):
        assert f'"Volume")="{ml:.9g}' in shown
    assert "UNVERIFIED" in shown


def test_dcmqi_reads_the_volumes(tmp_path):
    judges = os.environ.get("MEDSEG_JUDGES")
    if not judges:
        pytest.skip("MEDSEG_JUDGES names no folder of outside judges")
    labels, path, out = labelled(tmp_path), tmp_path / "report.dcm", tmp_path / "report.json"
    path.write_bytes(encode_report(labels, PRODUCER, segmentation=segmented(labels), verdict="ok"))
    program = Path(judges) / "tid1500reader"
    subprocess.run([program, "--inputDICOM", path, "--outputMetadata", out], capture_output=True, check=True)
    groups = json.loads(out.read_text())["Measurements"]
    assert [group["TrackingIdentifier"] for group in groups] == ["kidney_left", "spot", "nothing"]
    assert [group["ReferencedSegment"] for group in groups] == [1, 2, 3]
    values = [float(item["value"]) for group in groups for item in group["measurementItems"]]
    np.testing.assert_allclose(values, [(labels.array == 1).sum() * 1.8 / 1000, 0.0018, 0], rtol=1e-6)
