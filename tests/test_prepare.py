"""Preparing a scan: orientation, crop, spacing and intensity, the same to the bit however it is stored."""

import tracemalloc

import numpy as np
import pytest
from conftest import ORDERS, PLAN, rotation, smooth_scan

from medseg.errors import PlanError, ShapeMismatch
from medseg.geometry import Geometry
from medseg.plan import Plan
from medseg.prepare import prepare
from medseg.volume import Volume, stack_channels


def plan(**changes) -> Plan:
    return Plan.parse({**PLAN, **changes})


def channel(rule, name="scan") -> dict:
    return {"name": name, "intensity": rule}


@pytest.mark.parametrize("spacing", [None, [1.3, 1.3, 1.3]])
@pytest.mark.parametrize("crop", [None, 50.0])
def test_all_48_stored_orders_are_prepared_to_the_same_bits(spacing, crop):
    affine = np.eye(4)
    affine[:3, :3] = rotation(5) * (1.0, 1.2, 2.0)
    scan = Volume(smooth_scan((13, 15, 11)).array, Geometry(affine, (13, 15, 11)))
    wanted = prepare(scan, plan(spacing=spacing, crop=crop))
    for order in ORDERS:
        stored = Volume(order.apply(scan.array), scan.geometry.reordered(order))
        found = prepare(stored, plan(spacing=spacing, crop=crop))
        assert found.rescale == wanted.rescale
        assert np.array_equal(found.array(), wanted.array())
        assert found.geometry.same_as(wanted.geometry, tolerance=1e-6)


def test_a_z_score_has_mean_zero_and_deviation_one_within_its_clip():
    array = prepare(smooth_scan(), plan()).array()
    assert abs(array.mean()) < 1e-5
    assert array.std() == pytest.approx(1, abs=1e-4)


def test_a_z_score_is_that_of_numpy_by_hand():
    scan = smooth_scan((9, 8, 7), dtype=np.int16)
    low, high = np.percentile(scan.array, (0.5, 99.5))
    clipped = scan.array.clip(low, high).astype(np.float64)
    wanted = (clipped - clipped.mean()) / clipped.std()
    assert np.allclose(prepare(scan, plan()).array(), wanted, atol=1e-5)


@pytest.mark.parametrize(
    "dtype", [np.uint8, np.int8, np.int16, np.dtype(">i2"), np.uint16, np.int32, np.float32, np.float64]
)
@pytest.mark.parametrize("percentiles", [(0.5, 99.5), (0, 100), (13.7, 81.2)])
def test_the_clip_of_a_z_score_is_that_of_numpy_for_every_type(dtype, percentiles):
    rule = {"kind": "zscore", "clip_percentiles": percentiles}
    for seed, shape in enumerate([(7, 6, 5), (1, 1, 2), (3, 1, 4), (1, 1, 1)]):
        low, high = {np.uint8: (0, 255), np.int8: (-128, 127), np.uint16: (0, 65535)}.get(dtype, (-30000, 30000))
        array = np.random.default_rng(seed).uniform(low, high, shape).astype(dtype)
        prepared = prepare(Volume(array[None], Geometry(np.eye(4), shape)), plan(channels=[channel(rule)]))
        (found,) = prepared.rescale
        assert (found.low, found.high) == tuple(float(value) for value in np.percentile(array, percentiles))
        clipped = array.clip(found.low, found.high).astype(np.float64)
        assert found.shift == pytest.approx(clipped.mean(), rel=1e-6, abs=1e-3)
        assert found.scale == pytest.approx(clipped.std() or 1.0, rel=1e-6)


def test_a_z_score_of_integers_takes_next_to_no_memory():
    array = np.zeros((200, 200, 200), np.int16, order="F")
    array[50:150] = 100
    scan = Volume(array[None], Geometry(np.eye(4), array.shape))
    tracemalloc.start()
    prepare(scan, plan(crop=10))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < array.nbytes / 2


def test_a_window_clips_and_scales_in_units_of_the_scan():
    rule = {"kind": "window", "low": -100, "high": 300, "mean": 50, "deviation": 80}
    scan = Volume(np.array([[[[-1000, -100, 50, 300, 3000]]]], np.int16), Geometry(np.eye(4), (1, 1, 5)))
    array = prepare(scan, plan(channels=[{"name": "ct", "intensity": rule}])).array()
    assert np.allclose(array.ravel(), [-150 / 80, -150 / 80, 0, 250 / 80, 250 / 80])


def test_a_constant_scan_is_prepared_to_zero():
    scan = Volume(np.full((1, 5, 5, 5), 7, np.int16), Geometry(np.eye(4), (5, 5, 5)))
    assert not prepare(scan, plan()).array().any()


def test_a_scan_on_the_plans_grid_is_neither_resampled_nor_copied():
    scan = smooth_scan((9, 8, 7), spacing=(1.00001, 1.0, 1.0), dtype=np.int16)
    prepared = prepare(scan, plan(spacing=[1, 1, 1]))
    assert np.shares_memory(prepared.volume.array, scan.array)


def test_the_crop_is_the_box_of_the_foreground_in_the_world():
    array = np.zeros((1, 20, 20, 20), np.int16)
    array[0, 3:7, 5:15, 8] = 100
    scan = Volume(array, Geometry(np.diag([-2.0, 1.0, 1.0, 1.0]), (20, 20, 20)))
    prepared = prepare(scan, plan(crop=10))
    assert prepared.geometry.shape == (4, 10, 1)
    assert prepared.geometry.orientation == "RAS"
    assert np.allclose(prepared.geometry.origin, (-12, 5, 8))


def test_the_crop_holds_the_foreground_of_every_channel():
    array = np.zeros((2, 20, 20, 20), np.int16)
    array[0, 3:7, 5, 8], array[1, 6:9, 2, 11] = 100, 100
    scan = Volume(array, Geometry(np.eye(4), (20, 20, 20)))
    prepared = prepare(scan, plan(crop=10, channels=[channel({"kind": "zscore"}, name) for name in "ab"]))
    assert prepared.geometry.shape == (6, 4, 4)
    assert np.allclose(prepared.geometry.origin, (3, 2, 8))


def test_a_scan_of_nothing_but_background_is_left_whole():
    scan = Volume(np.zeros((1, 5, 6, 7), np.int16), Geometry(np.eye(4), (5, 6, 7)))
    assert prepare(scan, plan(crop=10)).geometry.shape == (5, 6, 7)


def test_windows_are_parts_of_the_whole():
    prepared = prepare(smooth_scan(), plan(spacing=[1.5, 1.5, 1.5]))
    part = prepared.window((2, 3, 1), (7, 9, 5))
    assert np.array_equal(part, prepared.array()[:, 2:7, 3:9, 1:5])
    assert part.flags.c_contiguous


def test_outside_the_scan_a_window_is_zero():
    prepared = prepare(smooth_scan(), plan(spacing=[1.5, 1.5, 1.5]))
    whole = np.pad(prepared.array(), [(0, 0), (4, 9), (5, 5), (6, 6)])
    start, size = (-4, 3, -2), (9, 8, 7)
    part = prepared.window(start, [a + n for a, n in zip(start, size, strict=True)])
    assert np.array_equal(part, whole[:, 0:9, 8:16, 4:11])


def test_the_wrong_number_of_channels_is_refused_by_name():
    two = [{"name": name, "intensity": {"kind": "zscore"}} for name in ("t1", "flair")]
    with pytest.raises(PlanError, match=r"1 channels.*2 \(t1, flair\).*--channel"):
        prepare(smooth_scan(), plan(channels=two))


def test_each_channel_is_normalised_on_its_own():
    two = [{"name": name, "intensity": {"kind": "zscore"}} for name in ("t1", "flair")]
    a, b = smooth_scan(seed=1), smooth_scan(seed=2)
    both = stack_channels([a, Volume(b.array * 1000, b.geometry)])
    array = prepare(both, plan(channels=two)).array()
    assert np.allclose(array[0], prepare(a, plan()).array()[0], atol=1e-5)
    assert np.allclose(array[1], prepare(b, plan()).array()[0], atol=1e-4)


def test_channels_on_different_grids_are_refused():
    a = smooth_scan((5, 6, 7))
    moved = a.geometry.affine.copy()
    moved[0, 3] = 0.5
    with pytest.raises(ShapeMismatch, match=r"0.5 mm apart"):
        stack_channels([a, Volume(a.array, Geometry(moved, (5, 6, 7)))])


def test_a_picture_keeps_its_rows_and_columns():
    array = np.random.default_rng(0).random((1, 6, 5, 1)).astype(np.float32)
    scan = Volume(array, Geometry(np.eye(4), (6, 5, 1), physical=False))
    flat = plan(axes=2, patch=[16, 16, 1])
    assert prepare(scan, flat).geometry.shape == (6, 5, 1)
    with pytest.raises(PlanError, match="no physical size"):
        prepare(scan, plan(axes=2, patch=[16, 16, 1], spacing=[1, 1, 1]))
