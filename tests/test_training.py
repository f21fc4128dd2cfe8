"""Training: cases are found and prepared, the loop learns, and the same seed gives the same weights."""

import json

import numpy as np
import pytest
from conftest import PLAN, random_bundle
from torch import nn

import medseg
from medseg.bundle import Bundle
from medseg.errors import UsageError
from medseg.geometry import Geometry
from medseg.inference import Predictor
from medseg.networks import ARCHITECTURES
from medseg.plan import Plan
from medseg.training import Recipe, Sample, fit, prepare_sample, read_decathlon, select
from medseg.volume import LabelMap, Volume

TINY = Plan.parse({**PLAN, "labels": [{"value": 1, "name": "ball"}]})


def ball(seed=0, shape=(16, 16, 16)) -> tuple[Volume, LabelMap]:
    """Return a bright ball in noise, and where it is."""
    rng = np.random.default_rng(seed)
    centre = rng.uniform(6, 10, 3)
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    inside = np.linalg.norm(index - centre, axis=-1) < 4
    array = inside * 100 + rng.normal(size=shape) * 20
    geometry = Geometry(np.eye(4), shape)
    return Volume(array[None].astype(np.float32), geometry), LabelMap(inside.astype(np.uint8), geometry, TINY.labels)


@pytest.fixture
def decathlon(tmp_path):
    """A folder in the form of the Decathlon, with six balls."""
    entries = []
    for number in range(6):
        scan, labels = ball(number)
        for folder, image in (("imagesTr", scan), ("labelsTr", labels)):
            (tmp_path / folder).mkdir(exist_ok=True)
            medseg.write(image, tmp_path / folder / f"ball_{number}.nii.gz")
        entries.append({"image": f"./imagesTr/ball_{number}.nii.gz", "label": f"./labelsTr/ball_{number}.nii.gz"})
    (tmp_path / "dataset.json").write_text(json.dumps({"training": entries[::-1]}))
    return tmp_path


def test_cases_are_found_by_name(decathlon):
    cases = read_decathlon(decathlon)
    assert [case.name for case in cases] == [f"ball_{number}" for number in range(6)]
    assert [case.name for case in select(cases, ["ball_4", "ball_1"])] == ["ball_4", "ball_1"]
    with pytest.raises(UsageError, match="ball_9"):
        select(cases, ["ball_9"])


def test_a_folder_without_a_listing_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"dataset\.json"):
        read_decathlon(tmp_path)


def test_samples_lie_on_the_plans_grid(decathlon):
    case = read_decathlon(decathlon)[0]
    sample = prepare_sample(case, TINY)
    assert sample.image.shape == sample.target.shape == (1, 16, 16, 16)
    assert np.array_equal(sample.target[0], case.labels(TINY.labels).array)
    coarse = prepare_sample(case, Plan.parse({**TINY.model_dump(), "spacing": (1.25, 1.25, 1.25)}))
    assert coarse.target.shape == (1, 13, 13, 13)
    assert coarse.target.sum() * 1.25**3 == pytest.approx(sample.target.sum(), rel=0.15)


def test_the_loop_learns_to_find_a_ball(decathlon, tmp_path):
    cases = read_decathlon(decathlon)
    losses = []
    samples = [prepare_sample(case, TINY) for case in cases[:5]]
    weights = fit(
        samples, TINY, Recipe(steps=120, rate=2e-2, averaging=0.9), on_step=lambda step: losses.append(step.loss)
    )
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:10])
    bundle = random_bundle(labels=[{"value": 1, "name": "ball"}])
    Bundle(bundle.header, (weights,)).save(tmp_path / "ball.safetensors")
    found = Predictor.load(tmp_path / "ball.safetensors", device="cpu")(cases[5].scan()).labels.mask("ball")
    truth = cases[5].labels(TINY.labels).mask("ball")
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.8


@pytest.mark.parametrize("axes", [2, 3])
def test_the_same_seed_gives_the_same_weights(axes):
    shape = (16, 16, 5 if axes == 2 else 16)
    plan = Plan.parse({**TINY.model_dump(), "axes": axes, "patch": (16, 16, 1 if axes == 2 else 16)})
    rng = np.random.default_rng(0)
    samples = [
        Sample(rng.normal(size=(1, *shape)).astype(np.float32), rng.integers(0, 2, (1, *shape)).astype(np.uint8))
        for _ in range(3)
    ]
    one, two, other = (fit(samples, plan, Recipe(steps=3, seed=seed)) for seed in (1, 1, 2))
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert not all(np.array_equal(one[name], other[name]) for name in one)


def test_the_running_statistics_of_a_norm_are_part_of_the_weights(monkeypatch):
    class Normed(nn.Sequential):
        def __init__(self, axes, in_channels, out_channels):
            super().__init__(nn.Conv3d(in_channels, out_channels, 1), nn.BatchNorm3d(out_channels))

    monkeypatch.setitem(ARCHITECTURES, "normed", Normed)
    plan = Plan.parse({**TINY.model_dump(), "network": {"architecture": "normed"}})
    scan, labels = ball()
    weights = fit([Sample(scan.array, labels.array[None])], plan, Recipe(steps=2))
    assert weights["1.num_batches_tracked"] == 2
    assert (weights["1.running_mean"] != 0).all()
