"""Equality with other libraries, where definitions agree, and by how much they differ where they do not.

Runs where they are installed: `pip install -c constraints-peers.txt -e '.[test,peers]'`, then
`pytest tests/test_peers.py`. What is measured here stands in the tables of docs/metrics.md.
"""

import warnings

import numpy as np
import pytest
from scipy import ndimage

import medseg
from medseg import metrics

sitk = pytest.importorskip("SimpleITK")
panoptica = pytest.importorskip("panoptica", reason="the peers are not installed")
medpy = pytest.importorskip("medpy.metric.binary", reason="the peers are not installed")
deepmind = pytest.importorskip("surface_distance", reason="the peers are not installed")
monai = pytest.importorskip("monai.metrics")

pytestmark = pytest.mark.filterwarnings("ignore")  # of the peers; ours are errors in every other test
SPACINGS = [(1, 1, 1), (3.0, 0.8, 0.7)]


def blobs(seed, shape=(26, 24, 22)):
    noise = np.random.default_rng(seed).normal(size=(2, *shape))
    smooth = [ndimage.gaussian_filter(part, 2.5) for part in noise]
    return smooth[0] > 0.02, smooth[0] + 0.5 * smooth[1] > 0.03


def dust(seed):
    return tuple(np.random.default_rng(seed).random((2, 9, 11, 8)) < 0.15)


def real(data, seed):
    files = sorted((data / "hippocampus" / "labelsTr").glob("*.nii.gz"))
    found = medseg.read_labels(files[seed * 7]).array
    return np.roll(found == 1, (1, 0, -1), (0, 1, 2)), found == 1


@pytest.fixture(params=[f"{kind} {seed}" for kind in ("blobs", "dust", "real") for seed in range(3)])
def masks(request):
    kind, seed = request.param.split()
    if kind == "real":
        return real(request.getfixturevalue("data"), int(seed))
    return {"blobs": blobs, "dust": dust}[kind](int(seed))


@pytest.fixture(params=SPACINGS, ids=str)
def spacing(request):
    return request.param


def tensors(*masks):
    import torch

    return [torch.from_numpy(np.stack([~mask, mask])[None].astype(np.uint8)) for mask in masks]


class TestOverlap:
    def test_medpy(self, masks):
        prediction, reference = masks
        assert metrics.dice(*masks) == pytest.approx(medpy.dc(prediction, reference))
        assert metrics.iou(*masks) == pytest.approx(medpy.jc(prediction, reference))
        assert metrics.sensitivity(*masks) == pytest.approx(medpy.sensitivity(prediction, reference))
        assert metrics.precision(*masks) == pytest.approx(medpy.precision(prediction, reference))
        assert metrics.specificity(*masks) == pytest.approx(medpy.specificity(prediction, reference))
        assert metrics.relative_volume_error(*masks) == pytest.approx(medpy.ravd(prediction, reference))

    def test_monai(self, masks):
        assert metrics.dice(*masks) == pytest.approx(float(monai.compute_dice(*tensors(*masks))[0, 1]))
        assert metrics.iou(*masks) == pytest.approx(float(monai.compute_iou(*tensors(*masks))[0, 1]))

    def test_simpleitk(self, masks):
        found = sitk.LabelOverlapMeasuresImageFilter()
        found.Execute(*(sitk.GetImageFromArray(mask.astype(np.uint8)) for mask in masks))
        assert metrics.dice(*masks) == pytest.approx(found.GetDiceCoefficient(1))
        assert metrics.iou(*masks) == pytest.approx(found.GetJaccardCoefficient(1))


class TestSurfaceVoxels:
    def test_monai(self, masks, spacing):
        prediction, reference = tensors(*masks)
        found = metrics.surface_distances(*masks, spacing)
        for percentile in (None, 95):
            expected = monai.compute_hausdorff_distance(prediction, reference, percentile=percentile, spacing=spacing)
            assert found.hausdorff(percentile or 100) == pytest.approx(float(expected[0, 0]), rel=1e-5)
        average = monai.compute_average_surface_distance(prediction, reference, symmetric=True, spacing=spacing)
        assert found.average() == pytest.approx(float(average[0, 0]), rel=1e-5)
        tolerance = 1.1
        dice = monai.compute_surface_dice(prediction, reference, [tolerance], spacing=spacing)
        assert found.dice(tolerance) == pytest.approx(float(dice[0, 0]), rel=1e-5)

    def test_medpy(self, masks, spacing):
        prediction, reference = masks
        found = metrics.surface_distances(*masks, spacing)
        assert found.hausdorff() == pytest.approx(medpy.hd(prediction, reference, spacing))
        assert found.average() == pytest.approx(medpy.assd(prediction, reference, spacing))
        pooled = np.percentile(np.concatenate([found.prediction.distances, found.reference.distances]), 95)
        assert pooled == pytest.approx(medpy.hd95(prediction, reference, spacing))  # medpy pools, we take the larger

    def test_simpleitk_measures_from_every_voxel_of_a_mask_and_not_from_its_surface_alone(self, masks, spacing):
        images = [sitk.GetImageFromArray(mask.astype(np.uint8)) for mask in masks]
        for image in images:
            image.SetSpacing([float(mm) for mm in spacing[::-1]])
        found = sitk.HausdorffDistanceImageFilter()
        found.Execute(*images)
        outside = [ndimage.distance_transform_edt(~mask, sampling=spacing) for mask in masks]
        from_voxels = max(outside[1][masks[0]].max(), outside[0][masks[1]].max())
        assert found.GetHausdorffDistance() == pytest.approx(from_voxels, rel=1e-5)
        assert metrics.hausdorff_distance(*masks, spacing) >= from_voxels * (1 - 1e-9)


class TestSurfaceElements:
    def test_deepmind(self, masks, spacing):
        prediction, reference = masks
        found = metrics.surface_distances(*masks, spacing, surface="elements")
        theirs = deepmind.compute_surface_distances(reference, prediction, spacing)
        for percentile in (50, 95, 100):
            assert found.hausdorff(percentile) == pytest.approx(deepmind.compute_robust_hausdorff(theirs, percentile))
        directed = deepmind.compute_average_surface_distance(theirs)
        for own, expected in zip((found.reference, found.prediction), directed, strict=True):
            assert own.sum(own.distances) / own.total == pytest.approx(expected)
        for tolerance in (0.37, 1.1, 2.3):
            assert found.dice(tolerance) == pytest.approx(deepmind.compute_surface_dice_at_tolerance(theirs, tolerance))

    def test_deepmind_in_a_plane(self, masks):
        prediction, reference = (mask[:, :, 5] for mask in masks)
        if not (prediction.any() and reference.any()):
            pytest.skip("an empty plane")
        found = metrics.surface_distances(prediction, reference, (0.7, 1.3), surface="elements")
        theirs = deepmind.compute_surface_distances(reference, prediction, (0.7, 1.3))
        assert found.hausdorff(95) == pytest.approx(deepmind.compute_robust_hausdorff(theirs, 95))
        assert found.dice(1.1) == pytest.approx(deepmind.compute_surface_dice_at_tolerance(theirs, 1.1))

    @pytest.mark.parametrize("spacing", [(1, 1, 1), (3, 0.8, 0.7), (0.3, 2, 5)])
    def test_each_of_the_256_elements_has_deepminds_area(self, spacing):
        from surface_distance.lookup_tables import create_table_neighbour_code_to_surface_area

        from medseg.metrics.surfaces import _element_sizes

        theirs = create_table_neighbour_code_to_surface_area(spacing)
        turned = [int(f"{code:08b}"[::-1], 2) for code in range(256)]  # they count the corners from the other end
        assert _element_sizes(tuple(map(float, spacing)))[turned] == pytest.approx(theirs, rel=1e-6)


class TestLesions:
    def test_panoptica(self, masks):
        prediction, reference = (mask.astype(np.uint8) for mask in masks)
        evaluator = panoptica.Panoptica_Evaluator(
            expected_input=panoptica.InputType.SEMANTIC,
            instance_approximator=panoptica.ConnectedComponentsInstanceApproximator(),
            instance_matcher=panoptica.NaiveThresholdMatching(matching_threshold=0.5),
            verbose=False,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = next(iter(evaluator.evaluate(prediction, reference).values()))
        ours = metrics.Lesions.of(*masks)
        if (ours.ious == 0.5).any():
            pytest.skip("an IoU of exactly 0.5, which panoptica counts as a match and Kirillov et al. do not")
        assert (len(ours.predicted), len(ours.true)) == (found.n_pred_instances, found.n_ref_instances)
        assert len(ours.matches(0.5)) == found.tp
        assert ours.f1(0.5) == pytest.approx(found.rq)
        if found.tp:
            assert ours.panoptic_quality == pytest.approx(found.pq)
