"""`medseg train`: from a folder of pairs to a model, interrupted or not."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import random_bundle

import medseg
from medseg.bundle import Bundle
from medseg.geometry import Geometry
from medseg.inference import Predictor
from medseg.training.log import read_log
from medseg.volume import LabelMap, Volume


@pytest.fixture(autouse=True)
def short_epochs(monkeypatch):
    """Epochs of 10 steps in this process."""
    monkeypatch.setattr("medseg.training.run.EPOCH", 10)
    monkeypatch.setattr("medseg.training.loop.EPOCH", 10)


LEAN = ["--widths", "8x16x32"]
SMALL = ["--patch", "16x16x16", "--device", "cpu", "--progress", "plain"]


def blobs(number: int, shape=(20, 22, 18), labels=2) -> tuple[np.ndarray, np.ndarray]:
    """Return noise with a bright ball for each label, and where they are."""
    rng = np.random.default_rng(number)
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    found = np.zeros(shape, np.uint8)
    for label in range(1, labels + 1):
        centre = np.minimum(rng.uniform(5, 8, 3) + np.array([6 * (label - 1), 0, 0]), np.array(shape) - 1)
        found[np.linalg.norm(index - centre, axis=-1) < 4] = label
    return (found * 100 + rng.normal(size=shape) * 20).astype(np.float32), found


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """A folder of ten pairs, images/ and labels/."""
    folder = tmp_path_factory.mktemp("pairs")
    for part in ("images", "labels"):
        (folder / part).mkdir()
    for number in range(10):
        image, labels = blobs(number)
        grid = Geometry(np.eye(4), image.shape)
        medseg.write(Volume(image[None], grid), folder / "images" / f"case_{number}.nii.gz")
        medseg.write(LabelMap(labels, grid), folder / "labels" / f"case_{number}.nii.gz")
    return folder


def steady(log) -> list[list[str]]:
    """Return the columns of a log that do not depend on the clock."""
    rows = csv.reader(log.read_text().splitlines())
    return [row[:-2] for row in rows]


def test_a_folder_of_pairs_becomes_a_model_that_finds_the_labels(pairs, tmp_path, run):
    output = tmp_path / "balls.safetensors"
    code, out, err = run("train", pairs, "-o", output, "--epochs", 25, *SMALL, *LEAN)
    assert code == 0, err
    bundle = Bundle.load(output)
    assert "spacing" in err
    assert "label 1" in out
    assert bundle.card.validation.cases == 1
    assert bundle.calibration is None  # one case is too little
    assert bundle.fingerprint.cases == 10
    assert (tmp_path / "balls.training" / "curves.png").stat().st_size > 1000
    assert not (tmp_path / "balls.training" / "cases").exists()
    image, labels = blobs(77)
    found = Predictor(bundle, device="cpu")(Volume(image[None], Geometry(np.eye(4), image.shape))).labels
    overlap = 2 * ((found.array == labels) & (labels > 0)).sum() / ((found.array > 0).sum() + (labels > 0).sum())
    assert overlap > 0.85


def test_the_budget_in_minutes_is_kept(pairs, tmp_path, run):
    began = time.monotonic()
    code, _out, err = run("train", pairs, "-o", tmp_path / "m.safetensors", "--minutes", 0.2, *SMALL)
    assert code == 0, err
    budget = json.loads((tmp_path / "m.training" / "budget.json").read_text())
    assert budget["learning"] + budget["scoring"] < 12
    rows = read_log(tmp_path / "m.training" / "member-0.csv")
    assert budget["learning"] <= rows[-1].seconds < budget["learning"] + 3
    assert time.monotonic() - began < 30  # on a busy machine; alone it takes 12
    assert rows[-1].rate < rows[len(rows) // 2].rate / 5  # the schedule came to its end


def test_folds_become_an_ensemble_and_every_case_is_scored_once(pairs, tmp_path, run):
    output = tmp_path / "folds.safetensors"
    code, out, err = run("train", pairs, "-o", output, "--folds", 2, "--epochs", 1, *SMALL, *LEAN)
    assert code == 0, err
    bundle = Bundle.load(output)
    assert len(bundle.members) == 2
    assert bundle.card.validation.cases == 10
    assert bundle.calibration.cases == 10
    assert bundle.calibration.how == bundle.card.validation.how
    assert "2 folds" in out


def test_folds_can_be_trained_one_by_one(pairs, tmp_path, run):
    output = tmp_path / "folds.safetensors"
    for fold in (1, 0):
        code, _out, err = run("train", pairs, "-o", output, "--folds", 2, "--fold", fold, "--epochs", 1, *SMALL, *LEAN)
        assert code == 0, err
        assert len(Bundle.load(output).members) == 2 - fold
    together = tmp_path / "together.safetensors"
    assert run("train", pairs, "-o", together, "--folds", 2, "--epochs", 1, *SMALL, *LEAN)[0] == 0
    for one, other in zip(Bundle.load(output).members, Bundle.load(together).members, strict=True):
        assert all(np.array_equal(one[name], other[name]) for name in one)


def test_a_deterministic_training_gives_the_same_file_twice(pairs, tmp_path, run):
    files = []
    for name in "ab":
        folder = tmp_path / name
        folder.mkdir()
        words = ["train", pairs, "-o", folder / "m.safetensors", "--epochs", 1, "--deterministic", *SMALL, *LEAN]
        assert run(*words)[0] == 0
        files.append((folder / "m.safetensors").read_bytes())
    assert files[0] == files[1]
    assert run("train", pairs, "-o", tmp_path / "c.safetensors", "--epochs", 1, "--seed", 1, *SMALL, *LEAN)[0] == 0
    assert (tmp_path / "c.safetensors").read_bytes() != files[0]


def test_a_model_that_is_there_is_not_overwritten(pairs, tmp_path, run, bundle_file):
    output = bundle_file()
    before = output.read_bytes()
    code, _, err = run("train", pairs, "-o", output, "--epochs", 1, *SMALL, *LEAN)
    assert code == 2
    assert "--restart" in err
    assert output.read_bytes() == before


def test_other_options_do_not_go_on_with_a_training(pairs, tmp_path, run, monkeypatch):
    output = tmp_path / "m.safetensors"
    monkeypatch.setattr("medseg.training.run._Training.run", lambda self: None)
    assert run("train", pairs, "-o", output, "--epochs", 1, *SMALL, *LEAN)[0] == 0
    code, _, err = run("train", pairs, "-o", output, "--epochs", 2, *SMALL)
    assert code == 2
    assert "another epochs" in err
    assert "--restart" in err
    assert run("train", pairs, "-o", output, "--epochs", 2, "--restart", *SMALL)[0] == 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--minutes", 1, "--epochs", 1], "--minutes and --epochs"),
        (["--deterministic"], "give --epochs"),
        (["--folds", 1], "give 2 or more"),
        (["--fold", 1], "--fold without --folds"),
        (["--folds", 3, "--fold", 3], "give 0 to 2"),
        (["--folds", 30], "--folds 30"),
        (["--all", "--folds", 3], "--all and --folds"),
        (["--freeze"], "--from"),
        (["--minutes", 0], "positive"),
        (["--epochs", -1], "positive"),
        (["--patch", "16x"], "--patch"),
        (["--spacing", "1x1"], "--spacing"),
        (["--network", "vnet"], "vnet"),
        (["--memory", "lots"], "--memory"),
        (["--memory", "1MB"], "1"),
        (["--device", "tpu"], "tpu"),
        (["--minutes", 0.001], "give more --minutes"),
        (["--from", "nothing"], "nothing"),
        (["--from", "hippocampus-t1", "--network", "unet"], "--network and --from"),
    ],
)
def test_options_that_do_not_fit_are_answered_in_one_line(pairs, tmp_path, run, words, told):
    code, _, err = run("train", pairs, "-o", tmp_path / "m.safetensors", "--progress", "none", *words)
    assert code == 2
    assert told in err
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert not (tmp_path / "m.safetensors").exists()


def test_a_name_that_is_no_model_is_refused(pairs, tmp_path, run):
    code, _, err = run("train", pairs, "-o", tmp_path / "model.pt")
    assert code == 2
    assert ".safetensors" in err


def test_errors_in_the_data_stop_it_before_anything_is_trained(pairs, tmp_path, run):
    (tmp_path / "data" / "images").mkdir(parents=True)
    (tmp_path / "data" / "labels").mkdir()
    for number in range(6):
        image, labels = blobs(number)
        grid = Geometry(np.eye(4), image.shape)
        moved = Geometry(np.diag([1, 1, 1.3, 1]), image.shape) if number == 3 else grid
        medseg.write(Volume(image[None], grid), tmp_path / "data" / "images" / f"c{number}.nii.gz")
        medseg.write(LabelMap(labels, moved), tmp_path / "data" / "labels" / f"c{number}.nii.gz")
    code, _, err = run("train", tmp_path / "data", "-o", tmp_path / "m.safetensors", "--epochs", 1, *SMALL, *LEAN)
    assert code == 2
    assert "GRID" in err
    assert "c3" in err
    assert "nothing has been trained" in err


def test_regions_and_an_ignore_label_are_learned(tmp_path, run):
    (tmp_path / "imagesTr").mkdir()
    (tmp_path / "labelsTr").mkdir()
    for number in range(8):
        image, labels = blobs(number)
        labels[:, :, 12:] = 9  # nobody has drawn there
        grid = Geometry(np.eye(4), image.shape)
        medseg.write(Volume(image[None], grid), tmp_path / "imagesTr" / f"c{number}_0000.nii.gz")
        medseg.write(LabelMap(labels, grid), tmp_path / "labelsTr" / f"c{number}.nii.gz")
    (tmp_path / "dataset.json").write_text(
        json.dumps(
            {
                "channel_names": {"0": "MR"},
                "labels": {"background": 0, "both": [1, 2], "second": 2, "ignore": 9},
                "numTraining": 8,
                "file_ending": ".nii.gz",
            }
        )
    )
    code, _out, err = run("train", tmp_path, "-o", tmp_path / "m.safetensors", "--epochs", 25, *SMALL, *LEAN)
    assert code == 0, err
    bundle = Bundle.load(tmp_path / "m.safetensors")
    scores = {score.label: score.mean for score in bundle.card.validation.scores if score.metric == "dice"}
    assert scores["both"] > 0.7
    assert scores["second"] > 0.7


def test_pictures_of_three_channels_are_learned_in_2d(tmp_path, run):
    from PIL import Image

    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    for number in range(8):
        image, labels = blobs(number, (40, 44, 1), labels=1)
        grey = np.clip(image[..., 0].T[..., None] + [20, 60, 90], 0, 255).astype(np.uint8)
        Image.fromarray(grey).save(tmp_path / "images" / f"p{number}.png")
        Image.fromarray(labels[..., 0].T).save(tmp_path / "labels" / f"p{number}.png")
    code, _out, err = run("train", tmp_path, "-o", tmp_path / "m.safetensors", "--epochs", 2, "--device", "cpu")
    assert code == 0, err
    plan = Bundle.load(tmp_path / "m.safetensors").plan
    assert plan.axes == 2
    assert len(plan.channels) == 3


def test_fine_tuning_keeps_what_means_the_same(pairs, tmp_path, run):
    names = [{"value": 2, "name": "label 1"}, {"value": 5, "name": "other"}]
    random_bundle(labels=names, spacing=[1, 1, 1]).save(tmp_path / "old.safetensors")
    words = ["--from", tmp_path / "old.safetensors", "--freeze", "--epochs", 1, *SMALL]
    code, _out, err = run("train", pairs, "-o", tmp_path / "new.safetensors", *words)
    assert code == 0, err
    assert "label 2: their part of the head begins anew" in err
    old, new = (Bundle.load(tmp_path / f"{name}.safetensors").members[0] for name in ("old", "new"))
    kept = [name for name in old if name.startswith(("stem", "downs"))]
    assert all(np.array_equal(old[name].astype(np.float16), new[name]) for name in kept)
    assert not np.array_equal(old["head.weight"].astype(np.float16), new["head.weight"])


def command(pairs, output, *words) -> list[str]:
    return [sys.executable, "-m", "medseg", "train", *map(str, [pairs, "-o", output, *words, *SMALL, *LEAN])]


@pytest.mark.slow
def test_a_training_killed_at_random_moments_gives_the_same_curve_and_the_same_file(pairs, tmp_path):
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    words = ["--epochs", "6", "--deterministic"]
    whole, killed = tmp_path / "whole" / "m.safetensors", tmp_path / "killed" / "m.safetensors"
    subprocess.run(command(pairs, whole, *words), check=True, capture_output=True)
    moments = random.Random(0)
    kills = 0
    while not killed.exists() and kills < 12:
        process = subprocess.Popen(command(pairs, killed, *words), stderr=subprocess.PIPE)
        try:
            process.communicate(timeout=moments.uniform(4, 14))
            assert process.returncode == 0
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.communicate()
            kills += 1
    if not killed.exists():
        subprocess.run(command(pairs, killed, *words), check=True)
    assert kills >= 1
    logs = [tmp_path / name / "m.training" / "member-0.csv" for name in ("whole", "killed")]
    assert steady(logs[0]) == steady(logs[1])
    assert whole.read_bytes() == killed.read_bytes()
    assert not [path for path in killed.parent.rglob("*") if path.name.endswith(".part")]


@pytest.mark.slow
def test_two_processes_train_one_network_and_agree(pairs, tmp_path):
    pytest.importorskip("lightning_fabric")
    output = tmp_path / "m.safetensors"
    words = ["--epochs", "2", "--devices", "2", "--batch", "2"]
    done = subprocess.run(command(pairs, output, *words), check=False, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    assert Bundle.load(output).card.validation.cases == 1


@pytest.mark.slow
def test_training_needs_nothing_that_is_too_large_for_a_small_machine(pairs, tmp_path):
    blocked = ["SimpleITK", "numba", "openvino", "matplotlib", "nibabel", "lightning_fabric", "torchvision"]
    code = f"import sys; sys.modules.update(dict.fromkeys({blocked})); from medseg.cli import main; main()"
    words = ["train", pairs, "-o", tmp_path / "m.safetensors", "--epochs", "1", *SMALL, *LEAN]
    subprocess.run([sys.executable, "-c", code, *map(str, words)], check=True)
    assert Bundle.load(tmp_path / "m.safetensors").fingerprint.cases == 10


def test_folds_of_ones_own_are_taken_and_bad_ones_refused(pairs, tmp_path, run):
    names = [f"case_{number}" for number in range(10)]
    splits = tmp_path / "splits.json"
    output = tmp_path / "m.safetensors"
    words = ["train", pairs, "-o", output, "--epochs", 1, "--splits", splits, *SMALL, *LEAN]
    bad = {
        "both sides": [{"train": names, "val": names[:1]}],
        "case_99": [{"train": names[1:], "val": ["case_99"]}],
        "'val'": [{"train": names}],
        "no fold": [],
        "cannot be used": 3,
    }
    bad["case_0 is held back twice"] = [{"train": names[2:], "val": names[:2]}, {"train": names[5:], "val": names[:1]}]
    for told, content in bad.items():
        splits.write_text(json.dumps(content))
        code, _, err = run(*words, "--restart")
        assert code == 2
        assert told in err.splitlines()[-1]
    splits.write_text(json.dumps([{"train": names[2:], "val": names[:2]}, {"train": names[:5], "val": names[5:8]}]))
    code, _out, err = run(*words, "--restart")
    assert code == 0, err
    assert Bundle.load(output).card.validation.cases == 5
    assert len(Bundle.load(output).members) == 2


@pytest.mark.slow
def test_folds_may_be_trained_at_the_same_time(pairs, tmp_path):
    output = tmp_path / "m.safetensors"
    commands = [command(pairs, output, "--folds", 2, "--epochs", 2, "--fold", fold) for fold in (0, 1)]
    processes = [subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for words in commands]
    assert [process.wait(timeout=250) for process in processes] == [0, 0]
    assert len(Bundle.load(output).members) == 2
    assert Bundle.load(output).card.validation.cases == 10
    assert not list(output.with_suffix(".training").glob("member-*.safetensors"))


def test_the_same_fold_is_not_trained_twice_at_once(tmp_path):
    from medseg.errors import UsageError
    from medseg.training.workspace import Workspace

    workspace = Workspace(tmp_path / "m.safetensors")
    with workspace.held(restart=False, fold=0):
        with pytest.raises(UsageError, match="another run"), workspace.held(restart=False, fold=0):
            pass
        with pytest.raises(UsageError, match="another run"), workspace.held(restart=False):
            pass
        with pytest.raises(UsageError, match="another run"), workspace.held(restart=True, fold=1):
            pass
        with workspace.held(restart=False, fold=1):
            pass
    with workspace.held(restart=True):
        pass
