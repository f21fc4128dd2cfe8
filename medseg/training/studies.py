"""Three public data sets: where their cases are, how they are split, and the scores their communities report."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg import metrics
from medseg.errors import UsageError
from medseg.inference import Prediction
from medseg.io import count_pages, read
from medseg.plan import Plan
from medseg.training.dataset import Case, File, select
from medseg.training.layouts import read_decathlon
from medseg.training.recipe import Recipe

Scores = dict[str, float | list[float]]  # for each metric a number, or one for each threshold
THRESHOLDS = np.arange(1, 20) / 20
OBSERVER = 0.9725  # specificity at which sensitivity is read: a human observer's on DRIVE, in published tables


@dataclass(frozen=True)
class Study:
    """A data set as a comparison of networks uses it.

    Parameters
    ----------
    split : callable
        From the data set's folder to training and held-out cases.
    score : callable
        From a case, a prediction with probabilities and its plan to the scores of that case.
    recipe : Recipe
        Training that two cores manage in some minutes.
    plan : dict
        All of a plan but the network.
    """

    split: Callable[[Path], tuple[list[Case], list[Case]]]
    score: Callable[[Case, Prediction, Plan], Scores]
    recipe: Recipe
    plan: dict[str, Any]


def read_isbi2012(folder: Path) -> list[Case]:
    """Return the slices of the ISBI 2012 challenge (electron microscopy, membranes), by number.

    The folder holds the challenge's `train-volume.tif` and `train-labels.tif`: pages of 512 x 512 pixels, 0 membrane,
    255 cell.

    Raises
    ------
    UsageError
        If a file is missing.
    ScanError
        If the pages cannot be counted.
    """
    volume, labels = (_present(folder / f"train-{what}.tif") for what in ("volume", "labels"))
    return [Case(f"slice_{page:02d}", (File(volume, page),), File(labels, page)) for page in range(count_pages(volume))]


def read_drive(folder: Path) -> list[Case]:
    """Return the training photographs of DRIVE (eye fundus, vessels), by number.

    The folder holds DRIVE's own `images/21_training.tif`, ... (RGB) and `1st_manual/21_manual1.gif`, ... (255 vessel).

    Raises
    ------
    UsageError
        If there is no photograph, or a manual is missing.
    """
    images = sorted((folder / "images").glob("*_training.tif"))
    if not images:
        raise UsageError(f"{folder}: no images/*_training.tif", hint="give the training folder of DRIVE")
    numbers = [path.name.split("_")[0] for path in images]
    manuals = [_present(folder / "1st_manual" / f"{number}_manual1.gif") for number in numbers]
    return [
        Case(number, (File(image),), File(manual))
        for number, image, manual in zip(numbers, images, manuals, strict=True)
    ]


def _present(path: Path) -> Path:
    if not path.is_file():
        raise UsageError(f"{path}: there is no such file", hint="give the folder as its makers pack it")
    return path


def _split_isbi2012(folder: Path) -> tuple[list[Case], list[Case]]:
    """Train on slices 0 to 17, report 18 to 23."""
    cases = read_isbi2012(folder)
    return cases[:18], cases[18:]


def _split_drive(folder: Path) -> tuple[list[Case], list[Case]]:
    """Train on the first 16 of the 20 training photographs, report the last 4."""
    cases = read_drive(folder)
    return cases[:16], cases[16:]


def _split_hippocampus(folder: Path) -> tuple[list[Case], list[Case]]:
    """Fold 0 of `splits.json`: five folds of a Decathlon folder."""
    cases, listing = read_decathlon(folder), folder / "splits.json"
    try:
        fold = json.loads(listing.read_text())[0]
        return select(cases, fold["train"]), select(cases, fold["val"])
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise UsageError(f"{listing}: cannot be used ({error})", hint="give a list of folds") from error


def score_membranes(case: Case, found: Prediction, plan: Plan) -> Scores:
    """Return the scores of ISBI 2012: of the membrane, and of the cells that it keeps apart at each threshold."""
    membrane = _probabilities(found)[0, ..., 0]
    reference = ~case.labels(plan.labels).mask("cell")[..., 0]
    cells, made = metrics.components(~reference), [metrics.thinned(membrane, value) for value in THRESHOLDS]
    return {
        "Dice": metrics.dice(membrane > 0.5, reference),
        "IoU": metrics.iou(membrane > 0.5, reference),
        "pixel error": metrics.pixel_error(membrane > 0.5, reference),
        "V-Rand": [metrics.v_rand(parts, cells) for parts in made],
        "V-Info": [metrics.v_info(parts, cells) for parts in made],
    }


def score_vessels(case: Case, found: Prediction, plan: Plan) -> Scores:
    """Return the scores of DRIVE inside the field of view, which the folder's `mask/` gives."""
    mask = case.images[0].path.parent.parent / "mask" / f"{case.name}_training_mask.gif"
    inside = read(mask).array[0] > 0
    vessel, reference = _probabilities(found)[1][inside], case.labels(plan.labels).mask("vessel")[inside]
    return {
        "Dice": metrics.dice(vessel > 0.5, reference),
        "AUC": metrics.auc(vessel, reference),
        "sensitivity": metrics.sensitivity_at_specificity(vessel, reference, OBSERVER),
    }


def score_structures(case: Case, found: Prediction, plan: Plan) -> Scores:
    """Return Dice and HD95 (mm) of each label; the distance of a missed one is the scan's diagonal."""
    scores: Scores = {}
    reference = case.labels(plan.labels)
    diagonal = float(np.linalg.norm(reference.geometry.extent))
    for label in plan.labels:
        masks = found.labels.mask(label.name), reference.mask(label.name)
        distance = metrics.hausdorff_distance(*masks, reference.geometry.spacing, percentile=95)
        scores[f"Dice {label.name}"] = metrics.dice(*masks)
        scores[f"HD95 {label.name}"] = min(distance, diagonal)
    return scores


def mean_scores(cases: list[Scores]) -> dict[str, float]:
    """Return the mean of each metric over the cases where it is defined; of several thresholds, the best one's."""
    means = {}
    for name in cases[0]:
        over_cases = np.nanmean(np.array([case[name] for case in cases]), axis=0)
        means[name] = float(np.max(over_cases))
    return means


def _probabilities(found: Prediction) -> npt.NDArray[Any]:
    if found.probabilities is None:
        raise UsageError("these scores need probabilities", hint="call the predictor with probabilities=True")
    return found.probabilities.array


def _inputs(*channels: str) -> list[dict[str, Any]]:
    return [{"name": name, "intensity": {"kind": "zscore"}} for name in channels]


_PLAN_2D: dict[str, Any] = {"axes": 2, "patch": [256, 256, 1], "overlap": 0.25}
_RECIPE_2D = Recipe(steps=300, batch=4, elastic=True)
STUDIES = {
    "isbi2012": Study(
        _split_isbi2012,
        score_membranes,
        _RECIPE_2D,
        {**_PLAN_2D, "channels": _inputs("em"), "labels": [{"value": 255, "name": "cell"}]},
    ),
    "drive": Study(
        _split_drive,
        score_vessels,
        _RECIPE_2D,
        {**_PLAN_2D, "channels": _inputs("red", "green", "blue"), "labels": [{"value": 255, "name": "vessel"}]},
    ),
    "hippocampus": Study(
        _split_hippocampus,
        score_structures,
        Recipe(steps=500),
        {
            "axes": 3,
            "patch": [40, 56, 40],
            "overlap": 0.25,
            "spacing": [1, 1, 1],
            "channels": _inputs("t1"),
            "labels": [{"value": 1, "name": "anterior"}, {"value": 2, "name": "posterior"}],
        },
    ),
}
