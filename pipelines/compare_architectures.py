"""Train every architecture with one budget per data set, and compare them on cases that were held out.

    python pipelines/compare_architectures.py --data DIR --output OUT            # 60 to 90 minutes on two cores
    python pipelines/compare_architectures.py --data DIR --output OUT --full --device cuda

DIR holds `isbi2012/`, `drive/` and `hippocampus/` (with `splits.json`) as their makers pack them, or some of them
(`--only`). Writes OUT/<data set>/<network>.safetensors, OUT/<data set>.md (scores) and OUT/<data set>.png (one
held-out case, all networks). The same seed gives the same weights.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from medseg import Bundle, Plan, Predictor
from medseg.bundle import Card
from medseg.report.picture import contact_sheet
from medseg.training import STUDIES, Place, Recipe, fit, mean_scores, prepare_sample

UNET = {2: {"widths": [16, 32, 64, 128, 256]}, 3: {"widths": [16, 32, 64, 128]}}
FCN = {2: {"width": 16}, 3: {"width": 16, "fc_width": 256}}
SMALL: dict[str, dict[int, dict[str, Any]]] = {  # by axes: first stages of 16 channels, which two cores can train
    "fcn32s": FCN,
    "fcn16s": FCN,
    "fcn8s": FCN,
    "hypercolumn": {2: {"width": 16}, 3: {"width": 16}},
    "unet_original": {2: {"width": 16, "stages": 4}, 3: {"width": 16, "stages": 3}},
    "unet": UNET,
    "unet_residual": UNET,
    "unet_attention": UNET,
}
COARSER = {"fcn16s": "fcn32s", "fcn8s": "fcn16s"}
FULL = 40  # times the steps, with the default widths


def main() -> None:
    """Train, score and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=STUDIES, default=list(STUDIES), metavar="DATASET")
    parser.add_argument("--networks", nargs="+", choices=SMALL, default=list(SMALL), metavar="NAME")
    parser.add_argument("--full", action="store_true", help=f"default widths, {FULL} times the steps: for a GPU")
    parser.add_argument("--steps", type=int, help="another budget")
    parser.add_argument("--stagewise", action="store_true", help="start fcn16s from fcn32s, and fcn8s from fcn16s")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    for name in options.only:
        compare(name, options)


def compare(name: str, options: argparse.Namespace) -> None:
    """Train all networks on one data set; write table and picture as they come."""
    study, folder = STUDIES[name], options.output / name
    folder.mkdir(parents=True, exist_ok=True)
    learned, held_out = study.split(options.data / name)
    steps = options.steps or study.recipe.steps * (FULL if options.full else 1)
    recipe = replace(study.recipe, steps=steps, seed=options.seed)
    chosen = {network: {} if options.full else SMALL[network][study.plan["axes"]] for network in options.networks}
    plans = {
        network: Plan.parse({**study.plan, "network": {"architecture": network, "options": chosen[network]}})
        for network in options.networks
    }
    first = plans[options.networks[0]]  # the plans differ in the network alone, of which samples know nothing
    samples = [prepare_sample(case, first) for case in learned]
    maps = {"reference": held_out[0].labels(first.labels)}
    rows: list[list[str]] = []
    for network, plan in plans.items():
        coarser = folder / f"{COARSER.get(network)}.safetensors"
        start = Bundle.load(coarser).members[0] if options.stagewise and network in COARSER else None
        began = time.perf_counter()
        weights = fit(samples, plan, recipe, start=start, place=Place.on(options.device))
        minutes = (time.perf_counter() - began) / 60
        bundle = Bundle.of([weights], plan=plan, card=card(f"{name}-{network}", len(samples), recipe))
        bundle.save(folder / f"{network}.safetensors")
        predictor = Predictor(bundle, device=options.device)
        found = [predictor(case.scan(), probabilities=True) for case in held_out]
        scores = mean_scores([study.score(case, each, plan) for case, each in zip(held_out, found, strict=True)])
        size = sum(array.size for array in weights.values()) / 1e6
        rows.append([network, f"{size:.2f} M", f"{minutes:.1f}", *(f"{value:.4f}" for value in scores.values())])
        table = [["network", "weights", "minutes", *scores], ["---"] * (3 + len(scores)), *rows]
        text = "".join(f"| {' | '.join(row)} |\n" for row in table)
        (options.output / f"{name}.md").write_text(f"{name}, {recipe}\n\n{text}")
        print(f"{name} {network}: {scores}", flush=True)
        maps[network] = found[0].labels
        (options.output / f"{name}.png").write_bytes(contact_sheet(held_out[0].scan(), maps))


def card(name: str, cases: int, recipe: Recipe) -> Card:
    """Return what a user must know about a model."""
    return Card(
        name=name.replace("_", "-"),
        version="0.1.0",
        summary="One of several architectures, trained with one budget to compare them",
        intended_use="Comparison of architectures only",
        training_data=f"{cases} cases, {recipe.steps} steps",
        licence="as the data",
        attribution="the makers of the data",
    )


if __name__ == "__main__":
    main()
