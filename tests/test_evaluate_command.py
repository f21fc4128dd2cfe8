"""`medseg evaluate` end to end: table, files, page, what fails and what is left over."""

import csv
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

import medseg
from medseg.geometry import Geometry
from medseg.volume import LabelMap

METRIC_COLUMNS = (
    "dice,iou,hd_mm,hd95_mm,assd_mm,nsd,volume_ml,reference_ml,sensitivity,precision,specificity,rmsd_mm,"
    "volume_error_ml,relative_volume_error"
)


def label_map(seed=0, shape=(16, 14, 12), shift=0):
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2)
    array = np.digitize(noise, np.quantile(noise, [0.7, 0.9])).astype(np.uint8)
    return LabelMap(np.roll(array, shift, axis=1), Geometry(np.diag([1, 1, 2, 1.0]), shape))


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """References `ref` and predictions `pred` (shifted by a voxel) of five cases."""
    monkeypatch.chdir(tmp_path)
    for name, shift in (("ref", 0), ("pred", 1)):
        (tmp_path / name).mkdir()
        for number in range(5):
            end = "_seg.nii.gz" if name == "pred" else ".nii.gz"
            medseg.write(label_map(number, shift=shift), tmp_path / name / f"case{number}{end}")
    return tmp_path


class Page(HTMLParser):
    """Checks that tags close in order, and collects words, tags and addresses."""

    VOID = ("meta", "br", "img", "line", "circle", "rect", "polygon")

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.words, self.addresses = [], [], "", []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in {"src", "href"}]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data


def scores(folder):
    return json.loads((folder / "scores.json").read_text())


def test_two_folders_give_a_table_and_three_files(folders, run):
    code, out, err = run("evaluate", "pred", "ref", "-o", "out")
    assert code == 0, err
    assert "5 cases" in out
    assert sorted(path.name for path in (folders / "out").iterdir()) == ["report.html", "scores.csv", "scores.json"]
    with open("out/scores.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert list(table[0]) == ["case", "label", "name", "state", *METRIC_COLUMNS.split(",")]
    assert [(row["case"], row["label"]) for row in table] == [(f"case{n}", label) for n in range(5) for label in "12"]
    found = scores(folders / "out")
    assert [str(row["hd95_mm"]) for row in found["cases"]] == [row["hd95_mm"] for row in table]
    masks = label_map(3, shift=1).array == 2, label_map(3).array == 2
    assert found["cases"][7]["dice"] == pytest.approx(medseg.metrics.dice(*masks))
    assert found["cases"][7]["assd_mm"] == pytest.approx(
        medseg.metrics.average_surface_distance(*masks, (1, 1, 2)), rel=1e-8
    )
    assert found["summary"][0]["metrics"]["dice"]["n"] == 5
    page = Page((folders / "out" / "report.html").read_text())
    assert page.tags.count("img") == 5
    assert page.tags.count("svg") == 4
    assert page.tags.count("circle") == 4 * 2 * 5
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert "script" not in page.tags


def test_two_files_and_nothing_written(folders, run):
    code, out, _ = run("evaluate", "pred/case0_seg.nii.gz", "ref/case0.nii.gz", "--progress", "none")
    assert code == 0
    assert "1 case;" in out
    assert "Surface Dice" in out
    assert sorted(path.name for path in folders.iterdir()) == ["pred", "ref"]


def test_the_same_input_gives_the_same_bytes(folders, run):
    for folder in ("one", "two"):
        assert run("evaluate", "pred", "ref", "-o", folder)[0] == 0
    for name in ("scores.csv", "scores.json", "report.html"):
        assert (folders / "one" / name).read_bytes() == (folders / "two" / name).read_bytes()


def test_what_is_bad_or_left_over_is_said_and_does_not_stop_the_rest(folders, run):
    (folders / "pred" / "case1_seg.nii.gz").write_bytes(b"junk")
    (folders / "pred" / "case2_seg.nii.gz").unlink()
    other = label_map(3)
    medseg.write(
        LabelMap(other.array, other.geometry.cropped((1, 0, 0), (17, 14, 12))), folders / "pred" / "case3_seg.nii.gz"
    )
    medseg.write(label_map(9), folders / "pred" / "extra.nii.gz")
    code, out, err = run("evaluate", "pred", "ref", "-o", "out", "--progress", "none")
    assert code == 1
    assert "2 cases" in out
    assert "error: case1: pred/case1_seg.nii.gz: " in err
    assert "error: case3: prediction and reference lie on different grids: their corners are up to 1 mm apart" in err
    assert "warning: ref/case2.nii.gz: has no prediction, not evaluated" in err
    assert "warning: pred/extra.nii.gz: has no reference, not evaluated" in err
    found = scores(folders / "out")
    assert {failed["case"] for failed in found["failed"]} == {"case1", "case3"}
    assert found["unpaired"] == {"predictions": ["pred/extra.nii.gz"], "references": ["ref/case2.nii.gz"]}
    assert {row["case"] for row in found["cases"]} == {"case0", "case4"}
    words = Page((folders / "out" / "report.html").read_text()).words
    for said in (
        "2 cases could not be evaluated",
        "1 case without a prediction",
        "1 case without a reference",
        "1 mm apart",
    ):
        assert said in words


def test_the_files_are_there_even_if_nobody_reads_the_table(folders):
    command = [sys.executable, "-m", "medseg", "evaluate", "pred", "ref", "-o", "out", "--progress", "none"]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert done.returncode == 1
    assert done.stderr == ""
    assert len(scores(folders / "out")["cases"]) == 10


def test_a_reference_without_a_prediction_is_a_failure(folders, run):
    (folders / "pred" / "case2_seg.nii.gz").unlink()
    assert run("evaluate", "pred", "ref")[0] == 1


def test_a_prediction_without_a_reference_is_no_failure(folders, run):
    medseg.write(label_map(9), folders / "pred" / "extra.nii.gz")
    assert run("evaluate", "pred", "ref")[0] == 0


def test_when_nothing_can_be_evaluated_nothing_is_written(folders, run):
    for path in (folders / "pred").iterdir():
        path.write_bytes(b"junk")
    code, out, err = run("evaluate", "pred", "ref", "-o", "out")
    assert code == 2
    assert err.count("error: ") == 5
    assert "0 cases" in out
    assert not list((folders / "out").iterdir())


def test_misses_and_empty_maps_through_the_whole_report(folders, run):
    empty = label_map(0)
    nothing = LabelMap(np.zeros_like(empty.array), empty.geometry)
    for name in ("pred/case0_seg.nii.gz", "pred/case1_seg.nii.gz", "ref/case1.nii.gz", "ref/case2.nii.gz"):
        medseg.write(nothing, folders / name)
    code, out, err = run("evaluate", "pred", "ref", "-o", "out", "--metrics", "all")
    assert code == 0, err
    found = scores(folders / "out")
    states = {(row["case"], row["label"]): row["state"] for row in found["cases"]}
    assert [states[f"case{n}", 1] for n in range(5)] == ["missed", "undefined", "spurious", "ok", "ok"]
    row = found["cases"][0]
    assert (row["dice"], row["hd95_mm"], row["relative_volume_error"], row["cldice"]) == (0, None, -1, 0)
    assert found["cases"][2]["dice"] is None
    summary = found["summary"][0]
    assert [summary[state] for state in ("n", "ok", "missed", "spurious", "undefined")] == [5, 2, 1, 1, 1]
    distance = summary["metrics"]["hd95"]
    diagonal = np.linalg.norm([16, 14, 24])
    assert (distance["n"], distance["n_with_misses"]) == (2, 4)
    expected = (distance["mean"] * 2 + 2 * diagonal) / 4
    assert distance["mean_with_misses"] == pytest.approx(expected)
    assert " | " in out
    page = Page((folders / "out" / "report.html").read_text())
    assert "with misses" in page.words
    assert "nan" not in page.words.lower().replace("nanometre", "")
    for word in ("missed", "spurious", "undefined"):
        assert word in page.words


def test_other_grids_are_resampled_when_asked_and_it_is_said(folders, run):
    for path in (folders / "pred").iterdir():
        labels = medseg.read_labels(path)
        bigger = labels.geometry.cropped((-1, 0, 0), labels.geometry.shape)
        medseg.write(LabelMap(np.pad(labels.array, ((1, 0), (0, 0), (0, 0))), bigger), path)
    assert run("evaluate", "pred", "ref")[0] == 2
    code, _, err = run("evaluate", "pred", "ref", "--resample", "-o", "out")
    assert code == 0, err
    assert scores(folders / "out")["resampled"] == [f"case{number}" for number in range(5)]
    assert "5 cases resampled" in Page((folders / "out" / "report.html").read_text()).words


def test_two_sets_are_compared_case_by_case(folders, run):
    (folders / "better").mkdir()
    for number in range(4):
        medseg.write(label_map(number), folders / "better" / f"case{number}.nii.gz")
    (folders / "better" / "case4.nii.gz").write_bytes(b"junk")
    code, out, err = run("evaluate", "pred", "ref", "--compare", "better", "-o", "out", "--metrics", "dice,hd95,volume")
    assert code == 1
    assert "better minus pred, case by case" in out
    assert "error: case4" in err
    found = scores(folders / "out")
    assert found["compared_with"] == "better"
    assert [failed["case"] for failed in found["failed"]] == ["better, case4"]
    first = found["differences"][0]
    assert (first["name"], first["metric"], first["n"], first["higher"], first["second"]) == ("1", "dice", 4, 4, 1.0)
    assert first["difference"] == pytest.approx(first["second"] - first["first"])
    assert 0 < first["p"] <= 0.125
    with open("out/differences.csv", newline="") as file:
        assert {row["metric"] for row in csv.DictReader(file)} == {"dice", "hd95"}
    assert "Compared with better" in Page((folders / "out" / "report.html").read_text()).words


def test_labels_metrics_tolerances_and_surfaces_are_the_users_choice(folders, run):
    words = (
        "--labels",
        "organ=1+2,core=2",
        "--metrics",
        "nsd,dice",
        "--tolerance",
        "1,core=3",
        "--surface",
        "elements",
    )
    code, _, err = run("evaluate", "pred", "ref", "-o", "out", *words)
    assert code == 0, err
    found = scores(folders / "out")
    assert list(found["cases"][0]) == ["case", "label", "name", "state", "dice", "nsd"]
    assert found["settings"] == {"tolerance": 1, "tolerances": {"core": 3}, "unit": "mm", "surface": "elements"}
    row = next(row for row in found["cases"] if row["name"] == "core" and row["case"] == "case2")
    masks = label_map(2, shift=1).array == 2, label_map(2).array == 2
    assert row["nsd"] == pytest.approx(medseg.metrics.surface_dice(*masks, (1, 1, 2), 3, surface="elements"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--metrics", "dicey"), "unknown metric 'dicey'"),
        (("--tolerance", "-2"), "tolerance '-2'"),
        (("--tolerance", "nan"), "tolerance 'nan'"),
        (("--tolerance", "2,heart=1"), "--tolerance names 'heart'; the labels are: 1, 2"),
        (("--labels", "a=b"), "label 'a=b'"),
        (("--compare", "nowhere"), "nowhere: there is no such file or folder"),
    ],
)
def test_wrong_words_are_one_line(folders, run, words, said):
    code, _, err = run("evaluate", "pred", "ref", *words, "--progress", "none")
    assert code == 2
    assert said in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("metrics", ["hd95", "dice", "volume"])
def test_the_page_begins_with_misses_and_then_the_worst_of_what_was_asked_for(folders, run, metrics):
    for number, shift in enumerate((1, 4, 0, 2, 0)):
        medseg.write(label_map(number, shift=shift), folders / "pred" / f"case{number}_seg.nii.gz")
    medseg.write(LabelMap(label_map(4).array * 0, label_map(4).geometry), folders / "pred" / "case4_seg.nii.gz")
    assert run("evaluate", "pred", "ref", "-o", "out", "--metrics", metrics)[0] == 0
    page = (folders / "out" / "report.html").read_text()
    shown = re.findall(r'<div class="case"><b>(\w+)</b>', page)
    assert shown[0] == "case4"
    if metrics != "volume":
        assert shown == ["case4", "case1", "case3", "case0", "case2"]


def test_pictures_without_a_size_are_scored_in_pixels(tmp_path, run):
    for name, shift in (("ref", 0), ("pred", 2)):
        (tmp_path / name).mkdir()
        mask = np.roll(np.pad(np.full((20, 30), 255, np.uint8), 20), shift, axis=1)
        Image.fromarray(mask).save(tmp_path / name / "cell.png")
    code, out, err = run("evaluate", tmp_path / "pred", tmp_path / "ref", "-o", tmp_path / "out")
    assert code == 0, err
    assert "HD95 px" in out
    found = scores(tmp_path / "out")
    row = found["cases"][0]
    assert (row["label"], row["hd_px"], row["volume_px"], row["reference_px"]) == (255, 2, 600, 600)
    assert found["settings"]["unit"] == "px"
    assert not any(column.endswith(("_mm", "_ml")) for column in row)
    medseg.write(label_map(), tmp_path / "pred" / "scan.nii.gz")
    medseg.write(label_map(), tmp_path / "ref" / "scan.nii.gz")
    code, _, err = run("evaluate", tmp_path / "pred", tmp_path / "ref")
    assert code == 1
    assert "error: scan: it has a size in mm, unlike the cases before" in err


def test_hostile_names_are_text_on_the_page(tmp_path, run):
    name = "<script>alert(1)</script>&\"'"
    for folder in ("ref", "pred"):
        (tmp_path / folder).mkdir()
        medseg.write(label_map(), tmp_path / folder / f"{name.replace('/', '_')}.nii.gz")
    assert run("evaluate", tmp_path / "pred", tmp_path / "ref", "-o", tmp_path / "out")[0] == 0
    page = Page((tmp_path / "out" / "report.html").read_text())
    assert "script" not in page.tags
    assert "<script>alert(1)<_script>" in page.words


def test_names_colours_and_overlaps_of_seg_nrrd(tmp_path, run, sample):
    labels = medseg.Predictor.load("hippocampus-t1", device="cpu")(medseg.read(sample)).labels
    medseg.write(labels, tmp_path / "mask.seg.nrrd")
    medseg.write(labels, tmp_path / "mask.nii.gz")
    code, out, err = run("evaluate", tmp_path / "mask.seg.nrrd", tmp_path / "mask.nii.gz")
    assert code == 0, err
    assert "anterior" in out
    assert "posterior" in out


def test_three_hundred_cases_in_one_run(tmp_path, run):
    for folder, shift in (("ref", 0), ("pred", 1)):
        (tmp_path / folder).mkdir()
        for number in range(300):
            labels = label_map(number, (10, 9, 8), shift)
            medseg.write(labels, tmp_path / folder / f"{number:03}.nii")
    code, out, err = run("evaluate", tmp_path / "pred", tmp_path / "ref", "-o", tmp_path / "out", "--progress", "json")
    assert code == 0
    assert "300 cases" in out
    events = [json.loads(line) for line in err.splitlines()]
    assert events[-1]["number"] == events[-1]["of"] == 300
    assert events[-1]["fraction"] == 1
    assert len(scores(tmp_path / "out")["cases"]) == 600
    assert (tmp_path / "out" / "report.html").stat().st_size < 2e6


def test_evaluating_loads_no_torch():
    code = "import sys, medseg.cli.evaluate, medseg.cli.scoring, medseg.report.scores; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
