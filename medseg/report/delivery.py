"""From a scan on disk to its results on disk: one job, all of its files or none."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from medseg.atomic import Outputs
from medseg.bundle import Bundle
from medseg.errors import Refused, UsageError
from medseg.inference import Prediction, Predictor
from medseg.io import read, save
from medseg.progress import Progress, silent, timed
from medseg.qc import Measures, Verdict, assess, measure
from medseg.report.job import DICOM_FORMATS, FORMATS, MAPS, Job
from medseg.report.picture import draw, thumbnail
from medseg.report.record import Record, as_json, record, rounded, size_line
from medseg.volume import LabelMap, Volume, stack_channels


def deliver(
    job: Job,
    predictor: Predictor,
    *,
    strict: bool = False,
    progress: Progress = silent,
) -> Record:
    """Segment one scan, write all its results, and return the report.

    Raises
    ------
    ScanError, PlanError, OutputError
        If the scan cannot be read or used, or a result cannot be written; no file of the job then exists.
    Refused
        If `strict` and the quality check refuses the result.
    """
    seconds: dict[str, float] = {}
    with timed("read", seconds, progress):
        choice = partial(read, volume=job.volume, series=job.series, repair=job.repair, suv=job.suv)
        scan = stack_channels([choice(path) for path in job.scan])
    case = answer(job, scan, predictor, seconds=seconds, progress=progress)
    if strict:
        _pass(case.verdict, job.scan[0])
    with Outputs() as outputs:
        hand_over(case, outputs, progress=progress)
    return case.report


@dataclass(frozen=True, eq=False)
class Answered:
    """A scan that was segmented and checked, with the report that will tell of it."""

    job: Job
    scan: Volume
    prediction: Prediction
    verdict: Verdict
    seconds: dict[str, float]
    report: Record


def answer(
    job: Job, scan: Volume, predictor: Predictor, *, seconds: dict[str, float], progress: Progress = silent
) -> Answered:
    """Segment and check one scan; `seconds` are those of each stage so far, and go on."""
    prediction = predictor(
        scan,
        probabilities="probabilities" in job.targets,
        uncertainty="uncertainty" in job.targets,
        progress=progress,
    )
    seconds |= prediction.seconds
    with timed("check", seconds, progress):
        measures, verdict = _judge(prediction, predictor.bundle)
    report = record(
        job, scan, predictor.bundle, verdict, voxels=measures.voxels, prediction=prediction, seconds=seconds
    )
    return Answered(job, scan, prediction, verdict, seconds, report)


def hand_over(case: Answered, outputs: Outputs, *, progress: Progress = silent) -> None:
    """Write all results of a scan into a set of files."""
    job, seconds, labels = case.job, case.seconds, case.prediction.labels
    with timed("write", seconds, progress):
        for kind, target in job.targets.items():
            if kind in FORMATS:
                save(labels, target, outputs)
            elif kind in MAPS:
                save(getattr(case.prediction, kind), target, outputs)
    picture = b""
    if {"picture", "thumbnail", "sc"} & job.targets.keys():
        with timed("picture", seconds, progress):
            picture = _picture(case.scan, labels, case.report)
    if "picture" in job.targets:
        outputs.write(job.targets["picture"], [picture])
    if "thumbnail" in job.targets:
        outputs.write(job.targets["thumbnail"], [thumbnail(picture)])
    if DICOM_FORMATS.keys() & job.targets.keys():
        with timed("dicom", seconds, progress):
            _write_dicom(job, labels, case.report, picture, outputs)
    case.report["seconds"] = rounded(seconds)
    outputs.write(job.targets["report"], [as_json(case.report)])


def _judge(prediction: Prediction, bundle: Bundle) -> tuple[Measures, Verdict]:
    measures = measure(prediction.prepared, prediction.labels, bundle.plan)
    verdict = assess(
        measures,
        prediction.labels,
        bundle.fingerprint,
        removed=prediction.removed,
        expected_dice=prediction.expected_dice,
        calibration=bundle.calibration,
    )
    return measures, verdict


def _pass(verdict: Verdict, scan: Path) -> None:
    """Refuse a result that the quality check refuses."""
    if verdict.verdict == "refuse":
        grave = next(reason for reason in verdict.reasons if reason.severity == "refuse")
        raise Refused(
            f"{scan}: the quality check refuses the result: {grave.detail}",
            hint="see the model's limits with `medseg models show`, or leave out --strict",
        )


def _write_dicom(job: Job, labels: LabelMap, data: Record, picture: bytes, outputs: Outputs) -> None:
    """Write the DICOM objects of a job, each read back before it may be seen."""
    from medseg.dicom.frames import Producer
    from medseg.dicom.results import encode

    kinds = [kind for kind in DICOM_FORMATS if kind in job.targets]
    producer = Producer(data["model"]["name"], data["model"]["version"], data["model"]["sha256"])
    try:
        encoded = encode(kinds, labels, producer, picture=picture, verdict=data["qc"]["verdict"])
    except UsageError as error:
        if not set(kinds) <= set(job.optional):
            raise
        data["scan"]["warnings"].append(f"no DICOM result: {error.problem}")
        for kind in kinds:
            del data["outputs"][kind]
        return
    for kind, content in encoded.items():
        outputs.write(job.targets[kind], [content])


def _picture(scan: Volume, labels: LabelMap, data: Record) -> bytes:
    """Return the picture of a result, with the words of its report."""
    return draw(
        scan,
        labels,
        title=f"{data['model']['name']} {data['model']['version']}",  # a path may name the patient
        legend=[size_line(label) for label in data["labels"]],
        verdict=data["qc"]["verdict"],
        notes=[reason["detail"] for reason in data["qc"]["reasons"]],
    )
