"""Load a model once, then call it on scan after scan."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from medseg import zoo
from medseg.bundle import Bundle
from medseg.inference import device as devices
from medseg.inference.network import load_network
from medseg.inference.sliding import slide
from medseg.postprocess import clean
from medseg.prepare import Prepared, prepare, restore_labels, restore_probabilities
from medseg.progress import Progress, silent, timed
from medseg.volume import LabelMap, Volume


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a model says of one scan.

    Parameters
    ----------
    labels : LabelMap
        On the scan's own grid.
    prepared : Prepared
        The scan as the network saw it; the quality check measures it.
    probabilities : Volume or None
        (L, I, J, K), background first, on the scan's grid; where asked for.
    removed : dict
        For each label of which the plan keeps one piece: the fraction of its voxels that lay in others.
    seconds : dict
        Time spent in each stage.
    """

    labels: LabelMap
    prepared: Prepared
    probabilities: Volume | None
    removed: dict[str, float]
    seconds: dict[str, float]


class Predictor:
    """A model on a device, ready to be called on scans.

    Parameters
    ----------
    bundle : Bundle
        The model.
    device : str
        'auto' (CUDA, then MPS, then CPU), 'cpu', 'cuda', 'cuda:1' or 'mps'.
    threads : int, optional
        CPU threads; torch's own choice when left out.

    Raises
    ------
    BundleError
        If the weights do not fit the network of the plan.
    DeviceError
        If this machine does not have the device.

    Examples
    --------
    >>> import medseg
    >>> predictor = medseg.Predictor.load("hippocampus-t1")
    >>> labels = predictor(medseg.read("sample_data/t1_hippocampus.nii.gz")).labels
    >>> labels.geometry.shape
    (40, 56, 40)
    """

    def __init__(self, bundle: Bundle, *, device: str = "auto", threads: int | None = None) -> None:
        if threads:
            torch.set_num_threads(threads)
        self.bundle = bundle
        self.device = devices.choose(device)
        self._members = [load_network(bundle, number).to(self.device) for number in range(len(bundle.members))]

    @classmethod
    def load(cls, model: str | Path, *, device: str = "auto", threads: int | None = None) -> Predictor:
        """Return a predictor for a model of the zoo by name, or for a `.safetensors` file."""
        return cls(Bundle.load(zoo.find(model)), device=device, threads=threads)

    @property
    def device_name(self) -> str:
        """The device as a report names it."""
        return devices.describe(self.device)

    def __call__(self, scan: Volume, *, probabilities: bool = False, progress: Progress = silent) -> Prediction:
        """Return the label map of a scan, on the scan's own grid.

        Parameters
        ----------
        scan : Volume
            With the channels that the plan names, in its order.
        probabilities : bool
            Return them too; they take 4 bytes for each voxel and label.
        progress : callable
            Called with the stage ('prepare', 'network', 'restore') and the fraction of it that is done.
        """
        plan = self.bundle.plan
        seconds: dict[str, float] = {}
        with timed("prepare", seconds, progress):
            prepared = prepare(scan, plan)
        with timed("network", seconds, progress):
            logits = slide(
                self._answer,
                prepared,
                plan.patch,
                overlap=plan.overlap,
                axes=plan.axes,
                device=self.device,
                batch=devices.BATCH[self.device.type],
                progress=lambda done: progress("network", done),
            )
        with timed("restore", seconds, progress):
            array = restore_labels(logits, prepared.geometry, scan.geometry, plan)
            labels, removed = clean(LabelMap(array, scan.geometry, plan.labels, scan.source), plan)
            shares = None
            if probabilities:
                shares = restore_probabilities(logits, prepared.geometry, scan.geometry)
        volume = None if shares is None else Volume(shares, scan.geometry, scan.source)
        return Prediction(labels, prepared, volume, removed, seconds)

    def _answer(self, windows: Tensor) -> Tensor:
        total: Tensor = sum((member(windows) for member in self._members), start=torch.zeros((), device=self.device))
        return total / len(self._members)
