"""What `medseg models show` says of a model: its card, its labels, and how good it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from medseg.bundle import Bundle, Card


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
        *(("limit", text) for text in card.limits),
        ("data", card.training_data),
        ("licence", card.licence),
        ("attribution", card.attribution),
    ]


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
