"""The programs in pipelines/: each runs on small data as a user runs it, explains itself, and refuses in one line."""

import csv
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from argparse import Namespace
from datetime import date
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import orthanc
import pytest
from conftest import random_bundle, smooth_scan
from phantoms import body, series, store
from pydicom import dcmread
from pydicom.uid import MRImageStorage

import medseg

FOLDER = Path(__file__).parent.parent / "pipelines"
WINDOW = {"kind": "window", "low": -1000, "high": 1000, "mean": 0, "deviation": 500}
ELSEWHERE = {  # run by tests/test_documents.py
    "calibrate_hippocampus.py",
    "compare_architectures.py",
    "monai_pipeline.py",
    "train_hippocampus.py",
}
WRONG = {
    "archive_with_rules.py": (["nowhere", "-o", "out"], "there is no such archive"),
    "longitudinal_volumes.py": (["nowhere.csv", "-o", "out"], "is no table of visits"),
    "pacs_loop.py": (["http://127.0.0.1:1", "-o", "out", "--once"], "begins with no way to ask"),
    "segment_cohort.py": (["nowhere", "-o", "out"], "cannot be read as a list"),
    "train_cross_validate_evaluate.py": (["nowhere", "-o", "out"], "there is no such file or folder"),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny model that takes any grid."""
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    random_bundle(channels=[{"name": "ct", "intensity": WINDOW}]).save(path)
    return path


@pytest.fixture
def program(tmp_path):
    """A function that runs a pipeline as a user does, in a configuration of its own; returns code and what it said."""

    def call(name, *words):
        done = subprocess.run(command(name, *words), **surroundings(tmp_path), capture_output=True, check=False)
        return done.returncode, done.stdout, done.stderr

    return call


def command(name, *words):
    return [sys.executable, str(FOLDER / name), *map(str, words)]


def surroundings(folder):
    own = {"XDG_CONFIG_HOME": str(folder / "config"), "XDG_CACHE_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    return {"cwd": folder, "env": {**os.environ, **own}, "text": True}


@pytest.fixture
def inside(monkeypatch, capsys):
    """A function that runs a pipeline in this process, where all is imported already."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def call(name, *words):
        monkeypatch.setattr(sys, "argv", [name, *words])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(FOLDER / name), run_name="__main__")
        return stop.value.code or 0, *capsys.readouterr()

    yield call
    for number, handler in before.items():
        signal.signal(number, handler)


def rows_of(path):
    return [*csv.DictReader(path.read_text().splitlines())]


# --- every one of them ----------------------------------------------------------------------------------------------


def test_every_pipeline_is_run_by_a_test():
    assert {path.name for path in FOLDER.glob("*.py")} == {*WRONG, *ELSEWHERE}


@pytest.mark.parametrize("name", WRONG)
def test_a_pipeline_explains_itself(name, inside):
    code, out, err = inside(name, "--help")
    assert (code, err) == (0, "")
    assert f"python pipelines/{name}" in out
    assert "esearch use only" in out


@pytest.mark.parametrize("name", WRONG)
def test_wrong_words_are_one_line_and_no_traceback(name, inside, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words, said = WRONG[name]
    code, out, err = inside(name, *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ")
    assert said in err
    assert inside(name)[0] == 2


# --- a cohort -------------------------------------------------------------------------------------------------------


def test_a_cohort_becomes_label_maps_and_a_table_with_the_users_columns(program, model, tmp_path):
    for number in range(2):
        medseg.write(smooth_scan(seed=number, spacing=(1, 1, 2)), tmp_path / f"s{number}.nii.gz")
    store(series(body((24, 20, 16))), tmp_path / "dicom" / "ct")
    (tmp_path / "cut.nii.gz").write_bytes((tmp_path / "s0.nii.gz").read_bytes()[:3000])
    listing = tmp_path / "cohort.csv"
    listing.write_text("scan,age,name\ns0.nii.gz,61,\ns1.nii.gz,58,second\ncut.nii.gz,70,\ndicom/ct,49,\n")
    words = (listing, "-o", tmp_path / "out", "--model", model, "--device", "cpu")
    code, out, err = program("segment_cohort.py", *words)
    assert code == 1
    assert err.count("\n") == 1
    assert err.startswith("3/4 cut: error: ")
    assert "3 of 4 scans segmented" in out
    rows = rows_of(tmp_path / "out" / "volumes.csv")
    assert [(row["name"], row["age"], row["label"]) for row in rows] == [
        ("s0", "61", "front"), ("s0", "61", "back"), ("second", "58", "front"), ("second", "58", "back"),
        ("cut", "70", ""), ("ct", "49", "front"), ("ct", "49", "back"),
    ]  # fmt: skip
    assert [row["error"] for row in rows if row["error"]] == ["TRUNCATED"]
    assert str(tmp_path) not in (tmp_path / "out" / "volumes.csv").read_text()
    wanted = medseg.Predictor.load(model, device="cpu", threads=1)(medseg.read(tmp_path / "s0.nii.gz")).labels
    assert np.array_equal(medseg.read_labels(tmp_path / "out" / "s0.nii.gz").array, wanted.array)
    assert float(rows[0]["volume_ml"]) == pytest.approx(wanted.counts()["front"] * 2 / 1000)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir() if path.name != "volumes.csv"}
    (tmp_path / "out" / "second.json").write_text("{")
    assert program("segment_cohort.py", *words)[0] == 1
    assert rows_of(tmp_path / "out" / "volumes.csv") == rows
    changed = {path.stem for path, when in before.items() if path.stat().st_mtime_ns != when}
    assert {name.removesuffix(".nii") for name in changed} == {"second"}


def test_a_folder_is_a_cohort_and_two_scans_of_one_name_are_refused(inside, model, tmp_path):
    (tmp_path / "in").mkdir()
    medseg.write(smooth_scan(), tmp_path / "in" / "a.nii.gz")
    (tmp_path / "in" / "a_seg.nii.gz").write_bytes(b"no scan")
    store(series(body((16, 16, 8))), tmp_path / "in" / "b")
    (tmp_path / "in" / "notes").mkdir()
    words = ("-o", str(tmp_path / "out"), "--model", str(model), "--device", "cpu")
    code, out, _ = inside("segment_cohort.py", str(tmp_path / "in"), *words)
    assert (code, out.splitlines()[-1].split(" scans")[0]) == (0, "2 of 2")
    (tmp_path / "two.csv").write_text("scan\nin/a.nii.gz\nin/../in/a.nii.gz\n")
    code, _, err = inside("segment_cohort.py", str(tmp_path / "two.csv"), *words)
    assert code == 2
    assert "would both be written" in err
    for text in ("file\na\n", "scan\n", "scan,age\na.nii.gz\n", "scan,name\na,../b\n", "scan,label\na,b\n"):
        (tmp_path / "two.csv").write_text(text)
        assert inside("segment_cohort.py", str(tmp_path / "two.csv"), *words)[0] == 2


# --- an archive -----------------------------------------------------------------------------------------------------


def test_rules_in_python_choose_what_is_segmented(program, model, tmp_path):
    mr = {"Modality": "MR", "SOPClassUID": MRImageStorage}
    for number, (words, slices) in enumerate([("T1 thick", 10), ("T1 thin", 14), ("T2", 14), ("Localizer T1", 12)]):
        datasets = series(body((20, 18, slices)), uid=f"1.2.{number}", step=30 / slices, SeriesDescription=words, **mr)
        for dataset in datasets:
            dataset.StudyInstanceUID = "1.2.99"
        store(datasets, tmp_path / "archive" / str(number))
    medseg.write(smooth_scan(), tmp_path / "archive" / "scan.nii.gz")
    (tmp_path / "archive" / "cut.nii.gz").write_bytes((tmp_path / "archive" / "scan.nii.gz").read_bytes()[:3000])
    words = (tmp_path / "archive", "-o", tmp_path / "out", "--model", model, "--device", "cpu")
    code, out, err = program("archive_with_rules.py", *words)
    assert (code, err) == (1, "")
    assert "3 scans that the rules mean: 0 done before, 3 to do" in out
    assert "2 of 3 scans segmented; 3 to do in this run" in out
    assert "quality check: 2 check" in out
    assert "failed: 1 TRUNCATED: " in out
    assert "not meant: 1 another series of the study was chosen" in out
    assert "not meant: 1 no rule fits" in out
    shapes = {medseg.read_labels(path).geometry.shape for path in (tmp_path / "out").rglob("seg.nii.gz")}
    assert shapes == {(20, 18, 14), (20, 24, 18)}
    _, out, _ = program("archive_with_rules.py", *words)
    assert "nothing to do in this run" in out


# --- a PACS ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def pacs(tmp_path):
    if orthanc.MISSING:
        pytest.skip(orthanc.MISSING)
    with orthanc.started(tmp_path / "orthanc") as one:
        yield one


def of_today(uid, shape=(20, 18, 12), **tags):
    return series(body(shape), uid=uid, StudyDate=f"{date.today():%Y%m%d}", **tags)  # noqa: DTZ011 - as the loop


def objects(pacs, level, **query):
    asked = {"Level": level, "Query": query, "Expand": True}
    return json.loads(pacs.ask("/tools/find", json.dumps(asked).encode()))


@pytest.mark.parametrize("way", ["web", "dimse"])
def test_what_came_into_a_pacs_is_segmented_and_stored_back_once(pacs, program, model, tmp_path, way):
    new, old = of_today("1.2.1"), series(body((20, 18, 12)), uid="1.2.2", StudyDate="20200101")
    for name, datasets in (("new", new), ("old", old), ("us", of_today("1.2.3", Modality="US"))):
        pacs.put(store(datasets, tmp_path / name).iterdir())
    words = (getattr(pacs, way), "-o", tmp_path / "out", "--model", model, "--device", "cpu", "--settle", 0, "--once")
    code, out, err = program("pacs_loop.py", *words)
    assert (code, out, err) == (0, "1 new, 1 done, 0 failed, 0 left\n", "")
    (found,) = objects(pacs, "Instance", Modality="SEG")
    (tmp_path / "seg.dcm").write_bytes(pacs.ask(f"/instances/{found['ID']}/file"))
    stored = dcmread(tmp_path / "seg.dcm")
    assert stored.StudyInstanceUID == new[0].StudyInstanceUID
    assert stored.ReferencedSeriesSequence[0].SeriesInstanceUID == new[0].SeriesInstanceUID
    grid = medseg.read(tmp_path / "new").geometry
    own = next((tmp_path / "out" / "results").rglob("seg.nii.gz"))
    wanted = medseg.read_labels(own)
    assert wanted.geometry.same_as(grid)
    assert np.array_equal(medseg.read_labels(tmp_path / "seg.dcm", grid=wanted.geometry).array, wanted.array)
    assert program("pacs_loop.py", *words)[:2] == (0, "0 new, 1 done, 0 failed, 0 left\n")
    assert len(objects(pacs, "Instance", Modality="SEG")) == 1
    texts = [path.read_text(errors="replace") for path in (tmp_path / "out").rglob("*") if path.suffix in TEXTS]
    assert texts
    assert not [text for text in texts if new[0].StudyInstanceUID in text or "Doe" in text]


TEXTS = {".csv", ".html", ".json", ".jsonl"}


def test_a_series_that_is_still_arriving_is_left_for_the_next_round(pacs, model, tmp_path, monkeypatch, capsys):
    files = sorted(store(of_today("1.2.1"), tmp_path / "new").iterdir())
    pacs.put(files[:7])
    loop = runpy.run_path(str(FOLDER / "pacs_loop.py"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr(time, "sleep", lambda seconds: pacs.put(files[7:]))
    options = Namespace(
        pacs=pacs.web, output=tmp_path / "out", model=str(model), modality=None, description="", days=1, settle=9.0,
        device="cpu",
    )  # fmt: skip
    assert loop["go_round"](options, "") == (0, False)
    assert capsys.readouterr().out == "0 new, 0 done, 0 failed, 0 left; 1 still arriving\n"
    assert not [*(tmp_path / "out").rglob("seg.dcm")]


def test_the_loop_goes_on_while_the_pacs_is_down_and_ends_cleanly_when_told(model, tmp_path):
    port = orthanc.free_port()
    words = (f"dicomweb+http://127.0.0.1:{port}/x", "-o", tmp_path / "out", "--model", model, "--every", 1)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command("pacs_loop.py", *words), **surroundings(tmp_path), **pipes) as loop:
        said = [loop.stderr.readline(), loop.stderr.readline()]
        loop.send_signal(signal.SIGTERM)
        out, err = loop.communicate(timeout=30)
    assert all(line.startswith("error: ") for line in said)
    assert (loop.returncode, out) == (0, "stopped\n")
    assert "Traceback" not in err


# --- training -------------------------------------------------------------------------------------------------------


@pytest.fixture
def pairs(tmp_path):
    """Eight cubes of noise, each with a ball at another place."""
    for number in range(8):
        for folder in ("images", "labels"):
            (tmp_path / "pairs" / folder).mkdir(parents=True, exist_ok=True)
        centre = np.array([5 + number % 2, 6 + number // 2 % 2, 7 + number // 4]).reshape(3, 1, 1, 1)
        ball = np.linalg.norm(np.indices((16, 16, 16)) - centre, axis=0) < 4
        noise = np.random.default_rng(number).normal(size=ball.shape)
        grid = medseg.Geometry(np.eye(4), ball.shape)
        image = medseg.Volume((ball * 3 + noise).astype(np.float32)[None], grid)
        medseg.write(image, tmp_path / "pairs" / "images" / f"case_{number}.nii.gz")
        labels = medseg.LabelMap(ball.astype(np.uint8), grid)
        medseg.write(labels, tmp_path / "pairs" / "labels" / f"case_{number}.nii.gz")
    return tmp_path / "pairs"


@pytest.mark.slow
def test_a_folder_of_pairs_becomes_a_model_with_honest_scores(program, pairs, tmp_path):
    words = (pairs, "-o", tmp_path / "out", "--folds", 2, "--minutes", 0.2, "--device", "cpu")
    code, out, err = program("train_cross_validate_evaluate.py", *words)
    assert code == 0, err
    assert "6 cases to learn from, 2 for the test" in out
    assert "cross-validation over 2 folds" in out
    assert "2 cases, put aside" in out
    learned = {case["case"] for case in json.loads((tmp_path / "out" / "cases.json").read_text())["training"]}
    rows = rows_of(tmp_path / "out" / "scores.csv")
    tested = {row["case"] for row in rows}
    assert (len(learned), len(tested), learned & tested) == (6, 2, set())
    bundle = medseg.Bundle.load(tmp_path / "out" / "model.safetensors")
    assert (len(bundle.members), bundle.fingerprint.cases, bundle.card.validation.cases) == (2, 6, 6)
    for row in rows:
        found = medseg.read_labels(tmp_path / "out" / "test" / f"{row['case']}.nii.gz").array > 0
        drawn = medseg.read_labels(pairs / "labels" / f"{row['case']}.nii.gz").array > 0
        dice = 2 * (found & drawn).sum() / (found.sum() + drawn.sum())
        assert float(row["dice"]) == pytest.approx(dice)
    code, again, _ = program("train_cross_validate_evaluate.py", *words)
    assert (code, again.splitlines()[-1]) == (0, out.splitlines()[-1])
    code, _, err = program("train_cross_validate_evaluate.py", *words, "--seed", 3)
    assert code == 2
    assert "its training was of other cases" in err


def test_a_wrong_pair_stops_a_training_before_it_begins(inside, pairs, tmp_path):
    (pairs / "labels" / "case_1.nii.gz").write_bytes((pairs / "labels" / "case_0.nii.gz").read_bytes())
    code, out, err = inside("train_cross_validate_evaluate.py", str(pairs), "-o", str(tmp_path / "out"))
    assert code == 2
    assert "error: OTHER_LABEL: case_1" in out
    assert "the check found errors" in err
    assert inside("train_cross_validate_evaluate.py", str(pairs), "-o", "out", "--test", "1")[0] == 2
    assert not (tmp_path / "out").exists()


# --- volumes over time ----------------------------------------------------------------------------------------------


def cubes(*sides):
    """Return a label map of cubes, one label each, in voxels of 1 x 1 x 2 mm."""
    array = np.zeros((12, 12, 12 * len(sides)), np.uint8)
    for value, side in enumerate(sides, start=1):
        array[:side, :side, 12 * value - 12 : 12 * value - 12 + side] = value
    return medseg.LabelMap(array, medseg.Geometry(np.diag([1.0, 1.0, 2.0, 1.0]), array.shape))


def test_changes_of_label_maps_are_those_computed_by_hand(inside, tmp_path):
    for name, sides in {"a": (10, 4), "b": (5, 4), "c": (8, 4), "d": (10, 0), "e": (6, 3)}.items():
        medseg.write(cubes(*sides), tmp_path / f"{name}.nii.gz")
    visits = tmp_path / "visits.csv"
    visits.write_text(
        "patient,date,labels\nP1,2022-01-01,c.nii.gz\nP1,2020-01-01,a.nii.gz\nP1,2021-01-01,b.nii.gz\n"
        "P2,20200601,d.nii.gz\nP2,20200601,c.nii.gz\n<P3>,2020-01-01,e.nii.gz\n"
    )
    code, _, err = inside("longitudinal_volumes.py", str(visits), "-o", str(tmp_path / "out"), "--repeatability", "10")
    assert (code, err) == (0, "")
    found = {
        (row["patient"], row["date"], row["line"], row["label"]): row
        for row in rows_of(tmp_path / "out" / "changes.csv")
    }
    first = found["P1", "2020-01-01", "3", "label 1"]
    assert (first["day"], first["volume_ml"], first["change_percent"], first["beyond"]) == ("0", "2.0", "0.0", "no")
    second = found["P1", "2021-01-01", "4", "label 1"]
    assert (second["day"], second["volume_ml"], second["change_percent"], second["beyond"]) == (
        "366", "0.25", "-87.5", "yes",
    )  # fmt: skip
    third = found["P1", "2022-01-01", "2", "label 1"]
    days, volumes = np.array([0, 366, 731]), np.array([2, 0.25, 1.024])
    slope = ((days - days.mean()) * (volumes - volumes.mean())).sum() / ((days - days.mean()) ** 2).sum()
    start = volumes.mean() - slope * days.mean()
    assert float(third["yearly_percent"]) == pytest.approx(100 * slope * 365.25 / start, abs=1e-3)
    assert {found["P1", "2022-01-01", "2", "label 2"][key] for key in ("change_percent", "beyond")} == {"0.0", "no"}
    gone, back = found["P2", "20200601", "5", "label 2"], found["P2", "20200601", "6", "label 2"]
    assert (gone["volume_ml"], gone["change_percent"], back["change_percent"]) == ("0.0", "", "")
    assert back["yearly_percent"] == ""
    picture = ET.parse(tmp_path / "out" / "label_1.svg")
    titles = [element.text for element in picture.iter("{http://www.w3.org/2000/svg}title")]
    assert titles == ["<P3>", "P1", "P2"]
    assert "M0 -0.0L366 87.5L731 48.8" in (tmp_path / "out" / "label_1.svg").read_text()


def test_scans_of_several_days_are_segmented_and_compared(program, model, tmp_path):
    medseg.write(smooth_scan(seed=1), tmp_path / "a.nii.gz")
    store(series(body((24, 20, 16))), tmp_path / "b")
    (tmp_path / "cut.nii.gz").write_bytes((tmp_path / "a.nii.gz").read_bytes()[:3000])
    visits = tmp_path / "visits.csv"
    visits.write_text("patient,date,scan\nP1,2020-01-01,a.nii.gz\nP1,2020-07-01,b\nP1,2020-03-01,cut.nii.gz\n")
    code, out, err = program("longitudinal_volumes.py", visits, "-o", tmp_path / "out", "--model", model)
    assert code == 1
    assert err.startswith("error: line 4: ")
    assert err.count("\n") == 1
    assert "2 of 3 scans used" in out
    rows = rows_of(tmp_path / "out" / "changes.csv")
    assert [(row["label"], row["day"], row["line"], row["beyond"], row["verdict"]) for row in rows] == [
        ("front", "0", "2", "", "check"), ("front", "182", "3", "", "check"),
        ("back", "0", "2", "", "check"), ("back", "182", "3", "", "check"),
    ]  # fmt: skip
    volumes = {
        label["name"]: label["volume_ml"] for label in json.loads((tmp_path / "out" / "3.json").read_text())["labels"]
    }
    assert {row["label"]: float(row["volume_ml"]) for row in rows if row["line"] == "3"} == pytest.approx(volumes)
    assert (tmp_path / "out" / "front.svg").exists()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "patient,date,scan\n",
        "patient,scan\nP1,a\n",
        "patient,date,scan\nP1,soon,a\n",
        "patient,date,scan\nP1,2020-01-01\n",
    ],
)
def test_a_table_without_visits_is_refused(inside, tmp_path, text):
    (tmp_path / "visits.csv").write_text(text)
    code, _, err = inside("longitudinal_volumes.py", str(tmp_path / "visits.csv"), "-o", str(tmp_path / "out"))
    assert (code, err.count("\n")) == (2, 1)
    assert "is no table of visits" in err
