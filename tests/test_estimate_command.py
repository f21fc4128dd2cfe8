"""`medseg predict --estimate`: the time and memory of what would be done, and nothing done."""

import json

import numpy as np
import pytest
from conftest import random_bundle, smooth_scan

import medseg
from medseg.geometry import Geometry
from medseg.inference import Predictor
from medseg.inference.backends import choice
from medseg.volume import Volume

FAST = ("--device", "cpu", "--backend", "torch", "--threads", 1, "--progress", "none")


@pytest.fixture
def estimates(run, bundle_file, tmp_path):
    """A function that returns the estimates of scans, as the command prints them."""

    def call(*scans, words=(), **changes):
        paths = []
        for number, scan in enumerate(scans):
            paths.append(tmp_path / f"{number}.nii.gz")
            medseg.write(scan, paths[-1])
        there = sorted(tmp_path.rglob("*"))
        model = bundle_file(**changes)
        code, out, err = run("predict", *paths, "-m", model, "--estimate", "--json", "-", *FAST, *words)
        assert code == 0, err
        assert {*tmp_path.rglob("*")} - {*there} <= {model}
        return [json.loads(line)["estimate"] for line in out.splitlines()]

    return call


def test_each_scan_has_its_own_and_a_larger_one_takes_longer(estimates):
    small, large = estimates(smooth_scan((20, 18, 16)), smooth_scan((70, 60, 50)))
    assert small["seconds"]["start"] == large["seconds"]["start"] > 0
    assert small["windows"] == {"answered": 4, "air": 0}
    assert large["windows"]["answered"] > 100
    for part in ("network", "blend", "write", "clean"):
        assert large["seconds"][part] > small["seconds"][part]
    total, *parts = large["seconds"].values()
    assert total == pytest.approx(sum(parts), abs=0.1)
    assert large["host_bytes"] > 70 * 60 * 50
    assert large["device_bytes"] == 0


def test_probabilities_take_time_and_memory(estimates):
    scan = smooth_scan((90, 80, 70))

    def least(part, *words):  # of several: a busy machine makes any of them longer
        return min(estimates(scan, words=words)[0]["seconds"][part] for _ in range(3))

    assert least("write", "--probabilities") > 3 * least("write")
    assert least("restore", "--probabilities") > least("restore")
    predictor = Predictor(random_bundle(), device="cpu", backend="torch")
    kept = [predictor.estimate(scan, probabilities=wanted).host for wanted in (False, True)]
    assert kept[1] - kept[0] > 3 * 4 * 90 * 80 * 70


def test_the_window_that_is_tried_holds_more_than_air(estimates):
    array = np.zeros((1, 80, 48, 48), np.float32)
    array[:, 64:] = 100
    scan = Volume(array, Geometry(np.eye(4), array.shape[1:]))
    (found,) = estimates(scan, crop=-1.0)
    assert found["windows"]["air"] == 0
    array[:, :4] = 100  # the box of the foreground is the whole scan, and its middle is air
    (found,) = estimates(scan, crop=50.0)
    assert found["windows"]["air"] > found["windows"]["answered"] > 0
    assert found["seconds"]["network"] > 0


def test_an_estimate_within_too_little_memory_is_a_refusal(run, bundle_file, tmp_path):
    medseg.write(smooth_scan(), tmp_path / "scan.nii.gz")
    code, _, err = run("predict", tmp_path / "scan.nii.gz", "-m", bundle_file(), "--estimate", "--memory", "1MB", *FAST)
    assert code == 2
    assert "needs at least" in err


@pytest.mark.parametrize(
    ("version", "driver", "there"),
    [
        ("cuda: Optional[str] = None\nhip: Optional[str] = None\n", True, False),
        ("cuda = '12.8'\nhip = None\n", False, False),
        ("cuda: Optional[str] = '12.8'\nhip: Optional[str] = None\n", True, True),
        ("cuda: Optional[str] = None\nhip: Optional[str] = '6.4'\n", False, True),
    ],
)
def test_a_driver_alone_makes_no_gpu(version, driver, there, tmp_path, monkeypatch):
    (tmp_path / "version.py").write_text(version)

    class Driver:
        def __init__(self, name):
            if not driver:
                raise OSError

        def cuInit(self, flags):
            return 0

        def cuDeviceGetCount(self, count):
            count._obj.value = 1
            return 0

    class Found:
        origin = str(tmp_path / "__init__.py")

    monkeypatch.setattr(choice, "find_spec", lambda name: Found)
    monkeypatch.setattr(choice.sys, "platform", "linux")
    monkeypatch.setattr(choice.ctypes, "CDLL", Driver)
    assert choice.has_gpu() is there
