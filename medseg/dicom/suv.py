"""PET activity into standardised uptake values by body weight, only where every element that it needs is there.

The rule of the QIBA FDG-PET profile (SUV vendor-neutral pseudo-code): activity in Bq/mL times weight in g, divided
by the dose that was injected, decayed to the time to which the scanner has corrected the pixels.
"""

from __future__ import annotations

import math
from datetime import datetime
from typing import NoReturn

from pydicom import Dataset

from medseg.dicom.parts import Damaged
from medseg.dicom.planes import Plane, read_dataset
from medseg.dicom.privacy import quiet
from medseg.errors import ScanError
from medseg.gate import Gate


def suv_factor(plane: Plane, gate: Gate) -> float:
    """Return the number that turns Bq/mL of a PET slice into SUV by body weight, in g/mL.

    Raises
    ------
    ScanError
        NO_SUV, naming the element that is missing or says that the pixels cannot be converted.
    """
    try:
        with quiet():
            return _factor(plane, read_dataset(plane.part), gate)
    except ScanError:
        raise
    except (Damaged, AttributeError, TypeError, ValueError, IndexError):
        return _refuse(gate, "has elements that cannot be read")


def _factor(plane: Plane, dataset: Dataset, gate: Gate) -> float:
    if plane.modality != "PT":
        _refuse(gate, "is no PET series")
    if dataset.get("Units") != "BQML":
        _refuse(gate, "is not stored in Bq/mL (Units is not BQML)")
    corrected = set(dataset.get("CorrectedImage") or [])
    if not {"ATTN", "DECY"} <= corrected:
        _refuse(gate, "is not corrected for attenuation and decay (CorrectedImage)")
    item = next(iter(dataset.get("RadiopharmaceuticalInformationSequence") or []), Dataset())
    weight = _positive(dataset, "PatientWeight", gate)
    dose = _positive(item, "RadionuclideTotalDose", gate)
    half_life = _positive(item, "RadionuclideHalfLife", gate)
    match dataset.get("DecayCorrection"):
        case "ADMIN":
            waited = 0.0
        case "START":
            waited = _seconds_between(dataset, item, gate)
        case _:
            _refuse(gate, "does not say to when its decay is corrected (DecayCorrection)")
    return 1000 * weight / (dose * math.exp2(-waited / half_life))


def _seconds_between(dataset: Dataset, item: Dataset, gate: Gate) -> float:
    """Return how long after the injection the pixels are corrected to."""
    series = _moment(dataset.get("SeriesDate"), dataset.get("SeriesTime"))
    acquired = _moment(dataset.get("AcquisitionDate"), dataset.get("AcquisitionTime"))
    if series is None or acquired is None or series > acquired:
        _refuse(gate, "does not say when the scan began (SeriesDate and SeriesTime, not after the acquisition)")
    whole = str(item.get("RadiopharmaceuticalStartDateTime") or "")
    injected = _moment(whole[:8], whole[8:]) if whole else None
    if injected is None:  # a time without a date is of the day of the scan
        injected = _moment(dataset.get("SeriesDate"), item.get("RadiopharmaceuticalStartTime"))
    if injected is None or not 0 <= (series - injected).total_seconds() < 86400:
        _refuse(gate, "does not say when the dose was given (RadiopharmaceuticalStartDateTime)")
    return (series - injected).total_seconds()


def _moment(date: object, time: object) -> datetime | None:
    digits = str(time or "").split("+")[0].split("-")[0].split(".")[0]
    try:
        return datetime.strptime(f"{date}{digits:0<6}", "%Y%m%d%H%M%S")  # noqa: DTZ007 - of one place
    except ValueError:
        return None


def _positive(dataset: Dataset, keyword: str, gate: Gate) -> float:
    try:
        value = float(dataset.get(keyword) or 0)
    except (TypeError, ValueError):
        value = 0.0
    if not 0 < value < math.inf:
        _refuse(gate, f"has no valid {keyword}")
    return value


def _refuse(gate: Gate, problem: str) -> NoReturn:
    gate.refuse("NO_SUV", problem, "read it in its own units, without SUV")
