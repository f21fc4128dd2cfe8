"""`prepare` and `restore` as MONAI transforms, and the augmentation of training cases.

The only home of MONAI: predicting does not import it. The transforms call the very functions that `Predictor`
uses, so that a `Compose` of them gives the same arrays.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import (
    Compose,
    MapTransform,
    Rand2DElasticd,
    Rand3DElasticd,
    RandAdjustContrastd,
    RandAffined,
    RandCropByPosNegLabeld,
    RandGaussianNoised,
    RandGaussianSmoothd,
    RandScaleIntensityd,
    RandShiftIntensityd,
    RandSimulateLowResolutiond,
    SpatialPadd,
)

from medseg.errors import GeometryError
from medseg.geometry import Geometry, tuple_of_three
from medseg.plan import Plan
from medseg.prepare import prepare, restore_labels
from medseg.volume import Volume

_SCAN_AFFINE = "medseg_scan_affine"
_SCAN_SHAPE = "medseg_scan_shape"
_MODES = ("bilinear", "nearest", "bilinear")  # of image, label and weights


class PrepareScand(MapTransform):
    """Bring scans to the plan's grid and normalise them, as `medseg.prepare.prepare` does.

    Takes `MetaTensor`s (C, I, J, K) with an affine in RAS+ mm, as MONAI's `LoadImaged` with
    `ensure_channel_first=True` gives them; returns float32 `MetaTensor`s that remember the scan's own grid.

    Parameters
    ----------
    keys : keys of the scans
    plan : Plan
        Of the bundle whose network follows.
    """

    def __init__(self, keys: KeysCollection, plan: Plan, *, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.plan = plan

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a new dictionary with the prepared scans."""
        result = dict(data)
        for key in self.key_iterator(result):
            scan = volume_of(result[key])
            prepared = prepare(scan, self.plan)
            tensor = MetaTensor(
                torch.from_numpy(prepared.array()), affine=torch.from_numpy(prepared.geometry.affine.copy())
            )
            tensor.meta[_SCAN_AFFINE] = scan.geometry.affine.copy()
            tensor.meta[_SCAN_SHAPE] = scan.geometry.shape
            result[key] = tensor
        return result


class RestoreLabelsd(MapTransform):
    """Bring logits back to the grid of the scan they came from, as label values: `medseg.prepare.restore_labels`.

    Parameters
    ----------
    keys : keys of the logits
        Tensors (L, I, J, K) on the grid of the prepared scan.
    plan : Plan
        Of the bundle whose network gave the logits.
    scan_key : str
        Key of the scan that `PrepareScand` prepared.
    """

    def __init__(
        self, keys: KeysCollection, plan: Plan, *, scan_key: str = "image", allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.plan = plan
        self.scan_key = scan_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a new dictionary with label maps (1, I, J, K) in place of the logits."""
        result = dict(data)
        prepared = result[self.scan_key]
        grid = Geometry(_affine(prepared), tuple_of_three(prepared.shape[1:]))
        onto = Geometry(prepared.meta[_SCAN_AFFINE], prepared.meta[_SCAN_SHAPE])
        for key in self.key_iterator(result):
            logits = torch.as_tensor(result[key]).float().cpu().numpy()
            labels = restore_labels(logits, grid, onto, self.plan)
            result[key] = MetaTensor(torch.from_numpy(labels[None]), affine=torch.from_numpy(onto.affine.copy()))
        return result


def volume_of(image: MetaTensor) -> Volume:
    """Return a MONAI image (C, I, J, K) as a volume.

    Raises
    ------
    GeometryError
        If its affine is not in RAS+ mm, or it has other than three spatial axes.
    """
    if image.ndim != 4:
        raise GeometryError(
            f"image of shape {tuple(image.shape)}, not (C, I, J, K)", hint="load it with ensure_channel_first=True"
        )
    if image.meta.get("space", "RAS") != "RAS":
        raise GeometryError(f"image in {image.meta['space']} space", hint="load it with affine_lps_to_ras=True")
    return Volume(image.cpu().numpy(), Geometry(_affine(image), tuple_of_three(image.shape[1:])))


def augmentation(patch: Sequence[int], *, elastic: bool = False, seed: int = 0) -> Compose:
    """Return the random transforms of training: from a prepared case to a patch, image and label together.

    Takes and gives dictionaries with `image`, `label` and, where a loss is weighted, `weights`. Rotation, scaling,
    shifts; then blur, noise, brightness, contrast and (in 3D, as MONAI has it) lower resolution of the image. No
    mirroring: it would make a left structure look like a right one.

    Parameters
    ----------
    patch : two or three ints
        Size of the result; half of the patches are centred on a labelled voxel.
    elastic : bool
        Deform elastically too, by smooth random displacements (Ronneberger et al. 2015, section 3.1).
    seed : int
        Same seed, same sequence of patches.
    """
    both, image = ("image", "label", "weights"), ("image",)
    axes = len(patch)
    blur = {f"sigma_{axis}": (0.4, 1) for axis in "xyz"[:axes]}
    transforms = Compose(
        [
            SpatialPadd(both, spatial_size=patch, allow_missing_keys=True),
            RandAffined(
                both,
                prob=0.9,
                rotate_range=(np.pi / 12,) * (3 if axes == 3 else 1),
                scale_range=(0.15,) * axes,
                shear_range=(0.05,) * (axes * (axes - 1)),
                translate_range=(4,) * axes,
                mode=_MODES,
                padding_mode="border",
                allow_missing_keys=True,
            ),
            *([_elastic(both, patch)] if elastic else []),
            RandCropByPosNegLabeld(
                both, label_key="label", spatial_size=patch, pos=1, neg=1, num_samples=1, allow_missing_keys=True
            ),
            RandGaussianSmoothd(image, prob=0.15, **blur),
            RandGaussianNoised(image, prob=0.2, std=0.15),
            RandScaleIntensityd(image, prob=0.3, factors=0.25),
            RandShiftIntensityd(image, prob=0.3, offsets=0.2),
            RandAdjustContrastd(image, prob=0.3, gamma=(0.7, 1.5), retain_stats=True),
            *([RandSimulateLowResolutiond(image, prob=0.15, zoom_range=(0.5, 1.0))] if axes == 3 else []),
        ]
    )
    transforms.set_random_state(seed)
    return transforms


def _elastic(keys: Sequence[str], patch: Sequence[int]) -> MapTransform:
    """Return elastic deformation by displacements of some voxels, smooth over a third of the patch."""
    options = {"prob": 0.5, "mode": _MODES, "padding_mode": "border", "allow_missing_keys": True}
    if len(patch) == 2:
        spacing = tuple(max(8, size // 3) for size in patch)  # of the control points, between them bicubic
        return Rand2DElasticd(keys, spacing=spacing, magnitude_range=(0, max(patch) / 32), **options)
    return Rand3DElasticd(keys, sigma_range=(5, 7), magnitude_range=(100, 300), **options)


def _affine(image: MetaTensor) -> Any:
    return np.asarray(image.affine.cpu(), dtype=np.float64)
