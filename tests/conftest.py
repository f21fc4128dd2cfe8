"""Shared parts of the tests: sample scans, tiny models, and data outside the project."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from itertools import permutations, product
from pathlib import Path

import hypothesis
import numpy as np
import pytest

from medseg.bundle import Bundle, Card
from medseg.geometry import AxisOrder, Geometry
from medseg.plan import Fingerprint, Plan
from medseg.volume import Volume

collect_ignore = ["slicer/in_core.py"]  # runs in another Python, that of 3D Slicer's core

# A busy machine is no failure, and what passed once passes again; `--hypothesis-profile search` looks further.
hypothesis.settings.register_profile("medseg", deadline=None, max_examples=60, derandomize=True)
hypothesis.settings.register_profile("search", deadline=None, max_examples=2000)
hypothesis.settings.load_profile("medseg")

SAMPLES = Path(__file__).parent.parent / "sample_data"
ORDERS = [
    AxisOrder(axes, tuple(flips)) for axes in permutations((0, 1, 2)) for flips in product((False, True), repeat=3)
]
PLAN = {
    "axes": 3,
    "channels": [{"name": "t1", "intensity": {"kind": "zscore"}}],
    "labels": [{"value": 1, "name": "front"}, {"value": 2, "name": "back"}],
    "patch": [16, 16, 16],
    "network": {"architecture": "unet", "options": {"widths": [4, 8]}},
}
CARD = Card(
    name="tiny",
    version="1",
    summary="random weights",
    intended_use="tests",
    training_data="none",
    licence="Apache-2.0",
    attribution="none",
)


def pytest_collection_modifyitems(items):
    """Give slow tests the time that a busy machine takes for them."""
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(1800))


def random_bundle(*, seed: int = 0, members: int = 1, fingerprint: Fingerprint | None = None, **changes) -> Bundle:
    """Return a model with random weights, and `changes` to the plan above."""
    import torch

    from medseg.inference import new_network

    plan = Plan.parse({**PLAN, **changes})
    weights = []
    for member in range(members):
        torch.manual_seed(seed + member)
        weights.append({name: tensor.numpy() for name, tensor in new_network(plan).state_dict().items()})
    return Bundle.of(weights, plan=plan, card=CARD, fingerprint=fingerprint)


def smooth_scan(shape=(20, 24, 18), *, seed: int = 0, spacing=(1.0, 1.0, 1.0), dtype=np.float32) -> Volume:
    """Return a scan of smooth random blobs, in RAS."""
    from scipy import ndimage

    noise = np.random.default_rng(seed).normal(size=shape)
    blobs = ndimage.gaussian_filter(noise, 2)
    array = (blobs / np.abs(blobs).max() * 1000).astype(dtype)
    return Volume(array[None], Geometry(np.diag([*spacing, 1.0]), shape))


def rotation(seed: int) -> np.ndarray:
    """Return a random proper rotation matrix."""
    q, r = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return q * np.array([1, 1, np.linalg.det(q)])


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Forms that the user has made for this machine must not answer for torch, nor tests make the user's key."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    os.environ["XDG_CONFIG_HOME"] = str(tmp_path_factory.mktemp("config"))


@pytest.fixture
def sample() -> Path:
    """The T1 crop around the left hippocampus of Colin27."""
    return SAMPLES / "t1_hippocampus.nii.gz"


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of data outside the project; tests that need it are skipped without it."""
    folder = os.environ.get("MEDSEG_TEST_DATA")
    if not folder:
        pytest.skip("MEDSEG_TEST_DATA names no folder of test data")
    return Path(folder)


@pytest.fixture
def bundle_file(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a tiny model and returns its file."""

    def write(name: str = "tiny.safetensors", **changes) -> Path:
        path = tmp_path / name
        random_bundle(**changes).save(path)
        return path

    return write


@pytest.fixture
def run(monkeypatch, capsys):
    """A function that runs the command in this process; returns exit code, standard output and standard error."""

    from medseg import cli

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["medseg", *map(str, words)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def drive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 small photographs with a vessel across, packed as DRIVE is."""
    from PIL import Image

    tmp_path = tmp_path_factory.mktemp("data") / "drive"
    for folder in ("images", "1st_manual", "mask"):
        (tmp_path / folder).mkdir(parents=True)
    vessel = np.zeros((40, 48), np.uint8)
    vessel[10:14] = 255
    field = np.zeros((40, 48), np.uint8)
    field[5:35] = 255
    for number in range(21, 41):
        colours = np.random.default_rng(number).integers(0, 90, (40, 48, 3)) + vessel[..., None] // 2
        Image.fromarray(colours.astype(np.uint8)).save(tmp_path / "images" / f"{number}_training.tif")
        for array, name in ((vessel, f"1st_manual/{number}_manual1.gif"), (field, f"mask/{number}_training_mask.gif")):
            Image.fromarray(array).save(tmp_path / name, optimize=False)  # grey levels, as DRIVE's own files
    return tmp_path


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every attempt to open a socket an error."""

    def refuse(*args, **kwargs):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
