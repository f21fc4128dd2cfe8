"""What `medseg predict --estimate` says of a scan: time and memory of all that would be done, before it is done."""

from __future__ import annotations

import time
from functools import partial
from math import prod

import numpy as np

from medseg import __version__
from medseg.inference import Predictor
from medseg.inference.estimate import Estimate
from medseg.inference.memory import in_words, peak, resident
from medseg.io import read
from medseg.progress import Progress, silent, timed
from medseg.qc import measure
from medseg.report.job import Job
from medseg.report.picture import draw
from medseg.report.record import Record, model_record, rounded, scan_record
from medseg.volume import LabelMap, Volume, stack_channels

_AFTER = 1.3, 200e6  # bytes that cleaning, checking, drawing and writing take at most: for each voxel, and at all
_WRITTEN = 4e-9  # seconds to write a voxel of a label map, compressed


def foresee(job: Job, predictor: Predictor, *, progress: Progress = silent) -> Record:
    """Return how many seconds a job would take, and how many bytes; nothing is written.

    The scan is read and prepared, and one window from its middle is segmented, checked and drawn.

    Raises
    ------
    ScanError, PlanError
        If the scan cannot be read or used.
    MemoryLimit
        If it would not fit.
    """
    seconds = {"start": time.process_time()}  # all that the process has computed so far: imports, and the model
    with timed("read", seconds, progress):
        choice = partial(read, volume=job.volume, series=job.series, repair=job.repair, suv=job.suv)
        scan = stack_channels([choice(path) for path in job.scan])
    asked = {name: name in job.targets for name in ("probabilities", "uncertainty")}
    found = predictor.estimate(scan, **asked, progress=progress)
    seconds |= found.seconds
    voxels = prod(scan.geometry.shape)
    seconds |= _afterwards(found, voxels, predictor, drawn=bool({"picture", "sc"} & job.targets.keys()))
    host = max(peak(), resident() + max(found.host, int(_AFTER[0] * voxels + _AFTER[1])))
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


def _afterwards(found: Estimate, voxels: int, predictor: Predictor, *, drawn: bool) -> dict[str, float]:
    """Return the seconds of all that follows the pass, from what it takes for the sample."""
    seconds: dict[str, float] = {}
    sample, plan = found.sample, predictor.bundle.plan
    labels = LabelMap(sample.restorer.labels, sample.onto, plan.labels)
    with timed("check", seconds, silent):
        measure(sample.prepared, labels, plan)
    seconds["check"] /= found.share
    seconds["write"] = _WRITTEN * voxels
    if drawn:
        with timed("picture", seconds, silent):
            shown = Volume(sample.prepared.array()[:1], sample.prepared.geometry)
            grid = LabelMap(np.zeros(shown.geometry.shape, np.uint8), shown.geometry, plan.labels)
            draw(shown, grid, title="", legend=[label.name for label in plan.labels], verdict="ok", notes=[])
    return seconds


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
