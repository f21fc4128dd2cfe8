"""Load a model once, then call it on scan after scan."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from math import ceil
from pathlib import Path
from threading import RLock
from typing import TypedDict, Unpack

from medseg import zoo
from medseg.boxes import box_around
from medseg.bundle import Bundle
from medseg.errors import UsageError
from medseg.geometry import tuple_of_three
from medseg.inference.backends import How
from medseg.inference.estimate import Estimate, estimate
from medseg.inference.stage import Stage
from medseg.inference.uncertainty import Doubt, Watch
from medseg.kernels import Host
from medseg.postprocess import clean
from medseg.prepare import Prepared, prepare
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
    windows : dict
        How many the network 'answered', and how many it did not have to, as they hold only 'air'.
    backend : str
        What ran the network, as a report names it.
    notes : tuple of str
        What would be faster, and what went otherwise than asked for.
    uncertainty, disagreement : Volume or None
        Maps in nats on the scan's grid, where asked for: the entropy of each voxel's probabilities; and how much
        members and mirrored views disagree, if there are several.
    expected_dice : dict
        Of each label that was found, where the model is calibrated for it.
    """

    labels: LabelMap
    prepared: Prepared
    probabilities: Volume | None
    removed: dict[str, float]
    seconds: dict[str, float]
    windows: dict[str, int]
    backend: str
    notes: tuple[str, ...] = ()
    uncertainty: Volume | None = None
    disagreement: Volume | None = None
    expected_dice: dict[str, float] = field(default_factory=dict)


class Options(TypedDict, total=False):
    """How a `Predictor` computes: see there."""

    device: str
    threads: int | None
    backend: str
    precision: str | None
    mirror: bool
    overlap: float | None
    memory: int | None


class Predictor:
    """A model on a device, ready to be called on scans.

    Parameters
    ----------
    bundle : Bundle
        The model.
    device : str
        'auto' (CUDA, then MPS, then CPU), 'cpu', 'cuda', 'cuda:1' or 'mps'.
    threads : int, optional
        CPU threads; as many as there are cores when left out.
    backend : str
        'auto', 'torch', 'compiled' or 'openvino'.
    precision : str, optional
        'float32', 'float16', 'bfloat16' or 'int8', where the device has units for it. When left out: 'float16' on
        CUDA, elsewhere 'float32', or what `medseg models optimize` was told for this model.
    mirror : bool
        Ask the network about mirrored windows too, where it was trained on such; takes 2 to 8 times the time.
    overlap : float, optional
        Fraction that neighbouring windows share, instead of the plan's.
    memory : int, optional
        Bytes that the process may hold, and those that a pass may take on a GPU; what there is when left out.

    Raises
    ------
    BundleError
        If the weights do not fit the network of the plan.
    DeviceError
        If this machine does not have the device, or units for the precision.
    UsageError
        If the options do not fit together.

    Examples
    --------
    >>> import medseg
    >>> predictor = medseg.Predictor.load("hippocampus-t1")
    >>> labels = predictor(medseg.read("sample_data/t1_hippocampus.nii.gz")).labels
    >>> labels.geometry.shape
    (40, 56, 40)
    """

    def __init__(self, bundle: Bundle, **options: Unpack[Options]) -> None:
        self.bundle = bundle
        self.memory = options.get("memory")
        self._overlap = options.get("overlap")
        if self._overlap is not None and not 0 <= self._overlap < 1:
            raise UsageError(f"overlap {self._overlap} is not in [0, 1)", hint="give one such as 0.5")
        self._how = How(
            options.get("device", "auto"),
            options.get("backend", "auto"),
            options.get("precision"),
            options.get("mirror", False),
            options.get("threads"),
            keep=self.memory is None,
        )
        self._host = Host(options.get("threads"))
        self._lock = RLock()  # calls from several threads follow one another
        first = bundle.stage_that_locates()
        self._locator = Stage(first, replace(self._how, mirror=False), self._host) if first else None
        self._stage = Stage(bundle, self._how, self._host)

    @classmethod
    def load(cls, model: str | Path, **options: Unpack[Options]) -> Predictor:
        """Return a predictor for a model of the zoo by name, or for a `.safetensors` file."""
        return cls(Bundle.load(zoo.find(model)), **options)

    @property
    def device_name(self) -> str:
        """The device as a report names it."""
        return self._stage.backend.name

    @property
    def advice(self) -> tuple[str, ...]:
        """What would be faster on this machine."""
        return self._stage.advice

    def __call__(
        self,
        scan: Volume,
        *,
        probabilities: bool = False,
        uncertainty: bool = False,
        watch: Watch | None = None,
        progress: Progress = silent,
    ) -> Prediction:
        """Return the label map of a scan, on the scan's own grid.

        Parameters
        ----------
        scan : Volume
            With the channels that the plan names, in its order.
        probabilities : bool
            Return them too; they take 4 bytes for each voxel and label.
        uncertainty : bool
            Return its maps too.
        watch : Watch, optional
            Is shown the planes of logits as they are closed, instead of what finds uncertainty and expected Dice.
        progress : callable
            Called with the stage ('locate', 'prepare', 'network', 'clean') and the fraction of it that is done.

        Raises
        ------
        MemoryLimit
            If it does not fit into memory, before any window is looked at.
        """
        with self._lock:
            return self._answer(
                scan, probabilities=probabilities, uncertainty=uncertainty, watch=watch, progress=progress
            )

    def _answer(
        self, scan: Volume, *, probabilities: bool, uncertainty: bool, watch: Watch | None, progress: Progress
    ) -> Prediction:
        plan = self.bundle.plan
        seconds: dict[str, float] = {}
        part, notes = self._part(scan, seconds, progress)
        with timed("prepare", seconds, progress):
            prepared = prepare(part, plan)
        progress("network", 0.0)
        stage = self._doubting if uncertainty else self._stage
        doubt = None if watch else self._doubt(maps=uncertainty)
        job = stage.run(
            prepared,
            scan.geometry,
            overlap=self._overlap,
            memory=self.memory,
            probabilities=probabilities,
            watch=watch or doubt,
            progress=lambda done: progress("network", done),
        )
        seconds |= job.seconds
        with timed("clean", seconds, progress):
            labels, removed = clean(LabelMap(job.restorer.labels, scan.geometry, plan.labels, scan.source), plan)
            maps = doubt.on_scan(scan.geometry) if doubt else {}
        shares = job.restorer.probabilities
        return Prediction(
            labels,
            prepared,
            None if shares is None else Volume(shares, scan.geometry, scan.source),
            removed,
            seconds,
            {"answered": job.answered, "air": job.air},
            job.backend.name,
            (*stage.advice, *notes, *job.notes),
            **{name: Volume(values, scan.geometry, scan.source) for name, values in maps.items()},
            expected_dice=self._expected_dice(doubt),
        )

    def estimate(
        self, scan: Volume, *, probabilities: bool = False, uncertainty: bool = False, progress: Progress = silent
    ) -> Estimate:
        """Return how long a call would take, and how much memory, found out on one window from the scan's middle.

        The scan is prepared, which takes the time that it takes; 'locate' and 'prepare' among the seconds are measured.

        Raises
        ------
        MemoryLimit
            If it would not fit.
        """
        seconds: dict[str, float] = {}
        with self._lock:
            part, _ = self._part(scan, seconds, progress)
            with timed("prepare", seconds, progress):
                prepared = prepare(part, self.bundle.plan)
            with timed("sample", {}, progress):
                found = estimate(
                    self._doubting if uncertainty else self._stage,
                    prepared,
                    scan.geometry,
                    overlap=self._overlap,
                    memory=self.memory,
                    probabilities=probabilities,
                    watch=self._doubt(maps=uncertainty),
                )
        return replace(found, seconds=seconds | found.seconds)

    @cached_property
    def _doubting(self) -> Stage:
        """The stage whose network also says how much its members and views disagree, where there are several."""
        several = len(self.bundle.members) > 1 or self._how.mirror
        return Stage(self.bundle, self._how, self._host, disagreement=True) if several else self._stage

    def _doubt(self, *, maps: bool) -> Doubt | None:
        """Return what finds how sure the network is, where that is of use."""
        if not maps:
            return Doubt(self.bundle.plan, self._stage.temperature) if self.bundle.calibration else None
        names = ("uncertainty", "disagreement") if self._doubting.disagrees else ("uncertainty",)
        return Doubt(self.bundle.plan, self._stage.temperature, maps=names)

    def _expected_dice(self, doubt: Doubt | None) -> dict[str, float]:
        calibration = self.bundle.calibration
        if doubt is None or calibration is None:
            return {}
        return {
            name: calibration.labels[name].at(soft)
            for name, soft in doubt.soft_dice().items()
            if name in calibration.labels
        }

    def _part(self, scan: Volume, seconds: dict[str, float], progress: Progress) -> tuple[Volume, tuple[str, ...]]:
        """Return the part of a scan that the first stage finds, all of it where that finds nothing, and notes."""
        stage, locate = self._locator, self.bundle.plan.locate
        if stage is None or locate is None:
            return scan, ()
        with timed("locate", seconds, progress):
            found = stage.run(
                prepare(scan, locate.plan),
                scan.geometry,
                memory=self.memory,
                progress=lambda done: progress("locate", done),
            )
            box = box_around(found.restorer.labels > 0)
        if box is None:
            return scan, (*found.notes, "the first stage found nothing, so the second looks at the whole scan")
        margins = [ceil(locate.margin_mm / mm) for mm in scan.geometry.spacing]
        start = tuple_of_three(max(0, span.start - margin) for span, margin in zip(box, margins, strict=True))
        stop = tuple_of_three(
            min(size, span.stop + margin) for span, margin, size in zip(box, margins, scan.geometry.shape, strict=True)
        )
        inside = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
        part = Volume(scan.array[(slice(None), *inside)], scan.geometry.cropped(start, stop), scan.source)
        return part, tuple(found.notes)
