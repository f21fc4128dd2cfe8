"""DICOM through the commands: predict, info, convert and evaluate, end to end."""

import json
import shutil
import subprocess
import zipfile

import nibabel
import numpy as np
import pytest
from phantoms import body, organ, series, store
from pydicom import dcmread

from medseg import read, read_labels, write
from medseg.dicom.frames import Producer, labels_on
from medseg.dicom.results import check, encode
from medseg.errors import OutputError, ScanError
from medseg.plan import Label
from medseg.volume import LabelMap, replace

TILTED = {"slant": (0, 0.67, 0)}
PRODUCER = Producer("tiny", "1", "00" * 32)


@pytest.fixture
def study(tmp_path):
    return store(series(), tmp_path / "study")


def labelled(folder, **options) -> LabelMap:
    """Return a scan of the phantom with its organ, and an overlapping half of it, as labels."""
    scan = read(folder, **options)
    mask = np.abs(scan.array[0].astype(float) - 120) < 15
    half = mask.copy()
    half[: mask.shape[0] // 3] = False
    labels = (Label(value=1, name="rest", atoms=(1,)), Label(value=2, name="organ", atoms=(1, 2)))
    return LabelMap(mask.astype(np.uint8) + half, scan.geometry, labels, scan.source)


def test_predict_writes_every_dicom_object_of_a_folder(study, bundle_file, run, tmp_path):
    formats = "nifti,dicom-seg,dicom-labelmap,rtstruct,sr,sc"
    words = ("predict", study, "-m", bundle_file(), "--format", formats, "-o", tmp_path / "out", "--progress", "none")
    code, _, err = run(*words)
    assert (code, err) == (0, "")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        "study_seg.nii.gz", "study_seg.dcm", "study_seg_labelmap.dcm", "study_seg_rtstruct.dcm", "study_seg_sr.dcm",
        "study_seg_sc.dcm", "study_seg.png", "study_seg.json",
    }  # fmt: skip
    truth = read_labels(tmp_path / "out" / "study_seg.nii.gz")
    for name in ("study_seg.dcm", "study_seg_labelmap.dcm", "study_seg_rtstruct.dcm"):
        again = read_labels(tmp_path / "out" / name, grid=truth.geometry)
        assert [label.name for label in again.labels] == ["front", "back"]
        for label in again.labels:
            np.testing.assert_array_equal(again.mask(label.name), truth.array == label.value)
    source = dcmread(next(study.iterdir()))
    for path in (tmp_path / "out").glob("*.dcm"):
        written = dcmread(path)
        assert written.StudyInstanceUID == source.StudyInstanceUID
        assert written.SeriesInstanceUID != source.SeriesInstanceUID
        assert written.PatientID == source.PatientID


def test_predict_gives_nifti_and_segmentation_by_default_and_the_same_again(study, bundle_file, run, tmp_path):
    model = bundle_file()
    assert run("predict", study, "-m", model)[0] == 0
    first = dcmread(tmp_path / "study_seg.dcm")
    assert {path.name for path in tmp_path.glob("study_seg*")} == {
        "study_seg.nii.gz", "study_seg.dcm", "study_seg.png", "study_seg.json",
    }  # fmt: skip
    assert run("predict", study, "-m", model)[0] == 0
    again = dcmread(tmp_path / "study_seg.dcm")
    assert again.SOPInstanceUID == first.SOPInstanceUID
    assert again.PixelData == first.PixelData


def test_a_file_and_an_archive_are_predicted_like_their_folder(study, bundle_file, run, tmp_path):
    with zipfile.ZipFile(tmp_path / "packed.zip", "w") as archive:
        for path in study.iterdir():
            archive.write(path, path.name)
    model = bundle_file()
    for scan in (study, tmp_path / "packed.zip"):
        assert run("predict", scan, "-m", model, "--no-picture")[0] == 0
    folder, packed = (read_labels(tmp_path / f"{name}_seg.nii.gz") for name in ("study", "packed"))
    np.testing.assert_array_equal(folder.array, packed.array)
    assert run("info", tmp_path / "packed.zip")[0] == 0


def test_a_scan_that_no_object_can_refer_to_gives_nifti_and_a_warning(tmp_path, bundle_file, run):
    folder = store(series(StudyInstanceUID=""), tmp_path / "study")
    model = bundle_file()
    code, _, err = run("predict", folder, "-m", model)
    assert code == 0
    assert "no DICOM result: the scan has no StudyInstanceUID" in err
    assert not (tmp_path / "study_seg.dcm").exists()
    report = json.loads((tmp_path / "study_seg.json").read_text())
    assert "dicom-seg" not in report["outputs"]
    assert run("predict", folder, "-m", model, "--format", "dicom-seg")[0] == 2  # asked for by name


def test_several_series_are_a_refusal_with_the_table(study, bundle_file, run):
    store(series(uid="1.2.3", SeriesDescription="second"), study / "b")
    code, _, err = run("predict", study, "-m", bundle_file())
    assert code == 2
    assert "--series" in err
    assert "second" in err
    assert run("predict", study, "-m", bundle_file(), "--series", "second")[0] == 0


def test_a_gap_is_refused_or_repaired_and_the_report_says_so(tmp_path, bundle_file, run):
    datasets = series()
    del datasets[6]
    folder = store(datasets, tmp_path / "study")
    code, _, err = run("predict", folder, "-m", bundle_file())
    assert code == 2
    assert "between slice 6 and slice 8" in err
    assert run("predict", folder, "-m", bundle_file(), "--repair")[0] == 0
    report = json.loads((tmp_path / "study_seg.json").read_text())
    assert "GEOM_MISSING_SLICE" in report["scan"]["warnings"][0]
    assert report["scan"]["shape"] == [40, 32, 12]
    assert len(dcmread(tmp_path / "study_seg.dcm").ReferencedSeriesSequence[0].ReferencedInstanceSequence) == 11


def test_results_inside_the_study_do_not_hinder_the_next_run(study, bundle_file, run):
    words = ("predict", study, "-m", bundle_file(), "-o", study, "--format", "nifti,dicom-seg,rtstruct,sr,sc")
    for _ in range(2):
        assert run(*words)[0] == 0
    assert "passed over: 1 secondary captures" in json.loads((study / "study_seg.json").read_text())["scan"]["warnings"]


def test_dicom_beside_other_scans_is_never_half_read(study, bundle_file, run, tmp_path):
    write(read(study), study / "scan.nii.gz")
    code, _, err = run("predict", study, "-m", bundle_file())
    assert code == 2
    assert "DICOM files and other scans" in err


def test_dicom_formats_need_a_dicom_scan(sample, bundle_file, run, tmp_path):
    code, _, err = run("predict", sample, "-m", bundle_file(), "--format", "dicom-seg", "-o", tmp_path)
    assert code == 2
    assert "needs a DICOM series" in err
    code, _, err = run("predict", sample, "-m", bundle_file(), "--series", "1", "-o", tmp_path)
    assert code == 2


def test_info_prints_the_table_and_one_series(study, run):
    store(series(uid="1.2.3", SeriesDescription="a\x1b[31mred"), study / "b")
    (study / "note.txt").write_text("x")
    code, out, _ = run("info", study)
    assert code == 0
    assert "CT" in out
    assert "0.9 x 0.8 x 2.5" in out
    assert "\x1b" not in out
    assert "passed over: 1 files of other kinds" in out
    code, out, _ = run("info", study, "--series", "1")
    assert code == 0
    assert "40 x 32 x 12" in out


@pytest.mark.parametrize("options", [{}, TILTED, {"orientation": (0, 1, 0, 0, 0, -1)}], ids=str)
@pytest.mark.parametrize("kind", ["dicom-seg", "rtstruct"])
def test_labels_come_back_from_dicom_onto_the_frames(tmp_path, kind, options):
    labels = labelled(store(series(**options), tmp_path / "study"))
    path = tmp_path / "study" / "labels.dcm"
    path.write_bytes(encode([kind], labels, PRODUCER)[kind])
    again = read_labels(path)  # onto the scan that lies beside it
    wanted = labels_on(labels.source.stack, labels)
    assert again.mask("organ").any()
    for label in labels.labels:
        np.testing.assert_array_equal(again.mask(label.name), np.isin(wanted, label.atoms))
    np.testing.assert_array_equal(read_labels(tmp_path / "study").array, again.array)  # the folder holds one label map


def test_an_object_that_reads_back_differently_is_not_delivered(study):
    labels = labelled(study)
    encoded = encode(["dicom-seg", "rtstruct"], labels, PRODUCER)
    moved = replace(labels, array=np.roll(labels.array, 1, axis=0))
    for kind, content in encoded.items():
        check(content, labels, kind)
        with pytest.raises(OutputError, match="read back it differs in"):
            check(content, moved, kind)


def test_convert_brings_dicom_to_nifti_and_labels_there_and_back(study, run, tmp_path):
    assert run("convert", study, tmp_path / "ct.nii.gz")[0] == 0
    np.testing.assert_array_equal(np.asanyarray(nibabel.load(tmp_path / "ct.nii.gz").dataobj), body())
    write(replace(labelled(study), labels=(), source=None), tmp_path / "mask.nii.gz")
    for kind in ("dicom-seg", "rtstruct", "dicom-labelmap"):
        target = tmp_path / f"{kind}.dcm"
        code, out, err = run("convert", tmp_path / "mask.nii.gz", target, "--scan", study, "--format", kind)
        assert (code, out, err) == (0, f"wrote {target}\n", "")
        assert run("convert", target, tmp_path / "back.nii.gz", "--scan", study)[0] == 0
        back, mask = read_labels(tmp_path / "back.nii.gz"), read_labels(tmp_path / "mask.nii.gz")
        np.testing.assert_array_equal(back.array, mask.array)
        np.testing.assert_allclose(back.geometry.affine, mask.geometry.affine, atol=1e-4)
        assert run("convert", target, tmp_path / "back.seg.nrrd", "--scan", study)[0] == 0
        assert [label.name for label in read_labels(tmp_path / "back.seg.nrrd").labels] == ["label 1", "label 2"]


def test_labels_of_a_tilted_scan_go_there_and_back(run, tmp_path):
    folder = store(series(**TILTED), tmp_path / "study")
    labels = labelled(folder)
    for kind in ("dicom-seg", "rtstruct"):
        (tmp_path / "labels.dcm").write_bytes(encode([kind], labels, PRODUCER)[kind])
        code, _, err = run("convert", tmp_path / "labels.dcm", tmp_path / "back.seg.nrrd", "--scan", folder)
        assert (code, "straightened" in err) == (0, True)
        back = read_labels(tmp_path / "back.seg.nrrd")
        assert back.geometry.same_as(labels.geometry)
        for name in ("rest", "organ"):
            again, truth = back.mask(name), labels.mask(name)
            assert 2 * (again & truth).sum() / (again.sum() + truth.sum()) > 0.9  # two times to the nearest voxel


def test_labels_that_overlap_are_explained_where_a_format_has_no_names(study, run, tmp_path):
    (tmp_path / "labels.dcm").write_bytes(encode(["dicom-seg"], labelled(study), PRODUCER)["dicom-seg"])
    code, _, err = run("convert", tmp_path / "labels.dcm", tmp_path / "back.nii.gz", "--scan", study)
    assert code == 0
    assert "labels overlap: 3 = rest + organ" in err
    assert run("convert", tmp_path / "labels.dcm", tmp_path / "back.seg.nrrd", "--scan", study)[2] == ""


def test_convert_refuses_what_makes_no_sense(study, run, tmp_path, sample):
    assert run("convert", study, tmp_path / "a.dcm")[0] == 2
    assert run("convert", sample, tmp_path / "a.dcm", "--scan", sample)[0] == 2
    assert run("convert", sample, tmp_path / "a.dcm", "--scan", study)[0] == 2  # a scan is no label map
    assert run("convert", sample, tmp_path / "a.xyz")[0] == 2
    assert run("convert", sample, tmp_path / "a.nrrd", "--series", "1")[0] == 2
    write(replace(labelled(study), source=None), tmp_path / "mask.nii.gz")
    other = store(series(origin=(0, 0, 0)), tmp_path / "other")
    code, _, err = run("convert", tmp_path / "mask.nii.gz", tmp_path / "a.dcm", "--scan", other)
    assert code == 2
    assert "mm apart" in err
    assert not list(tmp_path.glob("a.*"))


@pytest.mark.parametrize("kind", ["dicom-seg", "rtstruct"])
def test_evaluate_takes_dicom_on_either_side(study, run, tmp_path, kind):
    labels = labelled(study)
    write(labels, tmp_path / "mask.nii.gz")
    (tmp_path / "ref.dcm").write_bytes(encode([kind], labels, PRODUCER)[kind])
    for pair in (("mask.nii.gz", "ref.dcm"), ("ref.dcm", "mask.nii.gz")):
        code, _, err = run("evaluate", *(tmp_path / name for name in pair), "--labels", "rest=1,organ=1+2")
        assert code == 0, err
    shutil.copy(tmp_path / "ref.dcm", study / "ref.dcm")
    code, _, err = run("evaluate", tmp_path / "mask.nii.gz", study, "--labels", "rest=1")
    assert code == 0, err


def test_folders_of_results_are_evaluated_whatever_forms_they_have(study, bundle_file, run, tmp_path):
    model = bundle_file()
    for folder, formats in (("all", "nifti,dicom-seg,rtstruct,sr"), ("dicom", "dicom-seg,dicom-labelmap,rtstruct")):
        assert run("predict", study, "-m", model, "-o", tmp_path / folder, "--format", formats)[0] == 0
    for pair in (("all", "dicom"), ("dicom", "all"), ("all", "all")):
        code, out, err = run("evaluate", *(tmp_path / name for name in pair), "--labels", "1=1", "--progress", "none")
        assert (code, err) == (0, ""), pair
        assert out.startswith("1 case")


def test_two_segmentations_of_different_slices_are_compared_whole(study, run, tmp_path):
    labels = replace(labelled(study), labels=(Label(value=2, name="organ"),))
    early, late = (replace(labels, array=labels.array * keep) for keep in (np.arange(12) < 7, np.arange(12) >= 5))
    for name, some in (("a.dcm", early), ("b.dcm", late)):
        (tmp_path / name).write_bytes(encode(["dicom-seg"], some, PRODUCER)["dicom-seg"])
    code, _, _ = run("evaluate", tmp_path / "a.dcm", tmp_path / "b.dcm", "-o", tmp_path / "scores")
    assert code == 0
    a, b = early.array == 2, late.array == 2
    found = json.loads((tmp_path / "scores" / "scores.json").read_text())
    dice = 2 * (a & b).sum() / (a.sum() + b.sum())
    assert found["cases"][0]["dice"] == pytest.approx(dice)


def test_a_segmentation_on_another_grid_needs_resample(study, run, tmp_path):
    labels = labelled(study)
    (tmp_path / "ref.dcm").write_bytes(encode(["dicom-seg"], labels, PRODUCER)["dicom-seg"])
    moved = store(series(origin=(-15.5, -14.1, 101)), tmp_path / "moved")
    write(replace(labelled(moved), source=None), tmp_path / "mask.nii.gz")
    words = ("evaluate", tmp_path / "mask.nii.gz", tmp_path / "ref.dcm", "--labels", "rest=1")
    assert run(*words)[0] == 2
    assert run(*words, "--resample")[0] == 0


def test_a_structure_set_alone_needs_a_grid(study, tmp_path):
    (tmp_path / "ref.dcm").write_bytes(encode(["rtstruct"], labelled(study), PRODUCER)["rtstruct"])
    with pytest.raises(ScanError) as caught:
        read_labels(tmp_path / "ref.dcm")
    assert caught.value.code == "NO_GRID"


def test_a_scan_is_no_label_map(study):
    with pytest.raises(ScanError) as caught:
        read_labels(study)
    assert caught.value.code == "NOT_LABELS"


def test_dciodvfy_finds_no_error_in_any_object(study, bundle_file, run, tmp_path):
    if not shutil.which("dciodvfy"):
        pytest.skip("dciodvfy (Debian: dicom3tools) is not installed")
    run("predict", study, "-m", bundle_file(), "--format", "dicom-seg,rtstruct,sr,sc", "-o", tmp_path / "out")
    objects = sorted((tmp_path / "out").glob("*.dcm"))
    assert len(objects) == 4
    for path in objects:
        said = subprocess.run(["dciodvfy", path], capture_output=True, text=True, check=False).stderr
        assert "Error" not in said, f"{path.name}: {said}"


def test_organ_is_where_the_phantom_put_it(study):
    np.testing.assert_array_equal(labelled(study).mask("organ"), organ())
