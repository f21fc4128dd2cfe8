"""DICOM SEG: written and read back voxel by voxel, judged by dciodvfy, dcmqi and highdicom, and damaged on purpose."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import warnings
from pathlib import Path

import highdicom
import nibabel
import numpy as np
import pytest
from conftest import ORDERS, rotation
from phantoms import body, headers, organ, series, stack_of, store
from pydicom import Dataset, Sequence, dcmread
from pydicom.sr.codedict import codes
from pydicom.uid import JPEG2000Lossless, RLELossless

from medseg.dicom.frames import Producer, grid_of, uid_of
from medseg.dicom.seg_reader import read_segmentation, source_instances
from medseg.dicom.seg_writer import encode_segmentation
from medseg.errors import ScanError, UsageError
from medseg.geometry import Geometry
from medseg.plan import Code, Label
from medseg.volume import LabelMap, Source, Stack

PRODUCER = Producer("tiny", "1.2", "ab" * 32)
SHAPE = (40, 32, 12)
LIVER = Label(value=3, name="liver", code=Code(value="10200004", meaning="Liver"), color=(221, 130, 101))
KIDNEY = Label(
    value=700,
    name="left kidney",
    code=Code(value="64033007", meaning="Kidney"),
    modifier=Code(value="7771000", meaning="Left"),
)
PLAIN = Label(value=5, name="Gefäß")
LABELS = (LIVER, KIDNEY, PLAIN)
R = rotation(3)
KINDS = {
    "axial": {},
    "sagittal": {"orientation": (0, 1, 0, 0, 0, -1)},
    "coronal": {"orientation": (1, 0, 0, 0, 0, -1)},
    "oblique": {"orientation": (*R[:, 0], *R[:, 1])},
    "flipped rows": {"orientation": (1, 0, 0, 0, -1, 0)},
    "flipped columns": {"orientation": (-1, 0, 0, 0, 1, 0)},
    "tilted": {"slant": (0, 0.7, 0)},
    "anisotropic": {"spacing": (0.31, 1.7), "step": 7.0},
    "one slice": {"array": body((40, 32, 1))},
    "frames that end within a byte": {"array": body((7, 5, 9))},
}


def atoms(shape=SHAPE) -> np.ndarray:
    """Return two organs that touch, with a hole and an island, and a voxel in two corners."""
    array = np.where(organ(shape), 3, 0).astype(np.uint16)
    array[shape[0] // 2 :][array[shape[0] // 2 :] == 3] = 700
    array[shape[0] // 3, shape[1] // 2, shape[2] // 2] = 0
    array[0, 0, 0] = array[-1, -1, -1] = 5
    return array


def stack_from(tmp_path, **options) -> Stack:
    return stack_of(store(series(**options), tmp_path / "scan"))


def labelled(stack, array=None, labels=LABELS) -> LabelMap:
    array = atoms((*stack.size, len(stack.frames))) if array is None else array
    return LabelMap(array, grid_of(stack), labels, Source(Path("scan"), "dicom", stack=stack))


def read_back(file: bytes, grid=None) -> LabelMap:
    return read_segmentation(Path("result.dcm"), dcmread(io.BytesIO(file)), grid=grid)


def same(found: LabelMap, wanted: LabelMap, *, names=None) -> None:
    assert found.geometry.same_as(wanted.geometry)
    assert [label.name for label in found.labels] == [label.name for label in wanted.labels]
    for label in wanted.labels:
        assert np.array_equal(found.mask(label.name), wanted.mask(label.name)), label.name


def judge(name: str) -> str:
    folder = os.environ.get("MEDSEG_JUDGES")
    if not folder:
        pytest.skip("MEDSEG_JUDGES names no folder of outside judges")
    return str(Path(folder) / name)


def written(labels: LabelMap, path: Path, **options) -> Path:
    path.write_bytes(encode_segmentation(labels, PRODUCER, **options))
    return path


@pytest.mark.parametrize("labelmap", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_read_back_voxel_by_voxel(tmp_path, kind, labelmap):
    wanted = labelled(stack_from(tmp_path, **KINDS[kind]))
    file = encode_segmentation(wanted, PRODUCER, labelmap=labelmap)
    found = read_back(file, wanted.geometry)
    same(found, wanted)
    assert found.array.dtype == np.uint16
    assert np.array_equal(found.array, wanted.array)  # the very values
    assert not found.source.warnings
    assert [label.code for label in found.labels] == [label.code for label in LABELS]
    assert [label.modifier for label in found.labels] == [label.modifier for label in LABELS]
    same(read_back(file), wanted)  # there is a voxel in the first and the last slice


@pytest.mark.parametrize("order", ORDERS)
def test_a_label_map_in_any_of_the_48_orders_gives_the_same_frames(tmp_path, order):
    stack = stack_from(tmp_path, **KINDS["oblique"])
    wanted = labelled(stack)
    turned = LabelMap(
        np.ascontiguousarray(order.apply(wanted.array)), wanted.geometry.reordered(order), LABELS, wanted.source
    )
    file = encode_segmentation(turned, PRODUCER)
    same(read_back(file, wanted.geometry), wanted)
    found = read_back(file, turned.geometry)
    same(found, turned)
    assert not found.source.warnings


def test_labels_that_overlap_are_each_whole(tmp_path):
    stack = stack_from(tmp_path)
    labels = (
        Label(value=1, name="whole", atoms=(3, 700, 5)),
        Label(value=2, name="core", atoms=(700, 5)),
        Label(value=3, name="rim", atoms=(3, 5)),
    )
    wanted = labelled(stack, labels=labels)
    file = encode_segmentation(wanted, PRODUCER)
    assert dcmread(io.BytesIO(file)).SegmentsOverlap == "YES"
    found = read_back(file, wanted.geometry)
    same(found, wanted)
    assert [label.value for label in found.labels] == [1, 2, 3]
    with pytest.raises(UsageError, match="overlap"):
        encode_segmentation(wanted, PRODUCER, labelmap=True)


def test_labels_that_could_overlap_but_do_not_fit_a_label_map(tmp_path):
    labels = (Label(value=1, name="a", atoms=(3, 9)), Label(value=2, name="b", atoms=(700, 9)))
    wanted = labelled(stack_from(tmp_path), labels=labels)
    same(read_back(encode_segmentation(wanted, PRODUCER, labelmap=True), wanted.geometry), wanted)


@pytest.mark.parametrize("labelmap", [False, True])
def test_an_empty_result_names_what_was_looked_for(tmp_path, labelmap):
    stack = stack_from(tmp_path)
    empty = labelled(stack, np.zeros(SHAPE, np.uint8))
    file = encode_segmentation(empty, PRODUCER, labelmap=labelmap)
    found = read_back(file, empty.geometry)
    assert found.counts() == {"liver": 0, "left kidney": 0, "Gefäß": 0}
    same(found, empty)
    assert dcmread(io.BytesIO(file)).NumberOfFrames == (1 if labelmap else 3)


def test_a_label_that_is_not_there_is_still_described(tmp_path):
    array = atoms()
    array[array == 700] = 0
    wanted = labelled(stack_from(tmp_path), array)
    found = read_back(encode_segmentation(wanted, PRODUCER), wanted.geometry)
    same(found, wanted)
    assert found.counts()["left kidney"] == 0


def test_atoms_of_no_label_are_background(tmp_path):
    wanted = labelled(stack_from(tmp_path), labels=(KIDNEY,))
    for labelmap in (False, True):
        found = read_back(encode_segmentation(wanted, PRODUCER, labelmap=labelmap), wanted.geometry)
        assert found.values() == [700]


@pytest.mark.parametrize("labelmap", [False, True])
def test_only_slices_with_voxels_are_stored_and_gaps_between_them_stay(tmp_path, labelmap):
    array = np.zeros(SHAPE, np.uint8)
    array[4:9, 3:6, [2, 7]] = 3
    wanted = labelled(stack_from(tmp_path), array, (LIVER,))
    file = encode_segmentation(wanted, PRODUCER, labelmap=labelmap)
    assert dcmread(io.BytesIO(file)).NumberOfFrames == 2
    found = read_back(file)
    assert found.geometry.same_as(wanted.geometry.cropped((0, 0, 2), (40, 32, 8)))
    assert np.array_equal(found.array, array[..., 2:8])
    same(read_back(file, wanted.geometry), wanted)


def test_the_same_result_has_the_same_uids_and_another_model_others(tmp_path):
    wanted = labelled(stack_from(tmp_path))
    first, again, other = (
        dcmread(io.BytesIO(encode_segmentation(wanted, producer)))
        for producer in (PRODUCER, PRODUCER, Producer("tiny", "1.3", "ab" * 32))
    )
    clock = ("InstanceCreationTime", "ContentTime", "InstanceCreationDate", "ContentDate")
    for dataset in (first, again, other):
        for keyword in clock:
            del dataset[keyword]
    assert first == again
    assert first.SOPInstanceUID != other.SOPInstanceUID
    assert first.SeriesInstanceUID != other.SeriesInstanceUID
    assert (
        first.SOPInstanceUID != dcmread(io.BytesIO(encode_segmentation(wanted, PRODUCER, labelmap=True))).SOPInstanceUID
    )


def test_the_object_says_whose_it_is_and_who_made_it(tmp_path):
    stack = stack_from(tmp_path, PatientName="Müller^Jürgen", PatientComments="x", StudyDescription="y")
    found = dcmread(io.BytesIO(encode_segmentation(labelled(stack), PRODUCER, description="organs")))
    source = headers(stack)[0]
    for keyword in (
        "PatientName",
        "PatientID",
        "StudyInstanceUID",
        "FrameOfReferenceUID",
        "StudyDate",
        "StudyDescription",
    ):
        assert found[keyword].value == source[keyword].value
    assert found.SeriesInstanceUID != source.SeriesInstanceUID
    assert (found.SeriesDescription, found.Modality, found.InstanceNumber) == ("organs", "SEG", 1)
    segment = found.SegmentSequence[0]
    algorithm = segment.SegmentationAlgorithmIdentificationSequence[0]
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("tiny", "1.2")
    assert "ab" * 32 in algorithm.AlgorithmParameters
    assert segment.SegmentAlgorithmType == "AUTOMATIC"
    assert segment.SegmentedPropertyCategoryCodeSequence[0].CodeValue == "91723000"
    assert source_instances(found) == {frame.sop_instance for frame in stack.frames}


def test_each_frame_refers_to_the_image_on_which_it_lies(tmp_path):
    stack = stack_from(tmp_path)
    found = dcmread(io.BytesIO(encode_segmentation(labelled(stack), PRODUCER)))
    places = {str(d.SOPInstanceUID): [float(mm) for mm in d.ImagePositionPatient] for d in headers(stack)}
    for group in found.PerFrameFunctionalGroupsSequence:
        image = group.DerivationImageSequence[0].SourceImageSequence[0]
        position = [float(mm) for mm in group.PlanePositionSequence[0].ImagePositionPatient]
        assert places[image.ReferencedSOPInstanceUID] == position


def test_colours_survive(tmp_path):
    rng = np.random.default_rng(0)
    labels = tuple(
        Label(value=n, name=f"l{n}", color=tuple(int(c) for c in rng.integers(0, 256, 3))) for n in range(1, 61)
    )
    wanted = labelled(stack_from(tmp_path), np.zeros(SHAPE, np.uint8), labels)
    found = read_back(encode_segmentation(wanted, PRODUCER))
    for new, old in zip(found.labels, labels, strict=True):
        assert np.abs(np.subtract(new.color, old.color)).max() <= 1
    plain = read_back(encode_segmentation(labelled(wanted.source.stack), PRODUCER)).labels[2]
    assert np.abs(np.subtract(plain.color, PLAIN.rgb)).max() <= 1


def test_names_that_a_long_string_cannot_hold_are_made_fit_and_stay_apart(tmp_path):
    labels = (Label(value=1, name="a" * 80), Label(value=2, name="a" * 90), Label(value=3, name="x\\y"))
    found = read_back(encode_segmentation(labelled(stack_from(tmp_path), labels=labels), PRODUCER))
    assert [label.name for label in found.labels] == ["a" * 64, "a" * 64 + " (2)", "x y"]


TYPE_TWO = [
    "AccessionNumber",
    "StudyID",
    "PatientBirthDate",
    "PatientSex",
    "ReferringPhysicianName",
    "StudyDate",
    "StudyTime",
]


@pytest.mark.parametrize("labelmap", [False, True])
def test_a_series_without_optional_elements_is_enough(tmp_path, labelmap):
    datasets = series()
    for dataset in datasets:
        for keyword in [*TYPE_TWO, "BodyPartExamined", "PositionReferenceIndicator", "SliceThickness", "PatientID",
                        "PatientName", "SeriesNumber", "SpecificCharacterSet"]:  # fmt: skip
            del dataset[keyword]
    wanted = labelled(stack_of(store(datasets, tmp_path / "scan")))
    file = encode_segmentation(wanted, PRODUCER, labelmap=labelmap)
    dataset = dcmread(io.BytesIO(file))
    for keyword in [*TYPE_TWO, "PatientName", "PatientID", "PositionReferenceIndicator"]:
        assert keyword in dataset, keyword
        assert not dataset[keyword].value
    same(read_back(file, wanted.geometry), wanted)


@pytest.mark.parametrize("keyword", ["FrameOfReferenceUID", "StudyInstanceUID", "SeriesInstanceUID"])
@pytest.mark.parametrize("empty", [False, True])
def test_a_series_without_a_uid_is_refused_by_the_name_of_the_element(tmp_path, keyword, empty):
    datasets = series()
    stack = stack_of(store(datasets, tmp_path / "scan"))
    for frame in stack.frames:
        dataset = dcmread(frame.path)
        if empty:
            dataset[keyword].value = ""
        else:
            del dataset[keyword]
        dataset.save_as(frame.path)
    with pytest.raises(UsageError, match=keyword):
        encode_segmentation(labelled(stack), PRODUCER)


def test_labels_of_no_series_or_without_a_name_are_refused(tmp_path):
    stack = stack_from(tmp_path)
    with pytest.raises(UsageError, match="no DICOM series"):
        encode_segmentation(LabelMap(atoms(), grid_of(stack), LABELS), PRODUCER)
    with pytest.raises(UsageError, match="needs a label"):
        encode_segmentation(labelled(stack, labels=()), PRODUCER)


def test_patient_data_with_flaws_is_carried_over_and_never_told(tmp_path, caplog, recwarn):
    datasets = series()
    stack = stack_of(store(datasets, tmp_path / "scan"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for frame in stack.frames:
            dataset = dcmread(frame.path)
            dataset.PatientName = "CANARY^" + "x" * 80
            dataset.PatientBirthDate = "19CANARY"
            dataset.PatientSex = "CANARY"
            dataset.StudyTime = "CANARY"
            dataset.PatientAge = "CANARY"
            dataset.StudyID = "CANARY" * 9
            dataset.save_as(frame.path)
    caplog.clear()
    file = encode_segmentation(labelled(stack), PRODUCER)
    same(read_back(file), labelled(stack))
    assert "CANARY" not in caplog.text
    found = dcmread(io.BytesIO(file))
    assert not list(recwarn)
    assert str(found.PatientName).startswith("CANARY")
    assert (found.PatientBirthDate, found.PatientSex, found.StudyTime) == ("", "", "")


def enhanced(tmp_path, *, times=2) -> tuple[Stack, list[Dataset]]:
    """Return the second volume of a multi-frame object that holds several, as a stack."""
    single = stack_from(tmp_path)
    dataset = headers(single)[0]
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2.1"
    dataset.NumberOfFrames = 12 * times
    shared = Dataset()
    measures = Dataset()
    measures.SliceThickness, measures.PixelSpacing = 2.5, [0.8, 0.9]
    shared.PixelMeasuresSequence = [measures]
    dataset.SharedFunctionalGroupsSequence = [shared]
    del dataset.ImagePositionPatient, dataset.ImageOrientationPatient, dataset.SliceThickness, dataset.PixelSpacing
    path = tmp_path / "enhanced.dcm"
    dataset.save_as(path)
    frames = tuple(
        type(frame)(path, "", times * n + 2, str(dataset.SOPClassUID), str(dataset.SOPInstanceUID))
        for n, frame in enumerate(single.frames)
    )
    return Stack(frames, single.affines, single.size), [dataset]


def test_a_volume_out_of_a_multi_frame_object_refers_to_its_own_frames(tmp_path):
    stack, _ = enhanced(tmp_path)
    wanted = labelled(stack)
    file = encode_segmentation(wanted, PRODUCER)
    same(read_back(file, wanted.geometry), wanted)
    dataset = dcmread(io.BytesIO(file))
    assert source_instances(dataset) == {stack.frames[0].sop_instance}
    assert len(dataset.ReferencedSeriesSequence[0].ReferencedInstanceSequence) == 1
    for group in dataset.PerFrameFunctionalGroupsSequence:
        image = group.DerivationImageSequence[0].SourceImageSequence[0]
        k = round((float(group.PlanePositionSequence[0].ImagePositionPatient[2]) - 100) / 2.5)
        assert image.ReferencedFrameNumber == 2 * k + 2
        assert image.ReferencedSOPClassUID == "1.2.840.10008.5.1.4.1.1.2.1"


@pytest.mark.parametrize("missing", [1, 5])
def test_a_series_with_a_missing_slice_keeps_the_distance_of_the_others(tmp_path, missing):
    whole = stack_from(tmp_path)
    kept = [k for k in range(12) if k != missing]
    stack = Stack(tuple(whole.frames[k] for k in kept), whole.affines[kept], whole.size)
    grid = grid_of(whole)
    array = np.zeros(SHAPE, np.uint8)
    array[4:9, 3:6, [missing - 1, missing + 1]] = 3
    labels = LabelMap(array, grid, (LIVER,), Source(Path("scan"), "dicom", stack=stack))
    file = encode_segmentation(labels, PRODUCER)
    assert read_back(file).geometry.spacing[2] == pytest.approx(2.5)
    assert np.array_equal(read_back(file, grid).array, array)


# Outside judges


@pytest.mark.parametrize("kind", ["axial", "oblique", "tilted", "one slice", "frames that end within a byte"])
def test_dciodvfy_finds_no_fault_in_bits(tmp_path, kind):
    program = shutil.which("dciodvfy")
    if not program:
        pytest.skip("dciodvfy is not here")
    stack = stack_from(tmp_path, **KINDS[kind])
    empty = np.zeros((*stack.size, len(stack.frames)), np.uint8)
    for array in (None, empty):
        path = written(labelled(stack, array), tmp_path / "seg.dcm")
        said = subprocess.run([program, path], capture_output=True, text=True, check=False).stderr
        assert "Error" not in said, said
        assert "Warning" not in said, said


def test_dciodvfy_finds_no_fault_but_that_it_does_not_know_label_maps(tmp_path):
    program = shutil.which("dciodvfy")
    if not program:
        pytest.skip("dciodvfy is not here")
    path = written(labelled(stack_from(tmp_path)), tmp_path / "seg.dcm", labelmap=True)
    said = subprocess.run([program, path], capture_output=True, text=True, check=False).stderr
    faults = [line for line in said.splitlines() if line.startswith(("Error", "Warning"))]
    assert all("Information Object" in line or "have SegmentSequence item number 1" in line for line in faults), said


@pytest.mark.parametrize("labelmap", [False, True])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "tilted"])
def test_highdicom_reads_ours(tmp_path, kind, labelmap):
    wanted = labelled(stack_from(tmp_path, **KINDS[kind]))
    path = written(wanted, tmp_path / "seg.dcm", labelmap=labelmap)
    volume = highdicom.seg.segread(path).get_volume(combine_segments=True)
    numbers = np.select([wanted.mask(label.name) for label in LABELS], [1, 2, 3], 0)
    found = np.zeros_like(numbers)
    matrix = np.diag([-1, -1, 1, 1]) @ volume.affine  # its indices to RAS
    for n in (1, 2, 3):
        at = np.argwhere(volume.array == n) @ matrix[:3, :3].T + matrix[:3, 3]
        i, j, k = np.rint(wanted.geometry.to_index(at)).astype(int).T
        found[i, j, k] = n
    assert np.array_equal(found, numbers)


@pytest.mark.parametrize("labelmap", [False, True])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in {"tilted", "one slice"}])
def test_dcmqi_reads_ours(tmp_path, kind, labelmap):
    program = judge("segimage2itkimage")
    wanted = labelled(stack_from(tmp_path, **KINDS[kind]))
    path = written(wanted, tmp_path / "seg.dcm", labelmap=labelmap)
    out = tmp_path / "out"
    out.mkdir()
    command = [program, "--inputDICOM", path, "--outputDirectory", out, "--outputType", "nii"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = np.zeros(wanted.array.shape, np.uint16)
    for file in out.glob("*.nii.gz"):
        image = nibabel.load(file)
        array = np.asarray(image.dataobj)
        for number in np.unique(array[array > 0]):
            index = np.argwhere(array == number)
            at = index @ image.affine[:3, :3].T + image.affine[:3, 3]
            i, j, k = np.rint(wanted.geometry.to_index(at)).astype(int).T
            assert np.abs(wanted.geometry.to_index(at) - np.stack([i, j, k], axis=1)).max() < 0.01
            found[i, j, k] = LABELS[int(number) - 1].value
    assert np.array_equal(found, wanted.array)


def test_dcmqi_writes_what_we_read(tmp_path):
    program = judge("itkimage2segimage")
    stack = stack_from(tmp_path, **KINDS["oblique"])
    wanted = labelled(stack)
    code = {"CodeValue": "85756007", "CodingSchemeDesignator": "SCT", "CodeMeaning": "Tissue"}
    liver = {"CodeValue": "10200004", "CodingSchemeDesignator": "SCT", "CodeMeaning": "Liver"}
    segments = [
        {
            "labelID": n,
            "SegmentLabel": label.name.replace("ä", "a").replace("ß", "s"),
            "SegmentDescription": "x",
            "SegmentAlgorithmType": "AUTOMATIC",
            "SegmentAlgorithmName": "judge",
            "SegmentedPropertyCategoryCodeSequence": code,
            "SegmentedPropertyTypeCodeSequence": liver if n == 1 else code,
            "recommendedDisplayRGBValue": list(label.rgb),
        }
        for n, label in enumerate(LABELS, start=1)
    ]
    meta = {"ContentCreatorName": "J", "SeriesDescription": "s", "SeriesNumber": "300", "InstanceNumber": "1",
            "ContentLabel": "SEGMENTATION", "ContentDescription": "c", "segmentAttributes": [segments]}  # fmt: skip
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    numbers = np.select([wanted.mask(label.name) for label in LABELS], [1, 2, 3], 0).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(numbers, wanted.geometry.affine), tmp_path / "labels.nii.gz")
    command = [program, "--inputImageList", tmp_path / "labels.nii.gz", "--inputDICOMDirectory", tmp_path / "scan",
               "--outputDICOM", tmp_path / "seg.dcm", "--inputMetadata", tmp_path / "meta.json", "--skip"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    dataset = dcmread(tmp_path / "seg.dcm")
    found = read_segmentation(tmp_path / "seg.dcm", dataset, grid=wanted.geometry)
    assert np.array_equal(found.array, numbers)
    assert not found.source.warnings
    assert found.labels[0].code.value == "10200004"
    assert source_instances(dataset) <= {frame.sop_instance for frame in stack.frames}
    assert source_instances(dataset)


REAL = ["ct_binary", "ct_binary_fractional", "ct_true_fractional", "ct_binary_overlap", "ct_binary_single_frame"]


@pytest.mark.parametrize("name", REAL)
def test_real_files_are_read_as_highdicom_reads_them(data, name):
    path = data / "dicom_seg" / f"seg_image_{name}.dcm"
    dataset = dcmread(path)
    found = read_segmentation(path, dataset)
    theirs = highdicom.seg.segread(path)
    frames = np.asarray(theirs.pixel_array).reshape(-1, dataset.Rows, dataset.Columns)
    limit = dataset.MaximumFractionalValue / 2 if "fractional" in name else 1
    wanted = {label.name: np.zeros(found.array.shape, bool) for label in found.labels}
    for frame, group in zip(frames, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        number = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        x, y, z = (float(mm) for mm in group.PlanePositionSequence[0].ImagePositionPatient)
        i, j, k = np.rint(found.geometry.to_index([-x, -y, z])).astype(int)
        assert (i, j) == (0, 0)
        wanted[found.labels[number - 1].name][..., k] = np.greater_equal(frame.T, limit)
    for label, mask in wanted.items():
        assert np.array_equal(found.mask(label), mask)
    assert sum(found.counts().values()) > 0
    assert [label.name for label in found.labels] == [s.SegmentLabel for s in dataset.SegmentSequence]
    assert bool(found.source.warnings) == ("fractional" in name)


def test_a_real_file_lies_on_its_own_ct_image(data):
    folder = data / "dicom_seg"
    image = dcmread(folder / "ct_image.dcm")
    dataset = dcmread(folder / "seg_image_ct_binary_single_frame.dcm")
    assert source_instances(dataset) == {str(image.SOPInstanceUID)}
    x, y, z = (float(mm) for mm in image.ImagePositionPatient)
    column, row = (float(mm) for mm in image.PixelSpacing)
    affine = np.array([[-row, 0, 0, -x], [0, -column, 0, -y], [0, 0, 5, z], [0, 0, 0, 1]])
    grid = Geometry(affine, (int(image.Columns), int(image.Rows), 1))
    found = read_segmentation(folder / "x.dcm", dataset, grid=grid)
    assert not found.source.warnings
    assert np.array_equal(found.array[..., 0].T, dataset.pixel_array)


@pytest.mark.parametrize("name", ["control", "control_labelmap", "dots", "dots_tiled_full", "numbers"])
def test_slide_microscopy_is_refused(data, name):
    path = data / "dicom_seg" / f"seg_image_sm_{name}.dcm"
    with pytest.raises(ScanError) as refusal:
        read_segmentation(path, dcmread(path))
    assert refusal.value.code == "SLIDE"


def test_a_projection_image_has_pixels_and_no_millimetres(data):
    path = data / "dicom_seg" / "seg_image_cr_binary.dcm"
    dataset = dcmread(path)
    found = read_segmentation(path, dataset)
    assert not found.geometry.physical
    assert np.array_equal(found.array[..., 0].T, dataset.pixel_array)
    with pytest.raises(ScanError) as refusal:
        read_segmentation(path, dataset, grid=Geometry(np.eye(4), (16, 16, 1)))
    assert refusal.value.code == "GEOM_MISSING"


# By highdicom's writer, as other people's objects


def theirs(stack, array, kind="BINARY", count=1, **options) -> Dataset:
    algorithm = highdicom.AlgorithmIdentificationSequence("x", codes.DCM.ArtificialIntelligence, "1")
    described = [
        highdicom.seg.SegmentDescription(n, "organ", codes.SCT.Organ, codes.SCT.Liver, "AUTOMATIC", algorithm)
        for n in range(1, count + 1)
    ]
    made = highdicom.seg.Segmentation(
        headers(stack), array, kind, described, uid_of("s"), 7, uid_of("i"), 1, "m", "m", "1", "1", **options
    )
    file = io.BytesIO()
    made.save_as(file)
    return dcmread(io.BytesIO(file.getvalue()))


def test_overlapping_segments_of_one_name_are_told_apart(tmp_path):
    stack = stack_from(tmp_path)
    masks = np.stack([organ(SHAPE), np.roll(organ(SHAPE), 5, axis=0), np.roll(organ(SHAPE), 3, axis=1)], axis=-1)
    dataset = theirs(stack, masks.transpose(2, 1, 0, 3).astype(np.uint8), count=3)
    found = read_segmentation(Path("x.dcm"), dataset, grid=grid_of(stack))
    assert [label.name for label in found.labels] == ["organ", "organ (2)", "organ (3)"]
    for n, label in enumerate(found.labels):
        assert np.array_equal(found.mask(label.name), masks[..., n])
        assert label.atoms[0] == label.value == n + 1


def test_fractions_count_from_one_half_on(tmp_path):
    stack = stack_from(tmp_path)
    values = np.random.default_rng(0).random(SHAPE)
    for limit in (255, 200, 1):
        dataset = theirs(stack, values.T, "FRACTIONAL", max_fractional_value=limit)
        found = read_segmentation(Path("x.dcm"), dataset, grid=grid_of(stack))
        assert np.array_equal(found.mask("organ"), np.around(values * limit) >= limit / 2)
        assert "fractions" in found.source.warnings[0]


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
@pytest.mark.parametrize("kind", ["FRACTIONAL", "LABELMAP"])
def test_compressed_pixels_are_decoded(tmp_path, syntax, kind):
    stack = stack_from(tmp_path)
    dataset = theirs(stack, organ().T.astype(np.uint8), kind, transfer_syntax_uid=syntax)
    found = read_segmentation(Path("x.dcm"), dataset, grid=grid_of(stack))
    assert np.array_equal(found.mask("organ"), organ())


def test_a_deflated_object_is_read(tmp_path):
    stack = stack_from(tmp_path)
    dataset = dcmread(io.BytesIO(encode_segmentation(labelled(stack), PRODUCER)))
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
    file = io.BytesIO()
    dataset.save_as(file)
    same(read_back(file.getvalue(), grid_of(stack)), labelled(stack))


def test_a_label_map_whose_background_is_not_zero(tmp_path):
    stack = stack_from(tmp_path)
    dataset = theirs(stack, organ().T.astype(np.uint8), "LABELMAP")
    data = np.frombuffer(dataset.PixelData, np.uint8)
    dataset.PixelData = np.where(data == 0, 9, np.where(data == 1, 0, 1)).astype(np.uint8).tobytes()
    dataset.PixelPaddingValue = 9
    background, item = dataset.SegmentSequence
    background.SegmentNumber, item.SegmentNumber = 9, 0
    found = read_segmentation(Path("x.dcm"), dataset, grid=grid_of(stack))
    assert np.array_equal(found.mask("organ"), organ())
    dataset.PixelPaddingValue = 8
    dataset.SegmentSequence = [item]
    with pytest.raises(ScanError) as refusal:
        read_segmentation(Path("x.dcm"), dataset)
    assert refusal.value.code == "HEADER"


# Geometry


def example(tmp_path) -> Dataset:
    """Return a SEG of one label in all 12 slices, which medseg wrote, as a dataset that may be changed."""
    array = np.where(organ(), 3, 0).astype(np.uint8)
    array[2:5, 3] = 3
    labels = labelled(stack_from(tmp_path), array, (LIVER,))
    return dcmread(io.BytesIO(encode_segmentation(labels, PRODUCER)))


def place(group, step):
    position = group.PlanePositionSequence[0].ImagePositionPatient
    position[2] = 100 + step


def keep(dataset: Dataset, frames: list[int]) -> Dataset:
    pixels = dataset.pixel_array[frames]
    dataset.PixelData = np.packbits(pixels.ravel(), bitorder="little").tobytes()
    groups = dataset.PerFrameFunctionalGroupsSequence
    dataset.PerFrameFunctionalGroupsSequence = [groups[n] for n in frames]
    dataset.NumberOfFrames = len(frames)
    return dataset


def refused(dataset, **options) -> str:
    with pytest.raises(ScanError) as refusal:
        read_segmentation(Path("x.dcm"), dataset, **options)
    return refusal.value.code


@pytest.mark.parametrize("stated", [True, False])
def test_the_grid_is_the_smallest_that_holds_frames_with_gaps(tmp_path, stated):
    dataset = keep(example(tmp_path), [6, 1, 2, 9])  # in no order
    if not stated:
        del dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices
    found = read_segmentation(Path("x.dcm"), dataset)
    assert found.geometry.shape == (40, 32, 9)
    assert found.geometry.origin == pytest.approx((16.0, 14.4, 102.5))
    assert np.flatnonzero(found.array.any(axis=(0, 1))).tolist() == [0, 1, 5, 8]


def test_a_step_that_no_two_frames_show_is_the_stated_one(tmp_path):
    dataset = keep(example(tmp_path), [1, 3, 9])
    assert read_segmentation(Path("x.dcm"), dataset).geometry.shape == (40, 32, 9)
    del dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices
    found = read_segmentation(Path("x.dcm"), dataset)
    assert found.geometry.shape == (40, 32, 5)
    assert found.geometry.spacing[2] == pytest.approx(5)


def test_a_stated_step_that_the_positions_deny_is_not_believed(tmp_path):
    dataset = example(tmp_path)
    dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices = 1.7
    assert read_segmentation(Path("x.dcm"), dataset).geometry.spacing[2] == pytest.approx(2.5)


def test_uneven_positions_are_refused_unless_each_lies_on_a_slice(tmp_path):
    dataset = keep(example(tmp_path), [0, 1, 2])
    for group, step in zip(dataset.PerFrameFunctionalGroupsSequence, (0, 2.5, 6.3), strict=True):
        place(group, step)
    assert refused(dataset) == "GEOM_VARIABLE_SPACING"
    fine = Geometry(np.array([[-0.9, 0, 0, 16], [0, -0.8, 0, 14.4], [0, 0, 0.1, 100], [0, 0, 0, 1]]), (40, 32, 64))
    del dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices
    found = read_segmentation(Path("x.dcm"), dataset, grid=fine)
    assert np.flatnonzero(found.array.any(axis=(0, 1))).tolist() == [0, 25, 63]


def test_frames_that_are_shifted_sideways_are_refused(tmp_path):
    dataset = example(tmp_path)
    dataset.PerFrameFunctionalGroupsSequence[3].PlanePositionSequence[0].ImagePositionPatient[0] = -14
    assert refused(dataset) == "GEOM_VARIABLE_SPACING"


def test_two_frames_of_one_segment_at_one_position_are_refused(tmp_path):
    dataset = example(tmp_path)
    dataset.PerFrameFunctionalGroupsSequence[3] = dataset.PerFrameFunctionalGroupsSequence[4]
    assert refused(dataset) == "DUP_POSITION"
    assert refused(dataset, grid=grid_of(stack_of(tmp_path / "scan"))) == "DUP_POSITION"


def test_frames_at_the_ends_of_the_world_are_refused(tmp_path):
    dataset = keep(example(tmp_path), [0, 1])
    place(dataset.PerFrameFunctionalGroupsSequence[1], 900000)
    assert refused(dataset) == "GEOM_VARIABLE_SPACING"


def test_frames_of_two_orientations_are_refused(tmp_path):
    dataset = example(tmp_path)
    shared = dataset.SharedFunctionalGroupsSequence[0]
    for n, group in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        item = Dataset()
        item.ImageOrientationPatient = [1, 0, 0, 0, 1, 0] if n else [0, 1, 0, 0, 0, 1]
        group.PlaneOrientationSequence = [item]
    del shared.PlaneOrientationSequence
    assert refused(dataset) == "GEOM_ORIENTATION"
    dataset.PerFrameFunctionalGroupsSequence[0].PlaneOrientationSequence[0].ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    assert read_segmentation(Path("x.dcm"), dataset).geometry.shape == SHAPE


def test_on_another_grid_each_voxel_takes_the_nearest_pixel_and_a_warning_says_so(tmp_path):
    stack = stack_from(tmp_path)
    wanted = labelled(stack)
    file = encode_segmentation(wanted, PRODUCER)
    shifted = wanted.geometry.affine.copy()
    shifted[:3, 3] += shifted[:3, :3] @ (0.3, -0.2, 0.4)
    found = read_back(file, Geometry(shifted, SHAPE))
    assert np.array_equal(found.array, wanted.array)
    assert "nearest" in found.source.warnings[0]
    with pytest.raises(ScanError) as refusal:
        read_segmentation(Path("x.dcm"), dcmread(io.BytesIO(file)), grid=found.geometry, resample=False)
    assert refusal.value.code == "OTHER_GRID"
    finer = wanted.geometry.affine.copy()
    finer[:3, 2] /= 2
    found = read_back(file, Geometry(finer, (40, 32, 24)))
    assert np.array_equal(found.array[..., ::2], wanted.array)
    assert found.array[..., 1::2].any()


def test_on_part_of_the_scan_only_that_part_is_read(tmp_path):
    wanted = labelled(stack_from(tmp_path))
    file = encode_segmentation(wanted, PRODUCER)
    found = read_back(file, wanted.geometry.cropped((5, -3, 4), (30, 20, 9)))
    padded = np.pad(wanted.array, ((0, 0), (3, 0), (0, 0)))
    assert np.array_equal(found.array, padded[5:30, :23, 4:9])
    lost = np.count_nonzero(wanted.array) - np.count_nonzero(found.array)
    assert found.source.warnings == (f"{lost} of its pixels lie outside the scan and are left out",)


def test_a_single_plane_is_as_thick_as_it_says(tmp_path):
    dataset = keep(example(tmp_path), [4])
    measures = dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert read_segmentation(Path("x.dcm"), dataset).geometry.spacing[2] == pytest.approx(2.5)
    del measures.SpacingBetweenSlices
    measures.SliceThickness = 4
    assert read_segmentation(Path("x.dcm"), dataset).geometry.spacing[2] == pytest.approx(4)
    del measures.SliceThickness
    found = read_segmentation(Path("x.dcm"), dataset)
    assert found.geometry.spacing[2] == pytest.approx(1)
    assert "thickness" in found.source.warnings[0]


# Hostile inputs


def test_more_frames_than_pixels_are_refused_before_anything_is_allocated(tmp_path):
    dataset = example(tmp_path)
    dataset.Rows = dataset.Columns = 65535
    assert refused(dataset) == "PIXEL_TRUNCATED"
    dataset = example(tmp_path / "second")
    dataset.PixelData = dataset.PixelData[:100]
    assert refused(dataset) == "PIXEL_TRUNCATED"


def test_a_label_map_with_too_few_or_damaged_frames_is_refused(tmp_path):
    dataset = dcmread(io.BytesIO(encode_segmentation(labelled(stack_from(tmp_path)), PRODUCER, labelmap=True)))
    data = dataset.PixelData
    dataset.PixelData = data[: len(data) // 2]
    assert refused(dataset) in {"PIXEL_TRUNCATED", "PIXEL_DAMAGED"}
    dataset.PixelData = data
    dataset.Rows, dataset.Columns = 60000, 60000
    assert refused(dataset) in {"PIXEL_TRUNCATED", "PIXEL_DAMAGED", "MEMORY"}


def test_frames_of_a_segment_that_is_not_described_are_refused(tmp_path):
    dataset = example(tmp_path)
    dataset.PerFrameFunctionalGroupsSequence[2].SegmentIdentificationSequence[0].ReferencedSegmentNumber = 2
    assert refused(dataset) == "HEADER"


def every_element(dataset: Dataset, path=()):
    for element in dataset:
        yield (*path, element.tag)
        if element.VR == "SQ":
            for n, item in enumerate(element.value[:2]):
                yield from every_element(item, (*path, element.tag, n))


def reached(dataset: Dataset, path) -> Dataset:
    for step in path[:-1]:
        dataset = dataset[step].value if not isinstance(step, int) or step > 99 else dataset[step]
    return dataset


HOSTILE = [None, b"\0", "CANARY", -1, 0, 65535, 1e300, ["CANARY"] * 3, [float("nan")] * 6, 3]


@pytest.mark.slow
@pytest.mark.parametrize("labelmap", [False, True])
def test_no_fault_in_any_element_escapes_as_another_error(tmp_path, labelmap):
    stack = stack_from(tmp_path, array=body((9, 7, 4)))
    file = encode_segmentation(labelled(stack, atoms((9, 7, 4))), PRODUCER, labelmap=labelmap)
    grid = grid_of(stack)
    paths = list(every_element(dcmread(io.BytesIO(file))))
    assert len(paths) > 120
    outcomes = set()
    for path in paths:
        for damage in ("delete", *range(len(HOSTILE))):
            dataset = dcmread(io.BytesIO(file))
            holder = reached(dataset, path)
            if damage == "delete":
                del holder[path[-1]]
            elif holder[path[-1]].VR == "SQ":
                holder[path[-1]].value = Sequence([Dataset()] * damage)
            else:
                holder[path[-1]]._value = HOSTILE[damage]
            try:
                found = read_segmentation(Path("x.dcm"), dataset, grid=grid if len(outcomes) % 2 else None)
                source_instances(dataset)
            except ScanError as error:
                outcomes.add(error.code)
                assert "CANARY" not in str(error)
                assert error.__context__ is None
            else:
                assert isinstance(found, LabelMap)
    assert {"HEADER", "PIXEL_TRUNCATED"} <= outcomes


@pytest.mark.parametrize("labelmap", [False, True])
def test_no_flipped_byte_escapes_as_another_error(tmp_path, labelmap):
    stack = stack_from(tmp_path, array=body((9, 7, 4)))
    file = encode_segmentation(labelled(stack, atoms((9, 7, 4))), PRODUCER, labelmap=labelmap)
    rng = np.random.default_rng(1)
    read = 0
    for _ in range(300):
        damaged = bytearray(file)
        for place in rng.integers(400, len(file), rng.integers(1, 4)):
            damaged[place] = rng.integers(0, 256)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                dataset = dcmread(io.BytesIO(bytes(damaged)))
        except Exception:  # noqa: BLE001 - the caller's part
            continue
        with contextlib.suppress(ScanError):
            read_segmentation(Path("x.dcm"), dataset)
        source_instances(dataset)
        read += 1
    assert read > 100
