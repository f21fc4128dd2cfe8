"""`prepare` and `restore` as MONAI transforms, and the augmentation of training patches.

The only home of MONAI: predicting does not import it. The first call the very functions that `Predictor` uses, so that
a `Compose` of them gives the same arrays. The random ones have MONAI's form and content of our own, which computes
nothing outside the patch.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import Compose, MapTransform, RandomizableTransform
from torch import Tensor

from medseg.errors import GeometryError
from medseg.geometry import Geometry, tuple_of_three
from medseg.plan import Plan
from medseg.prepare import prepare
from medseg.restore import restore
from medseg.transforms import intensity
from medseg.transforms.motion import Draws, Motion, cropped, resampled
from medseg.volume import Volume

_SCAN_AFFINE = "medseg_scan_affine"
_SCAN_SHAPE = "medseg_scan_shape"


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
    """Bring logits back to the grid of the scan they came from, as label values: `medseg.restore.restore`.

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
            labels = restore(logits, grid, onto, self.plan)
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


class RandPatchd(RandomizableTransform, MapTransform):
    """Take a patch from the middle of a box: turned, sheared, scaled, shifted, bent and mirrored at random.

    Returns float32 for numbers with a fraction, which are interpolated linearly; integers (labels) are those of the
    nearest voxel. Beyond the box, its outermost voxels go on.

    Parameters
    ----------
    keys : keys of the boxes
        Arrays or tensors (C, *S) of one size and on one device.
    motion : Motion
        Says patch and limits.
    mirror : sequence of int
        Axes along which half of the patches are mirrored.
    elastic : bool
        Bend half of the patches.
    """

    def __init__(self, keys: KeysCollection, motion: Motion, *, mirror: Sequence[int], elastic: bool) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys=True)
        RandomizableTransform.__init__(self, prob=0.9)
        self.motion = motion
        self.mirror = tuple(mirror)
        self.elastic = elastic

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a new dictionary with the patches, as tensors.

        Raises
        ------
        ShapeMismatch
            If the box is smaller than the patch.
        """
        boxes = {key: torch.as_tensor(data[key]) for key in self.key_iterator(data)}
        self.randomize(None)
        affine = self.motion.affine(self.R) if self._do_transform else None
        flips = [axis for axis in self.mirror if self.R.rand() < 0.5]
        bend = None
        if self.elastic and self.R.rand() < 0.5:
            bend = self.motion.bend(self.R, next(iter(boxes.values())).device)
        if affine is None and bend is None:
            return {**data, **{key: cropped(box, self.motion.patch, flips) for key, box in boxes.items()}}
        if affine is None:
            affine = np.eye(self.motion.axes, self.motion.axes + 1)
        affine[:, flips] *= -1
        return {**data, **resampled(boxes, self.motion.patch, affine, bend)}


class RandImaged(RandomizableTransform, MapTransform):
    """Change the intensities of `image` with some probability.

    Parameters
    ----------
    change : callable
        Takes the image (C, *S) and the source of random numbers, returns another image.
    prob : float
        How often.
    """

    def __init__(self, change: Callable[[Tensor, Draws], Tensor], prob: float) -> None:
        MapTransform.__init__(self, "image")
        RandomizableTransform.__init__(self, prob)
        self.change = change

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a new dictionary."""
        self.randomize(None)
        return {**data, "image": self.change(data["image"], self.R)} if self._do_transform else dict(data)


def augmentation(
    patch: Sequence[int], *, mirror: Sequence[int] = (), elastic: bool = False, spacing: Sequence[float] | None = None
) -> Compose:
    """Return the random transforms of training: from a box around a patch to the patch, image and label together.

    Takes and gives dictionaries with `image`, `label` and, where a loss is weighted, `weights`: arrays or tensors
    (C, *S) on any device, to tensors (C, *patch). Rotation, shear, scaling, shifts and mirroring; then blur, noise,
    contrast, brightness, lower resolution and gamma of the image.

    Call `seed` before each patch. The transforms remember what they draw, so each thread makes its own, which takes a
    millisecond. Patches are too small to share: such a thread is fastest after `torch.set_num_threads(1)`.

    Parameters
    ----------
    patch : two or three ints
        Size of the result. It is taken from the middle of the box, which is large enough if it goes on for
        `motion.reach` voxels to either side.
    mirror : sequence of int
        Axes along which every other patch is mirrored. None by default: it would make a left structure look like a
        right one.
    elastic : bool
        Bend every other patch, by smooth random displacements (Ronneberger et al. 2015, section 3.1).
    spacing : a float for each axis, optional
        Voxel size in mm. An axis more than 3 times as coarse as the finest is mirrored at most.
    """
    motion = Motion(patch, spacing)
    fine = motion.fine.tolist()
    return Compose(
        [
            RandPatchd(("image", "label", "weights"), motion, mirror=mirror, elastic=elastic),
            RandImaged(partial(intensity.blurred, fine=fine), 0.15),
            RandImaged(intensity.noisy, 0.2),
            RandImaged(intensity.scaled, 0.3),
            RandImaged(intensity.shifted, 0.3),
            RandImaged(partial(intensity.coarsened, fine=fine), 0.15),
            RandImaged(intensity.curved, 0.3),
        ]
    )


def seed(transforms: Compose, *numbers: int) -> None:
    """Make the next patch of `augmentation` a pure function of its box and some numbers, each 0 or more."""
    draws = Draws(np.random.MT19937(np.random.SeedSequence(numbers)))
    for transform in transforms.transforms:
        transform.set_random_state(state=draws)


def _affine(image: MetaTensor) -> Any:
    return np.asarray(image.affine.cpu(), dtype=np.float64)
