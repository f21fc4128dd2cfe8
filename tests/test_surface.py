"""Surface distances: by hand, by brute force, and what may change nothing."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist

from medseg import metrics
from medseg.errors import UsageError
from medseg.metrics import nearest, surfaces

NOTHING, ALL = np.zeros((4, 5), bool), np.ones((4, 5), bool)
SPACING = (0.7, 1.3, 2.5)
KINDS = ("voxels", "elements")


def masks(seed, shape=(9, 8, 7), share=0.2):
    return np.random.default_rng(seed).random((2, *shape)) < share


def blobs(seed, shape=(24, 22, 20)):
    noise = np.random.default_rng(seed).normal(size=(2, *shape))
    return np.array([ndimage.gaussian_filter(part, 3) > 0.01 for part in noise])


def everything(prediction, reference, spacing, kind="voxels"):
    found = metrics.surface_distances(prediction, reference, spacing, surface=kind)
    return [found.hausdorff(), found.hausdorff(95), found.average(), found.root_mean_square(), found.dice(2.0)]


def surface(mask):
    padded = np.pad(mask, 1)
    inner = mask.copy()
    for axis in range(mask.ndim):
        for step in (-1, 1):
            inner &= np.roll(padded, step, axis)[(slice(1, -1),) * mask.ndim]
    return mask & ~inner


class TestByHand:
    def test_two_slabs(self):
        """Two plates of one voxel, 3 voxels apart: every distance is 3 x 2 mm."""
        a, b = np.zeros((2, 9, 6, 6), bool)
        a[2], b[5] = True, True
        assert everything(a, b, (2, 1, 1)) == [6, 6, 6, 6, 0]
        assert metrics.surface_dice(a, b, (2, 1, 1), tolerance=6) == 1

    def test_one_missing_voxel(self):
        """Of 5 + 4 voxels of two bars one has a distance, of 1 mm."""
        a, b = np.zeros((2, 9), bool)
        a[2:7], b[2:7] = True, True
        b[6] = False
        line = [np.zeros((9, 3, 3), bool) for _ in range(2)]
        line[0][:, 1, 1], line[1][:, 1, 1] = a, b
        found = metrics.surface_distances(*line, (1, 1, 1))
        assert found.average() == 1 / 9
        assert found.root_mean_square() == pytest.approx(np.sqrt(1 / 9))
        assert found.hausdorff() == 1
        assert found.hausdorff(95) == pytest.approx(0.8)  # 0 0 0 0 1: place 3.8 of 0 to 4
        assert found.dice(0.5) == 8 / 9

    def test_the_contour_of_a_square_in_elements(self):
        """A square of 4 x 4 pixels: sides of 3 pixels, and at each corner half a diagonal."""
        mask = np.zeros((8, 8), bool)
        mask[2:6, 2:6] = True
        found = metrics.surface_distances(mask, mask, (1, 1), surface="elements")
        assert found.reference.total == pytest.approx(4 * 3 + 4 * np.sqrt(2) / 2)
        assert len(found.reference.distances) == 16

    def test_the_area_of_a_cube_in_elements(self):
        mask = np.zeros((8, 8, 8), bool)
        mask[2:6, 2:6, 2:6] = True
        found = metrics.surface_distances(mask, mask, (1, 1, 1), surface="elements")
        edges, corners = 12 * 3 * np.sqrt(0.5), 8 * np.sqrt(3) / 8
        assert found.reference.total == pytest.approx(6 * 9 + edges + corners)

    @pytest.mark.parametrize("radius", [8, 14])
    def test_the_area_of_a_ball_is_nearer_by_elements_than_by_counting_voxels(self, radius):
        grid = np.indices((40, 40, 40)) - 19.5
        mask = (grid**2).sum(axis=0) < radius**2
        true = 4 * np.pi * radius**2
        by_elements = metrics.surface_distances(mask, mask, (1, 1, 1), surface="elements").reference.total
        by_voxels = metrics.surface_distances(mask, mask, (1, 1, 1)).reference.total
        assert abs(by_elements / true - 1) < 0.13
        assert abs(by_elements - true) < abs(by_voxels - true)


class TestBruteForce:
    @pytest.mark.parametrize("percentile", [50, 95, 100])
    @pytest.mark.parametrize("seed", range(5))
    def test_hausdorff(self, seed, percentile):
        a, b = masks(seed)
        points = [np.argwhere(surface(mask)) * SPACING for mask in (a, b)]
        directed = [cKDTree(other).query(own)[0] for own, other in (points, points[::-1])]
        expected = max(np.percentile(distances, percentile) for distances in directed)
        assert metrics.hausdorff_distance(a, b, SPACING, percentile=percentile) == pytest.approx(expected)

    @pytest.mark.parametrize("find", ["shells", "tree", "transform"])
    @pytest.mark.parametrize("axes", [1, 2, 3])
    @pytest.mark.parametrize("seed", range(4))
    def test_each_of_the_three_ways_finds_the_nearest_point(self, seed, axes, find, monkeypatch):
        rng = np.random.default_rng(seed)
        points, others = (rng.integers(0, 40, (60, axes)) for _ in range(2))
        if find != "shells":
            monkeypatch.setattr(nearest, "_NEIGHBOURS", 1)
            monkeypatch.setattr(nearest, "_TREE_QUERY", 0 if find == "tree" else 10**9)
            monkeypatch.setattr(nearest, "_TREE_BUILD", 0)
            nearest._shells.cache_clear()
        spacing = SPACING[:axes]
        expected = cdist(points * np.array(spacing), others * np.array(spacing)).min(axis=1)
        assert nearest.nearest_distances(points, others, spacing) == pytest.approx(expected)
        nearest._shells.cache_clear()

    @pytest.mark.parametrize(
        "spacing", [(1, 1, 1), (0.1, 0.1, 10), (1e-3, 1, 1e3), (5, 0.5, 0.5), (1, 1), (0.01, 7), (3,)]
    )
    def test_the_shells_hold_all_voxels_that_are_nearer_than_the_next(self, spacing):
        shells, margin = nearest._shells(spacing)
        offsets = np.concatenate([shell.offsets for shell in shells])
        distances = np.concatenate([np.full(len(shell.offsets), shell.distance) for shell in shells])
        assert 1 <= len(offsets) <= 250
        assert (np.diff([shell.distance for shell in shells]) > 0).all()
        assert np.sqrt(((offsets * np.array(spacing)) ** 2).sum(axis=1)) == pytest.approx(distances)
        around = np.stack(np.meshgrid(*(np.arange(-m - 1, m + 2) for m in margin), indexing="ij"), -1)
        lengths = np.sqrt(((around.reshape(-1, len(spacing)) * np.array(spacing)) ** 2).sum(axis=1))
        assert (lengths <= distances.max() * (1 - 1e-9)).sum() == (distances <= distances.max() * (1 - 1e-9)).sum()

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("seed", range(3))
    def test_many_labels_at_once_are_each_label_alone(self, seed, kind):
        rng = np.random.default_rng(seed)
        maps = [
            np.digitize(ndimage.gaussian_filter(rng.normal(size=(17, 15, 13)), 1.5), [-0.08, 0, 0.08]) for _ in "ab"
        ]
        maps[0][maps[0] == 3] = 0  # missed
        found = metrics.label_surface_distances(*(labels.astype(np.uint8) for labels in maps), SPACING, surface=kind)
        assert sorted(found) == [1, 2, 3]
        for label, distances in found.items():
            alone = metrics.surface_distances(maps[0] == label, maps[1] == label, SPACING, surface=kind)
            for both in ((distances.prediction, alone.prediction), (distances.reference, alone.reference)):
                assert np.array_equal(both[0].distances, both[1].distances)
                assert both[0].total == pytest.approx(both[1].total)
        assert found[3].hausdorff() == np.inf


@pytest.mark.parametrize("kind", KINDS)
class TestWhatChangesNothing:
    @pytest.mark.parametrize("seed", range(3))
    def test_either_may_be_the_reference(self, seed, kind):
        a, b = blobs(seed)
        assert everything(a, b, SPACING, kind) == pytest.approx(everything(b, a, SPACING, kind))

    @pytest.mark.parametrize("seed", range(2))
    def test_flips_and_other_axis_orders(self, seed, kind):
        a, b = blobs(seed)
        wanted = everything(a, b, SPACING, kind)
        for axes in ((0, 1, 2), (2, 0, 1), (1, 0, 2)):
            for flips in ((1, 1, 1), (-1, 1, -1), (1, -1, -1)):
                turned = [mask.transpose(axes)[tuple(slice(None, None, step) for step in flips)] for mask in (a, b)]
                assert everything(*turned, [SPACING[axis] for axis in axes], kind) == pytest.approx(wanted)

    @pytest.mark.parametrize("order", ["C", "F"])
    def test_padding_and_cropping_and_storage(self, order, kind):
        a, b = (np.pad(mask, 2) for mask in blobs(3))
        wanted = everything(a, b, SPACING, kind)
        padded = [np.array(np.pad(mask, ((0, 9), (3, 1), (5, 0))), order=order) for mask in (a, b)]
        assert everything(*padded, SPACING, kind) == pytest.approx(wanted, rel=1e-12)
        box = ndimage.find_objects((a | b).astype(np.uint8))[0]
        assert everything(a[box], b[box], SPACING, kind) == pytest.approx(wanted, rel=1e-12)
        assert everything(padded[0], np.ascontiguousarray(padded[1]), SPACING, kind) == pytest.approx(wanted, rel=1e-12)

    def test_distances_grow_with_spacing(self, kind):
        a, b = blobs(4)
        once, thrice = (
            metrics.surface_distances(a, b, [mm * factor for mm in SPACING], surface=kind) for factor in (1, 3)
        )
        assert thrice.hausdorff(95) == pytest.approx(3 * once.hausdorff(95))
        assert thrice.average() == pytest.approx(3 * once.average())
        assert thrice.dice(6) == pytest.approx(once.dice(2))

    def test_a_mask_is_at_no_distance_from_itself(self, kind):
        for mask in (*blobs(5), ALL):
            assert everything(mask, mask, SPACING[: mask.ndim], kind) == [0, 0, 0, 0, 1]


class TestTwoAxes:
    def test_an_axis_of_one_voxel_takes_no_part(self):
        a, b = np.zeros((2, 20, 20, 1), bool)
        a[4:16, 4:16], b[4:16, 4:15] = True, True
        a[8:12, 8:12] = False  # in 3D every pixel would be surface; in 2D the hole's edge is 3.6 mm from b's surface
        flat = metrics.hausdorff_distance(a[..., 0], b[..., 0], (1, 1))
        assert metrics.hausdorff_distance(a, b, (1, 1, 5)) == flat > 1
        for kind in KINDS:
            wanted = everything(a[..., 0], b[..., 0], (0.5, 0.8), kind)
            for axis in range(3):
                turned = [np.moveaxis(mask, 2, axis) for mask in (a, b)]
                spacing = np.insert([0.5, 0.8], axis, 7.0)
                assert everything(*turned, spacing, kind) == pytest.approx(wanted)

    def test_the_surface_of_a_slice_is_the_contour_of_the_plane(self):
        mask = blobs(6)[0][..., 10]
        found = surfaces.surfaces(mask.astype(np.uint8), (1, 1))[1]
        drawn = np.zeros(mask.shape, bool)
        drawn[tuple(found.points.T)] = True
        assert np.array_equal(drawn, mask & ~ndimage.binary_erosion(mask))

    def test_a_grid_of_one_voxel(self):
        one = np.ones((1, 1, 1), bool)
        for kind in KINDS:
            assert everything(one, one, (1, 1, 1), kind) == [0, 0, 0, 0, 1]


class TestEmpty:
    @pytest.mark.parametrize("kind", KINDS)
    def test_two_empty_masks_are_undefined_and_one_is_infinitely_far(self, kind):
        assert all(np.isnan(value) for value in everything(NOTHING, NOTHING, (1, 1), kind))
        for pair in ((NOTHING, ALL), (ALL, NOTHING)):
            assert everything(*pair, (1, 1), kind) == [np.inf, np.inf, np.inf, np.inf, 0]

    def test_the_border_of_the_grid_is_outside(self):
        inside = np.zeros((9, 9), bool)
        inside[3:6, 3:6] = True
        assert metrics.hausdorff_distance(np.ones((9, 9), bool), inside, (1, 1)) == pytest.approx(np.hypot(3, 3))

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"spacing": (1,)}, "spacing"),
            ({"spacing": (1, 0)}, "spacing"),
            ({"spacing": (1, np.nan)}, "spacing"),
            ({"surface": "pixels"}, "unknown kind of surface 'pixels'"),
        ],
    )
    def test_wrong_arguments_are_named(self, change, said):
        with pytest.raises(UsageError, match=said):
            metrics.surface_distances(ALL, ALL, **{"spacing": (1, 1), **change})

    def test_wrong_percentiles_and_tolerances_are_named(self):
        found = metrics.surface_distances(ALL, ALL, (1, 1))
        with pytest.raises(UsageError, match="percentile 0"):
            found.hausdorff(0)
        with pytest.raises(UsageError, match="tolerance -1"):
            found.dice(-1)
        with pytest.raises(UsageError, match="4 axes"):
            metrics.surface_distances(ALL[..., None, None], ALL[..., None, None], (1, 1, 1, 1))


def test_a_distance_equal_to_the_tolerance_is_within_it_however_the_spacing_was_rounded():
    a, b = np.zeros((2, 9), bool)
    a[1], b[4] = True, True
    for spacing in (0.8, np.float64(np.float32(0.8)), 2.4 / 3):
        assert metrics.surface_dice(a, b, [spacing], tolerance=2.4) == 1
        assert metrics.surface_dice(a, b, [spacing], tolerance=2.39) == 0


def test_at_a_tolerance_of_nothing_only_what_lies_on_the_other_surface_counts():
    a, b = np.zeros((2, 9), bool)
    a[1:4], b[1:6] = True, True
    assert metrics.surface_dice(a, b, [1], tolerance=0) == 0.5


@given(st.integers(0, 2**32 - 1), st.floats(0.01, 0.9), st.integers(1, 3))
def test_the_scores_keep_their_order(seed, share, axes):
    rng = np.random.default_rng(seed)
    a, b = rng.random((2, *rng.integers(1, 9, axes))) < share
    for kind in KINDS:
        hd, hd95, assd, rms, nsd = everything(a, b, SPACING[:axes], kind)
        if not (a.any() or b.any()):
            assert np.isnan([hd, hd95, assd, rms, nsd]).all()
        else:
            assert 0 <= hd95 <= hd
            assert assd <= rms * (1 + 1e-9)
            assert rms <= hd * (1 + 1e-9)
            assert 0 <= nsd <= 1
