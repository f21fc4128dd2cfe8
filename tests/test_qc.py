"""The quality check: each doubt by hand, and the same verdict however a scan is stored."""

import numpy as np
import pytest
from conftest import ORDERS, PLAN, smooth_scan

from medseg.geometry import Geometry
from medseg.plan import Label, Plan
from medseg.prepare import prepare
from medseg.qc import Measures, assess, fingerprint, measure
from medseg.volume import LabelMap, Volume

GRID = Geometry(np.eye(4), (20, 20, 20))
LABELS = (Label(value=1, name="front"), Label(value=2, name="back"))


def measures(**changes) -> Measures:
    values = {
        "spacing_mm": (1.0, 1.0, 1.0),
        "extent_mm": (40.0, 50.0, 60.0),
        "intensity": {"smoothness": 0.9},
        "voxels": {"front": 2000, "back": 3000},
        "volume_ml": {"front": 2.0, "back": 3.0},
        "components": {"front": 1, "back": 1},
    }
    return Measures(**{**values, **changes})


TRAINED_ON = fingerprint(
    [
        measures(),
        measures(extent_mm=(45.0, 55.0, 66.0), intensity={"smoothness": 0.95}, volume_ml={"front": 2.5, "back": 3.5}),
    ]
)


def labels(array=None) -> LabelMap:
    if array is None:
        array = np.zeros(GRID.shape, np.uint8)
        array[5:8, 5:8, 5:8] = 1
        array[9:12, 5:8, 5:8] = 2
    return LabelMap(array, GRID, LABELS)


def verdict(*, found=None, removed=None, mask=None, trained_on=TRAINED_ON):
    return assess(found or measures(), mask or labels(), trained_on, removed=removed or {})


def test_a_case_like_those_of_training_is_ok():
    assert verdict().verdict == "ok"
    assert verdict().reasons == ()


@pytest.mark.parametrize(
    ("change", "code", "word"),
    [
        ({"spacing_mm": (1.0, 1.0, 1.5)}, "SPACING", "check"),
        ({"spacing_mm": (1.0, 1.0, 5.0)}, "SPACING", "refuse"),
        ({"spacing_mm": (0.25, 1.0, 1.0)}, "SPACING", "refuse"),
        ({"extent_mm": (40.0, 75.0, 60.0)}, "FIELD_OF_VIEW", "check"),
        ({"extent_mm": (180.0, 50.0, 60.0)}, "FIELD_OF_VIEW", "refuse"),
        ({"extent_mm": (15.0, 50.0, 60.0)}, "FIELD_OF_VIEW", "refuse"),
        ({"intensity": {"smoothness": 0.83}}, "INTENSITY", "check"),
        ({"intensity": {"smoothness": 0.0}}, "INTENSITY", "refuse"),
        ({"volume_ml": {"front": 3.5, "back": 3.0}}, "VOLUME", "check"),
        ({"volume_ml": {"front": 25.0, "back": 3.0}}, "VOLUME", "refuse"),
        ({"volume_ml": {"front": 0.1, "back": 3.0}}, "VOLUME", "refuse"),
        ({"volume_ml": {"front": 0.0, "back": 3.0}}, "EMPTY", "check"),
        ({"volume_ml": {"front": 0.0, "back": 0.0}}, "EMPTY", "refuse"),
        ({"components": {"front": 1, "back": 3}}, "COMPONENTS", "check"),
    ],
)
def test_each_doubt_is_named_and_weighed(change, code, word):
    found = verdict(found=measures(**change))
    assert found.verdict == word
    assert [reason.code for reason in found.reasons] == [code]


def test_a_structure_cut_by_the_border_is_flagged():
    array = labels().array.copy()
    array[0, 5, 5] = 1
    found = verdict(mask=labels(array))
    assert [(reason.code, reason.severity) for reason in found.reasons] == [("CUT_BY_BORDER", "check")]
    assert "front" in found.reasons[0].detail


def test_an_axis_of_one_voxel_has_no_border():
    grid = Geometry(np.eye(4), (20, 20, 1))
    array = np.zeros(grid.shape, np.uint8)
    array[5:8, 5:8] = 1
    assert verdict(mask=LabelMap(array, grid, LABELS)).verdict == "ok"


@pytest.mark.parametrize(("share", "word"), [(0.05, "ok"), (0.2, "check"), (0.7, "refuse")])
def test_much_that_was_removed_is_flagged(share, word):
    assert verdict(removed={"front": share}).verdict == word


def test_a_model_without_a_fingerprint_says_so():
    assert [reason.code for reason in verdict(trained_on=None).reasons] == ["NO_FINGERPRINT"]


def test_the_fingerprint_spans_the_cases_and_leaves_out_absent_labels():
    seen = fingerprint(
        [measures(), measures(volume_ml={"front": 0.0, "back": 9.0}, components={"front": 0, "back": 2})]
    )
    assert seen.cases == 2
    assert (seen.labels["front"].volume_ml.low, seen.labels["front"].volume_ml.high) == (2.0, 2.0)
    assert (seen.labels["back"].volume_ml.low, seen.labels["back"].volume_ml.high) == (3.0, 9.0)
    assert seen.labels["back"].components.high == 2


def test_a_label_that_no_case_has_is_not_in_the_fingerprint():
    seen = fingerprint([measures(volume_ml={"front": 0.0, "back": 9.0}, components={"front": 0, "back": 1})])
    assert set(seen.labels) == {"back"}
    assert verdict(trained_on=seen, found=measures(volume_ml={"front": 1.0, "back": 9.0})).verdict == "ok"


@pytest.mark.parametrize("order", ORDERS[::5])
def test_the_measures_do_not_depend_on_the_stored_order(order):
    plan = Plan.parse(PLAN)
    scan = smooth_scan((12, 14, 10), spacing=(1.0, 1.5, 2.0))
    array = np.zeros((12, 14, 10), np.uint8)
    array[3:6, 4:9, 2:5] = 1
    array[7:9, 4:9, 2:5] = 2
    here = measure(prepare(scan, plan), LabelMap(array, scan.geometry, LABELS), plan)
    grid = scan.geometry.reordered(order)
    stored = Volume(order.apply(scan.array), grid)
    there = measure(prepare(stored, plan), LabelMap(order.apply(array), grid, LABELS), plan)
    assert there.intensity == here.intensity
    assert np.allclose(there.spacing_mm, here.spacing_mm)
    assert np.allclose(there.extent_mm, here.extent_mm)
    assert there.volume_ml == pytest.approx(here.volume_ml)
    assert there.components == here.components
    assert there.voxels == here.voxels == {"front": 3 * 5 * 3, "back": 2 * 5 * 3}


def test_smoothness_tells_tissue_from_noise():
    plan = Plan.parse(PLAN)
    noise = Volume(np.random.default_rng(0).normal(size=(1, 20, 20, 20)).astype(np.float32), GRID)
    empty = labels(np.zeros(GRID.shape, np.uint8))
    assert measure(prepare(smooth_scan((20, 20, 20)), plan), empty, plan).intensity["smoothness"] > 0.8
    assert abs(measure(prepare(noise, plan), empty, plan).intensity["smoothness"]) < 0.1


def test_quantiles_and_smoothness_are_those_of_numpy():
    plan = Plan.parse(PLAN)
    prepared = prepare(smooth_scan((12, 14, 10)), plan)
    seen = prepared.array()[0].astype(np.float64)
    found = measure(prepared, LabelMap(np.zeros(seen.shape, np.uint8), prepared.geometry, LABELS), plan).intensity
    for share in (0.05, 0.5, 0.95):
        assert found[f"quantile {share:.0%}"] == pytest.approx(np.quantile(seen, share), rel=1e-5)
    steps = [np.square(np.diff(seen, axis=axis)).mean() for axis in (0, 1)]
    assert found["smoothness"] == pytest.approx(1 - np.mean(steps) / (2 * seen.var()), rel=1e-6)
