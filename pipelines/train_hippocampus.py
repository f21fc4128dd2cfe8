"""Train the shipped model `hippocampus-t1`: what `medseg train` does, and the names and codes of its labels.

    python pipelines/train_hippocampus.py DATA -o hippocampus-t1.safetensors --minutes 60

DATA is the folder of task 04 of the Medical Segmentation Decathlon, and `--splits` a file that says which cases are
held back from which member (five folds at random when left out). Killed, it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from medseg import Bundle
from medseg.plan import Plan
from medseg.training import Listener, Request, Step, Wishes, read_decathlon, train

HIPPOCAMPUS = {"value": "5366008", "meaning": "Hippocampus"}
ANTERIOR = {"value": "255549009", "meaning": "Anterior"}
POSTERIOR = {"value": "255551008", "meaning": "Posterior"}
LABELS = [
    {"value": 1, "name": "anterior", "color": [230, 110, 60], "code": HIPPOCAMPUS, "modifier": ANTERIOR},
    {"value": 2, "name": "posterior", "color": [70, 150, 230], "code": HIPPOCAMPUS, "modifier": POSTERIOR},
]
WIDTHS = (24, 48, 96)  # five members of this size take less than 8 MB
CARD = {
    "name": "hippocampus-t1",
    "version": "2.0.0",
    "summary": "Anterior and posterior hippocampus in a T1-weighted MR crop around one hippocampus",
    "training_data": "208 cases of task 04 (hippocampus) of the Medical Segmentation Decathlon: T1 MR, 1 mm",
    "licence": "CC-BY-SA-4.0",
    "attribution": (
        "Trained on the Medical Segmentation Decathlon (Antonelli et al., Nature Communications 13:4128, 2022), "
        "task 04, Vanderbilt University Medical Center, CC-BY-SA 4.0"
    ),
    "limits": (
        "Expects a crop of about 35 x 50 x 36 mm around one hippocampus; whole heads are flagged",
        "The training crops look like left hippocampi; mirror a crop of the right one first",
        "Adults scanned at one centre; healthy controls and patients with psychosis",
    ),
}


class Lines(Listener):
    """Prints a line for each validation."""

    def member(self, number: int, count: int, note: str) -> None:
        """Print whose turn it is."""
        print(f"member {number} of {count}: {note}", flush=True)

    def step(self, step: Step) -> None:
        """Print the Dice of held-back patches, where there is one."""
        if step.dice:
            dice = "  ".join(f"{name} {value:.4f}" for name, value in step.dice.items())
            print(f"step {step.step}  loss {step.loss:.3f}  {dice}  {step.seconds:.0f} s", flush=True)


def main() -> None:
    """Train, and write the model with its names and codes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path("hippocampus-t1.safetensors"))
    parser.add_argument("--splits", type=Path)
    parser.add_argument("--fold", type=int, help="this one alone; several such commands may run at once")
    parser.add_argument("--minutes", type=float, default=60, help="for all folds, or with --fold for one")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()

    listing = options.output.with_suffix(".cases.json")
    listing.write_text(json.dumps(list_cases(options.data)))
    raw = options.output.with_suffix(".raw.safetensors")
    folds = 0 if options.splits else 5
    request = Request(
        listing,
        raw,
        minutes=options.minutes,
        folds=folds,
        splits=options.splits,
        fold=options.fold,
        wishes=Wishes(widths=WIDTHS),
        device=options.device,
    )
    bundle = train(request, Lines())
    if bundle is None:
        return
    named(bundle).save(options.output)
    print(f"wrote {options.output}: {bundle.card.scores}")


def named(bundle: Bundle) -> Bundle:
    """Return a model with the names and codes of the shipped one."""
    plan = Plan.parse({**bundle.plan.model_dump(mode="json"), "labels": LABELS})
    card = bundle.card.model_copy(update=CARD)
    return Bundle.of(
        bundle.members, plan=plan, card=card, fingerprint=bundle.fingerprint, calibration=bundle.calibration
    )


def list_cases(folder: Path) -> dict[str, object]:
    """Return the cases of the folder under our names of its labels."""
    return {
        "channels": ["t1"],
        "labels": {str(label["name"]): label["value"] for label in LABELS},
        "training": [
            {
                "case": case.name,
                "image": str(case.images[0].path.resolve()),
                "label": str(case.reference.path.resolve()),
            }
            for case in read_decathlon(folder)
        ],
    }


if __name__ == "__main__":
    main()
