"""The border-weighted loss of the U-Net paper and elastic deformation, alone and in training."""

import numpy as np
import pytest
import torch
from conftest import PLAN, smooth_scan
from scipy import ndimage
from torch.nn import functional

from medseg.errors import UsageError
from medseg.plan import Plan
from medseg.training import Recipe, Sample, border_weights, fit, weighted_cross_entropy, with_border_weights


def cells(shape, seed):
    return ndimage.label(ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2) > 0.05)[0]


@pytest.mark.parametrize("shape", [(40, 50), (16, 18, 20)])
def test_the_weight_map_is_that_of_the_paper(shape):
    """w_c + 10 exp(-(d1 + d2)^2 / (2 * 5^2)), the two distances measured to every cell of the whole image."""
    found = cells(shape, 1)
    distances = np.sort([ndimage.distance_transform_edt(found != n) for n in range(1, found.max() + 1)], axis=0)
    between = found == 0
    expected = np.where(between, found.size / (2 * between.sum()), found.size / (2 * (~between).sum()))
    expected += np.where(between, 10 * np.exp(-((distances[0] + distances[1]) ** 2) / 50), 0)
    assert found.max() > 2
    assert np.allclose(border_weights(found), expected, atol=1e-5)


def test_classes_are_balanced_and_the_mean_is_one_without_the_border():
    found = cells((40, 40), 2)
    weights = border_weights(found, border=0)
    assert weights.mean() == pytest.approx(1)
    assert weights[found == 0].sum() == pytest.approx(weights[found > 0].sum(), rel=1e-5)


@pytest.mark.parametrize("found", [np.zeros((5, 5), int), np.ones((5, 5), int)])
def test_an_image_of_one_kind_has_the_weight_one(found):
    assert (border_weights(found) == 1).all()


def test_the_loss_is_the_weighted_mean_of_the_cross_entropy_of_each_voxel():
    torch.manual_seed(0)
    logits, target, weights = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 1, 4, 5)), torch.rand(2, 1, 4, 5)
    log_probabilities = logits.log_softmax(1).gather(1, target)
    assert weighted_cross_entropy(logits, target, weights) == pytest.approx(
        float(-(log_probabilities * weights).mean())
    )
    assert weighted_cross_entropy(logits, target, torch.ones_like(weights)) == pytest.approx(
        float(functional.cross_entropy(logits, target[:, 0]))
    )


@pytest.mark.parametrize("axes", [2, 3])
def test_samples_get_weights_volume_by_volume_or_slice_by_slice(axes):
    target = (ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(20, 22, 6)), 1.5) > 0).astype(np.uint8)
    weights = with_border_weights(Sample(target[None].astype(np.float32), target[None]), axes).weights
    assert weights.shape == (1, 20, 22, 6)
    if axes == 2:
        for k in range(6):
            assert np.allclose(weights[0, ..., k], border_weights(ndimage.label(target[..., k])[0]))
    else:
        assert np.allclose(weights[0], border_weights(ndimage.label(target)[0]))


def test_touching_labels_are_different_cells():
    target = np.array([[1, 1, 2, 2, 0, 1]], np.uint8)[None, ..., None]
    expected = border_weights(np.array([[1, 1, 3, 3, 0, 2]]))
    assert np.allclose(with_border_weights(Sample(target.astype(np.float32), target), 2).weights[0, ..., 0], expected)


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("network", ["unet_original", "unet"])
def test_training_takes_the_loss_and_the_deformation(axes, network):
    options = {"width": 2, "stages": 2} if network == "unet_original" else {"widths": [4, 8], "deep_supervision": True}
    plan = Plan.parse(
        {
            **PLAN,
            "axes": axes,
            "labels": [{"value": 1, "name": "cell"}],
            "patch": (16, 16, 1 if axes == 2 else 8),
            "network": {"architecture": network, "options": options},
        }
    )
    scan = smooth_scan((20, 24, 10))
    sample = Sample(scan.array / 300, (scan.array > 100).astype(np.uint8))
    recipe = Recipe(steps=3, loss="border", elastic=True)
    losses = []
    with pytest.raises(UsageError, match="with_border_weights"):
        fit([sample], plan, recipe)
    weighted = with_border_weights(sample, axes)
    weights = fit([weighted], plan, recipe, on_step=lambda step: losses.append(step.loss))
    assert np.isfinite(losses).all()
    again = fit([weighted], plan, recipe)
    other = fit([weighted], plan, Recipe(steps=3, elastic=True))
    assert all(np.array_equal(weights[name], again[name]) for name in weights)
    assert not all(np.array_equal(weights[name], other[name]) for name in weights)
