"""Metrics: by hand, by brute force, and what is said of empty masks."""

import re
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from medseg import metrics
from medseg.errors import ShapeMismatch, UsageError
from medseg.metrics import overlap

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

    def test_the_eight_scores_of_a_case_computed_by_hand(self):
        prediction = np.array([1, 1, 1, 0, 0, 0, 0, 0, 0, 0], bool)
        reference = np.array([0, 1, 1, 1, 1, 0, 0, 0, 0, 0], bool)  # 2 in both, 1 extra, 2 missed, 5 in neither
        assert metrics.dice(prediction, reference) == 4 / 7
        assert metrics.iou(prediction, reference) == 2 / 5
        assert metrics.sensitivity(prediction, reference) == 1 / 2
        assert metrics.precision(prediction, reference) == 2 / 3
        assert metrics.specificity(prediction, reference) == 5 / 6
        assert metrics.pixel_error(prediction, reference) == 3 / 10
        assert metrics.relative_volume_error(prediction, reference) == -1 / 4
        assert metrics.absolute_volume_error(prediction, reference, [2, 5, 10]) == pytest.approx(0.1)

    def test_each_score_says_what_it_is_when_a_mask_is_empty(self):
        found = {
            name: [getattr(metrics, name)(*masks) for masks in ((NOTHING, NOTHING), (NOTHING, ALL), (ALL, NOTHING))]
            for name in ("sensitivity", "precision", "specificity", "relative_volume_error")
        }
        nan = pytest.approx(np.nan, nan_ok=True)
        assert found["sensitivity"] == [nan, 0, nan]
        assert found["precision"] == [nan, nan, 0]
        assert found["specificity"] == [1, nan, 0]
        assert found["relative_volume_error"] == [nan, -1, np.inf]

    @pytest.mark.parametrize("order", ["C", "F"])
    @pytest.mark.parametrize("seed", range(3))
    def test_the_confusion_matrix_counts_every_pair(self, seed, order):
        rng = np.random.default_rng(seed)
        maps = rng.integers(0, 5, (2, 21, 13, 7)).astype(np.uint16)
        maps[:, :10] = maps[:, :1]  # long runs too
        prediction, reference = (np.array(labels, order=order) for labels in maps)
        found = metrics.confusion_matrix(prediction, reference, 5)
        assert found.tolist() == [[((maps[1] == row) & (maps[0] == col)).sum() for col in range(5)] for row in range(5)]
        assert metrics.confusion_matrix(prediction, np.ascontiguousarray(reference), 5).tolist() == found.tolist()
        for label, counts in enumerate(metrics.overlaps(prediction, reference, 5)):
            assert counts == metrics.Overlap.of(prediction == label, reference == label)

    def test_runs_longer_than_a_chunk_are_counted_whole(self, monkeypatch):
        monkeypatch.setattr(overlap, "_CHUNK", 7)
        labels = np.repeat([0, 1, 1, 2], 10)
        assert np.diag(metrics.confusion_matrix(labels, labels, 3)).tolist() == [10, 20, 10]

    def test_a_label_outside_the_table_is_refused(self):
        with pytest.raises(UsageError, match="label 5 lies outside 0 to 4"):
            metrics.confusion_matrix(np.array([5]), np.array([1]), 5)
        with pytest.raises(UsageError, match="label -1 lies outside"):
            metrics.confusion_matrix(np.array([1]), np.array([-1]), 5)


@pytest.mark.parametrize(
    "metric",
    [
        metrics.dice,
        metrics.iou,
        metrics.sensitivity,
        metrics.precision,
        metrics.specificity,
        metrics.pixel_error,
        metrics.relative_volume_error,
        metrics.auc,
        metrics.brier,
        metrics.calibration_error,
        metrics.v_rand,
        metrics.v_info,
        metrics.detection_f1,
        metrics.panoptic_quality,
        metrics.lesion_dice,
        metrics.centreline_dice,
        partial(metrics.surface_dice, spacing=(1, 1), tolerance=1),
        partial(metrics.hausdorff_distance, spacing=(1, 1)),
        partial(metrics.boundary_iou, spacing=(1, 1), width=2),
        partial(metrics.absolute_volume_error, spacing=(1, 1)),
        partial(metrics.confusion_matrix, count=2),
    ],
)
def test_masks_of_different_shape_are_refused(metric):
    with pytest.raises(ShapeMismatch, match=r"\(4, 5\) and reference of shape \(4, 4\)"):
        metric(ALL, ALL[:, :4])


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


def test_masks_may_be_whole_numbers_and_never_fractions():
    a, b = masks(0)
    for metric in (
        metrics.dice,
        metrics.detection_f1,
        metrics.centreline_dice,
        partial(metrics.surface_dice, spacing=(1, 1, 1), tolerance=1),
        partial(metrics.boundary_iou, spacing=(1, 1, 1), width=1),
    ):
        assert metric(a.astype(np.uint8) * 255, b.astype(np.int16)) == metric(a, b)
        with pytest.raises(UsageError, match="a mask of float64; give bool, such as"):
            metric(a, b.astype(float))
    assert metrics.auc(a + 0.5, b.astype(np.uint8)) == metrics.auc(a + 0.5, b)
    assert metrics.brier(a / 2, b.astype(np.uint8) * 255) == metrics.brier(a / 2, b)


class TestCalibration:
    @pytest.mark.parametrize("seed", range(3))
    def test_brier_and_ece_by_their_definitions(self, seed):
        rng = np.random.default_rng(seed)
        probability, reference = rng.random((9, 8)).astype(np.float32), rng.random((9, 8)) < 0.3
        assert metrics.brier(probability, reference) == pytest.approx(np.mean((probability - reference) ** 2.0))
        expected = 0
        for low in np.arange(10) / 10:
            inside = (probability >= low) & (probability < low + 0.1)
            if inside.any():
                expected += inside.mean() * abs(probability[inside].mean() - reference[inside].mean())
        assert metrics.calibration_error(probability, reference, bins=10) == pytest.approx(expected, rel=1e-5)

    def test_a_sure_and_right_answer_costs_nothing(self):
        reference = np.array([True, False, True])
        assert metrics.brier(reference.astype(float), reference) == 0
        assert metrics.calibration_error(reference.astype(float), reference) == 0
        assert metrics.calibration_error((~reference).astype(float), reference) == 1

    def test_logits_are_refused(self):
        for metric in (metrics.brier, metrics.calibration_error):
            with pytest.raises(UsageError, match="probabilities from -3 to 2; apply sigmoid"):
                metric(np.array([-3.0, 2.0]), np.array([False, True]))
            with pytest.raises(UsageError):
                metric(np.array([np.nan, 0.5]), np.array([False, True]))
            assert np.isnan(metric(np.zeros(0), np.zeros(0, bool)))


class TestLesions:
    prediction, reference = np.zeros((2, 20, 20), bool)
    prediction[1:4, 1:4], reference[1:4, 1:5] = True, True  # 9 and 12, 9 common: IoU 0.75
    prediction[8:10, 8:12], reference[8:12, 8:10] = True, True  # 8 and 8, 4 common: IoU 1/3
    prediction[17, 17] = True  # spurious
    reference[15:18, 2:5] = True  # missed

    def test_a_case_by_hand(self):
        lesions = metrics.Lesions.of(self.prediction, self.reference)
        assert lesions.predicted.tolist() == [9, 8, 1]
        assert lesions.true.tolist() == [12, 8, 9]
        assert lesions.ious.tolist() == [0.75, 1 / 3]
        assert metrics.detection_f1(self.prediction, self.reference) == 4 / 6
        assert metrics.detection_f1(self.prediction, self.reference, minimum_iou=0.5) == 2 / 6
        assert metrics.panoptic_quality(self.prediction, self.reference) == pytest.approx(0.75 / 3)
        assert metrics.lesion_dice(self.prediction, self.reference) == pytest.approx((18 / 21 + 0.5 + 0 + 0) / 4)

    def test_one_lesion_is_matched_once_and_the_better_one_wins(self):
        prediction, reference = np.zeros((2, 5, 12), bool)
        reference[1:4, 1:9] = True
        prediction[1:4, 1:3], prediction[1:4, 4:10] = True, True
        lesions = metrics.Lesions.of(prediction, reference)
        assert lesions.matches(0).tolist() == [[1, 0]]
        assert lesions.f1() == 2 / 3
        assert lesions.dice == pytest.approx(2 * 21 / (24 + 24))  # both pieces against the one lesion

    @pytest.mark.parametrize("metric", [metrics.detection_f1, metrics.panoptic_quality, metrics.lesion_dice])
    def test_empty_masks(self, metric):
        assert np.isnan(metric(NOTHING, NOTHING))
        assert metric(NOTHING, ALL) == metric(ALL, NOTHING) == 0
        assert metric(ALL, ALL) == 1

    def test_lesions_touch_over_corners_in_space(self):
        mask = np.zeros((4, 4, 4), bool)
        mask[0, 0, 0] = mask[1, 1, 1] = mask[3, 3, 3] = True
        assert metrics.Lesions.of(mask, mask).true.tolist() == [2, 1]


class TestShape:
    def test_a_gap_in_a_vessel_costs_its_length(self):
        vessel = np.zeros((9, 9, 60), bool)
        vessel[3:6, 3:6] = True
        broken = vessel.copy()
        broken[:, :, 20:40] = False
        assert metrics.centreline_dice(vessel, vessel) == 1
        precision, sensitivity = 1.0, 2 / 3
        expected = 2 * precision * sensitivity / (precision + sensitivity)
        assert metrics.centreline_dice(broken, vessel) == pytest.approx(expected, abs=0.03)
        assert metrics.centreline_dice(vessel, broken) == metrics.centreline_dice(broken, vessel)

    def test_a_mask_of_which_thinning_leaves_nothing_is_its_own_line(self):
        cube = np.zeros((5, 5, 5), bool)
        cube[1:3, 1:3, 1:3] = True
        assert metrics.centreline_dice(cube, cube) == 1

    def test_thickness_costs_little_on_a_centreline(self):
        thin, thick = np.zeros((2, 21, 60), bool)
        thin[10, 5:55], thick[8:13, 5:55] = True, True
        assert metrics.centreline_dice(thick, thin) > 0.97
        assert metrics.dice(thick, thin) < 0.4

    def test_a_rim_by_hand(self):
        reference, prediction = np.zeros((2, 20, 20), bool)
        reference[2:18, 2:18], prediction[2:18, 3:19] = True, True
        common = (16 * 15) - (12 * 11)  # of both rims of 2 mm: what lies in both frames ...
        frames = [
            mask & ~np.pad(np.ones((12, 12), bool), ((4, 4), pad))
            for mask, pad in ((reference, (4, 4)), (prediction, (5, 3)))
        ]
        expected = (frames[0] & frames[1]).sum() / (frames[0] | frames[1]).sum()
        assert metrics.boundary_iou(prediction, reference, (1, 1), 2) == pytest.approx(expected)
        assert (frames[0] & frames[1]).sum() < common  # ... is less than the rim of the common part

    def test_a_thin_mask_has_its_iou_and_spacing_counts(self):
        a, b = masks(0)
        assert metrics.boundary_iou(a, b, (1, 1, 1), 50) == metrics.iou(a, b)
        a, b = np.zeros((2, 30, 30), bool)
        a[5:25, 5:25], b[5:25, 7:25] = True, True
        assert metrics.boundary_iou(a, b, (1, 1), 3) == metrics.boundary_iou(a, b, (0.5, 0.5), 1.5)
        assert metrics.boundary_iou(a[..., None], b[..., None], (1, 1, 9), 3) == metrics.boundary_iou(a, b, (1, 1), 3)

    def test_empty_masks(self):
        assert np.isnan(metrics.centreline_dice(NOTHING, NOTHING))
        assert np.isnan(metrics.boundary_iou(NOTHING, NOTHING, (1, 1), 1))
        assert metrics.centreline_dice(NOTHING, ALL) == metrics.boundary_iou(ALL, NOTHING, (1, 1), 1) == 0
        with pytest.raises(UsageError, match="width 0 is not positive"):
            metrics.boundary_iou(ALL, ALL, (1, 1), 0)


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


METRICS = [
    name
    for name in metrics.__all__
    if name[0].islower() and name not in {"components", "thinned", "overlaps", "volume"}
]
SETS = {"confusion_matrix", "surface_distances", "label_surface_distances"}  # from which scores follow


@pytest.mark.parametrize("name", sorted({*METRICS} - SETS))
def test_every_score_says_its_range_direction_empty_case_and_source(name):
    text = " ".join((getattr(metrics, name).__doc__ or "").split())
    module = sys.modules[getattr(metrics, name).__module__]
    assert re.search(r"0 to 1|0 or more|-1 or more", text)
    assert re.search(r"(more|less) is better|0 is best", text)
    assert re.search(r"nan|0 if both", text)
    assert re.search(r"\b(19|20)\d\d\b", text + (module.__doc__ or ""))
    assert ">>>" in text


@pytest.mark.parametrize("name", sorted({*METRICS} - SETS))
def test_every_score_is_listed_in_the_documentation(name):
    page = (Path(__file__).parent.parent / "docs" / "metrics.md").read_text()
    short = {
        "sensitivity_at_specificity": "sensitivity_at_specificity", "average_surface_distance": "assd",
        "rms_surface_distance": "rmsd", "hausdorff_distance": "hd95", "surface_dice": "nsd",
        "absolute_volume_error": "volume_error", "centreline_dice": "cldice", "detection_f1": "lesion_f1",
    }  # fmt: skip
    assert f"`{short.get(name, name)}`" in page
