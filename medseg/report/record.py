"""The report of one scan as plain data: what was read, which model answered, what it found, how sure to be."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from medseg import __version__
from medseg.bundle import Bundle
from medseg.inference import Prediction
from medseg.plan import Label
from medseg.qc import Verdict
from medseg.report.job import Job
from medseg.volume import Volume

Record = dict[str, Any]


def record(
    job: Job,
    scan: Volume,
    bundle: Bundle,
    verdict: Verdict,
    *,
    voxels: Mapping[str, int],
    prediction: Prediction,
    seconds: Mapping[str, float],
) -> Record:
    """Return the report of a scan; every value can be written as JSON.

    Volumes are in mL and spacing in mm; both are null for a picture without a physical size. The expected Dice is null
    for a label that was not found, and where the model is not calibrated for it.
    """
    geometry = scan.geometry
    expected = {name: round(dice, 4) for name, dice in prediction.expected_dice.items() if voxels[name]}
    return {
        "medseg": __version__,
        "scan": scan_record(job, scan),
        "model": model_record(bundle),
        "labels": [
            {
                "value": label.value,
                "name": label.name,
                "voxels": voxels[label.name],
                "volume_ml": round(voxels[label.name] * geometry.voxel_volume / 1000, 6) if geometry.physical else None,
                "expected_dice": expected.get(label.name),
                "snomed": _snomed(label),
            }
            for label in bundle.plan.labels
        ],
        "qc": {
            "verdict": verdict.verdict,
            "reasons": [
                {"code": reason.code, "severity": reason.severity, "detail": reason.detail}
                for reason in verdict.reasons
            ],
        },
        "device": prediction.backend,
        "windows": prediction.windows,
        "notes": list(prediction.notes),
        "seconds": rounded(seconds),
        "outputs": {kind: job.place(kind) for kind in job.targets},
    }


def scan_record(job: Job, scan: Volume) -> Record:
    """Return what a report says of the scan."""
    geometry = scan.geometry
    return {
        "path": job.shown,
        "shape": list(geometry.shape),
        "spacing_mm": [round(mm, 6) for mm in geometry.spacing] if geometry.physical else None,
        "orientation": geometry.orientation if geometry.physical else None,
        "warnings": list(scan.source.warnings) if scan.source else [],
    }


def model_record(bundle: Bundle) -> Record:
    """Return what a report says of the model."""
    return {"name": bundle.card.name, "version": bundle.card.version, "sha256": bundle.sha256}


def rounded(seconds: Mapping[str, float]) -> dict[str, float]:
    """Return the seconds of each stage to the millisecond."""
    return {stage: round(value, 3) for stage, value in seconds.items()}


def as_json(data: Record) -> bytes:
    """Return a report as JSON, indented for people."""
    text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return text.encode("utf-8", "backslashreplace")  # a file name that is no UTF-8 becomes a JSON escape


def size_line(label: Mapping[str, Any]) -> str:
    """Return one label of a report as people read it: its name, volume, and the Dice to expect."""
    size = f"{label['voxels']} pixels" if label["volume_ml"] is None else f"{label['volume_ml']:.3f} mL"
    expected = "" if label["expected_dice"] is None else f", expected Dice {label['expected_dice']:.2f}"
    return f"{label['name']}: {size}{expected}"


def _snomed(label: Label) -> Record | None:
    if label.code is None or label.code.scheme != "SCT":
        return None
    modifier = {"code": label.modifier.value, "meaning": label.modifier.meaning} if label.modifier else None
    return {"code": label.code.value, "meaning": label.code.meaning, "modifier": modifier}
