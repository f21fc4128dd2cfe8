"""The model at the end: members, plan with its clean-up, fingerprint, and a card that says how good it is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medseg.bundle import Bundle, Card, Validation, Weights
from medseg.plan import Plan
from medseg.qc import Measures, fingerprint
from medseg.training.scoring import Scored, calibration_of, final_scores
from medseg.training.setup import Setup
from medseg.training.validation import largest_pieces_that_help, summarise_validation

_ENOUGH = 10  # references


def halved(weights: Weights) -> Weights:
    """Return weights in half precision, as they are stored: half the size, label maps as good as the same."""
    return {name: array.astype(np.float16) for name, array in weights.items()}


def member_bundle(output: Path, setup: Setup, weights: Weights) -> Bundle:
    """Return a model of one member, without clean-up or scores."""
    return Bundle.of([weights], plan=setup.plan, card=_card(output, setup, None))


def finished_model(
    output: Path,
    setup: Setup,
    members: Sequence[Bundle],
    measures: Sequence[Measures],
    scored: Sequence[Scored],
    how: str,
) -> Bundle:
    """Return the model: all members, and what their held-back cases say.

    Parameters
    ----------
    output : Path
        Its name becomes the model's.
    setup : Setup
        Of the training.
    members : sequence of Bundle
        One for each network.
    measures : sequence of Measures
        Of all cases, for the quality check.
    scored : sequence of Scored
        All held-back cases; may be empty.
    how : str
        In words, how they were held back.
    """
    if scored:
        cleaned = largest_pieces_that_help([effect for case in scored for effect in case.effects], setup.plan)
    else:
        cleaned = _whole_labels(measures, setup.plan)
    plan = Plan.parse({**setup.plan.model_dump(mode="json"), "largest_component": cleaned})
    scores = final_scores(scored, cleaned, plan)
    validation = summarise_validation(scores, how) if scored else None
    calibration = calibration_of(scored, scores, [label.name for label in plan.labels], how)
    card = _card(output, setup, validation)
    weights = [member for bundle in members for member in bundle.members]
    return Bundle.of(weights, plan=plan, card=card, fingerprint=fingerprint(measures), calibration=calibration)


def _whole_labels(measures: Sequence[Measures], plan: Plan) -> tuple[str, ...]:
    """Return the labels that are one piece in every reference, of at least ten: without held-back cases, all we know.

    None for a network of slices, which may be asked for a slice in which one structure lies in several pieces.
    """
    found = {label.name: [case.components[label.name] for case in measures] for label in plan.labels}
    pieces = {name: [count for count in counts if count] for name, counts in found.items()}
    enough = plan.axes == 3 and len(measures) >= _ENOUGH
    return tuple(name for name, counts in pieces.items() if enough and len(counts) >= _ENOUGH and max(counts) == 1)


def _card(output: Path, setup: Setup, validation: Validation | None) -> Card:
    name = re.sub(r"[^a-z0-9._-]+", "-", output.name.removesuffix(".safetensors").lower()).strip("-._")[:64]
    labels = ", ".join(label.name for label in setup.plan.labels)
    channels = ", ".join(channel.name for channel in setup.plan.channels)
    scores = validation.scores if validation else ()
    return Card(
        name=name or "model",
        version="1.0.0",
        summary=f"{labels} in {channels}",
        intended_use="Research use only; not a medical device, not for diagnosis or treatment",
        training_data=f"{len(setup.cases)} cases of {setup.name}",
        licence="not stated; that of the training data holds",
        attribution=f"trained on {setup.name}",
        scores={f"{score.metric} {score.label}": score.mean for score in scores if score.mean is not None},
        validation=validation,
        limits=() if validation else ("no case was held back: nobody knows how good it is",),
    )
