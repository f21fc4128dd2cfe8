"""MONAI's side: the same arrays in a Compose, the same label map from MONAI's own inferer."""

import nibabel
import numpy as np
import pytest
import torch
from conftest import random_bundle, rotation, smooth_scan
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer
from monai.transforms import Compose, LoadImaged

import medseg
from medseg.errors import GeometryError
from medseg.geometry import Geometry
from medseg.inference import Predictor, load_network
from medseg.prepare import prepare
from medseg.transforms import PrepareScand, RestoreLabelsd, augmentation, volume_of
from medseg.volume import Volume


@pytest.fixture
def scan_file(tmp_path):
    affine = np.eye(4)
    affine[:3, :3] = rotation(2) @ np.diag([-0.9, 1.3, 2.0])
    affine[:3, 3] = (10, -20, 30)
    scan = Volume(smooth_scan((21, 19, 11)).array, Geometry(affine, (21, 19, 11)))
    path = tmp_path / "scan.nii.gz"
    medseg.write(scan, path)
    return path


@pytest.mark.parametrize("changes", [{}, {"spacing": [1.5, 1.5, 1.5]}, {"crop": 0.0, "orientation": "LPI"}])
def test_a_compose_prepares_the_same_arrays(scan_file, changes):
    plan = random_bundle(**changes).plan
    compose = Compose([LoadImaged("image", ensure_channel_first=True), PrepareScand("image", plan)])
    found = compose({"image": str(scan_file)})["image"]
    wanted = prepare(medseg.read(scan_file), plan)
    assert isinstance(found, MetaTensor)
    assert np.array_equal(found.numpy(), wanted.array())
    assert np.allclose(found.affine.numpy(), wanted.geometry.affine, atol=1e-4)


@pytest.mark.parametrize("changes", [{}, {"spacing": [1.5, 1.5, 1.5]}])
def test_monais_own_inferer_gives_the_same_label_map(scan_file, changes):
    bundle = random_bundle(seed=1, **changes)
    plan = bundle.plan
    data = Compose([LoadImaged("image", ensure_channel_first=True), PrepareScand("image", plan)])(
        {"image": str(scan_file)}
    )
    inferer = SlidingWindowInferer(plan.patch, overlap=plan.overlap, mode="gaussian")
    with torch.inference_mode():
        data["logits"] = inferer(data["image"][None], load_network(bundle))[0]
    theirs = RestoreLabelsd("logits", plan)(data)["logits"]
    ours = Predictor(bundle, device="cpu")(medseg.read(scan_file)).labels
    assert theirs.shape == (1, *ours.array.shape)
    assert (theirs.numpy()[0] == ours.array).mean() > 0.9999  # but for ties within float tolerance
    assert np.allclose(theirs.affine.numpy(), nibabel.load(scan_file).affine, atol=1e-4)


def test_images_that_are_not_in_ras_or_not_3d_are_refused():
    with pytest.raises(GeometryError, match="ensure_channel_first"):
        volume_of(MetaTensor(torch.zeros(4, 4, 4)))
    image = MetaTensor(torch.zeros(1, 4, 4, 4))
    image.meta["space"] = "LPS"
    with pytest.raises(GeometryError, match="LPS"):
        volume_of(image)


def test_the_augmentation_depends_on_its_seed_alone():
    case = {
        "image": np.random.default_rng(0).normal(size=(1, 20, 20, 20)).astype(np.float32),
        "label": np.ones((1, 20, 20, 20), np.uint8),
    }

    def run(seed):
        transform = augmentation((16, 24, 16), seed=seed)
        return [transform(dict(case))[0] for _ in range(3)]

    one, two, other = run(1), run(1), run(2)
    for a, b in zip(one, two, strict=True):
        assert a["image"].shape == (1, 16, 24, 16)
        assert torch.equal(torch.as_tensor(a["image"]), torch.as_tensor(b["image"]))
    assert not torch.equal(torch.as_tensor(one[0]["image"]), torch.as_tensor(other[0]["image"]))


@pytest.mark.parametrize("axes", [2, 3])
def test_labels_stay_labels_under_augmentation(axes):
    label = np.random.default_rng(0).integers(0, 3, (1, *(20,) * axes)).astype(np.uint8)
    transform = augmentation((16,) * axes)
    for _ in range(30):
        patch = transform({"image": label.astype(np.float32), "label": label})[0]
        assert set(np.unique(patch["label"])) <= {0, 1, 2}
        assert patch["image"].shape == (1, *(16,) * axes)
