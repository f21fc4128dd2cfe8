"""How well a member finds the labels in whole cases that it has not seen: what a user of the model will get."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from medseg.bundle import Bundle
from medseg.evaluation import Case as Scores
from medseg.evaluation import Score
from medseg.inference import Predictor
from medseg.inference.calibration import Evidence, Witness, fit
from medseg.plan import Calibration, Plan
from medseg.postprocess import keep_largest
from medseg.progress import Progress
from medseg.training.data import Legend, reference_of
from medseg.training.dataset import Case
from medseg.training.validation import Effect, effects_of_largest, score_case
from medseg.volume import LabelMap


@dataclass(frozen=True)
class Scored:
    """What a member got in one case.

    Parameters
    ----------
    plain, cleaned : Case of `medseg.evaluation`
        Scores of its answer, and of the largest piece of each label.
    effects : tuple of Effect
        What cleaning changes.
    evidence : Evidence
        How sure it was, against what is drawn.
    """

    plain: Scores
    cleaned: Scores
    effects: tuple[Effect, ...]
    evidence: Evidence


def score_members_cases(
    bundle: Bundle, cases: Sequence[Case], legend: Legend, *, device: str, until: float | None, progress: Progress
) -> list[Scored]:
    """Return the scores of a member in cases that were held back from it, on the grids of their scans.

    Parameters
    ----------
    bundle : Bundle
        Of that member alone, without clean-up.
    cases : sequence of Case
        Held back.
    legend : Legend
        Of their references.
    device : str
        Where to predict.
    until : float, optional
        `time.monotonic()` at which no further case is begun; the first one always is.
    progress : callable
        Called with 'score' and the fraction done.
    """
    predictor = Predictor(bundle, device=device)
    scored: list[Scored] = []
    for number, case in enumerate(cases):
        if scored and until is not None and time.monotonic() > until:
            break
        scan = case.scan()
        reference, drawn = reference_of(case, bundle.plan, legend, scan.geometry)
        witness = Witness(bundle.plan, reference, drawn)
        found = predictor(scan, watch=witness).labels
        if not drawn.all():
            found = replace(found, array=np.where(drawn, found.array, 0).astype(found.array.dtype))
        scored.append(_scored(case.name, found, reference, witness))
        progress("score", (number + 1) / len(cases))
    return scored


def final_scores(scored: Iterable[Scored], cleaned: Sequence[str], plan: Plan) -> list[Scores]:
    """Return the scores of cases when some labels are cleaned; of labels that overlap, those without."""
    apart = sum(len(label.atoms) for label in plan.labels) == len(plan.atoms)
    chosen = {*cleaned} if apart else set()
    return [
        replace(
            case.plain,
            scores=tuple(
                better if plain.name in chosen else plain
                for plain, better in zip(case.plain.scores, case.cleaned.scores, strict=True)
            ),
        )
        for case in scored
    ]


def calibration_of(
    scored: Sequence[Scored], scores: Sequence[Scores], labels: Sequence[str], how: str
) -> Calibration | None:
    """Return the calibration that held-out cases speak for, with their final scores; None if they are too few."""
    dice = [{score.name: score.values["dice"] for score in case.scores} for case in scores]
    evidence = [replace(case.evidence, dice=each) for case, each in zip(scored, dice, strict=True)]
    return fit(evidence, labels, how)


def to_data(scored: Iterable[Scored]) -> list[dict[str, Any]]:
    """Return scores as plain data."""
    return [asdict(case) for case in scored]


def from_data(data: Iterable[dict[str, Any]]) -> list[Scored]:
    """Return scores from plain data."""
    return [
        Scored(
            _scores(case["plain"]),
            _scores(case["cleaned"]),
            tuple(Effect(**effect) for effect in case["effects"]),
            Evidence(**case["evidence"]),
        )
        for case in data
    ]


def _scored(name: str, found: LabelMap, reference: LabelMap, witness: Witness) -> Scored:
    plain = score_case(name, found, reference)
    largest, removed = keep_largest(found, [label.name for label in found.labels])
    cleaned = score_case(name, largest, reference) if any(removed.values()) else plain
    return Scored(plain, cleaned, tuple(effects_of_largest(found, reference)), witness.evidence(name, {}))


def _scores(data: dict[str, Any]) -> Scores:
    return Scores(**{**data, "scores": tuple(Score(**score) for score in data["scores"])})
