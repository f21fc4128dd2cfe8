"""Metrics: by hand, by brute force, and what is said of empty masks."""

import numpy as np
import pytest
from scipy.spatial import cKDTree

from medseg import metrics
from medseg.errors import ShapeMismatch

NOTHING, ALL = np.zeros((4, 5), bool), np.ones((4, 5), bool)


def masks(seed, shape=(9, 8, 7), share=0.2):
    return np.random.default_rng(seed).random((2, *shape)) < share


class TestOverlap:
    @pytest.mark.parametrize("seed", range(5))
    def test_dice_and_iou_by_counting(self, seed):
        a, b = masks(seed)
        common, both = (a & b).sum(), (a | b).sum()
        assert metrics.dice(a, b) == pytest.approx(2 * common / (a.sum() + b.sum()))
        assert metrics.iou(a, b) == pytest.approx(common / both)
        assert metrics.iou(a, b) == pytest.approx(metrics.dice(a, b) / (2 - metrics.dice(a, b)))
        assert metrics.pixel_error(a, b) == pytest.approx((a != b).mean())

    def test_two_empty_masks_are_undefined_and_a_missed_one_is_zero(self):
        assert np.isnan(metrics.dice(NOTHING, NOTHING))
        assert np.isnan(metrics.iou(NOTHING, NOTHING))
        assert metrics.dice(NOTHING, ALL) == metrics.iou(ALL, NOTHING) == 0


@pytest.mark.parametrize(
    "metric",
    [metrics.dice, metrics.iou, metrics.pixel_error, metrics.auc, metrics.v_rand, metrics.v_info],
)
def test_masks_of_different_shape_are_refused(metric):
    with pytest.raises(ShapeMismatch, match=r"\(4, 5\) and reference of shape \(4, 4\)"):
        metric(ALL, ALL[:, :4])


class TestHausdorff:
    @pytest.mark.parametrize("percentile", [50, 95, 100])
    @pytest.mark.parametrize("seed", range(5))
    def test_it_is_the_brute_force_one(self, seed, percentile):
        spacing = np.array([0.7, 1.3, 2.5])
        a, b = masks(seed)
        points = [np.argwhere(surface(mask)) * spacing for mask in (a, b)]
        directed = [cKDTree(other).query(own)[0] for own, other in (points, points[::-1])]
        expected = max(np.percentile(distances, percentile) for distances in directed)
        assert metrics.hausdorff_distance(a, b, spacing, percentile=percentile) == pytest.approx(expected)

    def test_an_axis_of_one_voxel_takes_no_part(self):
        a, b = np.zeros((2, 20, 20, 1), bool)
        a[4:16, 4:16], b[4:16, 4:15] = True, True
        a[8:12, 8:12] = False  # in 3D every pixel would be surface; in 2D the hole's edge is 3.6 mm from b's surface
        flat = metrics.hausdorff_distance(a[..., 0], b[..., 0], (1, 1))
        assert metrics.hausdorff_distance(a, b, (1, 1, 5)) == flat > 1

    def test_empty_masks(self):
        assert np.isnan(metrics.hausdorff_distance(NOTHING, NOTHING, (1, 1)))
        assert metrics.hausdorff_distance(NOTHING, ALL, (1, 1)) == np.inf
        assert metrics.hausdorff_distance(np.ones((1, 1), bool), np.ones((1, 1), bool), (1, 1)) == 0

    def test_the_border_of_the_grid_is_outside(self):
        inside = np.zeros((9, 9), bool)
        inside[3:6, 3:6] = True
        assert metrics.hausdorff_distance(np.ones((9, 9), bool), inside, (1, 1)) == pytest.approx(np.hypot(3, 3))


def surface(mask):
    padded = np.pad(mask, 1)
    inner = mask.copy()
    for axis in range(mask.ndim):
        for step in (-1, 1):
            inner &= np.roll(padded, step, axis)[(slice(1, -1),) * mask.ndim]
    return mask & ~inner


class TestProbabilities:
    @pytest.mark.parametrize("seed", range(4))
    def test_auc_is_the_chance_of_the_right_order(self, seed):
        rng = np.random.default_rng(seed)
        probability, reference = rng.integers(0, 9, 60) / 9, rng.random(60) < 0.4
        inside, outside = probability[reference], probability[~reference]
        pairs = (inside[:, None] > outside) + 0.5 * (inside[:, None] == outside)
        assert metrics.auc(probability, reference) == pytest.approx(pairs.mean())

    @pytest.mark.parametrize("specificity", [0.0, 0.5, 0.9, 0.9725, 1.0])
    def test_sensitivity_is_that_of_the_best_threshold_allowed(self, specificity):
        rng = np.random.default_rng(3)
        reference = rng.random(400) < 0.3
        probability = rng.normal(reference, 1.0)
        candidates = [-np.inf, *probability, np.inf]
        allowed = [t for t in candidates if (probability[~reference] <= t).mean() >= specificity - 1e-12]
        expected = max((probability[reference] > t).mean() for t in allowed)
        assert metrics.sensitivity_at_specificity(probability, reference, specificity) == pytest.approx(expected)

    def test_without_both_kinds_of_voxel_nothing_is_defined(self):
        for reference in (NOTHING, ALL):
            assert np.isnan(metrics.auc(ALL.astype(float), reference))
            assert np.isnan(metrics.sensitivity_at_specificity(ALL.astype(float), reference, 0.9))


class TestMembranes:
    @pytest.mark.parametrize("seed", range(4))
    def test_v_rand_counts_pairs_of_pixels(self, seed):
        """With pixels paired with themselves too: pairs together in both, over the mean of those together in either."""
        rng = np.random.default_rng(seed)
        prediction, reference = rng.integers(0, 4, (2, 40))
        inside = reference > 0
        together = [part[inside][:, None] == part[inside] for part in (prediction, reference)]
        expected = (together[0] & together[1]).sum() / (0.5 * together[0].sum() + 0.5 * together[1].sum())
        assert metrics.v_rand(prediction, reference) == pytest.approx(expected)

    @pytest.mark.parametrize("seed", range(4))
    def test_v_info_is_the_mutual_information_over_the_mean_entropy(self, seed):
        rng = np.random.default_rng(seed)
        prediction, reference = rng.integers(0, 4, (2, 400))
        reference[:9] = 0
        joint = np.histogram2d(prediction[reference > 0], reference[reference > 0], bins=(4, 3))[0]
        p = joint / joint.sum()
        independent = p.sum(1, keepdims=True) * p.sum(0, keepdims=True)
        mutual = (p * np.log(p / independent)).sum()
        entropies = [-(q * np.log(q)).sum() for q in (p.sum(0), p.sum(1))]
        assert metrics.v_info(prediction, reference) == pytest.approx(mutual / np.mean(entropies))

    def test_joined_cells_cost_and_a_thick_membrane_does_not(self):
        truth = np.ones((20, 21), bool)
        truth[:, 10] = False
        cells = metrics.components(truth)
        assert cells.max() == 2
        thick = np.zeros((20, 21))
        thick[:, 8:13] = 1
        assert metrics.v_rand(metrics.thinned(thick, 0.5), cells) == 1
        thick[9:11] = 0  # a hole in the membrane joins the cells
        joined = metrics.thinned(thick, 0.5)
        assert metrics.v_rand(joined, cells) == pytest.approx(2 / 3)
        assert metrics.v_info(joined, cells) == 0

    def test_where_all_is_membrane_there_is_one_cell(self):
        cells = metrics.components(np.array([[True, False, True]]))
        assert metrics.thinned(np.ones((1, 3)), 0.5).max() == 0
        assert metrics.v_rand(metrics.thinned(np.ones((1, 3)), 0.5), cells) == pytest.approx(2 / 3)

    def test_without_a_true_cell_nothing_is_defined(self):
        assert np.isnan(metrics.v_rand(ALL.astype(int), NOTHING.astype(int)))
        assert np.isnan(metrics.v_info(ALL.astype(int), NOTHING.astype(int)))

    def test_one_cell_in_both_is_right(self):
        assert metrics.v_info(ALL.astype(int), ALL.astype(int)) == 1
