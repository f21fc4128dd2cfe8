"""The shipped model on real scans: what it finds, and which scans it is warned of."""

import numpy as np
import pytest
from conftest import SAMPLES, smooth_scan

import medseg
from medseg import zoo
from medseg.geometry import Geometry
from medseg.inference import Predictor
from medseg.report.delivery import _judge
from medseg.training import read_decathlon
from medseg.volume import Volume


@pytest.fixture(scope="module")
def predictor():
    return Predictor.load(zoo.DEFAULT, device="cpu")


def verdict(predictor, scan):
    return _judge(predictor(scan), predictor.bundle)[1]


def crop(scan, start, size=(40, 56, 40)):
    stop = tuple(a + n for a, n in zip(start, size, strict=True))
    box = (slice(None), *(slice(a, b) for a, b in zip(start, stop, strict=True)))
    return Volume(scan.array[box], scan.geometry.cropped(start, stop))


def test_it_is_small_enough_to_ship():
    assert zoo.find(zoo.DEFAULT).stat().st_size <= 8_000_000


def test_it_finds_the_left_hippocampus_of_a_scan_from_elsewhere(predictor, sample):
    scan = medseg.read(sample)
    labels = predictor(scan).labels
    volumes = {name: count / 1000 for name, count in labels.counts().items()}  # 1 mm voxels
    assert 0.8 < volumes["anterior"] < 2.6
    assert 0.8 < volumes["posterior"] < 2.6
    front, back = (
        scan.geometry.to_world(np.argwhere(labels.mask(name)).mean(axis=0)) for name in ("anterior", "posterior")
    )
    assert front[1] > back[1] + 10  # mm: in front
    assert front[2] < back[2]  # and below
    both = (front + back) / 2
    assert np.linalg.norm(both - (-27, -21, -13)) < 8  # mm, from where it lies in this standard head


def test_the_sample_is_no_reason_to_refuse(predictor, sample):
    assert verdict(predictor, medseg.read(sample)).verdict in ("ok", "check")


def strange_scans():
    """Yield scans that the model was never meant for, each with what it is."""
    rng = np.random.default_rng(0)
    grid = Geometry(np.eye(4), (40, 56, 40))
    for number in range(5):
        yield f"white noise {number}", Volume(rng.normal(size=(1, *grid.shape)).astype(np.float32), grid)
        yield f"uniform noise {number}", Volume(rng.random((1, *grid.shape)).astype(np.float32) * 1000, grid)
        yield f"smooth noise {number}", smooth_scan(grid.shape, seed=number)
    yield "nothing", Volume(np.full((1, *grid.shape), 7, np.int16), grid)
    chest = medseg.read(SAMPLES / "ct_chest.nrrd")
    yield "a large part of a chest CT", crop(chest, (40, 40, 10), (32, 32, 8))
    for start in ((30, 40, 8), (60, 60, 20), (20, 70, 15), (80, 50, 10)):
        yield f"a CT crop at {start}", crop(chest, start, (14, 18, 4))
    head = medseg.read(SAMPLES / "t1_head.nii.gz")
    yield "a quarter of a head", crop(head, (20, 60, 20), (90, 90, 80))
    tumour = medseg.read(SAMPLES / "mr_tumour.nrrd")
    yield "a thick-sliced brain", crop(tumour, (90, 90, 4), (80, 100, 12))


@pytest.mark.parametrize("scan", [pytest.param(scan, id=name) for name, scan in strange_scans()])
def test_scans_of_other_kinds_are_flagged(predictor, scan):
    assert verdict(predictor, scan).verdict in ("check", "refuse")


def test_a_head_crop_without_a_hippocampus_is_flagged(predictor):
    head = medseg.read(SAMPLES / "t1_head.nii.gz")
    starts = [(20, 20, 100), (70, 150, 80), (100, 20, 30), (60, 100, 120), (10, 90, 90), (110, 120, 100)]
    flagged = [verdict(predictor, crop(head, start)).verdict != "ok" for start in starts]
    assert sum(flagged) == len(flagged)


@pytest.mark.slow
def test_a_whole_head_is_refused(predictor):
    assert verdict(predictor, medseg.read(SAMPLES / "t1_head.nii.gz")).verdict == "refuse"


@pytest.mark.slow
def test_the_cases_of_training_are_not_flagged(predictor, data):
    verdicts = [verdict(predictor, case.scan()).verdict for case in read_decathlon(data / "hippocampus")]
    assert verdicts.count("ok") == len(verdicts)
