"""Calibrate the shipped model `hippocampus-t1`: a temperature, and the Dice to expect, from cases held out by fold.

    python pipelines/calibrate_hippocampus.py DATA -o hippocampus-t1.safetensors

DATA is task 04 of the Medical Segmentation Decathlon with `splits.json`: member K of the model has not seen the `val`
cases of fold K, and predicts them alone; every fourth one damaged too. Damage marked `*` helps to find the lines from
soft Dice to Dice, the other kinds show how those hold. The weights stay as they are.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medseg import Bundle, Predictor, Volume
from medseg.inference.calibration import Evidence, Witness, expected_dice, fit
from medseg.metrics import calibration_error, dice
from medseg.plan import Calibration
from medseg.qc import low_confidence
from medseg.training import Case, read_decathlon
from medseg.zoo import find

HOW = "cross-validation over 5 folds, each case predicted by the member that had not seen it"
LIMIT = "The Dice to expect tells damaged scans from sound ones; among sound ones it says hardly more than the mean"
Array = npt.NDArray[Any]


def noisy(scan: Array, share: float) -> Array:
    """Return a scan with noise of a share of its deviation."""
    return np.asarray(scan + np.random.default_rng(0).normal(size=scan.shape) * share * scan.std())


def ghosted(scan: Array, voxels: int) -> Array:
    """Return a scan with two ghosts, as of a patient who moved."""
    return np.asarray((scan + 0.7 * np.roll(scan, voxels, axis=1) + 0.7 * np.roll(scan, -voxels, axis=1)) / 2.4)


DAMAGE: dict[str, Callable[[Array], Array]] = {
    **{f"noise {share}": partial(noisy, share=float(share.strip(" *"))) for share in ("0.5", "1 *", "2 *")},
    **{f"blur {voxels} *": partial(ndimage.gaussian_filter, sigma=(0, voxels, voxels, voxels)) for voxels in (1, 2, 3)},
    **{f"ghosts {voxels}": partial(ghosted, voxels=int(voxels.strip(" *"))) for voxels in ("3", "6 *")},
    "back quarter blank": lambda scan: scan * (np.arange(scan.shape[2]) >= scan.shape[2] // 4)[:, None],
    "back half blank": lambda scan: scan * (np.arange(scan.shape[2]) >= scan.shape[2] // 2)[:, None],
    "slices of 3 mm": lambda scan: scan[..., np.arange(scan.shape[3]) // 3 * 3],
    "slices of 5 mm": lambda scan: scan[..., np.arange(scan.shape[3]) // 5 * 5],
    "uneven brightness": lambda scan: scan * np.linspace(0.3, 1.7, scan.shape[1])[:, None, None],
}


def held_out(bundle: Bundle, data: Path) -> Iterator[tuple[Predictor, Case, int]]:
    """Yield each case, its number in its fold, and the member that has not seen it."""
    cases = {case.name: case for case in read_decathlon(data)}
    for weights, fold in zip(bundle.members, json.loads((data / "splits.json").read_text()), strict=True):
        member = Bundle.of([weights], plan=bundle.plan, card=bundle.card, calibration=bundle.calibration)
        predictor = Predictor(member, device="cpu", backend="torch")
        for number, name in enumerate(name for name in fold["val"] if name in cases):
            yield predictor, cases[name], number


def ask(predictor: Predictor, case: Case, kind: str) -> Evidence:
    """Return what a case, perhaps damaged, says of how sure a member may be."""
    scan, reference = case.scan(), case.labels(predictor.bundle.plan.labels)
    if kind in DAMAGE:
        scan = Volume(DAMAGE[kind](scan.array.astype(np.float32)).astype(np.float32), scan.geometry)
    witness = Witness(predictor.bundle.plan, reference)
    found = predictor(scan, watch=witness).labels
    scores = {label.name: dice(found.mask(label.name), reference.mask(label.name)) for label in found.labels}
    return witness.evidence(case.name, scores, damaged=kind in DAMAGE)


def reliability(bundle: Bundle, data: Path) -> float:
    """Return the calibration error of the winning label's probability over all voxels of held-out cases."""
    sure, right = [], []
    for predictor, case, _ in held_out(bundle, data):
        if shares := predictor(case.scan(), probabilities=True).probabilities:
            sure.append(shares.array.max(axis=0).ravel())
            right.append((shares.array.argmax(axis=0) == case.labels().array).ravel())
    return calibration_error(np.concatenate(sure).clip(0, 1), np.concatenate(right))


def row(title: str, cases: Sequence[Evidence], calibration: Calibration) -> str:
    """Return how well a calibration holds in some cases."""
    found = [expected_dice(case, calibration) for case in cases]
    text = f"{title:<20}{len(cases):>4} cases"
    for name in calibration.labels:
        true, said = np.array([case.dice[name] for case in cases]), np.array([each.get(name, 0.0) for each in found])
        text += f"; {name} {true.mean():.3f}, expected {said.mean():.3f}, off by {abs(said - true).mean():.3f}"
    doubts = [{reason.severity for reason in low_confidence(each, calibration)} for each in found]
    return f"{text}; flagged {sum(map(bool, doubts))}, of these refused {sum('refuse' in doubt for doubt in doubts)}"


def main() -> None:
    """Gather evidence, fit, say how well it holds, and write the model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path("hippocampus-t1.safetensors"))
    options = parser.parse_args()
    old = Bundle.load(find("hippocampus-t1"))
    plain = Bundle.of(old.members, plan=old.plan, card=old.card, fingerprint=old.fingerprint)
    heard: dict[str, list[Evidence]] = {kind: [] for kind in ("*", *DAMAGE)}
    for predictor, case, number in held_out(plain, options.data):
        for kind in heard if number % 4 == 0 else "*":
            heard[kind].append(ask(predictor, case, kind))
    chosen = [each for kind in heard if "*" in kind for each in heard[kind]]
    calibration = fit(chosen, [label.name for label in plain.plan.labels], HOW)
    if calibration is None:
        parser.error("there are too few cases")
    limits = tuple(dict.fromkeys((*old.card.limits, LIMIT)))
    card = old.card.model_copy(update={"version": "2.1.0", "limits": limits})
    new = Bundle.of(old.members, plan=old.plan, card=card, fingerprint=old.fingerprint, calibration=calibration)
    new.save(options.output)
    print(calibration.model_dump_json(indent=1))
    for low, high in pairwise((0.0, 0.5, 0.7, 0.8, 1.0)):
        heard[f"worst {low}-{high}"] = [c for kind in DAMAGE for c in heard[kind] if low <= min(c.dice.values()) < high]
    for title, cases in heard.items():
        print(row(title, cases, calibration), flush=True)
    print(f"calibration error {reliability(plain, options.data):.4f}, now {reliability(new, options.data):.4f}")


if __name__ == "__main__":
    main()
