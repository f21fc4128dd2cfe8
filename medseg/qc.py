"""The quality check: whether a scan is like those the model was trained on, and the answer a plausible one.

The verdict never changes a label map. It is `ok`, `check` (a person should look) or `refuse` (do not use it),
with a named reason for each doubt. What the training cases looked like stands in the bundle's fingerprint.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from medseg.plan import Calibration, Fingerprint, LabelRange, Plan, Range
from medseg.postprocess import count_pieces
from medseg.prepare import Prepared
from medseg.volume import LabelMap

Severity = Literal["check", "refuse"]

_PLANES = 64  # of a scan whose intensities are measured
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
# How far outside the training range a value may lie before it is flagged, and before it is refused:
_SPACING = (1.3, 3.0)  # ratio
_EXTENT = (1.2, 2.0)  # ratio
_VOLUME = (1.25, 2.5)  # ratio
_INTENSITY = (1.0, 3.0)  # widths of the training range
_FRAGMENTS = (0.1, 0.5)  # fraction of a label's voxels that lay outside its largest piece
_HOPELESS = 0.5  # of the lowest Dice expected of a held-out case: what is below is refused


@dataclass(frozen=True)
class Reason:
    """One doubt: a stable code, how grave it is, and a sentence with the numbers."""

    code: str
    severity: Severity
    detail: str


@dataclass(frozen=True)
class Verdict:
    """The outcome of the check: the gravest of its reasons, or ok when there is none."""

    reasons: tuple[Reason, ...]

    @property
    def verdict(self) -> Literal["ok", "check", "refuse"]:
        """One word: 'ok', 'check' or 'refuse'."""
        grave = {reason.severity for reason in self.reasons}
        return "refuse" if "refuse" in grave else "check" if grave else "ok"


@dataclass(frozen=True)
class Measures:
    """What the check knows of one case: numbers that do not depend on the order of its voxels."""

    spacing_mm: tuple[float, float, float]
    extent_mm: tuple[float, float, float]
    intensity: dict[str, float]
    voxels: dict[str, int]
    volume_ml: dict[str, float]
    components: dict[str, int]


def measure(prepared: Prepared, labels: LabelMap, plan: Plan) -> Measures:
    """Return the measures of a case: a scan as the network saw it, and labels on the scan's own grid."""
    scan = labels.geometry
    oriented = scan.reordered(scan.order_to(plan.orientation)) if scan.physical else scan
    counts = labels.counts()
    return Measures(
        spacing_mm=oriented.spacing,
        extent_mm=oriented.extent,
        intensity=_intensity(prepared),
        voxels=counts,
        volume_ml={name: count * scan.voxel_volume / 1000 for name, count in counts.items()},
        components=count_pieces(labels),
    )


def fingerprint(cases: Iterable[Measures]) -> Fingerprint:
    """Return the ranges that the measures of all training cases span; cases without a label do not count for it."""
    seen = list(cases)
    names = [name for name in seen[0].volume_ml if any(case.volume_ml[name] for case in seen)]
    return Fingerprint(
        cases=len(seen),
        spacing_mm=_ranges(np.array([case.spacing_mm for case in seen])),
        extent_mm=_ranges(np.array([case.extent_mm for case in seen])),
        intensity={name: _range(case.intensity[name] for case in seen) for name in seen[0].intensity},
        labels={
            name: LabelRange(
                volume_ml=_range(case.volume_ml[name] for case in seen if case.volume_ml[name]),
                components=_range(case.components[name] for case in seen if case.volume_ml[name]),
            )
            for name in names
        },
    )


def assess(
    measures: Measures,
    labels: LabelMap,
    trained_on: Fingerprint | None,
    *,
    removed: Mapping[str, float],
    expected_dice: Mapping[str, float] | None = None,
    calibration: Calibration | None = None,
) -> Verdict:
    """Return the verdict on a case.

    Parameters
    ----------
    measures : Measures
        Of the scan and the predicted labels.
    labels : LabelMap
        The prediction.
    trained_on : Fingerprint or None
        Of the model.
    removed : mapping
        For each label of which one piece was kept, the fraction of its voxels that lay in others.
    expected_dice, calibration : mapping, Calibration, optional
        The Dice to expect of labels, and what the model says of held-out cases.
    """
    reasons = [*_empty(measures), *_border(labels), *_fragments(removed)]
    if expected_dice and calibration:
        reasons += low_confidence(
            {name: dice for name, dice in expected_dice.items() if measures.voxels[name]}, calibration
        )
    if trained_on is None:
        reasons.append(Reason("NO_FINGERPRINT", "check", "the model does not say what it was trained on"))
        return Verdict(tuple(reasons))
    for axis, value, known in zip("ijk", measures.spacing_mm, trained_on.spacing_mm, strict=True):
        reasons += _ratio("SPACING", f"spacing along {axis}", value, known, "mm", _SPACING)
    for axis, value, known in zip("ijk", measures.extent_mm, trained_on.extent_mm, strict=True):
        reasons += _ratio("FIELD_OF_VIEW", f"field of view along {axis}", value, known, "mm", _EXTENT)
    reasons += _intensities(measures.intensity, trained_on.intensity)
    for name, label in trained_on.labels.items():
        if value := measures.volume_ml.get(name, 0.0):
            reasons += _ratio("VOLUME", f"volume of {name}", value, label.volume_ml, "mL", _VOLUME)
        if (count := measures.components.get(name, 0)) > label.components.high:
            expected = f"{label.components.high:.0f}"
            reasons.append(
                Reason("COMPONENTS", "check", f"{name} is in {count} pieces, in training at most {expected}")
            )
    return Verdict(tuple(reasons))


def _empty(measures: Measures) -> list[Reason]:
    missing = [name for name, volume in measures.volume_ml.items() if not volume]
    if len(missing) == len(measures.volume_ml):
        return [Reason("EMPTY", "refuse", "no structure was found")]
    return [Reason("EMPTY", "check", f"{name} was not found") for name in missing]


def _border(labels: LabelMap) -> list[Reason]:
    touched = set()
    for axis, size in enumerate(labels.geometry.shape):
        if size > 1:
            for end in (0, -1):
                touched.update(np.unique(np.moveaxis(labels.array, axis, 0)[end]).tolist())
    return [
        Reason("CUT_BY_BORDER", "check", f"{label.name} reaches the border of the scan")
        for label in labels.labels
        if touched & {*label.atoms}
    ]


def _fragments(removed: Mapping[str, float]) -> list[Reason]:
    return [
        Reason("FRAGMENTS", severity, f"{fraction:.0%} of {name} lay apart from its largest piece and were removed")
        for name, fraction in removed.items()
        if (severity := _severity(fraction, _FRAGMENTS))
    ]


def low_confidence(expected: Mapping[str, float], calibration: Calibration) -> list[Reason]:
    """Return a reason for each label whose expected Dice is lower than in any held-out case, by more than its error."""
    reasons = []
    for name, dice in expected.items():
        line = calibration.labels[name]
        if dice < line.low - line.error:
            severity: Severity = "refuse" if dice < _HOPELESS * line.low else "check"
            text = f"{name}: the network is so unsure that a Dice of {dice:.2f} is to be expected"
            reasons.append(Reason("LOW_CONFIDENCE", severity, f"{text}, in held-out cases at least {line.low:.2f}"))
    return reasons


def _ratio(code: str, what: str, value: float, known: Range, unit: str, limits: tuple[float, float]) -> list[Reason]:
    away = max(value / known.high, known.low / value)
    severity = _severity(away, limits)
    text = f"{what} is {value:.3g} {unit}, in training {known.low:.3g} to {known.high:.3g}"
    return [Reason(code, severity, text)] if severity else []


def _intensities(found: Mapping[str, float], known: Mapping[str, Range]) -> list[Reason]:
    """Return at most one reason: the number that lies furthest outside its training range."""
    away = {
        name: max(found[name] - seen.high, seen.low - found[name]) / (seen.high - seen.low or 1.0)
        for name, seen in known.items()
    }
    worst = max(away, key=lambda name: away[name])
    severity = _severity(away[worst], _INTENSITY)
    seen = known[worst]
    text = f"{worst} of the intensities is {found[worst]:.3g}, in training {seen.low:.3g} to {seen.high:.3g}"
    return [Reason("INTENSITY", severity, text)] if severity else []


def _severity(value: float, limits: tuple[float, float]) -> Severity | None:
    flagged, refused = limits
    return "refuse" if value > refused else "check" if value > flagged else None


def _intensity(prepared: Prepared) -> dict[str, float]:
    """Return scale-free numbers that tell one kind of scan from another: quantiles and smoothness.

    Quantiles are those of the normalised intensities; smoothness is the correlation of neighbours within a plane
    (near 1 for tissue, near 0 for noise).
    """
    i, j, k = prepared.geometry.shape
    chosen = np.unique(np.linspace(0, k - 1, min(k, _PLANES)).astype(int)).tolist()
    planes = np.empty((len(prepared.rescale), len(chosen), i, j), np.float32)
    for number, at in enumerate(chosen):
        planes[:, number] = prepared.window((0, 0, at), (i, j, at + 1))[..., 0]
    found = {}
    for number, channel in enumerate(planes):
        front = f"channel {number} " if len(planes) > 1 else ""
        smoothness = _smoothness(channel)
        for share, value in zip(_QUANTILES, np.quantile(channel, _QUANTILES, overwrite_input=True), strict=True):
            found[f"{front}quantile {share:.0%}"] = float(value)
        found[f"{front}smoothness"] = smoothness
    return found


def _smoothness(planes: npt.NDArray[np.float32]) -> float:
    middle = float(planes.mean(dtype=np.float64))
    variance = float(np.mean([np.square(plane - middle, dtype=np.float64).mean() for plane in planes]))
    axes = [axis for axis in (0, 1) if planes.shape[axis + 1] > 1]
    if not variance or not axes:
        return 1.0
    steps = [np.square(np.diff(plane, axis=axis), dtype=np.float64).mean() for plane in planes for axis in axes]
    return 1 - float(np.mean(steps)) / (2 * variance)


def _ranges(values: npt.NDArray[np.float64]) -> tuple[Range, Range, Range]:
    i, j, k = (_range(column.tolist()) for column in values.T)
    return i, j, k


def _range(values: Iterable[float]) -> Range:
    seen = sorted(values)
    return Range(low=round(seen[0], 6), high=round(seen[-1], 6))
