"""The command line, end to end: names, folders, channels, formats, failures and exit codes."""

import contextlib
import json
import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest
from conftest import SAMPLES, smooth_scan
from PIL import Image

import medseg
from medseg import cli
from medseg.geometry import Geometry
from medseg.volume import LabelMap, Volume


@pytest.fixture
def model(bundle_file):
    return bundle_file(seed=1)


def scan_at(path, *, seed=0, shape=(12, 14, 10)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    medseg.write(smooth_scan(shape, seed=seed), path)
    return path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def errors(err):
    return [line for line in err.splitlines() if line.startswith("error: ")]


def test_the_main_job_with_the_shipped_model(tmp_path, sample, run):
    scan = tmp_path / "t1_hippocampus.nii.gz"
    scan.write_bytes(sample.read_bytes())
    code, out, err = run("predict", scan)
    assert code == 0, err
    assert names(tmp_path) == [f"t1_hippocampus{end}" for end in (".nii.gz", "_seg.json", "_seg.nii.gz", "_seg.png")]
    assert "anterior: " in out
    assert " mL" in out
    assert "quality check: " in out
    assert "network" in err  # progress
    report = json.loads((tmp_path / "t1_hippocampus_seg.json").read_text())
    assert [label["name"] for label in report["labels"]] == ["anterior", "posterior"]
    assert report["labels"][0]["snomed"] == {
        "code": "5366008",
        "meaning": "Hippocampus",
        "modifier": {"code": "255549009", "meaning": "Anterior"},
    }
    labels = nibabel.load(tmp_path / "t1_hippocampus_seg.nii.gz")
    assert np.array_equal(labels.affine, nibabel.load(scan).affine)
    assert labels.header["intent_code"] == 1002


def test_no_socket_is_opened_and_nothing_is_written_elsewhere(tmp_path, sample, run, no_network, monkeypatch):
    places = {
        name: tmp_path / name for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME")
    }
    for name, folder in places.items():
        folder.mkdir()
        monkeypatch.setenv(name, str(folder))
    code, _, err = run("predict", sample, "-o", tmp_path / "out", "--format", "nifti,nrrd,mha,seg.nrrd")
    assert code == 0, err
    assert all(not list(folder.iterdir()) for folder in places.values())


def test_formats_probabilities_and_no_picture(tmp_path, run, model):
    scan = scan_at(tmp_path / "in" / "a.nrrd")
    code, _, err = run(
        "predict",
        scan,
        "-m",
        model,
        "-o",
        tmp_path / "out",
        "--format",
        "nrrd,seg.nrrd",
        "--probabilities",
        "--no-picture",
    )
    assert code == 0, err
    assert names(tmp_path / "out") == ["a_seg.json", "a_seg.nrrd", "a_seg.seg.nrrd", "a_seg_probabilities.nii.gz"]
    one, two = (medseg.read_labels(tmp_path / "out" / name) for name in ("a_seg.nrrd", "a_seg.seg.nrrd"))
    assert np.array_equal(one.array, two.array)
    assert [label.name for label in two.labels] == ["front", "back"]


@pytest.mark.parametrize("name", ["mask.nii.gz", "mask.nii", "mask.mha", "mask.nrrd", "mask.seg.nrrd"])
def test_an_output_with_a_suffix_is_a_file(tmp_path, run, model, name):
    scan = scan_at(tmp_path / "a.nii.gz")
    code, _, err = run("predict", scan, "-m", model, "-o", tmp_path / "out" / name)
    assert code == 0, err
    assert names(tmp_path / "out") == sorted([name, "mask.json", "mask.png"])
    assert medseg.read_labels(tmp_path / "out" / name).geometry.shape == (12, 14, 10)


def test_a_folder_is_every_scan_in_it_and_a_second_run_leaves_results_alone(tmp_path, run, model):
    for name in ("a.nii.gz", "b.nrrd", "c.mha"):
        scan_at(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not a scan")
    (tmp_path / "expert.seg.nrrd").write_bytes((tmp_path / "b.nrrd").read_bytes())
    (tmp_path / "photo.png").write_bytes(b"not for a 3D model")
    for _ in range(2):
        code, out, err = run("predict", tmp_path, "-m", model)
        assert code == 0, err
        assert out.count("quality check") == 3
    results = [name for name in names(tmp_path) if name.endswith("_seg.nii.gz")]
    assert results == ["a_seg.nii.gz", "b_seg.nii.gz", "c_seg.nii.gz"]


def test_one_bad_scan_does_not_stop_the_rest(tmp_path, run, model):
    scan_at(tmp_path / "in" / "a.nii.gz")
    (tmp_path / "in" / "b.nii.gz").write_bytes(b"<html>")
    scan_at(tmp_path / "in" / "c.nii.gz")
    code, out, err = run("predict", tmp_path / "in", "-m", model, "-o", tmp_path / "out")
    assert code == 1
    assert out.count("quality check") == 2
    (line,) = errors(err)
    assert line.startswith(f"error: {tmp_path / 'in' / 'b.nii.gz'}: is a web page")
    assert "Traceback" not in err
    assert not [name for name in names(tmp_path / "out") if name.startswith("b")]


def test_when_nothing_could_be_done_the_exit_code_is_2(tmp_path, run, model):
    (tmp_path / "b.nii.gz").write_bytes(b"<html>")
    assert run("predict", tmp_path / "b.nii.gz", "-m", model)[0] == 2
    assert run("predict", tmp_path / "none.nii.gz", "-m", model)[0] == 2
    assert names(tmp_path) == ["b.nii.gz", model.name]


def test_a_bug_met_by_one_scan_is_said_and_counted(tmp_path, run, model, monkeypatch):
    scan = scan_at(tmp_path / "a.nii.gz")

    def broken(*args, **kwargs):
        raise RuntimeError("some\nbug")

    monkeypatch.setattr("medseg.inference.predictor.prepare", broken)
    code, _, err = run("predict", scan, "-m", model)
    assert code == 2
    assert errors(err) == [f"error: {scan}: unexpected RuntimeError; run again with --debug and report it"]
    monkeypatch.setattr(sys, "argv", ["medseg", "predict", str(scan), "-m", str(model), "--debug"])
    with pytest.raises(RuntimeError, match="some"):
        cli.main()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a.nii.gz", "b.nii.gz", "-o", "x.nii.gz"], "one file"),
        (["a.nii.gz", "-o", "x.png"], "picture"),
        (["a.nii.gz", "--format", "dicom"], "no format 'dicom'"),
        (["a.nii.gz", "--device", "cuda:99"], "no device"),
        (["a.nii.gz", "--device", "nonsense"], "unknown"),
        (["a.nii.gz", "-m", "nonsense"], "no model 'nonsense'"),
        (["a.nii.gz", "-m", "none.safetensors"], "does not exist"),
        (["a.nii.gz", "-m", "a.nii.gz"], "truncated, or no .safetensors"),
        (["a.nii.gz", "--channel", "t1=b.nii.gz"], "both INPUT and --channel"),
        (["--channel", "flair=b.nii.gz"], "the model needs t1"),
        (["--channel", "t1"], "the model needs t1"),
        ([], "no scan was named"),
        (["empty"], "holds no scan"),
        (["same"], "would both be written"),
        (["a.nii.gz", "a.nii.gz"], "would both be written"),
        (["a.nii.gz", "-o", "a.nii.gz"], "would be overwritten"),
        (["a.nii.gz", "-o", "a.nii.gz/below"], "cannot be written"),
    ],
)
def test_arguments_that_do_not_fit_are_one_line_and_no_work(tmp_path, run, model, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    for name in ("a.nii.gz", "b.nii.gz", "same/c.nii.gz", "same/c.nrrd"):
        scan_at(tmp_path / name)
    (tmp_path / "empty").mkdir()
    before = names(tmp_path)
    given = words if "-m" in words else [*words, "-m", str(model)]
    code, out, err = run("predict", *given, "--progress", "none")
    assert code == 2
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    assert said in line
    assert names(tmp_path) == before


@pytest.mark.parametrize("words", [["predict", "--nonsense"], ["predict", "--volume", "-1"], ["nonsense"]])
def test_unknown_words_are_refused_with_a_usage(run, words):
    code, _, err = run(*words)
    assert code == 2
    assert "Usage" in err


def test_names_of_any_form(tmp_path, run, model, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("-dash.nii.gz", "a b.nii.gz", "ä 影像.nii.gz", "1.2.840.5.nii.gz", "UPPER.NII.GZ"):
        scan_at(tmp_path / "in" / name)
    code, _, err = run("predict", "-m", model, "-o", "out", "--", *[f"in/{name}" for name in names(tmp_path / "in")])
    assert code == 0, err
    scan_at(tmp_path / "-x.nii.gz")
    code, _, err = run("predict", "-m", model, "--", "-x.nii.gz")
    assert code == 0, err
    assert "1.2.840.5_seg.nii.gz" in names(tmp_path / "out")
    assert "UPPER_seg.nii.gz" in names(tmp_path / "out")
    assert (tmp_path / "-x_seg.nii.gz").exists()


def test_a_4d_scan_asks_for_the_volume(tmp_path, run, model):
    array = np.stack([smooth_scan((12, 14, 10), seed=seed).array[0] for seed in (1, 2)])
    medseg.write(Volume(array, Geometry(np.eye(4), (12, 14, 10))), tmp_path / "a.nii.gz")
    code, _, err = run("predict", tmp_path / "a.nii.gz", "-m", model)
    assert code == 2
    assert "--volume" in errors(err)[0]
    assert run("predict", tmp_path / "a.nii.gz", "-m", model, "--volume", 1)[0] == 0


TWO_CHANNELS = [{"name": name, "intensity": {"kind": "zscore"}} for name in ("t1", "flair")]


def test_channels_are_named_on_the_command_line(tmp_path, run, bundle_file):
    model = bundle_file(channels=TWO_CHANNELS)
    t1, flair = scan_at(tmp_path / "p_t1.nii.gz", seed=1), scan_at(tmp_path / "p_flair.nii.gz", seed=2)
    code, _, err = run(
        "predict", "-m", model, "--channel", f"flair={flair}", "--channel", f"t1={t1}", "-o", tmp_path / "o"
    )
    assert code == 0, err
    assert "p_t1_seg.nii.gz" in names(tmp_path / "o")
    code, _, err = run("predict", "-m", model, t1)
    assert code == 2
    assert "--channel NAME=FILE" in err


def test_channels_are_paired_in_a_folder(tmp_path, run, bundle_file):
    model = bundle_file(channels=TWO_CHANNELS)
    for case in ("one", "two"):
        for channel in range(2):
            scan_at(tmp_path / "in" / f"{case}_{channel:04d}.nii.gz", seed=channel)
    scan_at(tmp_path / "in" / "three_0000.nii.gz")
    for _ in range(2):
        code, _, err = run("predict", "-m", model, tmp_path / "in")
        assert code == 1
        assert len(errors(err)) == 1
        assert "three_0000" in errors(err)[0]
    assert [name for name in names(tmp_path / "in") if name.endswith("_seg.nii.gz")] == [
        "one_seg.nii.gz",
        "two_seg.nii.gz",
    ]


def test_channels_on_different_grids_fail(tmp_path, run, bundle_file):
    model = bundle_file(channels=TWO_CHANNELS)
    t1, flair = scan_at(tmp_path / "t1.nii.gz"), scan_at(tmp_path / "flair.nii.gz", shape=(12, 14, 11))
    code, _, err = run("predict", "-m", model, "--channel", f"t1={t1}", "--channel", f"flair={flair}")
    assert code == 2
    assert "different grids" in errors(err)[0]


def test_a_2d_model_takes_pictures(tmp_path, run, bundle_file):
    model = bundle_file(axes=2, patch=[16, 16, 1])
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    code, out, err = run("predict", "-m", model, tmp_path, "-o", tmp_path / "out")
    assert code == 0, err
    report = json.loads((tmp_path / "out" / "a_seg.json").read_text())
    assert report["scan"]["spacing_mm"] is None
    assert report["labels"][0]["volume_ml"] is None
    assert "pixels" in out


def test_json_on_standard_output_is_a_line_for_each_scan(tmp_path, run, model):
    scan_at(tmp_path / "in" / "a.nii.gz")
    (tmp_path / "in" / "b.nii.gz").write_bytes(b"\x1f\x8b")
    code, out, err = run("predict", tmp_path / "in", "-m", model, "--json", "-", "--progress", "json")
    assert code == 1
    good, bad = map(json.loads, out.splitlines())
    assert good["qc"]["verdict"] in ("ok", "check", "refuse")
    assert good == json.loads((tmp_path / "in" / "a_seg.json").read_text())
    assert set(bad["error"]) == {"code", "problem", "hint"}
    assert bad["scan"]["path"].endswith("b.nii.gz")
    events = [json.loads(line) for line in err.splitlines() if line.startswith("{")]
    steps = [event for event in events if event["event"] == "progress"]
    assert {step["stage"] for step in steps} >= {"read", "network", "write"}
    fractions = [step["fraction"] for step in steps if step["number"] == 1]
    assert fractions == sorted(fractions)
    assert run("predict", tmp_path / "in" / "a.nii.gz", "-m", model, "--json", tmp_path / "log.jsonl")[0] == 0
    assert json.loads((tmp_path / "log.jsonl").read_text())["model"]["name"] == "tiny"


@pytest.mark.parametrize(("style", "empty"), [("none", True), ("plain", False), ("auto", False)])
def test_progress_is_shown_as_asked(tmp_path, run, model, style, empty):
    _, _, err = run("predict", scan_at(tmp_path / "a.nii.gz"), "-m", model, "--progress", style)
    assert (err == "") == empty


def test_on_a_terminal_a_bar_is_shown_and_standard_output_stays_clean(tmp_path, model):
    scan = scan_at(tmp_path / "a.nii.gz")
    ours, theirs = pty.openpty()
    words = [sys.executable, "-m", "medseg", "predict", str(scan), "-m", str(model), "--json", "-"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=theirs) as process:
        os.close(theirs)
        out = process.stdout.read()
        assert process.wait(120) == 0
    shown = b""
    with contextlib.suppress(OSError):  # the end of a terminal
        while more := os.read(ours, 4096):
            shown += more
    os.close(ours)
    assert json.loads(out)["model"]["name"] == "tiny"
    assert b"a.nii.gz: " in shown
    assert b"quality check" in shown


def test_names_that_are_no_text_and_links_that_go_nowhere(tmp_path, run, model):
    folder = tmp_path / "in"
    folder.mkdir()
    content = scan_at(tmp_path / "a.nii.gz").read_bytes()
    name = os.fsdecode(b"a\xff b.nii.gz")
    (folder / name).write_bytes(content)
    (folder / "loop.nii").symlink_to("loop.nii")
    (folder / "gone.nii").symlink_to("nowhere")
    os.mkfifo(folder / "pipe")
    os.mkfifo(folder / "pipe.nii")
    (folder / "below").mkdir()
    code, out, err = run("predict", folder, "-m", model, "-o", tmp_path / "out", "--json", "-")
    assert code == 1
    assert len(errors(err)) == 3
    reports = [json.loads(line) for line in out.splitlines()]
    assert [report["scan"]["path"] for report in reports if "qc" in report] == [str(folder / name)]
    assert os.fsdecode(b"a\xff b_seg.json") in names(tmp_path / "out")


def test_warnings_of_a_scan_are_said_and_recorded(tmp_path, run, model):
    nibabel.save(nibabel.Nifti1Image(smooth_scan((12, 14, 10)).array[0], None), tmp_path / "a.nii.gz")
    code, _, err = run("predict", tmp_path / "a.nii.gz", "-m", model, "--progress", "none")
    assert code == 0
    assert err.startswith(f"warning: {tmp_path / 'a.nii.gz'}: neither qform nor sform")
    assert len(json.loads((tmp_path / "a_seg.json").read_text())["scan"]["warnings"]) == 1


def test_strict_turns_a_refused_result_into_a_failure(tmp_path, run):
    noise = np.random.default_rng(0).normal(size=(1, 40, 56, 40)).astype(np.float32)
    medseg.write(Volume(noise, Geometry(np.eye(4), (40, 56, 40))), tmp_path / "noise.nii.gz")
    code, _, err = run("predict", tmp_path / "noise.nii.gz", "--strict")
    assert code == 2
    assert "quality check refuses" in errors(err)[0]
    assert names(tmp_path) == ["noise.nii.gz"]


def test_a_read_only_folder_fails_before_any_work(tmp_path, run, model, monkeypatch):
    scan = scan_at(tmp_path / "a.nii.gz")

    def denied(path, flags, *args):
        if str(path).endswith(".part"):
            raise PermissionError(13, "Permission denied")
        return opened(path, flags, *args)

    opened = os.open
    monkeypatch.setattr("os.open", denied)
    monkeypatch.setattr("medseg.inference.Predictor.__call__", None)
    code, _, err = run("predict", scan, "-m", model)
    assert code == 2
    assert "Permission denied" in err


def test_info_prints_what_a_scan_is(tmp_path, run, sample):
    code, out, _ = run("info", sample)
    assert code == 0
    for words in ("40 x 56 x 40", "1 x 1 x 1 mm", "RAS", "uint8", "10 to 126", "oddities:    none"):
        assert words in out
    nibabel.save(nibabel.Nifti1Image(np.ones((4, 5, 6), np.int16), None), tmp_path / "a.nii.gz")
    assert "  - neither qform nor sform" in run("info", tmp_path / "a.nii.gz")[1]
    Image.new("L", (5, 4)).save(tmp_path / "a.png")
    assert "none (a picture)" in run("info", tmp_path / "a.png")[1]
    code, out, err = run("info", tmp_path / "none.nii")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1


def test_networks_are_listed_with_what_they_need(run, monkeypatch):
    from medseg import networks

    monkeypatch.setattr(networks, "ARCHITECTURES", {"hypercolumn": networks.Hypercolumn, "unet": networks.UNet})
    code, out, _ = run("models", "networks", "--axes", 2)
    title, head, first, second, *_ = out.splitlines()
    assert code == 0
    assert "512 x 512" in title
    assert head.split()[:2] == ["network", "parameters"]
    assert first.split() == ["hypercolumn", "3.69", "M", "16", "212", "153", "1.26", "any"]
    assert second.split()[0] == "unet"
    code, _, err = run("models", "networks", "--axes", 4)
    assert code == 2
    assert "--axes" in err


def test_models_are_listed_shown_verified_and_added(tmp_path, run, bundle_file, monkeypatch):
    monkeypatch.setenv("MEDSEG_ZOO", str(tmp_path / "store"))
    path = bundle_file()
    assert "hippocampus-t1 (default)" in run("models", "list")[1]
    shown = run("models", "show", "hippocampus-t1")[1]
    for words in ("CC-BY-SA-4.0", "Medical Segmentation Decathlon", "Research use only", "255551008", "sha256"):
        assert words in shown
    assert "sound; tiny 1, sha256" in run("models", "verify", path)[1]
    assert "added tiny" in run("models", "add", path)[1]
    (tmp_path / "store" / "bad.safetensors").write_bytes(b"nonsense")
    listed = run("models", "list")[1]
    assert "tiny: random weights" in listed
    assert "bad: cannot be used" in listed
    for_programs = {line["name"]: line for line in map(json.loads, run("models", "list", "--json")[1].splitlines())}
    assert for_programs["hippocampus-t1"]["default"]
    assert (for_programs["tiny"]["channels"], for_programs["tiny"]["axes"]) == (["t1"], 3)
    assert for_programs["tiny"]["labels"] == [{"value": 1, "name": "front"}, {"value": 2, "name": "back"}]
    assert "error" in for_programs["bad"]
    code, _, err = run("models", "verify", tmp_path / "store" / "bad.safetensors")
    assert code == 2
    assert err.startswith("error: ")
    scan = scan_at(tmp_path / "a.nii.gz")
    assert run("predict", scan, "-m", "tiny")[0] == 0


def test_help_is_complete_and_version_is_told(run):
    code, out, _ = run("--help")
    assert code == 0
    assert "for research use only" in " ".join(out.lower().split())
    predict = " ".join(run("predict", "--help")[1].split())
    options = "--output --format --model --channel --volume --device --threads --probabilities --no-picture --strict"
    for word in [*options.split(), "--json", "--progress", "--debug", "For research use only", "Exit code"]:
        assert word in predict
    assert run("--version")[1] == f"medseg {medseg.__version__}\n"


def cpu_seconds(*words):
    """Return the least CPU time of three runs of a fresh interpreter."""
    spent = []
    for _ in range(3):
        before = os.times()
        subprocess.run([sys.executable, *words], check=True, capture_output=True)
        after = os.times()
        spent.append(after.children_user + after.children_system - before.children_user - before.children_system)
    return min(spent)


def test_help_costs_at_most_a_seventh_of_importing_torch():
    assert cpu_seconds("-m", "medseg", "--help") < 0.15 * cpu_seconds("-c", "import torch")


def test_a_reader_that_goes_away_is_no_error():
    words = [sys.executable, "-m", "medseg", "info", str(SAMPLES / "t1_hippocampus.nii.gz")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.wait(60) in (0, 1)
        assert b"Traceback" not in process.stderr.read()


def test_a_disk_that_fills_up_leaves_no_file_and_a_reason(tmp_path, model):
    """Every write point in turn: the limit on the size of files grows until the run passes."""
    scan = scan_at(tmp_path / "scan.nii.gz", shape=(30, 30, 30))
    code = "import resource, sys; n = int(sys.argv.pop(1)); resource.setrlimit(resource.RLIMIT_FSIZE, (n, n)); "
    code += "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); from medseg.cli import main; main()"
    seen = set()
    for limit in (10, 1000, 10000, 1 << 30):
        out = tmp_path / f"out{limit}"
        words = [sys.executable, "-c", code, str(limit), "predict", str(scan), "-m", str(model), "-o", str(out)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        seen.add(done.returncode)
        if done.returncode:
            assert "File too large" in done.stderr
            assert not list(out.iterdir())
        else:
            assert len(list(out.iterdir())) == 3
    assert seen == {0, 2}


def test_a_killed_run_leaves_nothing_that_looks_like_a_result(tmp_path, model):
    scan = scan_at(tmp_path / "scan.nii.gz", shape=(60, 60, 60))
    out = tmp_path / "out"
    words = [sys.executable, "-m", "medseg", "predict", str(scan), "-m", str(model), "-o", str(out)]
    for wait in (1.0, 2.0, 3.0):
        with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            time.sleep(wait)
            process.kill()
        visible = [path for path in out.glob("*") if not path.name.startswith(".")] if out.exists() else []
        assert len(visible) in (0, 3)
        for path in visible:
            path.unlink()


def test_a_label_map_given_as_a_scan_is_only_a_scan(tmp_path, run, model):
    medseg.write(LabelMap(np.ones((12, 14, 10), np.uint8), Geometry(np.eye(4), (12, 14, 10))), tmp_path / "a.nii.gz")
    assert run("predict", tmp_path / "a.nii.gz", "-m", model)[0] == 0
