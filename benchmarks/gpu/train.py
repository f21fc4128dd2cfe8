"""Train the shipped hippocampus model in full on a CUDA card: five folds, their scores, and what the card did.

    python benchmarks/gpu/train.py DATA -o FOLDER [--minutes 60 | --epochs 200] [--folds 5]

Needs medseg and a build of torch for CUDA, and nothing else of this repository. DATA is whatever `medseg train` takes;
for the shipped model the hippocampus folder of the Medical Segmentation Decathlon. The minutes are those of the whole
command. Called again after a kill, it goes on. FOLDER gets the model, the logs of its members, `results.json` and
`results.md`.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Record = dict[str, Any]


def main() -> None:
    """Train, and write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER")
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument("--minutes", type=float, default=60)
    amount.add_argument("--epochs", type=int)
    parser.add_argument("--folds", type=int, default=5)
    words = parser.parse_args()
    card = card_here()
    words.output.mkdir(parents=True, exist_ok=True)
    model = words.output.resolve() / "hippocampus-t1.safetensors"
    seconds = None if model.exists() else train(model, words)
    members = [member(model, number) for number in range(words.folds)]
    results = {**card, "asked": asked(words), "command_seconds": seconds, **overall(model), "members": members}
    (words.output / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (words.output / "results.md").write_text("\n".join(table(results)) + "\n")
    print((words.output / "results.md").read_text())


def card_here() -> Record:
    """Return the name of the card and the versions; leave with one line where there is no card."""
    import torch

    import medseg

    if not torch.cuda.is_available():
        sys.exit(f"error: no CUDA device: torch {torch.__version__} sees none; run this on a machine that has one")
    return {
        "card": torch.cuda.get_device_name(0),
        "memory_gb": round(torch.cuda.get_device_properties(0).total_memory / 1e9, 1),
        "versions": {"medseg": medseg.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "finished": time.strftime("%Y-%m-%d %H:%M"),
    }


def train(model: Path, words: argparse.Namespace) -> float:
    """Run `medseg train` as a user does, and return its seconds."""
    splits = words.data / "splits.json"
    folds = ["--splits", splits] if splits.is_file() else ["--folds", words.folds]
    command = [sys.executable, "-m", "medseg", "train", words.data, "-o", model, *folds]
    start = time.perf_counter()
    done = subprocess.run([str(part) for part in [*command, *asked(words), "--device", "cuda"]], check=False)
    if done.returncode:
        sys.exit(f"error: medseg train ended with exit code {done.returncode}; see above")
    return time.perf_counter() - start


def asked(words: argparse.Namespace) -> list[str]:
    """Return the option that says how long."""
    return ["--epochs", f"{words.epochs}"] if words.epochs else ["--minutes", f"{words.minutes:g}"]


def member(model: Path, number: int) -> Record:
    """Return steps, speed, idle share of the card, and the Dice of the cases held back from a member."""
    from medseg.training.recipe import EPOCH

    folder = model.with_name(f"{model.stem}.training")
    rows = list(csv.DictReader((folder / f"member-{number}.csv").read_text().splitlines()))
    batch = json.loads((folder / "setup.json").read_text())["batch"]
    steps, seconds = int(rows[-1]["step"]), float(rows[-1]["seconds"])
    ends = [row for row in rows if int(row["step"]) % EPOCH == 0] or rows[-1:]  # there, the share is of a whole epoch
    idle = [float(row["idle"]) for row in ends if row["idle"]]
    return {
        "fold": number,
        "steps": steps,
        "seconds": seconds,
        "samples_per_second": steps * batch / seconds,
        "idle": statistics.fmean(idle) if idle else math.nan,
        "dice": fold_dice(model, folder / f"member-{number}.scores.json"),
    }


def fold_dice(model: Path, path: Path) -> dict[str, float]:
    """Return the mean Dice of each label over the cases held back from a member, cleaned up as the model says."""
    from medseg.bundle import Bundle
    from medseg.training.scoring import final_scores, from_data

    plan = Bundle.load(model).plan
    dice: dict[str, list[float]] = {label.name: [] for label in plan.labels}
    for case in final_scores(from_data(json.loads(path.read_text())), plan.largest_component, plan):
        for score in case.scores:
            dice[score.name].append(score.values["dice"])
    return {
        name: float(statistics.fmean(value for value in values if not math.isnan(value)))
        for name, values in dice.items()
    }


def overall(model: Path) -> Record:
    """Return the cross-validated scores on the card of the model, its size and its members."""
    from medseg.bundle import Bundle

    bundle = Bundle.load(model)
    return {"scores": bundle.card.scores, "members_in_model": len(bundle.members), "bytes": model.stat().st_size}


def table(results: Record) -> list[str]:
    """Return the results as lines of Markdown."""
    members: Sequence[Record] = results["members"]
    labels = list(members[0]["dice"])
    head = ["fold", *(f"Dice {label}" for label in labels), "steps", "samples/s", "idle share of the card"]
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    what = (
        f"{results['card']}, {results['memory_gb']} GB; {versions}; {' '.join(results['asked'])}; {results['finished']}"
    )
    lines = [what, "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for found in members:
        dice = " | ".join(f"{found['dice'][label]:.4f}" for label in labels)
        speed, idle = found["samples_per_second"], found["idle"]
        lines.append(f"| {found['fold']} | {dice} | {found['steps']} | {speed:.1f} | {idle:.1%} |")
    scores = ", ".join(f"{name} {value:.4f}" for name, value in sorted(results["scores"].items()))
    return [*lines, "", f"All folds together: {scores}.", f"The model has {results['bytes'] / 1e6:.1f} MB."]


if __name__ == "__main__":
    main()
