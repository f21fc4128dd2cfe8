"""Train a model on a folder of pairs by cross-validation, and score it in cases that it has never seen.

    python pipelines/train_cross_validate_evaluate.py DATA -o OUT --minutes 120 --folds 5

DATA is whatever `medseg train` takes: images/ beside labels/, x.nii.gz beside x_seg.nii.gz, a data set of the Decathlon
or of nnU-Net, a CSV of paths (with a column `group` where patients have several scans). Four steps:

1. every case is opened and checked; an error stops here;
2. a part of the cases (--test) is put aside, all scans of a patient together, before anything is planned;
3. one network is trained for each fold, and scored in its share of the other cases; the model is all of them together;
4. the model segments the test cases, and is scored against their references.

The scores of step 3 are of single networks in cases by which the training was judged, those of step 4 of the model in
cases that had no part in it: report these. Writes OUT/model.safetensors, OUT/test/<case>.nii.gz and OUT/scores.csv.
Killed, the same command goes on where it stopped. For research use only.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from medseg import MedsegError, Predictor, write
from medseg.atomic import check_writable, write_atomic
from medseg.errors import UsageError
from medseg.evaluation import Evaluation, Settings, complete, evaluate, summarise
from medseg.evaluation.result import as_csv
from medseg.training import Case, Dataset, Legend, Listener, Request, Step, train
from medseg.training.check import check
from medseg.training.data import reference_of
from medseg.training.layouts import find_dataset
from medseg.training.planning.labels import atom_table
from medseg.training.validation import held_out, lines, summarise_validation


class Lines(Listener):
    """Prints a line for each fold, and for each look at held-back patches."""

    def member(self, number: int, count: int, note: str) -> None:
        """Print which fold is learned."""
        print(f"fold {number + 1} of {count}: {note}", flush=True)

    def step(self, step: Step) -> None:
        """Print the Dice."""
        if dice := "  ".join(f"{name} {value:.3f}" for name, value in step.dice.items()):
            print(f"step {step.step}  loss {step.loss:.3f}  {dice}  {step.done:.0%} done", flush=True)


def main() -> int:
    """Do the four steps, and say in one line what stands in the way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder, dataset.json or CSV of cases")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for model and scores")
    parser.add_argument("--minutes", type=float, default=60.0, help="for the training of all folds")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--test", type=float, default=0.2, metavar="SHARE", help="of the cases, put aside to the end")
    parser.add_argument("--seed", type=int, default=0, help="of the draw of test cases, and of the training")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    try:
        return work(options)
    except MedsegError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def work(options: argparse.Namespace) -> int:
    """Check, put aside, train, and evaluate."""
    if not 0 < options.test < 1:
        raise UsageError(f"--test {options.test:g} is no share", hint="give one between 0 and 1, such as 0.2")
    checked = check(find_dataset(options.data))
    for found in checked.findings:
        print(f"{found.severity}: {found.code}: {found.case}: {found.detail}")
    if any(found.severity == "error" for found in checked.findings):
        raise UsageError(f"{options.data}: the check found errors", hint="mend the cases above, or take them out")
    dataset, output = checked.dataset, options.output
    learned, aside = held_out([case.group for case in dataset.cases], share=options.test, seed=options.seed)
    print(f"{dataset.name}: {len(learned)} cases to learn from, {len(aside)} for the test", flush=True)
    check_writable(output / "test")
    cases, model = output / "cases.json", output / "model.safetensors"
    wanted = listing(dataset, [dataset.cases[n] for n in learned])
    if cases.exists() and cases.read_bytes() != wanted:  # a model must not meet what it learned from
        raise UsageError(f"{output}: its training was of other cases", hint="choose another folder with -o")
    write_atomic(cases, [wanted])
    if not model.exists():
        budget = {"minutes": options.minutes, "folds": options.folds}
        train(Request(cases, model, **budget, device=options.device, seed=options.seed), Lines())
    card = (predictor := Predictor.load(model, device=options.device)).bundle.card
    print("\n".join(lines(card.validation) if card.validation else card.limits))
    test(predictor, dataset, [dataset.cases[n] for n in aside], output)
    return 0


def test(predictor: Predictor, dataset: Dataset, cases: list[Case], output: Path) -> None:
    """Segment the test cases, write label maps and scores, and print a table."""
    settings, scored = Settings(), []
    legend = Legend(dataset.labels, atom_table(dataset.labels), dataset.ignore)
    for case in cases:
        scan = case.scan()
        found = predictor(scan).labels
        write(found, output / "test" / f"{case.name}.nii.gz")
        reference, drawn = reference_of(case, predictor.bundle.plan, legend, scan.geometry)
        found = replace(found, array=found.array * drawn)  # where nobody has drawn, nothing is scored
        scored.append(evaluate(found, reference, settings, case=case.name))
    scored = complete(scored, settings.metrics)
    evaluation = Evaluation("test", dataset.name, settings, tuple(scored), tuple(summarise(scored, settings.metrics)))
    write_atomic(output / "scores.csv", [as_csv(evaluation)])
    shown = lines(summarise_validation(scored, "put aside, segmented by the whole model"))
    print("\n".join(["", *shown, f"wrote {output / 'model.safetensors'} and {output / 'scores.csv'}"]))


def listing(dataset: Dataset, cases: list[Case]) -> bytes:
    """Return a data set of some cases as JSON, with the names of its channels and labels."""
    data: dict[str, Any] = {"channels": [*dataset.channels], "ignore": dataset.ignore, "training": []}
    data["labels"] = {label.name: [*label.atoms] for label in dataset.labels}
    data["regions_class_order"] = [label.value for label in dataset.labels]
    for case in cases:
        files = [str(path.resolve()) for path in dict.fromkeys(file.path for file in case.images)]
        reference = str(case.reference.path.resolve())
        entry = {"case": case.name, "image": files if len(files) > 1 else files[0], "label": reference}
        data["training"].append({**entry, "group": case.group})
    return json.dumps(data, indent=1).encode()


if __name__ == "__main__":
    sys.exit(main())
