"""`medseg batch` from archive to results, table, page and audit log; `medseg status` and `medseg retry`."""

import csv
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import random_bundle, smooth_scan
from phantoms import body, series, store

import medseg

WINDOW = {"kind": "window", "low": -1000, "high": 1000, "mean": 0, "deviation": 500}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny model that needs no spacing."""
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    random_bundle(channels=[{"name": "ct", "intensity": WINDOW}]).save(path)
    return path


@pytest.fixture
def batch(run, tmp_path, model):
    """A function that runs `medseg batch` over tmp_path/archive; returns exit code, what was printed, and results."""

    def call(*words, archive=tmp_path / "archive", output=tmp_path / "out", own_model=True):
        named = ["-m", model] if own_model else []
        code, out, err = run(
            "batch", archive, "-o", output, *named, "--index", tmp_path / "index", "--key-file", tmp_path / "key",
            "--threads", 1, *words,
        )  # fmt: skip
        table = output / "results.csv"
        rows = [*csv.DictReader(table.read_text().splitlines())] if table.exists() else []
        return code, out, err, rows

    return call


@pytest.fixture
def archive(tmp_path):
    folder = tmp_path / "archive"
    folder.mkdir()
    return folder


def ct(uid, shape=(24, 20, 16), **tags):
    return series(body(shape), uid=uid, **tags)


def of_study(datasets, study):
    for dataset in datasets:
        dataset.StudyInstanceUID = study
    return datasets


def test_an_archive_of_every_layout_becomes_results(archive, batch, run, tmp_path):
    store(ct("1.2.1", PatientID="P1"), archive / "tree" / "deep", suffix="")
    folder = store(ct("1.2.2", PatientID="P2"), tmp_path / "packed")
    with zipfile.ZipFile(archive / "study.zip", "w") as file:
        for path in folder.iterdir():
            file.write(path, path.name)
    medseg.write(smooth_scan((20, 18, 16)), archive / "scan.nii.gz")
    scout = ct("1.2.3")
    for dataset in scout:
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    store(scout, archive / "scout")
    code, out, err, rows = batch()
    assert (code, len(rows)) == (0, 6), err
    assert "3 of 3 scans segmented" in out
    assert {(row["state"], row["model"], row["verdict"]) for row in rows} == {("done", "tiny 1", "check")}
    for row in rows:
        place = tmp_path / "out" / row["folder"]
        assert {path.name for path in place.iterdir()} >= {"seg.nii.gz", "seg.json", "seg.png", "seg_small.png"}
        report = json.loads((place / "seg.json").read_text())
        assert report["scan"]["path"] == row["folder"].removeprefix("results/")
        volumes = {label["name"]: label["volume_ml"] for label in report["labels"]}
        assert float(row["volume_ml"]) == pytest.approx(volumes[row["label"]], rel=1e-4)
    of_dicom = next(
        Path(tmp_path / "out" / row["folder"])
        for row in rows
        if (tmp_path / "out" / row["folder"] / "seg.dcm").exists()
    )
    first, second = (medseg.read_labels(of_dicom / name).array for name in ("seg.nii.gz", "seg.dcm"))
    assert np.count_nonzero(first) == np.count_nonzero(second) > 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "results").rglob("*")}
    code, out, _, again = batch()
    assert (code, again) == (0, rows)
    assert "nothing was left to do" in out
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "results").rglob("*")}
    code, out, _ = run("status", tmp_path / "out", "--audit")
    assert code == 0
    assert "3 done, 0 failed, 0 left" in out
    assert "1 localizers" in out
    assert "audit.jsonl: 5 lines, unbroken" in out


def test_a_batch_gives_the_label_map_of_a_single_prediction(archive, batch, run, model, tmp_path):
    folder = store(ct("1.2.1"), archive / "a")
    _, _, _, rows = batch("--no-picture")
    assert run("predict", folder, "-o", tmp_path / "one", "-m", model, "--threads", 1)[0] == 0
    mine = next((tmp_path / "one").glob("*.nii.gz")).read_bytes()
    assert (tmp_path / "out" / rows[0]["folder"] / "seg.nii.gz").read_bytes() == mine


def test_rules_choose_series_and_model(archive, batch, model, tmp_path):
    thick = ct("1.2.1", (24, 20, 8), SeriesDescription="THORAX thick")
    thin = ct("1.2.2", (24, 20, 24), SeriesDescription="Thorax thin")
    for dataset in thin:
        dataset.ImagePositionPatient[2] = 100 + (float(dataset.ImagePositionPatient[2]) - 100) / 2
    for number, datasets in enumerate((thick, thin)):
        store(of_study(datasets, "1.9.9"), archive / str(number))
    store(ct("1.2.3", Modality="MR", SeriesDescription="thorax"), archive / "mr")
    store(ct("1.2.4", SeriesDescription="dose report thorax"), archive / "dose")
    store(ct("1.2.5", SeriesDescription="knee"), archive / "knee")
    medseg.write(smooth_scan((20, 18, 16)), archive / "small.nrrd")
    rules = tmp_path / "rules.toml"
    rules.write_text(
        f"""
        [[rule]]
        description = "*dose*"
        skip = true
        [[rule]]
        modality = "CT"
        description = "*thorax*"
        per_study = "thinnest"
        model = "{model}"
        formats = "nrrd"
        [[rule]]
        path = "*.nrrd"
        slices = [100, 200]
        model = "{model}"
        """
    )
    code, out, _, rows = batch("--rules", rules, "--no-picture", own_model=False)
    assert code == 0
    assert "1 passed over, as the rules do not mean them" in out
    (folder,) = {row["folder"] for row in rows}
    assert medseg.read_labels(tmp_path / "out" / folder / "seg.nrrd").geometry.shape == (24, 20, 24)


def test_status_says_what_the_rules_do_not_mean(archive, batch, run, tmp_path):
    store(ct("1.2.3", Modality="MR"), archive / "mr")
    rules = tmp_path / "rules.toml"
    rules.write_text('[[rule]]\nmodality = "CT"\n')
    code, out, _, _ = batch("--rules", rules)
    assert (code, out.splitlines()[0]) == (0, "no scan was found that the rules mean")
    assert "not meant to be segmented: 1 no rule fits" in run("status", tmp_path / "out")[1]


def test_kept_names_are_those_of_the_archive(archive, batch, tmp_path):
    store(ct("1.2.1", PatientID="Patient 7"), archive / "a")
    _, _, _, rows = batch("--keep-names", "--no-picture")
    patient, study, name = (rows[0][key] for key in ("patient", "study", "series"))
    assert patient.startswith("Patient_7-")
    assert (study, name) == tuple(
        str(getattr(ct("1.2.1")[0], key)) for key in ("StudyInstanceUID", "SeriesInstanceUID")
    )
    code, _, err, _ = batch()
    assert code == 2
    assert "named in another way" in err


def test_parts_of_an_archive_make_up_the_whole(archive, batch, run, tmp_path):
    for number in range(6):
        store(ct(f"1.2.{number}", (16, 16, 8)), archive / str(number))
    counts = []
    for number in (1, 2):
        code, out, _, _ = batch("--shard", f"{number}/2", "--no-picture")
        assert code == 0
        counts.append(
            len([*csv.DictReader((tmp_path / "out" / f"results-{number}-of-2.csv").read_text().splitlines())]) // 2
        )
    assert sum(counts) == 6
    assert min(counts) > 0
    code, out, _ = run("status", tmp_path / "out", "--page", "--audit")
    assert "6 done, 0 failed, 0 left" in out
    assert (
        len({row["series"] for row in csv.DictReader((tmp_path / "out" / "results.csv").read_text().splitlines())}) == 6
    )


def test_a_failure_is_told_with_its_reason_and_tried_again_on_demand(archive, batch, run, tmp_path):
    gap = store(ct("1.2.1"), archive / "gap", shuffled=False)
    (gap / "IM0007.dcm").rename(tmp_path / "kept")
    medseg.write(smooth_scan((20, 18, 16)), archive / "whole.nii.gz")
    (archive / "cut.nii.gz").write_bytes((archive / "whole.nii.gz").read_bytes()[:2000])
    code, out, _, rows = batch("--no-picture")
    assert code == 1
    assert "2 failed: see `medseg status" in out
    assert sorted(row["code"] for row in rows if row["state"] == "failed") == ["GEOM_MISSING_SLICE", "TRUNCATED"]
    code, out, _ = run("status", tmp_path / "out", "--failed", "--reason", "TRUNCATED")
    assert code == 1
    assert len([line for line in out.splitlines() if ": TRUNCATED: " in line and "copy it again" in line]) == 1
    assert "cut.nii.gz" not in out
    assert run("status", tmp_path / "out", "--json")[1].startswith("{")
    assert run("retry", tmp_path / "out", "--reason", "NONE")[1] == "nothing failed like that\n"
    assert "1 wait for another try" in run("retry", tmp_path / "out", "--reason", "TRUNCATED")[1]
    (tmp_path / "kept").rename(gap / "IM0007.dcm")  # a whole series is another input: no retry is needed
    code, _, _, rows = batch("--no-picture")
    assert sorted(row["code"] for row in rows if row["state"] == "failed") == ["TRUNCATED"]
    code, _, _, rows = batch("--no-picture", "--repair")
    assert {row["state"] for row in rows} == {"done", "failed"}


def test_progress_is_told_to_programs(archive, batch):
    medseg.write(smooth_scan((20, 18, 16)), archive / "scan.nii.gz")
    _, _, err, _ = batch("--progress", "json", "--no-picture")
    lines = [json.loads(line) for line in err.splitlines()]
    assert [line["event"] for line in lines][0 :: len(lines) - 1] == ["begin", "end"]
    assert (lines[0]["left"], lines[-1]["left"], lines[-1]["done"]) == (1, 0, 1)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "no folder for results"),
        (["-o", "out"], "one archive is needed"),
        (["nowhere", "-o", "out", "-m", "hippocampus-t1"], "there is no such archive"),
        (["archive", "-o", "out"], "no model was named"),
        (["archive", "-o", "out", "-m", "none"], "there is no model 'none'"),
        (["archive", "-o", "out", "-m", "hippocampus-t1", "--shard", "0/3"], "no part of an archive"),
        (["archive", "-o", "out", "-m", "hippocampus-t1", "--time-limit", "soon"], "is no time"),
        (["archive", "-o", "out", "-m", "hippocampus-t1", "--memory", "much"], "is no amount of memory"),
        (["archive", "-o", "out", "-m", "hippocampus-t1", "--store"], "--store is for series of a PACS"),
        (["archive", "-o", "out", "-m", "hippocampus-t1", "--engine", "magic"], "there is no engine 'magic'"),
        (["archive", "-o", "out", "-m", "hippocampus-t1", "--modality", "CT"], "--modality is for series of a PACS"),
        (["archive", "-o", "archive", "-m", "hippocampus-t1"], "results cannot go where the archive lies"),
        (["archive/in", "-o", "archive", "-m", "hippocampus-t1"], "results cannot go where the archive lies"),
        (["--pacs", "http://x", "-o", "out", "-m", "hippocampus-t1"], "begins with no way to ask"),
        (
            ["--pacs", "dicomweb+http://127.0.0.1:1/x", "-o", "out", "-m", "hippocampus-t1", "--date", "2026"],
            "no dates",
        ),
        (["archive", "-o", "out", "-m", "hippocampus-t1", "--format", "magic"], "there is no format 'magic'"),
    ],
)
def test_wrong_words_are_one_clear_line(run, tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "archive" / "in").mkdir(parents=True)
    code, out, err = run("batch", *words)
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out" / "results").exists()


def test_a_folder_without_a_run_has_no_status(run, tmp_path):
    for command in ("status", "retry"):
        code, _, err = run(command, tmp_path)
        assert code == 2
        assert "holds no results of `medseg batch`" in err


def test_an_empty_archive_is_no_error_and_says_so(archive, batch):
    code, out, _, rows = batch()
    assert (code, rows) == (0, [])
    assert "no scan was found" in out


def test_names_of_files_do_not_leave_the_worker(model):
    from medseg.archive.station import Station
    from medseg.archive.task import FAILED, Settings, Task

    task = Task("p/s/x/m", "", str(model), "", "scan", files=[("/somewhere/Doe^Jane/Doe^Jane.nii.gz", "")])
    outcome = Station(Settings()).do(task, lambda stage: None)
    assert (outcome.state, outcome.code) == (FAILED, "MISSING")
    assert "Doe" not in json.dumps(outcome.plain())


def test_the_answer_does_not_depend_on_how_many_workers_there_are(archive, batch, tmp_path):
    for number in range(4):
        medseg.write(smooth_scan((20, 18, 16), seed=number), archive / f"{number}.nii.gz")
    found = []
    for workers in (1, 2):
        output = tmp_path / f"out{workers}"
        assert batch("--workers", workers, "--no-picture", output=output)[0] == 0
        found.append({path.parent.name: path.read_bytes() for path in output.rglob("seg.nii.gz")})
        found[-1] = {str(path.relative_to(output)): path.read_bytes() for path in output.rglob("seg.nii.gz")}
    assert found[0] == found[1]
    assert len(found[0]) == 4
    assert np.unique([len(content) for content in found[0].values()]).size > 1


def test_what_is_gone_or_no_longer_meant_leaves_the_table_and_comes_back(archive, batch, run, tmp_path):
    for name in ("a", "b"):
        medseg.write(smooth_scan((20, 18, 16)), archive / f"{name}.nii.gz")
    (archive / "c.nii.gz").write_bytes(b"\x1f\x8b rubbish")
    words = ("--no-picture",)
    assert {row["state"] for row in batch(*words)[3]} == {"done", "failed"}
    (archive / "b.nii.gz").rename(tmp_path / "kept")
    (archive / "c.nii.gz").unlink()
    code, out, _, rows = batch(*words)
    assert (code, len(rows)) == (0, 2)
    assert "1 of 1 scans segmented" in out
    code, out, _ = run("status", tmp_path / "out")
    assert out.startswith("1 done, 0 failed, 0 left")
    assert "1 done earlier, and no longer in the archive or no longer meant" in out
    (tmp_path / "kept").rename(archive / "b.nii.gz")
    code, out, _, rows = batch(*words)
    assert "2 of 2 scans segmented; nothing was left to do" in out
    assert len(rows) == 4


def test_two_archives_in_one_folder_do_not_forget_each_other(batch, run, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.nii.gz").write_bytes(b"\x1f\x8b rubbish")
        batch("--index", tmp_path / f"{name}.sqlite", archive=tmp_path / name)
    assert run("status", tmp_path / "out")[1].startswith("0 done, 2 failed, 0 left")


def test_files_of_an_earlier_answer_do_not_stay_beside_a_new_one(archive, batch, tmp_path):
    medseg.write(smooth_scan((20, 18, 16)), archive / "a.nii.gz")
    folder = tmp_path / "out" / batch("--format", "nifti,mha")[3][0]["folder"]
    assert {"seg.nii.gz", "seg.mha", "seg.png"} <= {path.name for path in folder.iterdir()}
    batch("--format", "nrrd", "--no-picture", "--overlap", 0.25)
    assert {path.name for path in folder.iterdir()} == {"seg.nrrd", "seg.json"}


def test_the_audit_log_is_held_against_the_ledger(archive, batch, run, tmp_path):
    store(ct("1.2.1"), archive / "a")
    medseg.write(smooth_scan((20, 18, 16)), archive / "b.nii.gz")
    batch("--no-picture")
    log = tmp_path / "out" / "audit.jsonl"
    whole = log.read_text().splitlines(keepends=True)
    items = [json.loads(line) for line in whole if '"item"' in line]
    assert sorted(item["images"] for item in items) == [1, 16]
    assert len({item["inputs"] for item in items}) == 2
    assert run("status", tmp_path / "out", "--audit")[0] == 0
    for text, said in (("".join(whole[:2]), "the ledger has 2 more lines"), ("", "the ledger has 4 more lines")):
        log.write_text(text)
        code, out, _ = run("status", tmp_path / "out", "--audit")
        assert (code, said in out) == (2, True)
    log.unlink()
    assert "it is not there" in run("status", tmp_path / "out", "--audit")[1]


def test_where_failures_lie_is_told_to_who_has_the_key(archive, batch, run, tmp_path):
    (archive / "Doe.nii.gz").write_bytes(b"\x1f\x8b rubbish")
    batch()
    code, out, _ = run("status", tmp_path / "out", "--paths", "--key-file", tmp_path / "key")
    assert str(archive / "Doe.nii.gz") in out
    assert "Doe" not in run("status", tmp_path / "out", "--failed")[1]
    code, _, err = run("status", tmp_path / "out", "--paths", "--key-file", tmp_path / "none")
    assert (code, "there is no key" in err) == (2, True)
    assert not (tmp_path / "none").exists()
    assert json.loads(run("status", tmp_path / "out", "--json", "--failed")[1])["failed"] == 1


def test_a_folder_is_not_parted_in_two_ways(archive, batch):
    medseg.write(smooth_scan((20, 18, 16)), archive / "a.nii.gz")
    assert batch("--shard", "1/2")[0] in {0, 1}
    code, _, err, _ = batch()
    assert (code, "was begun in other parts" in err) == (2, True)


def test_a_run_works_in_any_thread_and_for_a_user_without_a_name(archive, tmp_path, model, monkeypatch):
    from concurrent.futures import ThreadPoolExecutor

    from medseg.archive import Order, read_rules
    from medseg.archive import run as run_order

    medseg.write(smooth_scan((20, 18, 16)), archive / "a.nii.gz")

    def nobody():
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.setattr("getpass.getuser", nobody)
    order = Order(
        tmp_path / "out",
        read_rules(None, model=str(model)),
        archive=archive,
        index=tmp_path / "index",
        key_file=tmp_path / "key",
    )
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(run_order, order).result().done == 1
    assert '"actor":"user ' in (tmp_path / "out" / "audit.jsonl").read_text()


def test_dicom_formats_are_for_dicom_in_a_mixed_archive(archive, batch, tmp_path):
    store(ct("1.2.1"), archive / "a")
    medseg.write(smooth_scan((20, 18, 16)), archive / "b.nii.gz")
    code, _, _, rows = batch("--format", "nifti,dicom-seg", "--no-picture")
    assert code == 0
    found = [{path.name for path in (tmp_path / "out" / row["folder"]).iterdir()} for row in rows[::2]]
    assert sorted(found, key=len) == [{"seg.nii.gz", "seg.json"}, {"seg.nii.gz", "seg.json", "seg.dcm"}]
    rows = batch("--format", "dicom-seg", "--no-picture")[3]
    assert {(row["state"], row["code"]) for row in rows} == {("done", ""), ("failed", "UsageError")}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--backend", "magic"], "there is no backend 'magic'"),
        (["--overlap", "2"], "overlap 2.0 is not in"),
        (["--precision", "magic"], "no precision 'magic'"),
        (["--device", "cuda:99"], "no device 'cuda:99'"),
    ],
)
def test_what_every_scan_would_meet_stops_the_run_and_blames_no_scan(archive, batch, run, tmp_path, words, said):
    for name in ("a", "b"):
        medseg.write(smooth_scan((20, 18, 16)), archive / f"{name}.nii.gz")
    code, out, err, _ = batch(*words, "--progress", "none")
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1
    assert run("status", tmp_path / "out")[1].startswith("0 done, 0 failed, 2 left")


def test_orders_that_cannot_end_well_are_refused_before_anything_is_listed(archive, run, tmp_path, monkeypatch):
    two = tmp_path / "two.safetensors"
    random_bundle(channels=[{"name": name, "intensity": WINDOW} for name in ("t1", "t2")]).save(two)

    def listed(*words):
        raise AssertionError("the archive was listed")

    monkeypatch.setattr("medseg.archive.index.Index.refresh", listed)
    code, _, err = run("batch", archive, "-o", tmp_path / "out", "-m", two)
    assert (code, "the model needs 2 channels" in err) == (2, True)
    assert not (tmp_path / "out").exists()
    pacs = ("--pacs", "dicomweb+http://127.0.0.1:1/x")
    for words, said in (
        (("--store", "--format", "nifti"), "no DICOM result to store"),
        (("--store-to", "ftp://x"), "begins with no way to ask"),
    ):
        code, _, err = run("batch", *pacs, "-o", tmp_path / "out", "-m", "hippocampus-t1", *words)
        assert (code, said in err) == (2, True)
