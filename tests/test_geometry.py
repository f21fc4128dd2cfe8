"""Geometry: exact in all 48 orders, on oblique and anisotropic grids."""

import nibabel
import numpy as np
import pytest
from conftest import ORDERS, rotation
from hypothesis import given
from hypothesis import strategies as st

from medseg.errors import GeometryError
from medseg.geometry import AxisOrder, Geometry, parse_orientation

spacings = st.tuples(*[st.floats(0.3, 6.0)] * 3)


def oblique(seed: int, spacing=(0.7, 1.1, 2.5), shape=(5, 6, 7)) -> Geometry:
    affine = np.eye(4)
    affine[:3, :3] = rotation(seed) * spacing
    affine[:3, 3] = (-90, 40.5, 12.25)
    return Geometry(affine, shape)


@pytest.mark.parametrize("order", ORDERS)
def test_each_of_the_48_orders_is_undone_by_its_inverse(order):
    array = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    assert (order.inverse().apply(order.apply(array)) == array).all()
    grid = oblique(1)
    assert grid.reordered(order).reordered(order.inverse()).same_as(grid, tolerance=1e-9)


@pytest.mark.parametrize("order", ORDERS)
def test_a_voxel_keeps_its_place_in_the_world_in_each_of_the_48_orders(order):
    grid = oblique(2)
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"))  # (3, I, J, K): each voxel's own index
    before = grid.to_world(np.moveaxis(index, 0, -1))
    after = grid.reordered(order)
    moved = np.moveaxis(order.apply(np.moveaxis(before, -1, 0)), 0, -1)
    own = np.moveaxis(np.stack(np.meshgrid(*map(np.arange, after.shape), indexing="ij")), 0, -1)
    assert np.allclose(after.to_world(own), moved, atol=1e-9)


@pytest.mark.parametrize("seed", range(20))
def test_all_48_forms_of_an_oblique_grid_reach_one_form(seed):
    grid = oblique(seed)
    wanted = grid.reordered(grid.order_to("RAS"))
    for order in ORDERS:
        stored = grid.reordered(order)
        reached = stored.reordered(stored.order_to("RAS"))
        assert reached.shape == wanted.shape
        assert reached.same_as(wanted, tolerance=1e-9)


def test_all_48_forms_of_a_grid_at_exactly_45_degrees_reach_one_form():
    half = np.sqrt(0.5)
    affine = np.eye(4)
    affine[:3, :3] = [[half, -half, 0], [half, half, 0], [0, 0, 1]]
    grid = Geometry(affine, (4, 5, 6))
    reached = {
        grid.reordered(order).reordered(grid.reordered(order).order_to("RAS")).affine[:3, :3].tobytes()
        for order in ORDERS
    }
    assert len(reached) == 1


@pytest.mark.parametrize("order", ORDERS)
def test_orientation_letters_agree_with_nibabel(order):
    grid = Geometry(np.diag([1.0, 2.0, 3.0, 1.0]), (4, 5, 6)).reordered(order)
    assert grid.orientation == "".join(nibabel.aff2axcodes(grid.affine))


@pytest.mark.parametrize("letters", ["RAS", "LPS", "PIR", "SLA", "AIL"])
def test_order_to_reaches_the_orientation_asked_for(letters):
    grid = oblique(4)
    assert grid.reordered(grid.order_to(letters)).orientation == letters


@given(spacing=spacings, seed=st.integers(0, 1000))
def test_spacing_direction_and_origin_rebuild_the_affine(spacing, seed):
    grid = oblique(seed, spacing)
    assert np.allclose(grid.spacing, spacing)
    assert np.allclose(grid.direction @ np.diag(grid.spacing), grid.affine[:3, :3])
    assert grid.voxel_volume == pytest.approx(np.prod(spacing))
    assert np.allclose(grid.to_index(grid.to_world([1.5, 2.0, 3.25])), [1.5, 2.0, 3.25])


@given(spacing=spacings, new=spacings, seed=st.integers(0, 1000))
def test_a_respaced_grid_covers_the_same_box_around_the_same_centre(spacing, new, seed):
    grid = oblique(seed, spacing, (20, 30, 25))
    other = grid.respaced(new)
    assert np.allclose(other.spacing, new)
    assert np.allclose(
        other.to_world((np.array(other.shape) - 1) / 2), grid.to_world((np.array(grid.shape) - 1) / 2), atol=1e-8
    )
    assert (np.array(other.extent) >= np.array(grid.extent) - 0.0101 * np.array(new)).all()
    assert (np.array(other.extent) < np.array(grid.extent) + np.array(new)).all()


def test_a_crop_keeps_its_voxels_in_place():
    grid = oblique(7)
    crop = grid.cropped((1, 2, 3), (4, 5, 6))
    assert crop.shape == (3, 3, 3)
    assert np.allclose(crop.to_world([0, 0, 0]), grid.to_world([1, 2, 3]))


def test_shear_is_measured_in_degrees():
    affine = np.eye(4)
    affine[0, 1] = np.tan(np.radians(10))
    assert Geometry(affine, (2, 2, 2)).shear == pytest.approx(10)
    assert oblique(3).shear < 1e-9


@pytest.mark.parametrize(
    ("affine", "shape", "word"),
    [
        (np.diag([1.0, 1.0, 0.0, 1.0]), (2, 2, 2), "singular"),
        (np.diag([1.0, np.nan, 1.0, 1.0]), (2, 2, 2), "finite"),
        (np.ones((4, 4)), (2, 2, 2), "0 0 0 1"),
        (np.eye(3), (2, 2, 2), "4 x 4"),
        (np.eye(4), (2, 0, 2), "empty"),
    ],
)
def test_impossible_grids_are_refused(affine, shape, word):
    with pytest.raises(GeometryError, match=word):
        Geometry(affine, shape)


def test_a_geometry_cannot_be_changed():
    grid = Geometry(np.eye(4), (2, 2, 2))
    with pytest.raises(ValueError, match="read-only"):
        grid.affine[0, 0] = 2


@pytest.mark.parametrize("letters", ["RRS", "XYZ", "RA", "RASS"])
def test_orientations_that_do_not_name_each_axis_once_are_refused(letters):
    with pytest.raises(GeometryError, match="each axis once"):
        parse_orientation(letters)


def test_the_inverse_of_an_order_is_found_by_hand():
    # new axes are (k, -i, j): the old i is new axis 1 backwards, the old j new axis 2, the old k new axis 0
    assert AxisOrder((2, 0, 1), (False, True, False)).inverse() == AxisOrder((1, 2, 0), (True, False, False))
