"""Random patches: where they lie, what they hold, and that nothing else of a case is read."""

import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from medseg.training.patches import IGNORE, Sample, centred, draw, points_of
from medseg.transforms import augmentation, seed
from medseg.transforms.motion import reach


def places(shape, *, channels=1):
    """Return a scan whose voxels hold their own number, from 1."""
    numbers = np.arange(1, np.prod(shape) + 1, dtype=np.float32).reshape(1, *shape)
    return np.repeat(numbers, channels, axis=0)


def sample_of(shape, marks=(), **changes):
    target = np.zeros((1, *shape), np.uint8)
    for at, number in marks:
        target[(0, *at)] = number
    return Sample(**{"image": places(shape), "target": target, **changes})


def still(patch):
    """Return the augmentation without any of its chances: it takes the patch out of the box."""
    transforms = augmentation(patch)
    for transform in transforms.transforms:
        transform.prob = 0
    return transforms


def draws(sample, patch, axes=3, *, count=1, **options):
    """Return random patches as they lie in the scan: image and label."""
    transforms, found = still(patch[:axes]), []
    for number in range(count):
        part = transforms(draw(sample, patch, axes, np.random.default_rng(number), **options))
        found.append((part["image"].numpy(), part["label"].numpy()))
    return found


def test_half_of_the_patches_lie_around_a_label():
    sample = sample_of((60, 60, 60), [((31, 22, 40), 3)])
    for share in (0, 0.5, 1):
        found = draws(sample, (8, 9, 10), count=300, foreground=share)
        around = sum(int(label[0, 4, 4, 5] == 3) for _, label in found)
        assert abs(around - 300 * share) <= (30 if share == 0.5 else 3)


def test_a_rare_label_is_seen_as_often_as_a_large_one():
    sample = sample_of((40, 40, 40), [((slice(0, 30),), 1), ((35, 35, 35), 2), ((38, 10, 5), 9)])
    found = draws(sample, (4, 4, 4), count=300, foreground=1)
    seen = Counter(int(label.max()) for _, label in found)
    assert set(seen) == {1, 2, 9}
    assert min(seen.values()) > 70


def test_patches_lie_everywhere_in_the_scan_and_nowhere_else():
    sample = sample_of((12, 10, 9), [((0, 0, 0), 1), ((11, 9, 8), 2)])
    for share in (0, 1):
        starts = set()
        for image, _ in draws(sample, (8, 8, 8), count=200, foreground=share):
            first = int(image[0, 0, 0, 0]) - 1
            start = np.unravel_index(first, (12, 10, 9))
            assert np.array_equal(image[0], sample.image[0][tuple(slice(a, a + 8) for a in start)])
            starts.add(tuple(map(int, start)))
        every = {(i, j, k) for i in range(5) for j in range(3) for k in range(2)}
        assert starts == (every if share == 0 else {(0, 0, 0), (4, 2, 1)})


@pytest.mark.parametrize(
    ("patch", "shape"), [((12, 9, 8), (7, 20, 5)), ((12, 9, 8), (7, 9, 8)), ((5, 5, 5), (1, 1, 2))]
)
def test_a_scan_smaller_than_the_patch_lies_in_its_middle_with_zeros_around_as_in_predicting(patch, shape):
    sample = sample_of(shape, [((0, 0, 1), 1)])
    for image, label in draws(sample, patch, count=5):
        assert image.shape == label.shape == (1, *patch)
        before = [max(0, p - n) // 2 for p, n in zip(patch, shape, strict=True)]
        inside = tuple(slice(b, b + min(p, n)) for b, p, n in zip(before, patch, shape, strict=True))
        assert (image[(0, *inside)] > 0).all()
        assert np.count_nonzero(image) == np.prod([min(p, n) for p, n in zip(patch, shape, strict=True)])
        assert not label[image == 0].any()


@pytest.mark.parametrize("shape", [(90, 80, 70), (30, 80, 20), (24, 24, 24)])
def test_the_box_looks_the_same_to_any_motion_as_one_with_the_whole_reach(shape):
    patch, margins = (24, 20, 16), reach((24, 20, 16))
    sample = sample_of(shape, [((3, 4, 5), 1), ((20, 20, 15), 1)])
    sample.target[sample.image % 7 == 0] = 2
    padded = [np.pad(array, [(0, 0), *[(60, 60)] * 3]) for array in (sample.image, sample.target)]
    transforms = augmentation(patch)
    for number in range(12):
        box = draw(sample, patch, 3, np.random.default_rng(number))
        first = [int(n) for n in np.argwhere(padded[0][0] == box["image"].max())[0]]  # where the box ends
        last = [int(n) for n in np.argwhere(box["image"][0] == box["image"].max())[0]]
        low = [
            a - b + (n - p) // 2 - m
            for a, b, n, p, m in zip(first, last, box["image"].shape[1:], patch, margins, strict=True)
        ]
        cut = (slice(None), *(slice(a, a + p + 2 * m) for a, p, m in zip(low, patch, margins, strict=True)))
        seed(transforms, number)
        small = transforms(box)
        seed(transforms, number)
        large = transforms({"image": padded[0][cut].copy(), "label": padded[1][cut].copy()})
        assert np.allclose(small["image"], large["image"], rtol=1e-3, atol=30)  # of numbers up to 500,000
        assert (small["label"] == large["label"]).float().mean() > 0.999


def test_the_same_numbers_give_the_same_box():
    sample = sample_of((30, 30, 30), [((3, 4, 5), 1)])
    one, two, other = (
        draw(sample, (8, 8, 8), 3, np.random.default_rng(own), foreground=0)["image"]
        for own in ((1, 2), (1, 2), (1, 3))
    )
    assert np.array_equal(one, two)
    assert not np.array_equal(one, other)


def test_a_patch_of_a_slice_has_no_axis_k_and_all_channels():
    shape = (30, 28, 6)
    sample = sample_of(shape, [((12, 13, 4), 1)], image=places(shape, channels=3))
    for image, label in draws(sample, (16, 12, 1), 2, count=20, foreground=1):
        assert image.shape == (3, 16, 12)
        assert label.shape == (1, 16, 12)
        assert label[0, 8, 6] == 1  # of slice 4
        assert (image[0] == image[2]).all()
        assert image[0, 8, 6] == sample.image[0, 12, 13, 4]
    slices = {int(image[0, 0, 0] - 1) % 6 for image, _ in draws(sample, (16, 12, 1), 2, count=100, foreground=0)}
    assert slices == set(range(6))


def test_weights_come_along_where_they_are_asked_for():
    plain = sample_of((20, 20, 20))
    weighted = sample_of((20, 20, 20), weights=places((20, 20, 20)))
    rng = np.random.default_rng
    assert set(draw(weighted, (8, 8, 8), 3, rng(0))) == {"image", "label"}
    assert set(draw(plain, (8, 8, 8), 3, rng(0), weighted=True)) == {"image", "label"}
    box = draw(weighted, (8, 8, 8), 3, rng(0), weighted=True)
    assert np.array_equal(box["image"], box["weights"])
    assert box["weights"].dtype == np.float32


def test_patches_without_a_label_avoid_the_middle_of_what_nobody_drew():
    sample = sample_of((40, 40, 40), [((..., slice(36)), IGNORE), ((20, 20, 38), 5)])
    found = draws(sample, (4, 4, 4), count=100, foreground=0)
    assert sum(label[0, 2, 2, 2] != IGNORE for _, label in found) > 75  # of all voxels, one in ten is drawn
    assert any((label == IGNORE).any() for _, label in found)
    assert list(sample.points) == [5]
    sample = sample_of((40, 40, 40), [((...,), IGNORE)])
    assert all((label == IGNORE).all() for _, label in draws(sample, (4, 4, 4), count=3, foreground=0))


def test_points_are_some_of_each_label_evenly():
    target = np.zeros((1, 40, 50, 60), np.uint8)
    target[0, :20] = 1
    target[0, 30, 40, 50], target[0, 39, 49, 59] = 200, 200
    target[0, 25] = IGNORE
    points = points_of(target)
    assert list(points) == [1, 200]
    assert points[200].tolist() == [[30, 40, 50], [39, 49, 59]]
    assert points[1].shape == (2000, 3)
    assert len(np.unique(points[1], axis=0)) == 2000
    assert (target[(0, *points[1].T)] == 1).all()
    assert (np.bincount(points[1][:, 0]) == 100).all()  # 20 planes
    assert points_of(np.zeros((1, 4, 4, 4), np.uint8)) == {}
    assert Sample(places((40, 50, 60)), target).points[200].tolist() == points[200].tolist()


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="only Linux says which parts of a file are in memory")
def test_of_a_case_on_disk_only_the_box_is_read(tmp_path):
    shape, files = (100, 300, 300), []
    for name, kind in (("image", np.float16), ("target", np.uint8)):
        array = np.lib.format.open_memmap(tmp_path / f"{name}.npy", "w+", kind, (1, *shape))
        array[0, 50] = 1
        del array
        files.append(np.load(tmp_path / f"{name}.npy", mmap_mode="r"))
    sample = Sample(*files, points={1: np.array([[50, 150, 150]], np.int32)})
    tracemalloc.start()
    box = draw(sample, (16, 16, 16), 3, np.random.default_rng(0), foreground=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert box["image"].dtype == np.float16
    assert box["image"].max() == 1
    assert peak < 4 * box["image"].nbytes
    assert 0 < resident(tmp_path / "image.npy") < 0.4 * files[0].nbytes


def resident(path):
    """Return how many bytes of a mapped file this process has touched."""
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    total = 0
    for line in lines:
        if line.endswith(str(path)):
            total += next(int(own.split()[1]) for own in lines if own.startswith("Rss:")) * 1024
    return total


def test_the_middle_of_what_is_labelled_is_always_the_same_patch():
    sample = sample_of((30, 40, 50), [((slice(10, 15), slice(20, 25), slice(30, 35)), 2)])
    image, target = centred(sample, (8, 8, 8), 3)
    assert image[0, 4, 4, 4] == sample.image[0, 12, 22, 32]
    assert target[0, 4, 4, 4] == 2
    assert image.shape == target.shape == (1, 8, 8, 8)
    image, target = centred(sample, (60, 8, 1), 2)
    assert target.shape == (1, 60, 8)
    assert image[0, 15 + 12, 4] == sample.image[0, 12, 22, 32]
    assert centred(sample_of((30, 40, 50)), (8, 8, 8), 3)[0][0, 4, 4, 4] == sample.image[0, 15, 20, 25]
