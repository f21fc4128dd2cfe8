"""What `medseg predict --estimate` says of a scan: time and memory of all that would be done, before it is done."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from functools import partial
from math import prod

import numpy as np

from medseg import __version__
from medseg.inference import Predictor
from medseg.inference.estimate import Estimate
from medseg.inference.memory import in_words, peak, resident
from medseg.io import read
from medseg.postprocess import clean
from medseg.progress import Progress, silent, timed
from medseg.qc import measure
from medseg.report.job import Job
from medseg.report.picture import draw
from medseg.report.record import Record, model_record, rounded, scan_record
from medseg.volume import LabelMap, Volume, stack_channels

_AFTER = 1.3, 60e6  # bytes that cleaning, checking, drawing and writing take at most: for each voxel, and at all
_WRITTEN, _WRITTEN_FLOAT = 4e-9, 1.6e-8  # seconds to write a voxel of a label map, and of a map, compressed


def foresee(job: Job, predictor: Predictor, *, start: float = 0.0, progress: Progress = silent) -> Record:
    """Return how many seconds a job would take, and how many bytes; nothing is written.

    The scan is read and prepared, and one window near its middle is segmented, checked and drawn.

    Parameters
    ----------
    job : Job
        The scan, and what would be written.
    predictor : Predictor
        For the model.
    start : float
        Seconds that it took to get so far: imports, and the model.
    progress : callable
        Called with the stage and the fraction of it that is done.

    Raises
    ------
    ScanError, PlanError
        If the scan cannot be read or used.
    MemoryLimit
        If it would not fit.
    """
    seconds = {"start": start}
    with timed("read", seconds, progress):
        choice = partial(read, volume=job.volume, series=job.series, repair=job.repair, suv=job.suv)
        scan = stack_channels([choice(path) for path in job.scan])
    asked = {name: name in job.targets for name in ("probabilities", "uncertainty")}
    found = predictor.estimate(scan, **asked, progress=progress)
    seconds |= found.seconds
    voxels = prod(scan.geometry.shape)
    seconds |= _afterwards(found, voxels, predictor, job.targets.keys())
    floats = _floats(predictor, job.targets.keys())
    after = int((_AFTER[0] + 4 * floats) * voxels + _AFTER[1])
    host = max(peak(), resident() + max(found.host, after))
    return {
        "medseg": __version__,
        "scan": scan_record(job, scan),
        "model": model_record(predictor.bundle),
        "estimate": {
            "seconds": rounded({"total": sum(seconds.values()), **seconds}),
            "host_bytes": host,
            "device_bytes": found.device,
            "windows": found.windows,
            "strips": found.strips,
        },
        "device": predictor.device_name,
        "notes": list(predictor.advice),
    }


def in_lines(estimate: Record) -> list[str]:
    """Return an estimate as people read it."""
    lines = [
        f"about {_minutes(estimate['seconds']['total'])}",
        f"{in_words(estimate['host_bytes'])} of memory at most",
        f"{estimate['windows']['answered']} windows",
    ]
    if estimate["device_bytes"]:
        lines.insert(2, f"{in_words(estimate['device_bytes'])} on the device")
    if estimate["strips"] > 1:
        lines[-1] += f", in {estimate['strips']} strips to fit into memory"
    return lines


def _afterwards(found: Estimate, voxels: int, predictor: Predictor, targets: AbstractSet[str]) -> dict[str, float]:
    """Return the seconds of all that follows the pass, from what it takes for the sample."""
    seconds: dict[str, float] = {}
    sample, plan = found.sample, predictor.bundle.plan
    labels = LabelMap(sample.restorer.labels, sample.onto, plan.labels)
    with timed("check", seconds, silent):
        measure(sample.prepared, labels, plan)
    with timed("clean", seconds, silent):
        clean(labels, plan)
    for name in ("check", "clean"):
        seconds[name] /= found.share
    seconds["write"] = (_WRITTEN + _WRITTEN_FLOAT * _floats(predictor, targets)) * voxels
    if {"picture", "sc"} & targets:
        with timed("picture", seconds, silent):
            shown = Volume(sample.prepared.array()[:1], sample.prepared.geometry)
            grid = LabelMap(np.zeros(shown.geometry.shape, np.uint8), shown.geometry, plan.labels)
            draw(shown, grid, title="", legend=[label.name for label in plan.labels], verdict="ok", notes=[])
    return seconds


def _floats(predictor: Predictor, targets: AbstractSet[str]) -> int:
    """Return how many maps of float32 would be written."""
    shares = len(predictor.bundle.plan.atoms) + 1 if "probabilities" in targets else 0
    return shares + len(targets & {"uncertainty", "disagreement"})


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
