"""What overlap of windows is worth: Dice against time, on cases that the network had not seen.

    python benchmarks/overlap.py DATA [--patch 40 56 40] [--cases N] [--backend torch]

DATA is the hippocampus task of the Decathlon with `splits.json`; each case is segmented by the member of the shipped
ensemble that was not trained on it. Most cases fit into one window of the shipped patch: a smaller one shows what
overlap does where there are many. The time is that of the pass alone: network, blending, restoring.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import medseg
from medseg import zoo
from medseg.metrics import dice

OVERLAPS = (0.0, 0.25, 0.5, 0.75)


def main() -> None:
    """Print a row for each overlap."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--patch", type=int, nargs=3, help="windows of another size than the model's")
    parser.add_argument("--cases", type=int, help="so many of each fold; all when left out")
    parser.add_argument("--backend", default="auto")
    words = parser.parse_args()
    bundle = medseg.Bundle.load(zoo.find("hippocampus-t1"))
    patch = tuple(words.patch or bundle.plan.patch)
    plan = bundle.plan.model_copy(update={"patch": patch})
    folds = [fold["val"][: words.cases] for fold in json.loads((words.data / "splits.json").read_text())]
    print(f"{sum(map(len, folds))} cases, windows of {' x '.join(map(str, patch))}\n")
    print("| overlap | windows a case | " + " | ".join(f"Dice {label.name}" for label in plan.labels) + " | time |")
    print("|---|---|" + "---|" * len(plan.labels) + "---|")
    first = 0.0
    for overlap in OVERLAPS:
        scores: dict[str, list[float]] = {label.name: [] for label in plan.labels}
        windows, seconds = [], 0.0
        for number, names in enumerate(folds):
            header = bundle.header.model_copy(update={"members": 1, "plan": plan})
            one = replace(bundle, header=header, members=(bundle.members[number],), sha256="")
            predictor = medseg.Predictor(one, device="cpu", overlap=overlap, backend=words.backend, threads=1)
            for name in names:
                scan = medseg.read(words.data / "imagesTr" / f"{name}.nii.gz")
                reference = medseg.read_labels(words.data / "labelsTr" / f"{name}.nii.gz").array
                found = predictor(scan)
                windows.append(found.windows["answered"])
                seconds += sum(found.seconds[part] for part in ("network", "blend", "restore"))
                for label in plan.labels:
                    scores[label.name].append(dice(found.labels.mask(label.name), reference == label.value))
        first = first or seconds
        means = " | ".join(f"{fmean(values):.4f}" for values in scores.values())
        print(f"| {overlap:g} | {fmean(windows):.1f} | {means} | {seconds / first:.2f} |", flush=True)


if __name__ == "__main__":
    main()
