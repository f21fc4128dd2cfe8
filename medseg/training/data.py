"""Training cases: pairs of scan and reference, found in a folder and brought to the plan's grid."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medseg.errors import UsageError
from medseg.io import read, read_labels
from medseg.plan import Plan
from medseg.prepare import Prepared, prepare, restore
from medseg.training.losses import border_weights
from medseg.volume import LabelMap, Volume, stack_channels


@dataclass(frozen=True)
class Case:
    """Files of one patient: a scan for each channel, and the expert's label map; of all files the same page."""

    name: str
    images: tuple[Path, ...]
    reference: Path
    page: int | None = None

    def scan(self) -> Volume:
        """Return the scan, one channel for each file."""
        return stack_channels([read(path, volume=self.page) for path in self.images])

    def labels(self, plan: Plan) -> LabelMap:
        """Return the reference, with the names of the plan's labels."""
        labels = read_labels(self.reference, volume=self.page)
        return LabelMap(labels.array, labels.geometry, plan.labels, labels.source)


@dataclass(frozen=True, eq=False)
class Sample:
    """A case on the plan's grid, in memory.

    Parameters
    ----------
    image : (C, I, J, K) array of float32
        Normalised intensities.
    target : (1, I, J, K) array of uint8
        Channel numbers: 0 for background, n for label n - 1 of the plan.
    weights : (1, I, J, K) array of float32, optional
        How much each voxel counts in the border-weighted loss.
    """

    image: npt.NDArray[np.float32]
    target: npt.NDArray[np.uint8]
    weights: npt.NDArray[np.float32] | None = None


def read_decathlon(folder: Path) -> list[Case]:
    """Return the training cases of a folder in the form of the Medical Segmentation Decathlon, by name.

    Raises
    ------
    UsageError
        If `dataset.json` is missing or damaged.
    """
    listing = folder / "dataset.json"
    try:
        pairs = [(entry["image"], entry["label"]) for entry in json.loads(listing.read_text())["training"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{listing}: cannot be used ({error})", hint="give a folder of the Decathlon") from error
    cases = [Case(Path(image).name.split(".")[0], (folder / image,), folder / label) for image, label in pairs]
    return sorted(cases, key=lambda case: case.name)


def prepare_sample(case: Case, plan: Plan) -> Sample:
    """Return a case on the plan's grid: scan by `prepare`, reference by the same way that answers go back."""
    prepared = prepare(case.scan(), plan)
    return Sample(prepared.array(), _target(case.labels(plan), prepared, plan)[None])


def with_border_weights(sample: Sample, axes: int) -> Sample:
    """Return a sample with the weights of the U-Net paper's loss; cells are the pieces of its labels.

    Pieces are sought in the volume, or with 2 `axes` in each slice.
    """
    cells = sample.target[0]
    parts = np.moveaxis(cells, 2, 0)[..., None] if axes == 2 else cells[None]
    weights = [border_weights(_pieces(part, axes)).reshape(part.shape) for part in parts]
    found = np.concatenate(weights, axis=2) if axes == 2 else weights[0]
    return replace(sample, weights=np.ascontiguousarray(found[None], np.float32))


def _pieces(labels: npt.NDArray[np.uint8], axes: int) -> npt.NDArray[np.int32]:
    """Return a number for each piece of each label, of voxels that touch by their faces."""
    numbers = np.zeros(labels.shape, np.int32)
    for label in range(1, int(labels.max()) + 1):
        pieces, _ = ndimage.label(labels == label)
        numbers[labels == label] = pieces[labels == label] + numbers.max()
    return numbers.reshape(numbers.shape[:axes])


def _target(labels: LabelMap, prepared: Prepared, plan: Plan) -> npt.NDArray[np.uint8]:
    masks = [labels.mask(label.name) for label in plan.labels]
    channels = np.stack([~np.logical_or.reduce(masks), *masks]).astype(np.float32)
    return np.ascontiguousarray(restore(channels, labels.geometry, prepared.geometry), np.uint8)


def select(cases: Sequence[Case], names: Sequence[str]) -> list[Case]:
    """Return the cases of the given names, in their order.

    Raises
    ------
    UsageError
        If a name is unknown.
    """
    by_name = {case.name: case for case in cases}
    if missing := [name for name in names if name not in by_name]:
        raise UsageError(f"no case named {missing[0]!r}", hint="check the file of splits")
    return [by_name[name] for name in names]
