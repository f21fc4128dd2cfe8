"""Resampling against scipy, and restoring against interpolating every class and taking the largest."""

import tracemalloc

import numpy as np
import pytest
import torch
from conftest import ORDERS, rotation, smooth_scan
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from torch.nn import functional

from medseg.errors import GeometryError, ShapeMismatch
from medseg.geometry import Geometry
from medseg.resampling import Taps, coordinates, cubic_matrix, interpolate, resample_image
from medseg.restore import restore, restore_probabilities


@given(count=st.integers(2, 40), seed=st.integers(0, 1000))
def test_the_cubic_matrix_is_the_b_spline_of_scipy(count, seed):
    rng = np.random.default_rng(seed)
    values, at = rng.normal(size=count), np.sort(rng.uniform(0, count - 1, 50))
    wanted = ndimage.map_coordinates(values, [at], order=3, mode="mirror")
    assert np.allclose(cubic_matrix(count, at) @ values, wanted, atol=1e-5)


def test_beyond_the_samples_the_border_is_repeated():
    matrix = cubic_matrix(10, np.array([-3.0, 0.0, 9.0, 12.0]))
    assert np.allclose(matrix[0], matrix[1])
    assert np.allclose(matrix[2], matrix[3])
    assert np.allclose(matrix.sum(axis=1), 1, atol=1e-5)


def test_what_weighs_next_to_nothing_is_nothing():
    weights = np.abs(cubic_matrix(300, np.array([0.5, 150.3, 299.0])))
    assert weights[weights > 0].min() >= 1e-9


def test_one_sample_is_constant():
    assert (cubic_matrix(1, np.array([-1.0, 0.0, 2.0])) == 1).all()


@pytest.mark.parametrize("spacing", [(2.0, 1.0, 0.5), (0.7, 1.3, 3.1), (1.0, 1.0, 1.0)])
def test_resampling_a_volume_is_that_of_scipy(spacing):
    scan = smooth_scan((15, 18, 12), spacing=(1.0, 1.5, 2.0))
    grid = scan.geometry.respaced(spacing)
    at = [np.clip(x, 0, n - 1) for x, n in zip(coordinates(scan.geometry, grid), scan.geometry.shape, strict=True)]
    wanted = ndimage.map_coordinates(
        scan.array[0].astype(np.float64), np.meshgrid(*at, indexing="ij"), order=3, mode="mirror"
    )
    found = resample_image(scan.array, scan.geometry, grid)
    assert found.dtype == np.float32
    assert np.abs(found[0] - wanted).max() < 1e-5 * np.ptp(scan.array)


@pytest.mark.parametrize("shape", [(150, 40, 130), (90, 70, 1), (1, 1, 90)])
@pytest.mark.parametrize("spacing", [(2.3, 1.0, 0.4), (0.7, 1.0, 1.0), (1.0, 1.0, 3.0)])
def test_bands_are_the_whole_matrix_of_each_axis(shape, spacing):
    array = np.random.default_rng(0).integers(-1000, 3000, (2, *shape), np.int16)
    scan = Geometry(np.eye(4), shape)
    grid = scan.respaced(spacing)
    wanted = array.astype(np.float64)
    for axis, at in enumerate(coordinates(scan, grid), start=1):
        matrix = cubic_matrix(shape[axis - 1], at)
        wanted = np.moveaxis(np.tensordot(matrix, wanted, axes=(1, axis)), 0, axis)
    found = resample_image(array, scan, grid)
    assert found.shape == (2, *grid.shape)
    assert np.abs(found - wanted).max() < 1e-6 * np.ptp(array)


def test_the_same_scan_in_each_of_the_48_orders_is_resampled_to_the_same_bits():
    array = np.random.default_rng(0).integers(-1000, 3000, (1, 75, 70, 40), np.int16)
    scan = Geometry(np.eye(4), array.shape[1:])
    wanted = resample_image(array, scan, scan.respaced((1.7, 2.1, 0.8)))
    for order in ORDERS:
        stored = order.inverse().apply(np.ascontiguousarray(order.apply(array)))  # another order of the memory alone
        assert np.array_equal(resample_image(stored, scan, scan.respaced((1.7, 2.1, 0.8))), wanted)


def test_a_scan_is_not_converted_as_a_whole():
    array = np.zeros((1, 220, 220, 220), np.int16, order="F")
    scan = Geometry(np.eye(4), array.shape[1:])
    tracemalloc.start()
    found = resample_image(array, scan, scan.respaced((2.0, 2.0, 2.0)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak - found.nbytes < array.nbytes


def test_a_linear_ramp_in_the_world_stays_one():
    affine = np.eye(4)
    affine[:3, :3] = rotation(3) * (1.0, 0.8, 2.0)
    affine[:3, 3] = (5, -3, 8)
    scan = Geometry(affine, (20, 20, 20))
    grid = scan.respaced((1.3, 1.3, 1.3)).cropped((4, 4, 8), (9, 9, 20))

    def ramp(geometry):
        index = np.moveaxis(np.stack(np.meshgrid(*map(np.arange, geometry.shape), indexing="ij")), 0, -1)
        return geometry.to_world(index) @ [1.0, 2.0, -0.5]

    inner = (slice(None), slice(None), slice(2, 8))  # the spline bends at the border of the scan
    found = resample_image(ramp(scan)[None], scan, grid)[0]
    assert np.allclose(found[inner], ramp(grid)[inner], atol=1e-2)


def test_grids_on_other_axes_are_refused():
    affine = np.eye(4)
    affine[:3, :3] = rotation(1)
    with pytest.raises(GeometryError, match="same axes"):
        coordinates(Geometry(np.eye(4), (9, 9, 9)), Geometry(affine, (9, 9, 9)))


def test_linear_taps_are_those_of_numpy():
    values, at = np.random.default_rng(0).normal(size=9).astype(np.float32), np.linspace(-1, 10, 40)
    tap = Taps.of(9, at)
    found = interpolate(values.reshape(9, 1, 1), [tap, Taps.of(1, np.zeros(1)), Taps.of(1, np.zeros(1))])
    assert np.allclose(found.ravel(), np.interp(at, np.arange(9), values), atol=1e-6)


def logits_on(grid: Geometry, classes=4, seed=0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=(classes, *grid.shape))
    return ndimage.gaussian_filter(noise, (0, 1, 1, 1)).astype(np.float32)


@pytest.mark.parametrize("slab", [1, 3, 100])
@pytest.mark.parametrize(("low", "high"), [((9, 10, 8), (18, 20, 16)), ((12, 9, 10), (7, 21, 10))])
def test_restoring_is_interpolating_every_class_and_taking_the_largest(monkeypatch, slab, low, high):
    monkeypatch.setattr("medseg.restore._BLOCK", slab)
    onto = Geometry(np.diag([*(a / b for a, b in zip(low, high, strict=True)), 1.0]), high)
    start = [(a / b - 1) / 2 for a, b in zip(low, high, strict=True)]  # half-pixel centres, as torch has them
    affine = onto.affine.copy()
    affine[:3, 3] = start
    onto = Geometry(affine, high)
    grid = Geometry(np.eye(4), low)
    logits = logits_on(grid)
    full = functional.interpolate(torch.from_numpy(logits)[None], high, mode="trilinear", align_corners=False)[
        0
    ].numpy()
    two_best = np.sort(full, axis=0)[-2:]
    clear = two_best[1] - two_best[0] > 1e-5
    assert np.array_equal(restore(logits, grid, onto)[clear], full.argmax(axis=0)[clear])
    shares = restore_probabilities(logits, grid, onto)
    assert np.allclose(shares, torch.softmax(torch.from_numpy(full), 0).numpy(), atol=1e-5)
    assert np.array_equal(shares.argmax(axis=0)[clear], full.argmax(axis=0)[clear])


@pytest.mark.parametrize("order", ORDERS)
def test_labels_return_to_their_place_in_each_of_the_48_orders(order):
    scan = smooth_scan((10, 12, 9)).geometry
    logits = logits_on(scan)
    wanted = order.apply(logits.argmax(axis=0))
    assert np.array_equal(restore(logits, scan, scan.reordered(order)), wanted)


def test_outside_the_field_of_view_is_background():
    scan = Geometry(np.eye(4), (12, 12, 12))
    grid = scan.cropped((3, 4, 5), (8, 9, 10))
    logits = np.stack([np.zeros(grid.shape), np.ones(grid.shape)]).astype(np.float32)
    labels = restore(logits, grid, scan)
    assert labels.sum() == 125
    assert labels[3:8, 4:9, 5:10].all()
    shares = restore_probabilities(logits, grid, scan)
    assert shares[0, 0, 0, 0] == 1
    assert np.allclose(shares.sum(axis=0), 1)


def test_a_grid_that_lies_elsewhere_leaves_only_background():
    scan = Geometry(np.eye(4), (5, 5, 5))
    affine = np.eye(4)
    affine[0, 3] = 100
    assert not restore(np.ones((2, 4, 4, 4), np.float32), Geometry(affine, (4, 4, 4)), scan).any()


def test_many_classes_need_a_wider_type():
    grid = Geometry(np.eye(4), (2, 2, 2))
    logits = np.zeros((300, 2, 2, 2), np.float32)
    logits[299] = 1
    labels = restore(logits, grid, grid)
    assert labels.dtype == np.uint16
    assert (labels == 299).all()


def test_logits_on_another_grid_are_refused():
    grid = Geometry(np.eye(4), (2, 2, 2))
    with pytest.raises(ShapeMismatch):
        restore(np.zeros((2, 3, 3, 3), np.float32), grid, grid)


def test_oblique_scans_between_their_axes_are_refused():
    affine = np.eye(4)
    affine[:3, :3] = rotation(1)
    grid = Geometry(np.eye(4), (4, 4, 4))
    with pytest.raises(GeometryError, match="same axes"):
        restore(np.zeros((2, 4, 4, 4), np.float32), grid, Geometry(affine, (4, 4, 4)))
