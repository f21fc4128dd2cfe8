"""Prepared cases on disk: the same as in memory, made anew where they are damaged, and no file held open."""

from __future__ import annotations

import resource

import numpy as np
import pytest
from conftest import PLAN, smooth_scan

import medseg
from medseg.errors import UsageError
from medseg.plan import Label, Plan
from medseg.training.cache import Cache
from medseg.training.data import Legend, prepare_case
from medseg.training.dataset import Case, File
from medseg.training.patches import IGNORE, draw
from medseg.volume import LabelMap

PLAN_2MM = Plan.parse({**PLAN, "spacing": [2, 2, 2], "patch": [8, 8, 8]})


@pytest.fixture
def case(tmp_path) -> Case:
    scan = smooth_scan((24, 26, 20))
    labels = (scan.array[0] > 100).astype(np.uint8) + (scan.array[0] > 300)
    labels[:, :, 16:] = 9
    medseg.write(scan, tmp_path / "scan.nii.gz")
    medseg.write(LabelMap(labels.astype(np.uint8), scan.geometry), tmp_path / "labels.nii.gz")
    return Case("one", (File(tmp_path / "scan.nii.gz"),), File(tmp_path / "labels.nii.gz"))


@pytest.fixture
def cache(tmp_path) -> Cache:
    (tmp_path / "cases").mkdir()
    return Cache(tmp_path / "cases", PLAN_2MM, Legend(PLAN_2MM.labels, {}, ignore=9))


def test_a_cached_case_is_the_prepared_one(case, cache):
    expected = prepare_case(case, PLAN_2MM, cache.legend).sample
    for _ in range(2):
        found = cache.get(case).sample
        assert np.allclose(found.image[...], expected.image, atol=2e-3)
        assert np.array_equal(found.target[...], expected.target)
        assert found.points.keys() == expected.points.keys() == {1, 2}
        assert all(np.array_equal(found.points[n], expected.points[n]) for n in found.points)
    assert (expected.target == IGNORE).any()


def test_a_case_is_made_once_and_again_when_its_files_or_its_plan_change(case, cache, monkeypatch):
    cache.get(case)
    monkeypatch.setattr("medseg.training.cache.prepare_case", None)  # would fail if it were called
    cache.get(case)
    other = Cache(cache.folder, Plan.parse({**PLAN, "spacing": [3, 3, 3]}), cache.legend)
    with pytest.raises(TypeError):
        other.get(case)
    case.reference.path.touch()
    with pytest.raises(TypeError):
        cache.get(case)


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "record"])
@pytest.mark.parametrize("part", ["image", "target", "points"])
def test_a_damaged_case_is_made_again(case, cache, damage, part):
    expected = cache.get(case).sample.image[...]
    path = next(cache.folder.glob(f"*.{part}.npy"))
    content = bytearray(path.read_bytes())
    match damage:
        case "flip":
            content[-3] ^= 0xFF
            path.write_bytes(content)
        case "cut":
            path.write_bytes(content[:-5])
        case "gone":
            path.unlink()
        case "record":
            next(cache.folder.glob("*.json")).write_text("{")
    assert np.array_equal(cache.get(case).sample.image[...], expected)


def test_a_value_that_is_no_label_is_named(case, tmp_path):
    (tmp_path / "more").mkdir()
    with pytest.raises(UsageError, match="one: the reference holds the value 9"):
        Cache(tmp_path / "more", PLAN_2MM, Legend(PLAN_2MM.labels)).get(case)


def test_values_that_no_label_tells_apart_become_one_channel(case):
    label = Label(value=1, name="both", atoms=(1, 2))
    plan = Plan.parse({**PLAN, "labels": [{"value": 1, "name": "both", "atoms": [1]}]})
    made = prepare_case(case, plan, Legend((label,), {1: 1, 2: 1}, ignore=9))
    assert set(np.unique(made.sample.target)) == {0, 1, IGNORE}
    assert set(np.unique(made.reference.array)) == {0, 1}


def test_many_cases_hold_no_file_open(case, cache):
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    cases = [cache.get(case) for _ in range(2)]
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, before[1]))
        cases += [cache.get(case) for _ in range(100)]
        rng = np.random.default_rng(0)
        for one in cases:
            assert draw(one.sample, (8, 8, 8), 3, rng)["image"].shape[0] == 1
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
