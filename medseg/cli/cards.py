"""What `medseg models show` and `list` say of a model: its card, its labels, and how good it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medseg.bundle import Bundle, Card


def entry(bundle: Bundle) -> dict[str, Any]:
    """Return what a program that offers models must know of one."""
    card, plan = bundle.card, bundle.plan
    return {
        "version": card.version,
        "summary": card.summary,
        "use": card.intended_use,
        "sha256": bundle.sha256,
        "axes": plan.axes,
        "channels": [channel.name for channel in plan.channels],
        "labels": [{"value": label.value, "name": label.name} for label in plan.labels],
    }


def rows(bundle: Bundle, path: Path) -> list[tuple[str, str]]:
    """Return name and text of each line."""
    card, plan = bundle.card, bundle.plan
    return [
        ("name", f"{card.name} {card.version}"),
        ("summary", card.summary),
        ("use", card.intended_use),
        ("file", str(path)),
        ("sha256", bundle.sha256),
        ("network", f"{plan.network.architecture}, {plan.axes}D, {len(bundle.members)} member(s)"),
        ("channels", ", ".join(channel.name for channel in plan.channels)),
        ("spacing", " x ".join(f"{mm:g}" for mm in plan.spacing) + " mm" if plan.spacing else "as the scan's"),
        *(("label", " ".join([f"{label.value} {label.name}", *map(str, label.codes)])) for label in plan.labels),
        *_scores(card),
        *_calibration(bundle),
        *(("limit", text) for text in card.limits),
        ("data", card.training_data),
        ("licence", card.licence),
        ("attribution", card.attribution),
    ]


def _calibration(bundle: Bundle) -> Iterator[tuple[str, str]]:
    """Yield what makes its probabilities honest, and how far its own estimate of Dice was off in held-out cases."""
    if bundle.calibration is None:
        return
    before, after = bundle.calibration.nll
    likelihood = f"negative log likelihood of a voxel {before:.4f} to {after:.4f} nats"
    yield "temperature", f"{bundle.calibration.temperature:.3g}, {likelihood}; {bundle.calibration.how}"
    for name, line in bundle.calibration.labels.items():
        damaged = "" if line.error_damaged is None else f", in damaged copies by {line.error_damaged:.3f}"
        rank = "" if line.spearman is None else f", Spearman {line.spearman:.2f}"
        yield "expected", f"dice {name} off by {line.error:.3f} in {line.cases} cases{damaged}{rank}"


def _scores(card: Card) -> Iterator[tuple[str, str]]:
    """Yield how good the model is: with intervals and worst cases, where it was validated."""
    if card.validation is None:
        yield from (("score", f"{name} {value:g}") for name, value in card.scores.items())
        return
    yield "validation", f"{card.validation.cases} case{'s' * (card.validation.cases > 1)}, {card.validation.how}"
    for score in card.validation.scores:
        mean = "undefined" if score.mean is None else f"{score.mean:.4g}"
        ends = "" if score.low is None else f" [{score.low:.4g}, {score.high:.4g}]"
        yield "score", f"{score.metric} {score.label} {mean}{ends}, {score.missed} of {score.n} missed"
    for worst in card.validation.worst:
        yield "worst", f"{worst.case}: dice {worst.label} {worst.dice:.3f}"
