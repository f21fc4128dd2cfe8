"""Random training patches a second: medseg, a chain of plain MONAI, and nnU-Net's (batchgeneratorsv2).

    python benchmarks/augmentation.py [--seconds 10]

One thread, CPU seconds, turn by turn in one process; cases of float32 in memory. `--seconds` is the time for each size.
All turn, scale, blur and so on as medseg and nnU-Net's trainer do by default; none mirrors. nnU-Net resamples about one
patch in three, medseg and MONAI nine in ten: the last line has nnU-Net do so too. A peer that is not installed is left
out.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from itertools import count, permutations

import numpy as np
import torch
from monai import transforms as monai
from monai.data.meta_obj import set_track_meta
from scipy import ndimage

from medseg.training.patches import Sample, draw
from medseg.transforms import augmentation, seed

SIZES = (((40, 56, 40), (35, 51, 35)), ((96, 96, 96), (128, 128, 128)))  # of patch and case
Size = tuple[int, int, int]
Work = Callable[[], object]


def main() -> None:
    """Print a table for each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10)
    words = parser.parse_args()
    torch.set_num_threads(1)
    set_track_meta(False)  # else MONAI takes half as long again
    for patch, shape in SIZES:
        case = blobs(shape)
        chains: dict[str, Work] = {"medseg": by_medseg(case, patch), "MONAI": by_monai(case, patch)}
        try:
            chains["nnU-Net"] = by_nnunet(case, patch, moved=0.2)
            chains["nnU-Net, moved as often"] = by_nnunet(case, patch, moved=0.684)  # 1 - 0.316 ** 2 = 0.9
        except ImportError as error:
            print(f"nnU-Net's batchgeneratorsv2 is left out: {error}")
        rates = measured(chains, words.seconds)
        named = [" x ".join(map(str, size)) for size in (patch, shape)]
        print(f"{named[0]} from {named[1]}: patches a second, and how many times as many medseg makes")
        for title, rate in rates.items():
            print(f"  {title:25}{rate:8.1f}{rates['medseg'] / rate:8.1f}")


def blobs(shape: Size) -> Sample:
    """Return a case of smooth blobs with two labels."""
    image = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=shape), 2)[None].astype(np.float32)
    image /= image.std()
    return Sample(image, (image > 1).astype(np.uint8) + (image > 2))


def measured(chains: dict[str, Work], seconds: float) -> dict[str, float]:
    """Return the patches a second of each chain; they take turns."""
    spent = dict.fromkeys(chains, 0.0)
    for work in chains.values():
        work()
    start, turns = time.perf_counter(), 0
    while time.perf_counter() - start < seconds or turns < 3:
        for title, work in chains.items():
            before = time.process_time()
            for _ in range(5):
                work()
            spent[title] += time.process_time() - before
        turns += 1
    return {title: 5 * turns / own for title, own in spent.items()}


def by_medseg(case: Sample, patch: Size) -> Work:
    """Draw a box, then resample the patch alone."""
    chain, numbers = augmentation(patch), count()

    def work() -> object:
        number = next(numbers)
        seed(chain, 0, number)
        return chain(draw(case, patch, 3, np.random.default_rng((0, number))))

    return work


def by_monai(case: Sample, patch: Size) -> Work:
    """Resample the case, then crop it: the way of MONAI's tutorials."""
    both, image = ("image", "label"), ("image",)
    chain = monai.Compose(
        [
            monai.SpatialPadd(both, spatial_size=patch),
            monai.RandAffined(
                both,
                prob=0.9,
                rotate_range=(np.pi / 12,) * 3,
                scale_range=(0.15,) * 3,
                shear_range=(0.05,) * 6,
                translate_range=(4,) * 3,
                mode=("bilinear", "nearest"),
                padding_mode="border",
            ),
            monai.RandCropByPosNegLabeld(both, label_key="label", spatial_size=patch, pos=1, neg=1, num_samples=1),
            monai.RandGaussianSmoothd(image, prob=0.15, sigma_x=(0.4, 1), sigma_y=(0.4, 1), sigma_z=(0.4, 1)),
            monai.RandGaussianNoised(image, prob=0.2, std=0.15),
            monai.RandScaleIntensityd(image, prob=0.3, factors=0.25),
            monai.RandShiftIntensityd(image, prob=0.3, offsets=0.2),
            monai.RandSimulateLowResolutiond(image, prob=0.15, zoom_range=(0.5, 1.0)),
            monai.RandAdjustContrastd(image, prob=0.3, gamma=(0.7, 1.5), retain_stats=True),
        ]
    )
    chain.set_random_state(0)
    return lambda: chain({"image": case.image, "label": case.target})


def by_nnunet(case: Sample, patch: Size, *, moved: float) -> Work:
    """Crop a larger box, resample the patch: the transforms of nnU-Net's trainer, in its order."""
    from batchgeneratorsv2.transforms.intensity import brightness, contrast, gamma, gaussian_noise
    from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
    from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
    from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
    from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
    from batchgeneratorsv2.transforms.utils.random import RandomTransform

    own = {"synchronize_channels": False, "p_per_channel": 1}
    some = {"synchronize_channels": False, "p_per_channel": 0.5}
    quarter, power = contrast.BGContrast((0.75, 1.25)), contrast.BGContrast((0.7, 1.5))
    noise = gaussian_noise.GaussianNoiseTransform((0, 0.1), p_per_channel=1, synchronize_channels=True)
    spatial = SpatialTransform(
        patch,
        patch_center_dist_from_border=0,
        random_crop=False,
        p_rotation=moved,
        rotation=(-np.pi / 6, np.pi / 6),
        p_scaling=moved,
        scaling=(0.7, 1.4),
        p_synchronize_scaling_across_axes=1,
        border_mode_seg="constant",
        padding_value_seg=-1,
    )
    changes = [
        (noise, 0.1),
        (GaussianBlurTransform(blur_sigma=(0.5, 1.0), benchmark=True, **some), 0.2),
        (brightness.MultiplicativeBrightnessTransform(quarter, **own), 0.15),
        (contrast.ContrastTransform(quarter, preserve_range=True, **own), 0.15),
        (SimulateLowResolutionTransform((0.5, 1), synchronize_axes=True, ignore_axes=None, **some), 0.25),
        (gamma.GammaTransform(power, p_invert_image=1, p_retain_stats=1, **own), 0.1),
        (gamma.GammaTransform(power, p_invert_image=0, p_retain_stats=1, **own), 0.3),
    ]
    chain = ComposeTransforms([spatial, *(RandomTransform(change, apply_probability=p) for change, p in changes)])
    box, rng = nnunet_box(patch), np.random.default_rng(0)

    def work() -> object:
        image, label = cut(case, box, rng)
        return chain(image=torch.from_numpy(image), segmentation=torch.from_numpy(label))

    return work


def nnunet_box(patch: Size) -> Size:
    """Return the size of the box that nnU-Net loads: for 30 degrees about any one axis, and a scale of 0.85."""
    cos, sin = np.cos(np.pi / 6), np.sin(np.pi / 6)
    sides = np.array(patch, float)
    for a, b in permutations(range(3), 2):
        sides[a] = max(sides[a], cos * patch[a] + sin * patch[b])
    i, j, k = (int(side / 0.85) for side in sides)
    return i, j, k


def cut(case: Sample, size: Size, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return a random box of image and label, padded where the case ends: by 0 and -1."""
    spans = [
        (n, p, int(rng.integers(n - p + 1)) if n > p else (n - p) // 2)
        for n, p in zip(case.image.shape[1:], size, strict=True)
    ]
    inside = (slice(None), *(slice(max(a, 0), min(a + p, n)) for n, p, a in spans))
    pads = [(0, 0), *((max(-a, 0), max(a + p - n, 0)) for n, p, a in spans)]
    image, label = (array[inside] for array in (case.image, case.target))
    return np.pad(image, pads), np.pad(label.astype(np.int16), pads, constant_values=-1)


if __name__ == "__main__":
    main()
