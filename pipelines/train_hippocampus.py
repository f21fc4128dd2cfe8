"""Train the shipped model `hippocampus-t1` from the Decathlon's hippocampus data, or score the recipe on a fold.

    python pipelines/train_hippocampus.py DATA --fold 0                 # train on four fifths, score on the fifth
    python pipelines/train_hippocampus.py DATA -o hippocampus-t1.safetensors   # train on all cases

DATA is the folder of task 04 of the Medical Segmentation Decathlon, with `splits.json` (five folds) for --fold.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

from medseg import Bundle, Plan, Predictor, metrics
from medseg.bundle import Card
from medseg.plan import Fingerprint
from medseg.prepare import prepare
from medseg.qc import fingerprint, measure
from medseg.training import Case, Recipe, fit, prepare_sample, read_decathlon, select

HIPPOCAMPUS = {"value": "5366008", "meaning": "Hippocampus"}
ANTERIOR = {"value": "255549009", "meaning": "Anterior"}
POSTERIOR = {"value": "255551008", "meaning": "Posterior"}
PLAN = Plan.parse(
    {
        "axes": 3,
        "channels": [{"name": "t1", "intensity": {"kind": "zscore"}}],
        "labels": [
            {"value": 1, "name": "anterior", "color": [230, 110, 60], "code": HIPPOCAMPUS, "modifier": ANTERIOR},
            {"value": 2, "name": "posterior", "color": [70, 150, 230], "code": HIPPOCAMPUS, "modifier": POSTERIOR},
        ],
        "spacing": [1, 1, 1],
        "patch": [40, 56, 40],
        "overlap": 0.25,
        "network": {
            "architecture": "unet",
            "options": {"widths": [16, 32, 64, 128], "residual": True, "deep_supervision": True},
        },
        "largest_component": ["anterior", "posterior"],
    }
)
RECIPE = Recipe(steps=6000)


def main() -> None:
    """Train on one fold or on all cases, and write the bundle."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path("hippocampus-t1.safetensors"))
    parser.add_argument("--fold", type=int, help="train on the other folds and score on this one")
    parser.add_argument("--steps", type=int, default=RECIPE.steps)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--scores", type=Path, help="JSON of scores (from --fold) for the model card")
    options = parser.parse_args()

    cases, held_out = read_decathlon(options.data), []
    if options.fold is not None:
        split = json.loads((options.data / "splits.json").read_text())[options.fold]
        cases, held_out = select(cases, split["train"]), select(cases, split["val"])
    start = time.perf_counter()

    def report(step: int, loss: float) -> None:
        if step % 100 == 0:
            print(f"step {step} of {options.steps}  loss {loss:.3f}  {time.perf_counter() - start:.0f} s", flush=True)

    samples = [prepare_sample(case, PLAN) for case in cases]
    weights = fit(samples, PLAN, Recipe(steps=options.steps), device=options.device, on_step=report)
    scores = json.loads(options.scores.read_text()) if options.scores else {}
    bundle = Bundle.of([weights], plan=PLAN, card=card(len(cases), scores), fingerprint=look_at(cases))
    bundle.save(options.output)
    print(f"wrote {options.output}")
    if held_out:
        scored = score(Predictor.load(options.output, device=options.device), held_out)
        options.output.with_suffix(".json").write_text(json.dumps(scored, indent=1) + "\n")
        print(json.dumps(scored))


def look_at(cases: list[Case]) -> Fingerprint:
    """Return what the cases look like, with the experts' labels."""
    return fingerprint(measure(prepare(case.scan(), PLAN), case.labels(PLAN.labels), PLAN) for case in cases)


def score(predictor: Predictor, cases: list[Case]) -> dict[str, float]:
    """Return the mean Dice of each label over cases that were not trained on."""
    dice: dict[str, list[float]] = {label.name: [] for label in PLAN.labels}
    for case in cases:
        predicted, reference = predictor(case.scan()).labels, case.labels(PLAN.labels)
        for name, values in dice.items():
            values.append(metrics.dice(predicted.mask(name), reference.mask(name)))
    return {f"dice {name}": round(float(np.mean(values)), 4) for name, values in dice.items()}


def card(count: int, scores: dict[str, float]) -> Card:
    """Return what a user must know about the model."""
    return Card(
        name="hippocampus-t1",
        version="1.0.0",
        summary="Anterior and posterior hippocampus in a T1-weighted MR crop around one hippocampus",
        intended_use="Research use only; not a medical device, not for diagnosis or treatment",
        training_data=f"{count} cases of task 04 (hippocampus) of the Medical Segmentation Decathlon: T1 MR, 1 mm",
        licence="CC-BY-SA-4.0",
        attribution=(
            "Trained on the Medical Segmentation Decathlon (Antonelli et al., Nature Communications 13:4128, 2022), "
            "task 04, Vanderbilt University Medical Center, CC-BY-SA 4.0"
        ),
        scores=scores,
        limits=(
            "Expects a crop of about 35 x 50 x 36 mm around one hippocampus; whole heads are flagged",
            "The training crops look like left hippocampi; mirror a crop of the right one first",
            "Adults scanned at one centre; healthy controls and patients with psychosis",
        ),
    )


if __name__ == "__main__":
    main()
