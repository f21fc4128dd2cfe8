"""Picture and report: what a person sees, and what a program reads."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import ORDERS, smooth_scan
from PIL import Image

import medseg
from medseg.errors import OutputError, Refused, UsageError
from medseg.geometry import Geometry
from medseg.inference import Predictor
from medseg.plan import Label
from medseg.qc import Measures, fingerprint
from medseg.report.delivery import deliver
from medseg.report.job import FORMATS, Job, check_distinct, plan_targets
from medseg.report.picture import _planes, contact_sheet, draw
from medseg.volume import LabelMap, Source, Volume

LABELS = (Label(value=1, name="front", color=(255, 0, 0)), Label(value=2, name="back", color=(0, 0, 255)))


def case(shape=(20, 24, 18), spacing=(1.0, 1.0, 2.0)):
    scan = smooth_scan(shape, spacing=spacing)
    array = np.zeros(shape, np.uint8)
    array[4:9, 12:18, 5:9] = 1
    array[4:9, 5:12, 5:9] = 2
    return scan, LabelMap(array, scan.geometry, LABELS)


def picture(scan, labels, **changes):
    texts = {"title": "scan.nii.gz", "legend": ["front: 1 mL", "back: 2 mL"], "verdict": "ok", "notes": []}
    return Image.open(io.BytesIO(draw(scan, labels, **{**texts, **changes})))


def share_of(image, colour):
    return (np.abs(np.asarray(image).astype(int) - colour).sum(axis=-1) == 0).mean()


def test_the_picture_shows_each_label_in_its_colour():
    image = picture(*case())
    assert image.format == "PNG"
    assert share_of(image, (255, 0, 0)) > 0.0007
    assert share_of(image, (0, 0, 255)) > 0.0007
    empty = picture(case()[0], LabelMap(np.zeros((20, 24, 18), np.uint8), case()[0].geometry, LABELS))
    assert 0 < share_of(empty, (255, 0, 0)) < 0.0005  # the legend alone


def test_low_values_that_are_bright_turn_the_picture_and_no_value():
    scan, labels = case()
    turned = replace(scan, source=Source(Path("scan"), "dicom", low_is_bright=True))
    for plain, other in zip(_planes(scan, labels), _planes(turned, labels), strict=True):
        np.testing.assert_allclose(other.grey, 1 - plain.grey, atol=1e-6)
    assert turned.array is scan.array


def test_the_planes_go_through_the_labels_and_show_the_patients_right_on_the_left():
    axial, coronal, sagittal = _planes(*case())
    rows, columns = np.nonzero(axial.masks[0])
    # in RAS the label lies at i 4..8 of 20 (to the left of the middle, so shown on the right half), j 12..17 of 24
    assert columns.min() == 20 - 9
    assert columns.max() == 20 - 5
    assert rows.min() == 24 - 18
    assert coronal.masks[0].any() or coronal.masks[1].any()
    assert sagittal.masks[0].any()
    assert axial.size_mm == (20, 24)
    assert coronal.size_mm == (20, 36)
    assert sagittal.size_mm == (24, 36)


@pytest.mark.parametrize("order", ORDERS[::7])
def test_the_picture_does_not_depend_on_the_stored_order(order):
    scan, labels = case()
    grid = scan.geometry.reordered(order)
    stored = Volume(order.apply(scan.array), grid), LabelMap(order.apply(labels.array), grid, LABELS)
    assert picture(*stored).tobytes() == picture(scan, labels).tobytes()


def test_a_slice_and_a_picture_are_shown_once():
    scan, labels = case((20, 24, 1))
    labels.array[4:9, 5:18] = 1
    assert picture(scan, labels).width == picture(*case((20, 24, 18))).width * 2 // 3 + 5
    flat = Geometry(np.eye(4), (20, 24, 1), physical=False)
    assert picture(Volume(scan.array, flat), LabelMap(labels.array, flat, LABELS)).width < 800


def test_a_legend_of_many_labels_is_drawn_whole():
    scan, labels = case()
    many = tuple(Label(value=value, name=f"label {value}") for value in range(1, 301))
    labels = LabelMap(labels.array, scan.geometry, many)
    image = picture(scan, labels, legend=[label.name for label in many], verdict="refuse", notes=["why"] * 9)
    assert share_of(image, many[-1].rgb) * image.width * image.height > 100  # the last box of the legend
    assert share_of(image, (0, 0, 0)) < 0.01  # nothing beyond the sheet, which is not quite black


def test_a_constant_scan_and_long_texts_can_be_drawn():
    scan, labels = case()
    constant = Volume(np.zeros_like(scan.array), scan.geometry)
    image = picture(constant, labels, title="x" * 500, verdict="refuse", notes=["because " * 80] * 9)
    assert image.width < 1200


def test_a_contact_sheet_shows_one_plane_with_each_map():
    scan = smooth_scan((12, 20, 16))
    arrays = np.zeros((2, 12, 20, 16), np.uint8)
    arrays[0, 7, 5:15, 4:12] = 1  # the first map chooses the plane
    arrays[1, 3, 2:18, 2:14] = arrays[1, 7, 5:9, 4:8] = 1
    labels = (Label(value=1, name="a", color=(255, 0, 0)),)
    maps = {f"map {n}": LabelMap(array, scan.geometry, labels) for n, array in enumerate(arrays)}
    sheet = np.asarray(Image.open(io.BytesIO(contact_sheet(scan, maps, columns=2))))
    red = (sheet[..., 0] > sheet[..., 1].astype(int) + 40) & (sheet[..., 2] == sheet[..., 1])
    middle = sheet.shape[0] // 2, sheet.shape[1] // 2
    bare, first, second = red[: middle[0], : middle[1]], red[: middle[0], middle[1] :], red[middle[0] :, : middle[1]]
    assert not bare.any()
    assert first.sum() > 4 * second.sum() > 0


@pytest.mark.parametrize("order", ORDERS[::7])
def test_a_contact_sheet_does_not_depend_on_the_stored_order(order):
    scan = smooth_scan((12, 20, 16), spacing=(1, 1.5, 2))
    labels = LabelMap((scan.array[0] > 300).astype(np.uint8), scan.geometry, (Label(value=1, name="a"),))
    geometry = scan.geometry.reordered(order)
    turned = Volume(order.apply(scan.array), geometry), LabelMap(order.apply(labels.array), geometry, labels.labels)
    assert contact_sheet(turned[0], {"m": turned[1]}) == contact_sheet(scan, {"m": labels})


def test_a_contact_sheet_of_one_slice_shows_the_slice():
    scan, labels = case((20, 24, 1))
    sheet = Image.open(io.BytesIO(contact_sheet(scan, {"m": labels}, columns=2)))
    assert sheet.size[1] > 300  # seen from the side, it would be a line


def test_targets_are_named_after_the_scan(tmp_path):
    targets = plan_targets("case_seg", tmp_path, ["nifti", "seg.nrrd"], probabilities=True)
    assert {kind: path.name for kind, path in targets.items()} == {
        "nifti": "case_seg.nii.gz",
        "seg.nrrd": "case_seg.seg.nrrd",
        "probabilities": "case_seg_probabilities.nii.gz",
        "picture": "case_seg.png",
        "report": "case_seg.json",
    }
    with pytest.raises(UsageError, match=r"'dicom'.*nifti, nrrd, mha, seg.nrrd"):
        plan_targets("case", tmp_path, ["dicom"])


def test_results_that_collide_are_refused(tmp_path):
    def job(name, target):
        return Job((tmp_path / name,), {"nifti": tmp_path / target})

    check_distinct([job("a.nii", "a_seg.nii.gz"), job("b.nii", "b_seg.nii.gz")])
    with pytest.raises(UsageError, match=r"a\.nii and .*a\.nrrd would both"):
        check_distinct([job("a.nii", "a_seg.nii.gz"), job("a.nrrd", "a_seg.nii.gz")])
    with pytest.raises(UsageError, match="is a scan"):
        check_distinct([job("a.nii", "b.nii.gz"), job("b.nii.gz", "c.nii.gz")])


@pytest.fixture
def ready(tmp_path, bundle_file):
    """A predictor with random weights, and a job that asks for every kind of result."""
    scan = tmp_path / "scan.nii.gz"
    medseg.write(smooth_scan(), scan)
    out = tmp_path / "out"
    out.mkdir()
    job = Job((scan,), plan_targets("scan_seg", out, list(FORMATS), probabilities=True))
    return Predictor.load(bundle_file(seed=1), device="cpu"), job, out


def test_all_results_of_a_job_are_written_and_agree(ready):
    predictor, job, out = ready
    report = deliver(job, predictor)
    assert {path.name for path in out.iterdir()} == {path.name for path in job.targets.values()}
    assert json.loads(job.targets["report"].read_text()) == report
    arrays = [medseg.read_labels(job.targets[kind]).array for kind in FORMATS]
    assert all(np.array_equal(array, arrays[0]) for array in arrays)
    assert report["labels"][0]["voxels"] == (arrays[0] == 1).sum()
    assert np.array_equal(medseg.io.read(job.targets["probabilities"], volume=0).geometry.shape, arrays[0].shape)


def test_the_report_has_every_key(ready):
    predictor, job, _ = ready
    report = deliver(job, predictor)
    assert set(report) == {
        "medseg",
        "scan",
        "model",
        "labels",
        "qc",
        "device",
        "windows",
        "notes",
        "seconds",
        "outputs",
    }
    assert set(report["scan"]) == {"path", "shape", "spacing_mm", "orientation", "warnings"}
    assert set(report["model"]) == {"name", "version", "sha256"}
    assert set(report["labels"][0]) == {"value", "name", "voxels", "volume_ml", "expected_dice", "snomed"}
    assert set(report["qc"]) == {"verdict", "reasons"}
    assert set(report["seconds"]) == {
        "read",
        "prepare",
        "network",
        "blend",
        "restore",
        "clean",
        "check",
        "write",
        "picture",
    }
    assert report["medseg"] == medseg.__version__
    assert report["model"]["sha256"] == predictor.bundle.sha256
    voxels = report["labels"][0]["voxels"]
    assert report["labels"][0]["volume_ml"] == pytest.approx(voxels / 1000)


def test_a_strict_user_gets_no_file_of_a_refused_result(ready, bundle_file):
    _, job, out = ready
    trained_on = fingerprint([Measures((9.0,) * 3, (9.0,) * 3, {"smoothness": 0.0}, {}, {}, {})])
    predictor = Predictor.load(bundle_file("other.safetensors", fingerprint=trained_on), device="cpu")
    with pytest.raises(Refused, match="quality check"):
        deliver(job, predictor, strict=True)
    assert not list(out.iterdir())
    assert deliver(job, predictor)["qc"]["verdict"] == "refuse"


@pytest.mark.parametrize("fault", ["medseg.report.delivery.draw", "medseg.report.delivery.as_json"])
def test_a_failure_at_the_end_leaves_no_file(ready, monkeypatch, fault):
    predictor, job, out = ready

    def fail(*args, **kwargs):
        raise OutputError("disk full", hint="free space")

    monkeypatch.setattr(fault, fail)
    with pytest.raises(OutputError):
        deliver(job, predictor)
    assert not list(out.iterdir())
