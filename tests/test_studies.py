"""Public data sets: found as their makers pack them, split as stated, scored as their communities do."""

import json

import numpy as np
import pytest
from conftest import CARD, smooth_scan
from PIL import Image

import medseg
from medseg.bundle import Bundle
from medseg.errors import ScanError, UsageError
from medseg.inference import Predictor, new_network
from medseg.plan import Plan
from medseg.training import STUDIES, mean_scores, read_drive, read_isbi2012
from medseg.volume import LabelMap


@pytest.fixture
def isbi2012(tmp_path):
    """24 small slices of bright cells between dark membranes."""
    cells = np.full((24, 40, 48), 255, np.uint8)
    cells[:, 18:20], cells[:, :, 30:32] = 0, 0
    noise = np.random.default_rng(0).integers(0, 60, cells.shape)
    for name, array in (("volume", (cells // 2 + noise).astype(np.uint8)), ("labels", cells)):
        first, *rest = [Image.fromarray(page) for page in array]
        first.save(tmp_path / f"train-{name}.tif", save_all=True, append_images=rest)
    return tmp_path


def a_prediction(study, case):
    """Return what a small network with random weights makes of a case, and its plan."""
    patch = [32, 32, 1] if study.plan["axes"] == 2 else [16, 16, 16]
    network = {"architecture": "unet", "options": {"widths": [4, 8]}}
    plan = Plan.parse({**study.plan, "patch": patch, "network": network})
    weights = {key: tensor.numpy() for key, tensor in new_network(plan).state_dict().items()}
    predictor = Predictor(Bundle.of([weights], plan=plan, card=CARD), device="cpu")
    return predictor(case.scan(), probabilities=True), plan


def test_slices_of_isbi2012_are_pages(isbi2012):
    cases = read_isbi2012(isbi2012)
    assert [case.name for case in cases] == [f"slice_{n:02d}" for n in range(24)]
    assert cases[3].scan().array.shape == (1, 48, 40, 1)  # x along a row first
    found, plan = a_prediction(STUDIES["isbi2012"], cases[3])
    cell = cases[3].labels(plan.labels).mask("cell")
    assert not cell[30:32].any()
    assert cell.sum() == 46 * 38
    scores = STUDIES["isbi2012"].score(cases[3], found, plan)
    assert set(scores) == {"Dice", "IoU", "pixel error", "V-Rand", "V-Info"}
    assert len(scores["V-Rand"]) == 19
    learned, held_out = STUDIES["isbi2012"].split(isbi2012)
    assert (len(learned), [case.name for case in held_out]) == (18, [f"slice_{n}" for n in range(18, 24)])


def test_photographs_of_drive_are_scored_inside_their_field_of_view(drive):
    cases = read_drive(drive)
    assert [case.name for case in cases] == [str(number) for number in range(21, 41)]
    assert cases[0].scan().array.shape == (3, 48, 40, 1)
    found, plan = a_prediction(STUDIES["drive"], cases[0])
    scores = STUDIES["drive"].score(cases[0], found, plan)
    assert set(scores) == {"Dice", "AUC", "sensitivity"}
    found.probabilities.array[1] = 0
    found.probabilities.array[1, :, 10:14] = 0.9  # the vessel, and outside of the field all wrong
    found.probabilities.array[1, :, :5] = 0.95
    assert STUDIES["drive"].score(cases[0], found, plan) == {"Dice": 1, "AUC": 1, "sensitivity": 1}
    learned, held_out = STUDIES["drive"].split(drive)
    assert (len(learned), len(held_out)) == (16, 4)


def test_the_hippocampus_is_split_by_its_first_fold_and_a_missed_label_costs_the_diagonal(tmp_path):
    scan = smooth_scan((16, 16, 16))
    entries = []
    for name in "ab":
        medseg.write(scan, tmp_path / f"{name}.nii.gz")
        labels = np.zeros((16, 16, 16), np.uint8)
        labels[4:8, 4:8, 4:8], labels[8:12, 4:8, 4:8] = 1, 2
        medseg.write(LabelMap(labels, scan.geometry), tmp_path / f"{name}_labels.nii.gz")
        entries.append({"image": f"{name}.nii.gz", "label": f"{name}_labels.nii.gz"})
    (tmp_path / "dataset.json").write_text(json.dumps({"training": entries}))
    study = STUDIES["hippocampus"]
    with pytest.raises(UsageError, match=r"splits\.json"):
        study.split(tmp_path)
    (tmp_path / "splits.json").write_text(json.dumps([{"train": ["a"], "val": ["b"]}]))
    learned, held_out = study.split(tmp_path)
    assert ([case.name for case in learned], [case.name for case in held_out]) == (["a"], ["b"])
    found, plan = a_prediction(study, held_out[0])
    object.__setattr__(found, "labels", LabelMap(held_out[0].labels(plan.labels).array % 2, scan.geometry, plan.labels))
    scores = study.score(held_out[0], found, plan)
    assert scores["Dice anterior"] == 1
    assert scores["HD95 anterior"] == 0
    assert scores["Dice posterior"] == 0
    assert scores["HD95 posterior"] == pytest.approx(16 * 3**0.5)


def test_the_mean_of_thresholds_is_that_of_the_best_one_for_all_cases():
    cases = [{"a": 0.5, "V": [0.2, 0.9, 0.4]}, {"a": 1.0, "V": [1.0, 0.5, 0.9]}]
    assert mean_scores(cases) == {"a": 0.75, "V": pytest.approx(0.7)}


def test_a_missing_file_is_named(tmp_path, drive):
    with pytest.raises(UsageError, match=r"train-volume\.tif"):
        read_isbi2012(tmp_path)
    (drive / "1st_manual" / "25_manual1.gif").unlink()
    with pytest.raises(UsageError, match=r"25_manual1\.gif"):
        read_drive(drive)
    with pytest.raises(UsageError, match=r"no images/"):
        read_drive(tmp_path / "nowhere")


def test_pages_are_those_of_a_picture(tmp_path, sample):
    with pytest.raises(ScanError, match="has no pages"):
        medseg.io.count_pages(sample)
    Image.new("L", (4, 4)).save(tmp_path / "one.png")
    assert medseg.io.count_pages(tmp_path / "one.png") == 1


def test_labels_of_one_page_are_read_and_a_wrong_page_is_refused(isbi2012):
    labels = medseg.read_labels(isbi2012 / "train-labels.tif", volume=23)
    assert set(np.unique(labels.array)) == {0, 255}
    with pytest.raises(ScanError):
        medseg.read_labels(isbi2012 / "train-labels.tif", volume=24)
    with pytest.raises(ScanError):
        medseg.read_labels(isbi2012 / "train-labels.tif")


def test_a_layer_of_segments_is_read_by_number(tmp_path):
    grid = smooth_scan((4, 5, 6)).geometry
    medseg.write(LabelMap(np.ones(grid.shape, np.uint8), grid), tmp_path / "one.nrrd")
    assert medseg.read_labels(tmp_path / "one.nrrd", volume=0).array.all()
    with pytest.raises(ScanError):
        medseg.read_labels(tmp_path / "one.nrrd", volume=1)


def test_scores_of_probabilities_need_them(isbi2012):
    case = read_isbi2012(isbi2012)[0]
    found, plan = a_prediction(STUDIES["isbi2012"], case)
    object.__setattr__(found, "probabilities", None)
    with pytest.raises(UsageError, match="probabilities=True"):
        STUDIES["isbi2012"].score(case, found, plan)


def test_the_real_data_sets_are_as_stated(data):
    for name, counts in {"isbi2012": (18, 6), "drive": (16, 4), "hippocampus": (166, 42)}.items():
        if not (data / name).is_dir():
            pytest.skip(f"no {name} in the test data")
        learned, held_out = STUDIES[name].split(data / name)
        assert (len(learned), len(held_out)) == counts
        assert not {case.name for case in learned} & {case.name for case in held_out}
        plan = Plan.parse({**STUDIES[name].plan, "network": {"architecture": "unet"}})
        case = held_out[0]
        assert case.labels(plan.labels).geometry.shape == case.scan().geometry.shape
        assert all(case.labels(plan.labels).counts().values())
