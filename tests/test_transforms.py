"""MONAI's side: the same arrays in a Compose, the same label map from MONAI's own inferer; random patches."""

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import nibabel
import numpy as np
import pytest
import torch
from conftest import random_bundle, rotation, smooth_scan
from monai.data import MetaTensor
from monai.data.meta_obj import get_track_meta
from monai.inferers import SlidingWindowInferer
from monai.transforms import AdjustContrast, Compose, LoadImaged
from scipy import ndimage
from torch.nn.functional import affine_grid, grid_sample, interpolate

import medseg
from medseg.errors import GeometryError, ShapeMismatch
from medseg.geometry import Geometry
from medseg.inference import Predictor, load_network
from medseg.prepare import prepare
from medseg.transforms import PrepareScand, RestoreLabelsd, augmentation, intensity, seed, volume_of
from medseg.transforms.motion import Motion, reach, resampled
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


def smooth_box(shape, *, channels=1, number=0):
    """Return a box of blobs between 0 and 1, and as its label where they exceed a half."""
    noise = np.random.default_rng(number).normal(size=(channels, *shape))
    blobs = ndimage.gaussian_filter(noise, (0, *[3] * len(shape)))
    image = ((blobs - blobs.min()) / np.ptp(blobs)).astype(np.float32)
    return {"image": image, "label": (image[:1] > 0.5).astype(np.uint8)}


def spatial_alone(patch, *, moves=True, **options):
    """Return the augmentation without the changes of intensities, and if wanted without motion."""
    transforms = augmentation(patch, **options)
    for number, transform in enumerate(transforms.transforms):
        transform.prob = float(moves and number == 0)
    return transforms


def patches(transforms, box, count):
    for number in range(count):
        seed(transforms, number)
        yield transforms(dict(box))


def middle(array, patch):
    starts = [(n - p) // 2 for n, p in zip(array.shape[1:], patch, strict=True)]
    return array[(slice(None), *(slice(a, a + p) for a, p in zip(starts, patch, strict=True)))]


@pytest.mark.parametrize("axes", [2, 3])
def test_a_patch_depends_on_its_numbers_alone_in_any_order_and_thread(axes):
    box = smooth_box((30,) * axes, channels=2)
    numbers = [(7, step, place) for step in range(8) for place in range(2)]

    def run(order):
        transforms = augmentation((20, 16, 18)[:axes], mirror=(0,), elastic=True)
        found = {}
        for own in order:
            seed(transforms, *own)
            found[own] = transforms(dict(box))
        return found

    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(run, [numbers, numbers[::-1]])
    for own in numbers:
        assert torch.equal(one[own]["image"], two[own]["image"])
        assert torch.equal(one[own]["label"], two[own]["label"])
    for a, b in pairwise(numbers):
        assert not torch.equal(one[a]["image"], one[b]["image"])


@pytest.mark.parametrize(("patch", "size"), [((16, 20, 12), (24, 20, 31)), ((16, 9), (21, 30))])
def test_without_its_chances_it_gives_the_middle_of_the_box_to_the_bit(patch, size):
    box = smooth_box(size, channels=3)
    box["weights"] = box["image"][:1].astype(np.float16)
    for found in patches(spatial_alone(patch, moves=False), box, 5):
        assert np.array_equal(found["image"], middle(box["image"], patch))
        assert np.array_equal(found["label"], middle(box["label"], patch))
        assert np.array_equal(found["weights"], middle(box["weights"], patch))
        assert [found[key].dtype for key in found] == [torch.float32, torch.uint8, torch.float32]


def test_mirroring_flips_half_of_the_patches_exactly_and_other_axes_never():
    patch, box = (8, 10, 12), smooth_box((14, 14, 14))
    plain, flipped = (np.ascontiguousarray(middle(box["image"], patch)[:, ::step]) for step in (1, -1))
    found = [part["image"].numpy() for part in patches(spatial_alone(patch, moves=False, mirror=(0,)), box, 200)]
    count = sum(np.array_equal(part, flipped) for part in found)
    assert 70 < count < 130
    assert count + sum(np.array_equal(part, plain) for part in found) == 200


def test_a_mirrored_patch_is_the_mirror_image_of_the_moved_one():
    patch, box = (16, 14, 12), smooth_box((40, 40, 40))
    plain, mirrored = (patches(spatial_alone(patch, mirror=mirror), box, 20) for mirror in ((), (1,)))
    flipped = 0
    for one, two in zip(plain, mirrored, strict=True):
        turned = not torch.allclose(one["image"], two["image"], atol=1e-4)
        flipped += turned
        for key, share in (("image", 1), ("label", 0.999)):
            near = abs((one[key].flip(2) if turned else one[key]) - two[key].float()) < 1e-4
            assert near.float().mean() >= share
    assert 4 < flipped < 16


@pytest.mark.parametrize("axes", [2, 3])
def test_labels_stay_labels_and_what_nobody_drew_stays_so(axes):
    label = np.random.default_rng(0).choice(np.array([0, 1, 7, 255], np.uint8), (1, *(30,) * axes))
    box = {"image": label.astype(np.float32), "label": label}
    seen = set()
    for found in patches(augmentation((16,) * axes, elastic=True, mirror=(0, 1)), box, 30):
        assert found["label"].dtype == torch.uint8
        assert found["label"].shape == found["image"].shape == (1, *(16,) * axes)
        seen |= {*np.unique(found["label"]).tolist()}
    assert seen == {0, 1, 7, 255}


@pytest.mark.parametrize("patch", [(24, 28, 20), (40, 32)])
@pytest.mark.parametrize("elastic", [False, True])
def test_image_label_and_weights_move_together(patch, elastic):
    box = smooth_box([p + 2 * m for p, m in zip(patch, reach(patch), strict=True)])
    box["weights"] = box["image"].copy()
    half_a_voxel = sum(abs(np.diff(box["image"], axis=axis + 1)).max() / 2 for axis in range(len(patch))) + 1e-4
    for found in patches(spatial_alone(patch, elastic=elastic, mirror=(0,)), box, 12):
        assert torch.equal(found["image"], found["weights"])
        inside, label = found["image"] > 0.5, found["label"] > 0
        assert (inside == label).float().mean() > 0.95
        assert not ((inside != label) & (abs(found["image"] - 0.5) > half_a_voxel)).any()


@pytest.mark.parametrize(
    ("patch", "size"), [((12, 16, 10), (30, 31, 28)), ((20, 24), (40, 50)), ((6, 5, 4), (8, 5, 1))]
)
def test_resampling_agrees_with_torch(patch, size):
    if size[-1] == 1:
        patch = (*patch[:-1], 1)
    box = smooth_box(size, channels=2)
    axes = len(patch)
    for number in range(5):
        affine = Motion(patch).affine(np.random.RandomState(number))
        half_patch, half_box = (np.array(patch) - 1) / 2, (np.array(size) - 1) / 2
        offset = affine[:, -1] + half_patch + [(n - p) // 2 for n, p in zip(size, patch, strict=True)] - half_box
        theta = np.column_stack([affine[:, :-1] * np.array(patch), 2 * offset]) / np.array(size)[:, None]
        theta = theta[::-1, [*range(axes - 1, -1, -1), axes]].copy()  # torch counts axes from the last
        grid = affine_grid(torch.from_numpy(theta[None]).float(), [1, 1, *patch], align_corners=False)
        image, label = torch.from_numpy(box["image"]), torch.from_numpy(box["label"])
        found = resampled({"image": image, "label": label}, patch, affine)
        wanted = grid_sample(image[None], grid, padding_mode="border", align_corners=False)[0]
        assert torch.allclose(found["image"], wanted, atol=2e-3)
        wanted = grid_sample(label[None].float(), grid, mode="nearest", padding_mode="border", align_corners=False)[0]
        assert (found["label"] == wanted).float().mean() > 0.98  # ties


@pytest.mark.parametrize(
    ("patch", "spacing"),
    [
        ((40, 56, 40), None),
        ((96, 8, 8), None),
        ((64, 64, 12), (1, 1, 2.9)),
        ((64, 64, 12), (1, 1, 5)),
        ((32, 48), None),
    ],
)
def test_no_motion_looks_beyond_its_reach(patch, spacing):
    motion, margins = Motion(patch, spacing), reach(patch, spacing)
    half = (np.array(patch) - 1) / 2
    corners = np.stack(np.meshgrid(*[(-h, h) for h in half], indexing="ij")).reshape(len(patch), -1)
    furthest = np.zeros(len(patch))
    for number in range(300):
        draws = np.random.RandomState(number)
        affine = motion.affine(draws)
        places = abs(affine[:, :-1] @ corners + affine[:, -1:]).max(axis=1)
        bend = motion.bend(draws, torch.device("cpu")).abs().amax(dim=tuple(range(1, len(patch) + 1)))
        furthest = np.maximum(furthest, places - half + bend.numpy())
    assert (np.ceil(furthest) <= margins).all()
    assert (np.array(margins) < 0.6 * max(patch) + 8).all()


def test_a_coarse_axis_is_left_as_it_is():
    patch, spacing = (24, 24, 8), (0.8, 0.8, 5)
    assert reach(patch, spacing)[2] == 2
    planes = np.tile(np.arange(12, dtype=np.float32), (1, 48, 48, 1))
    box = {"image": planes, "label": planes.astype(np.uint8)}
    transforms = augmentation(patch, spacing=spacing, elastic=True)
    for number, transform in enumerate(transforms.transforms):
        transform.prob = float(number in {0, 1, 5})  # motion, blur and lower resolution
    for found in patches(transforms, box, 10):
        assert torch.allclose(found["image"], torch.arange(2.0, 10).expand(1, 24, 24, 8), atol=1e-4)
        assert (found["label"] == torch.arange(2, 10)).all()
    assert not torch.equal(*(part["image"] for part in patches(spatial_alone(patch), box, 2)))


def test_rotations_are_of_bodies_not_of_voxels():
    spacing = np.array([1.0, 1.0, 2.5])
    motion = Motion((32, 32, 16), spacing)
    for number in range(50):
        matrix = motion.affine(np.random.RandomState(number))[:, :3]
        stretches = np.linalg.svd(np.diag(spacing) @ matrix @ np.diag(1 / spacing), compute_uv=False)
        assert stretches.min() > 0.85 * 0.85
        assert stretches.max() < 1.15 * 1.15


@pytest.mark.parametrize("patch", [(64, 32), (32, 48, 24)])
def test_elastic_deformation_bends_half_of_the_patches_smoothly_and_within_its_limit(patch):
    size = [p + 2 * m for p, m in zip(patch, reach(patch), strict=True)]
    ramps = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij")).astype(np.float32)
    box = {"image": ramps, "label": np.zeros((1, *size), np.uint8)}
    transforms = spatial_alone(patch, elastic=True)
    transforms.transforms[0].prob = 0
    shifts = np.stack([part["image"].numpy() - middle(ramps, patch) for part in patches(transforms, box, 60)])
    bent = abs(shifts).reshape(60, -1).max(axis=1)
    assert 18 < (bent > 0).sum() < 42
    assert 0.5 * max(patch) / 32 < bent.max() <= max(patch) / 32 + 1e-3
    assert abs(np.diff(shifts, axis=2)).max() < max(patch) / 64
    assert shifts[bent > 0].std(axis=tuple(range(2, 2 + len(patch)))).min() > 0  # no mere shift


def test_monais_tracking_of_affines_is_left_as_it_was():
    assert get_track_meta()
    for found in patches(augmentation((8, 8, 8)), smooth_box((16, 16, 16)), 20):
        assert type(found["image"]) is type(found["label"]) is torch.Tensor
    assert get_track_meta()


@pytest.mark.parametrize("axes", [2, 3])
def test_tensors_stay_on_their_device(axes):
    device = "cuda" if torch.cuda.is_available() else "meta"
    box = {key: torch.from_numpy(value) for key, value in smooth_box((24,) * axes).items()}
    transforms = augmentation((16,) * axes, elastic=True, mirror=(0,))
    for transform in transforms.transforms:
        transform.prob = 1
    there = patches(transforms, {key: value.to(device) for key, value in box.items()}, 4)
    for far, near in zip([*there], patches(transforms, box, 4), strict=True):
        assert far["image"].device.type == far["label"].device.type == device
        assert far["image"].shape == near["image"].shape
        if device == "cuda":
            assert torch.allclose(far["image"].cpu(), near["image"], atol=1e-3)
            assert (far["label"].cpu() == near["label"]).float().mean() > 0.999


def test_half_precision_changes_nothing_but_the_precision():
    box = smooth_box((30, 30, 30))
    single = {**box, "image": box["image"].astype(np.float16).astype(np.float32)}
    half = {**box, "image": box["image"].astype(np.float16)}
    transforms = augmentation((16, 16, 16))
    for one, two in zip([*patches(transforms, single, 5)], patches(transforms, half, 5), strict=True):
        assert torch.equal(one["image"], two["image"])


def test_a_box_smaller_than_the_patch_is_refused():
    for moves in (False, True):
        own = spatial_alone((16, 9), moves=moves).transforms[0]
        with pytest.raises(ShapeMismatch, match=r"box of \(16, 8\) voxels for a patch of \(16, 9\)"):
            own(smooth_box((16, 8)))
        with pytest.raises(ShapeMismatch):
            own(smooth_box((16, 16, 16)))


def test_blur_and_lower_resolution_are_those_of_scipy_and_torch():
    image = torch.randn(2, 24, 20, 16, generator=torch.Generator().manual_seed(0))
    draws, again = (np.random.RandomState(3) for _ in range(2))
    found = intensity.blurred(image, draws, fine=(True, True, False))
    deviations = again.uniform(0.4, 1, 3)
    wanted = ndimage.gaussian_filter(image.numpy(), (0, *deviations[:2], 0), truncate=6)
    assert np.allclose(found[:, 7:-7, 7:-7], wanted[:, 7:-7, 7:-7], atol=1e-5)
    found = intensity.coarsened(image, draws, fine=(True, True, True))
    sizes = [round(n * z) for n, z in zip((24, 20, 16), [again.uniform(0.5, 1)] * 3, strict=True)]
    fewer = interpolate(image[None], sizes, mode="nearest-exact")
    assert torch.allclose(found, interpolate(fewer, (24, 20, 16), mode="trilinear")[0], atol=1e-5)
    flat = torch.full((1, 30, 30), 3.0)
    for change in (intensity.blurred, intensity.coarsened):
        assert torch.allclose(change(flat, draws, fine=(True, True)), flat)


def test_gamma_is_that_of_monai_for_each_channel():
    image = torch.randn(2, 12, 12, 12, generator=torch.Generator().manual_seed(1)) * 3 + 1
    found = intensity.curved(image, np.random.RandomState(5))
    for channel, own, gamma in zip(image, found, np.random.RandomState(5).uniform(0.7, 1.5, 2), strict=True):
        assert torch.allclose(own, AdjustContrast(gamma, retain_stats=True)(channel), atol=2e-3)
    flat = torch.full((1, 8, 8), 3.0)
    assert torch.allclose(intensity.curved(flat, np.random.RandomState(0)), flat)


@pytest.mark.parametrize("change", [intensity.scaled, intensity.shifted, intensity.noisy, intensity.curved])
def test_channels_change_apart_and_the_image_itself_is_left_alone(change):
    image = torch.ones(2, 10, 10)
    image[:, 0, 0], image[:, 0, 1] = 0, 1.3
    before = image.clone()
    found = change(image, np.random.RandomState(0))
    assert torch.equal(image, before)
    assert not torch.allclose(found[0], found[1])
    assert 0 < abs(found - image).max() < 1
