"""Every block of the README and every pipeline runs."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import SAMPLES
from phantoms import series, store
from PIL import Image

import medseg
from medseg import cli, zoo
from medseg.networks import ARCHITECTURES
from medseg.networks.needs import needs

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A folder with the files that the README speaks of."""
    (tmp_path / "sample_data").mkdir()
    (tmp_path / "folder").mkdir()
    scan = (SAMPLES / "t1_hippocampus.nii.gz").read_bytes()
    for name in ("sample_data/t1_hippocampus.nii.gz", "scan.nii.gz", "folder/a.nii.gz", "folder/b.nii.gz"):
        (tmp_path / name).write_bytes(scan)
    store(series(), tmp_path / "study")
    (tmp_path / "archive").mkdir()
    (tmp_path / "archive" / "a.nii.gz").write_bytes(scan)
    for folder in ("predictions", "references"):
        (tmp_path / folder).mkdir()
        mask = np.pad(np.ones((4, 4, 4), np.uint8), 3)
        medseg.write(medseg.LabelMap(mask, medseg.Geometry(np.eye(4), mask.shape)), tmp_path / folder / "case.nii.gz")
    for number in range(6):
        for folder in ("images", "labels"):
            (tmp_path / "pairs" / folder).mkdir(parents=True, exist_ok=True)
        ball = np.linalg.norm(np.indices((16, 16, 16)) - 5 - number, axis=0) < 4
        noise = np.random.default_rng(number).normal(size=ball.shape)
        grid = medseg.Geometry(np.eye(4), ball.shape)
        image = medseg.Volume((ball * 3 + noise).astype(np.float32)[None], grid)
        medseg.write(image, tmp_path / "pairs" / "images" / f"case_{number}.nii.gz")
        medseg.write(
            medseg.LabelMap(ball.astype(np.uint8), grid), tmp_path / "pairs" / "labels" / f"case_{number}.nii.gz"
        )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_python_blocks_run(desk, capsys):
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert blocks
    for block in blocks:
        exec(block, {})  # the README's own text
    assert "anterior" in capsys.readouterr().out
    assert (desk / "hippocampus.seg.nrrd").exists()


def test_the_commands_run(desk, monkeypatch):
    monkeypatch.setattr("medseg.training.request.DEFAULT_MINUTES", 0.5)
    monkeypatch.setattr("uvicorn.Server.should_exit", property(lambda _: True, lambda *_: None), raising=False)
    lines = re.findall(r"^(medseg .*)$", README, re.MULTILINE)
    assert len(lines) >= 6
    for line in lines:
        words = shlex.split(line, comments=True)
        monkeypatch.setattr(sys, "argv", [*words, "--port", "0"] if words[1] == "serve" else words)
        try:
            cli.main()
        except SystemExit as stop:
            assert not stop.code, line


def test_the_install_lines_are_for_tested_versions():
    lines = [line for line in README.splitlines() if "pip install" in line and line.startswith("python3")]
    assert len(lines) == 2
    assert all("-c constraints.txt" in line for line in lines)


def test_the_files_that_documents_name_are_there():
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]:
        for name in re.findall(
            r"[`(]((?:medseg|docs|tests|pipelines|benchmarks|sample_data)/[\w./-]+)[`)]", page.read_text()
        ):
            assert (ROOT / name).exists(), f"{page}: {name}"
        for command in re.findall(r"pytest (tests/\w+\.py)", page.read_text()):
            assert (ROOT / command).exists(), f"{page}: {command}"


@pytest.mark.slow
@pytest.mark.parametrize("axes", [2, 3])
def test_the_table_of_needs_is_what_is_computed(axes):
    page = (ROOT / "docs" / "architectures.md").read_text()
    rows = re.findall(
        rf"^\| {axes}D \| `(\w+)` \| ([\d.]+) M \| (\d+) \| (\d+) \| (\d+) \| ([\d.]+) \|", page, re.MULTILINE
    )
    assert [row[0] for row in rows] == list(ARCHITECTURES)
    for name, *numbers in rows:
        found = needs(name, axes=axes)
        assert [float(number) for number in numbers] == [
            round(found.parameters / 1e6, 2),
            found.stride[0],
            found.receptive_field[0],
            round(found.flops_per_voxel / 1e3),
            round(found.activations_per_voxel / 1e3, 2),
        ]


def test_decisions_are_short():
    for page in (ROOT / "docs" / "decisions").glob("*.md"):
        assert len(page.read_text().splitlines()) <= 40, page


def program(name, *words, cwd):
    command = [sys.executable, str(ROOT / "pipelines" / name), *map(str, words)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_the_monai_pipeline_gives_the_label_map_of_medseg(desk):
    done = program("monai_pipeline.py", "scan.nii.gz", "-o", "theirs.nii.gz", cwd=desk)
    assert done.returncode == 0, done.stderr
    ours = medseg.Predictor.load("hippocampus-t1", device="cpu")(medseg.read("scan.nii.gz")).labels
    theirs = medseg.read_labels("theirs.nii.gz")
    assert ours.geometry.same_as(theirs.geometry)
    assert (ours.array == theirs.array).mean() > 0.999
    assert set(np.unique(theirs.array)) == {0, 1, 2}


@pytest.mark.slow
def test_the_training_pipeline_runs_on_a_few_cases(tmp_path, data):
    cases = [f"hippocampus_{number:03d}.nii.gz" for number in (1, 3, 7, 8, 11, 14)]
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / "data" / folder).mkdir(parents=True)
        for case in cases:
            (tmp_path / "data" / folder / case).write_bytes((data / "hippocampus" / folder / case).read_bytes())
    entries = [{"image": f"./imagesTr/{case}", "label": f"./labelsTr/{case}"} for case in cases]
    (tmp_path / "data" / "dataset.json").write_text(json.dumps({"training": entries}))
    names = [case.removesuffix(".nii.gz") for case in cases]
    splits = [{"train": names[3:], "val": names[:3]}, {"train": names[:3], "val": names[3:]}]
    (tmp_path / "splits.json").write_text(json.dumps(splits))
    words = ("--splits", "splits.json", "--fold", 0, "--minutes", 0.5, "-o", "out.safetensors")
    done = program("train_hippocampus.py", tmp_path / "data", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "dice anterior" in done.stdout
    bundle = medseg.Bundle.load(tmp_path / "out.safetensors")
    assert bundle.fingerprint.cases == 6
    assert bundle.plan.labels[0].code.meaning == "Hippocampus"
    assert bundle.card.name == "hippocampus-t1"


@pytest.mark.slow
def test_the_calibrating_pipeline_calibrates_and_leaves_the_weights_as_they_are(tmp_path, data):
    splits = json.loads((data / "hippocampus" / "splits.json").read_text())
    splits = [{"train": [], "val": fold["val"][:2]} for fold in splits]
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / "data" / folder).mkdir(parents=True)
        for fold in splits:
            for case in fold["val"]:
                source = data / "hippocampus" / folder / f"{case}.nii.gz"
                (tmp_path / "data" / folder / source.name).write_bytes(source.read_bytes())
    names = [f"./labelsTr/{case}.nii.gz" for fold in splits for case in fold["val"]]
    entries = [{"image": name.replace("labels", "images"), "label": name} for name in names]
    (tmp_path / "data" / "dataset.json").write_text(json.dumps({"training": entries}))
    (tmp_path / "data" / "splits.json").write_text(json.dumps(splits))
    done = program("calibrate_hippocampus.py", tmp_path / "data", "-o", "out.safetensors", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "back half blank" in done.stdout
    made, shipped = (medseg.Bundle.load(path) for path in (tmp_path / "out.safetensors", zoo.find(zoo.DEFAULT)))
    assert made.calibration.cases == 10
    assert 1 < made.calibration.temperature < 2
    assert made.members[4].keys() == shipped.members[4].keys()
    assert all(np.array_equal(made.members[4][name], array) for name, array in shipped.members[4].items())


def test_the_comparison_trains_scores_and_draws(tmp_path, drive):
    words = ("--only", "drive", "--networks", "fcn32s", "hypercolumn", "--steps", 2)
    done = program("compare_architectures.py", "--data", drive.parent, "--output", "out", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    table = (tmp_path / "out" / "drive.md").read_text()
    assert [line.split()[1] for line in table.splitlines()[2:]] == ["network", "---", "fcn32s", "hypercolumn"]
    assert medseg.Bundle.load(tmp_path / "out" / "drive" / "fcn32s.safetensors").card.name == "drive-fcn32s"
    with Image.open(tmp_path / "out" / "drive.png") as picture:
        assert picture.size[0] > 1000


@pytest.mark.parametrize(
    "name", ["train_hippocampus.py", "calibrate_hippocampus.py", "monai_pipeline.py", "compare_architectures.py"]
)
def test_the_pipelines_explain_themselves(name, tmp_path):
    done = program(name, "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "python pipelines/" in done.stdout
    assert program(name, cwd=tmp_path).returncode == 2
