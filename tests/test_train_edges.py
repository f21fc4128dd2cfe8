"""`medseg train` where something is not as it should be: refused options, damaged files, programs that listen."""

from __future__ import annotations

import json

import numpy as np
import pytest

import medseg
from medseg.bundle import Bundle
from medseg.cli.progress import Style
from medseg.cli.training import Teller
from medseg.errors import GeometryError, UsageError
from medseg.geometry import Geometry
from medseg.training.alignment import RoundingError, laid
from medseg.training.planning import Wishes
from medseg.training.request import Listener, Request
from medseg.training.setup import set_up
from medseg.training.workspace import Workspace
from medseg.volume import LabelMap, Volume

GRID = Geometry(np.eye(4), (12, 14, 13))
LEAN = ["--epochs", 1, "--patch", "8x8x8", "--widths", "4x8", "--batch", 1, "--device", "cpu"]


@pytest.fixture(autouse=True)
def short_epochs(monkeypatch):
    """Epochs of 4 steps."""
    monkeypatch.setattr("medseg.training.run.EPOCH", 4)
    monkeypatch.setattr("medseg.training.loop.EPOCH", 4)


@pytest.fixture
def pairs(tmp_path):
    """A folder of four pairs, images/ and labels/."""
    folder = tmp_path / "pairs"
    for number in range(4):
        rng = np.random.default_rng(number)
        labels = np.zeros(GRID.shape, np.uint8)
        labels[3 : 7 + number, 4:9, 3:9] = 1
        image = (labels * 100 + rng.normal(size=GRID.shape) * 20).astype(np.float32)
        for part, content in (("images", Volume(image[None], GRID)), ("labels", LabelMap(labels, GRID))):
            (folder / part).mkdir(parents=True, exist_ok=True)
            medseg.write(content, folder / part / f"case_{number}.nii.gz")
    return folder


def held(workspace: Workspace, *, restart: bool = False) -> None:
    """Hold a workspace for a moment."""
    with workspace.held(restart=restart):
        pass


def test_an_option_that_was_refused_can_be_corrected_without_a_restart(pairs, tmp_path, run):
    output = tmp_path / "m.safetensors"
    code, _out, err = run("train", pairs, "-o", output, *LEAN, "--widths", "4x8x16x32", "--progress", "none")
    assert (code, "stages" in err) == (2, True), err
    code, _out, err = run("train", pairs, "-o", output, *LEAN, "--progress", "none")
    assert code == 0, err


def test_settings_bind_once_there_is_a_setup_and_are_named_as_options(tmp_path):
    workspace = Workspace(tmp_path / "m.safetensors")
    held(workspace)
    workspace.agree({"patch": (8, 8, 8), "minutes": 1.0})
    workspace.agree({"patch": (16, 8, 8), "minutes": 1.0})
    workspace.write("setup.json", {})
    with pytest.raises(UsageError, match=r"another patch .*16, 8, 8.*, now \[8, 8, 8\]"):
        workspace.agree({"patch": (8, 8, 8), "minutes": 1.0})


def test_minutes_can_be_added_until_they_are_shared_out(tmp_path):
    workspace = Workspace(tmp_path / "m.safetensors")
    held(workspace)
    workspace.agree({"minutes": 1.0})
    workspace.write("setup.json", {})
    workspace.agree({"minutes": 5.0})
    workspace.write("budget.json", {})
    workspace.agree({"minutes": 5.0})
    with pytest.raises(UsageError, match="another minutes"):
        workspace.agree({"minutes": 9.0})


def test_a_json_of_another_form_is_damaged_and_no_traceback(pairs, tmp_path, run):
    workspace = Workspace(tmp_path / "m.safetensors")
    held(workspace)
    workspace.write("setup.json", {"files": "", "cases": 3})
    code, _out, err = run("train", pairs, "-o", workspace.output, *LEAN, "--progress", "none")
    assert (code, "setup.json: is damaged" in err) == (2, True)
    assert "remove that file" in err
    (workspace.folder / "setup.json").unlink()
    workspace.write("budget.json", {"other": 1})
    code, _out, err = run("train", pairs, "-o", workspace.output, *LEAN, "--progress", "none")
    assert (code, "budget.json: is damaged" in err) == (2, True)


def test_a_model_of_another_training_is_never_replaced_by_a_fold(tmp_path):
    workspace = Workspace(tmp_path / "m.safetensors")
    workspace.output.write_bytes(b"precious")
    with pytest.raises(UsageError, match="there is a model already"):
        held(workspace)
    held(workspace, restart=True)
    workspace.weights(0).write_bytes(b"done")
    held(workspace)


def test_folds_that_are_left_are_trained_by_the_command_for_all(pairs, tmp_path, run):
    output = tmp_path / "m.safetensors"
    asked = ["train", pairs, "-o", output, *LEAN, "--folds", 2, "--progress", "none"]
    code, _out, err = run(*asked, "--fold", 1)
    assert code == 0, err
    assert len(Bundle.load(output).members) == 1
    code, _out, err = run(*asked)
    assert code == 0, err
    assert len(Bundle.load(output).members) == 2
    code, _out, err = run(*asked, "--fold", 0)
    assert (code, "there is a model already" in err) == (2, True)


def test_programs_hear_of_findings_choices_and_members_as_json(pairs, tmp_path, run):
    output = tmp_path / "m.safetensors"
    code, _out, err = run("train", pairs, "-o", output, *LEAN, "--progress", "json")
    assert code == 0, err
    events = [json.loads(line) for line in err.splitlines()]
    assert {"finding", "choice", "member", "step", "progress"} == {event["event"] for event in events}
    assert [event["member"] for event in events if event["event"] == "step"] == [0] * 4


@pytest.mark.parametrize("style", ["json", "none"])
def test_an_error_of_the_check_is_named_however_little_is_shown(pairs, tmp_path, run, style):
    medseg.write(
        LabelMap(np.ones((5, 5, 5), np.uint8), Geometry(GRID.affine + np.pad([[99.0]], ((0, 3), (3, 0))), (5, 5, 5))),
        pairs / "labels" / "case_2.nii.gz",
    )
    code, _out, err = run("train", pairs, "-o", tmp_path / "m.safetensors", *LEAN, "--progress", style)
    assert code == 2
    assert "case_2" in err
    assert "GRID" in err


def test_an_interrupted_training_says_that_it_can_go_on(capsys):
    with pytest.raises(KeyboardInterrupt), Teller.shown(Style.plain):
        raise KeyboardInterrupt
    assert "the same command goes on" in capsys.readouterr().err


def test_a_grid_that_sticks_out_of_the_scan_s_and_lacks_a_part_of_it_is_another_grid():
    label = LabelMap(np.ones((10, 16, 13), np.uint8), Geometry(np.eye(4), (10, 16, 13)))
    for fix in (False, True):
        with pytest.raises(GeometryError, match="lie on different grids") as caught:
            laid(label, GRID, fix=fix)
        assert not isinstance(caught.value, RoundingError)


def test_another_shape_is_not_called_rounding_noise():
    label = LabelMap(np.ones((9, 14, 13), np.uint8), Geometry(np.eye(4), (9, 14, 13)))
    with pytest.raises(RoundingError, match="would be background") as caught:
        laid(label, GRID)
    assert "noise" not in str(caught.value)


def test_a_file_of_several_volumes_is_refused_without_options_that_are_not_there(pairs, run):
    import nibabel as nib

    content = nib.Nifti1Image(np.ones((*GRID.shape, 2), np.uint8), GRID.affine)
    nib.save(content, pairs / "labels" / "case_1.nii.gz")
    code, out, _err = run("check", pairs, "--progress", "none")
    assert (code, "holds 2 volumes; give files of one volume" in out) == (2, True)


def test_a_case_that_a_fold_names_twice_is_refused(pairs, tmp_path, run):
    splits = tmp_path / "splits.json"
    splits.write_text(json.dumps([{"train": ["case_0", "case_1"], "val": ["case_2", "case_2"]}]))
    code, _out, err = run("train", pairs, "-o", tmp_path / "m.safetensors", *LEAN, "--splits", splits)
    assert (code, "fold 0 names a case twice" in err) == (2, True)


def test_a_negative_seed_is_refused(pairs, tmp_path, run):
    code, _out, err = run("train", pairs, "-o", tmp_path / "m.safetensors", *LEAN, "--seed", -1)
    assert (code, "--seed -1" in err) == (2, True)


def test_a_batch_that_does_not_go_round_is_refused(pairs, tmp_path):
    workspace = Workspace(tmp_path / "m.safetensors")
    request = Request(pairs, workspace.output, epochs=1, devices=2, device="cpu", wishes=Wishes(batch=1))
    with pytest.raises(UsageError, match="2 devices cannot share a batch of 1; give --batch 2"):
        set_up(request, workspace, Listener())
