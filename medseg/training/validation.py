"""Validation: which cases a member must not see, what it scores in them, and which clean-up is worth it there."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np

from medseg.bundle import LabelScore, Validation, WorstCase
from medseg.errors import GeometryError, UsageError
from medseg.evaluation import METRICS, Case, Settings, choose_metrics, complete, evaluate, summarise
from medseg.plan import Plan
from medseg.postprocess import keep_largest
from medseg.training.dataset import Case as TrainingCase
from medseg.volume import LabelMap

_MOST_HELD_OUT = 200  # cases: more would make the interval hardly narrower
_WORST = 5  # cases that are named
_GAIN = 1e-4  # of the mean Dice
_GRAVE = 0.1  # of Dice in one case: a true part was cut off

_DICE, _BOTH = choose_metrics(["dice"]), choose_metrics(["dice", "hd95"])

Split = tuple[list[int], list[int]]


def held_out(groups: Sequence[str], *, share: float = 0.1, seed: int = 0) -> Split:
    """Return the indices of the cases to train on, and of those held back for validation.

    About a share of the cases is held back, at least one and at most 200; what is drawn depends on the groups and the
    seed alone. A group is never split: one that would lead further from the wanted number is passed over, and where
    all would, the smallest is held back.

    Parameters
    ----------
    groups : sequence of str
        Group of each case; cases of one group stay together, and "" is a group of its own.
    share : float
        Between 0 and 1.
    seed : int
        Of the draw.

    Raises
    ------
    UsageError
        If there are fewer than two groups.
    """
    units = _units(groups)
    if len(units) < 2:
        raise UsageError(
            f"{_many(len(groups), 'case')} of {_many(len(units), 'group')}: none can be held back for validation",
            hint="give cases of more patients, or --all to train without validation",
        )
    wanted = min(round(share * len(groups)), _MOST_HELD_OUT)
    drawn = [units[n] for n in np.random.default_rng(seed).permutation(len(units))]
    chosen: list[int] = []
    left = len(units)
    for unit in drawn:
        nearer = len(unit) < 2 * (wanted - len(chosen))
        if nearer and len(chosen) + len(unit) <= _MOST_HELD_OUT and left > 1:
            chosen += unit
            left -= 1
    if not chosen:
        chosen = min(drawn, key=len)
    return _split(chosen, len(groups))


def folds(groups: Sequence[str], count: int, *, seed: int = 0) -> list[Split]:
    """Return for each fold the indices of the cases to train on, and of those to validate in.

    Every case is validated in exactly one fold. Groups are given out by size, each to the fold with the fewest cases,
    so that folds of single cases differ by one at most.

    Parameters
    ----------
    groups, seed
        As of `held_out`.
    count : int
        Number of folds, 2 or more.

    Raises
    ------
    UsageError
        If there are fewer groups than folds.
    """
    if count < 2:
        raise UsageError(f"--folds {count}", hint="give 2 or more")
    units = _units(groups)
    if len(units) < count:
        raise UsageError(
            f"--folds {count} of {_many(len(groups), 'case')} in {_many(len(units), 'group')}",
            hint="give as many groups (patients) as folds, or ask for fewer folds",
        )
    drawn = [units[n] for n in np.random.default_rng(seed).permutation(len(units))]
    parts: list[list[int]] = [[] for _ in range(count)]
    for unit in sorted(drawn, key=len, reverse=True):
        min(parts, key=len).extend(unit)
    return [_split(part, len(groups)) for part in parts]


def read_splits(path: Path, cases: Sequence[TrainingCase]) -> list[Split]:
    """Return the folds of a JSON file: a list of objects with the names of `train` and `val` cases, as nnU-Net has it.

    Raises
    ------
    UsageError
        If it is damaged, names an unknown case, or has a case or a group on both sides of a fold.
    """
    places = {case.name: number for number, case in enumerate(cases)}
    groups = [case.group or case.name for case in cases]
    try:
        named = [(list(fold["train"]), list(fold["val"])) for fold in json.loads(path.read_bytes())]
        found = [([places[name] for name in learned], [places[name] for name in held]) for learned, held in named]
    except KeyError as error:
        what = "an entry lacks" if error.args[0] in {"train", "val"} else "there is no sound case"
        raise UsageError(f"{path}: {what} {error}", hint="give names of cases as `medseg check` has them") from None
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(
            f"{path}: cannot be used ({error})", hint='give a list of {"train": [...], "val": [...]}'
        ) from error
    for number, (learned, held) in enumerate(found):
        if len({*learned}) < len(learned) or len({*held}) < len(held):
            raise UsageError(f"{path}: fold {number} names a case twice", hint="name each case once; mend the file")
        both = {groups[n] for n in learned} & {groups[n] for n in held}
        if both or not learned:
            what = f"{min(both)} is on both sides" if both else "there is nothing to train on"
            raise UsageError(f"{path}: fold {number}: {what}", hint="scores would not be honest; mend the file")
    held_back = [n for _, held in found for n in held]
    double = next((n for n in held_back if held_back.count(n) > 1), None)
    if double is not None:
        raise UsageError(
            f"{path}: {cases[double].name} is held back twice", hint="its scores would count twice; mend the file"
        )
    if not found:
        raise UsageError(f"{path}: holds no fold", hint='give a list of {"train": [...], "val": [...]}')
    return found


@dataclass(frozen=True)
class Effect:
    """What keeping only the largest piece of a label did to the Dice of a label in one case (nan: undefined).

    Parameters
    ----------
    cleaned : str
        The label that was cleaned.
    label : str
        The label whose Dice this is: the same, or one that shares atoms with it.
    before, after : float
        Dice.
    """

    cleaned: str
    label: str
    before: float
    after: float


def effects_of_largest(prediction: LabelMap, reference: LabelMap) -> list[Effect]:
    """Return what keeping only the largest piece of each label would do to one case.

    Parameters
    ----------
    prediction, reference : LabelMap
        Of one patient, with the labels of the plan; the prediction as the network gave it, not cleaned.

    Raises
    ------
    GeometryError
        If the grids differ.
    """
    before = _dice(prediction, reference)
    touched = {
        label.name: [other.name for other in prediction.labels if {*label.atoms} & {*other.atoms}]
        for label in prediction.labels
    }
    apart = [name for name, names in touched.items() if len(names) == 1]  # do not change one another: in one go
    effects: list[Effect] = []
    for cleaned in [apart, *([name] for name in touched if name not in apart)]:
        labels, removed = keep_largest(prediction, cleaned)
        after = _dice(labels, reference) if any(removed.values()) else before
        effects += [Effect(name, other, before[other], after[other]) for name in cleaned for other in touched[name]]
    return effects


def largest_pieces_that_help(effects: Iterable[Effect], plan: Plan) -> tuple[str, ...]:
    """Return the labels of which only the largest piece should be kept, in the order of the plan.

    A label is chosen if over the cases its mean Dice rises by more than 0.0001, in at least two of them and in more
    than it falls; in no case it, or a label that shares atoms with it, falls by 0.1 or more (a true part was cut off);
    and the mean of no label that shares atoms with it falls. None is chosen for a network of slices: it may be asked
    for a single slice, in which one structure lies in several pieces.

    Parameters
    ----------
    effects : iterable of Effect
        Of all validation cases, in any order.
    plan : Plan
        Of the members.
    """
    if plan.axes == 2:
        return ()
    changes: dict[str, dict[str, list[float]]] = {label.name: {} for label in plan.labels}
    for effect in effects:
        change = effect.after - effect.before
        if math.isfinite(change):
            changes[effect.cleaned].setdefault(effect.label, []).append(change)
    return tuple(name for name, found in changes.items() if _helps(found.pop(name, []), list(found.values())))


def score_case(name: str, prediction: LabelMap, reference: LabelMap) -> Case:
    """Return Dice and HD95 of each label of a case; Dice alone where the voxel axes are not at right angles.

    Raises
    ------
    GeometryError
        If the grids differ.
    """
    try:
        return evaluate(prediction, reference, Settings(_BOTH), case=name)
    except GeometryError:
        return evaluate(prediction, reference, Settings(_DICE), case=name)


def summarise_validation(cases: Sequence[Case], how: str) -> Validation:
    """Return the scores of validation cases as they stand in a model card.

    Means and their 95 % intervals are those of `medseg.evaluation`, with misses: a label that was missed or made up
    counts as Dice 0, and as the diagonal of its image for HD95. HD95 is left out if any case has none.

    Parameters
    ----------
    cases : sequence of Case
        Of `score_case`, at least one.
    how : str
        In words: which cases were held back, by whom they were predicted.
    """
    metrics = [m for m in _BOTH if all(m.name in score.values for case in cases for score in case.scores)]
    cases = complete(cases, metrics)
    columns = {metric.name: metric.column(physical=all(case.physical for case in cases)) for metric in metrics}
    scores = [
        LabelScore(
            label=summary.name,
            metric=column,
            n=mean.n,
            missed=summary.missed + summary.spurious,
            mean=_number(mean.mean),
            low=_number(mean.low),
            high=_number(mean.high),
        )
        for summary in summarise(cases, metrics)
        for name, column in columns.items()
        for mean in [summary.metrics[name].with_misses]
    ]
    return Validation(how=how, cases=len(cases), scores=tuple(scores), worst=tuple(_worst(cases)))


def lines(validation: Validation) -> list[str]:
    """Return the scores as a table, and the worst cases, in lines for the terminal."""
    table: dict[str, dict[str, LabelScore]] = {}
    for score in validation.scores:
        table.setdefault(score.label, {})[score.metric] = score
    metrics = list(dict.fromkeys(score.metric for score in validation.scores))
    rows = [["label", "n", "missed", *map(_title, metrics)]]
    for label, found in table.items():
        first = found[metrics[0]]
        rows.append([label, str(first.n), str(first.missed), *(_interval(found[metric]) for metric in metrics)])
    worst = [[case.case, case.label, f"{case.dice:.3f}"] for case in validation.worst]
    return [
        f"{_many(validation.cases, 'case')}, {validation.how}",
        "mean [95 % interval]; a missed label counts as the worst there is",
        *_aligned(rows),
        *(["lowest Dice"] if worst else []),
        *_aligned(worst),
    ]


def _units(groups: Sequence[str]) -> list[list[int]]:
    """Return the indices of cases that stay together, by their first case."""
    units: dict[str | int, list[int]] = {}
    for place, group in enumerate(groups):
        units.setdefault(group or place, []).append(place)
    return list(units.values())


def _split(validation: Iterable[int], count: int) -> Split:
    chosen = {*validation}
    return [n for n in range(count) if n not in chosen], sorted(chosen)


def _dice(prediction: LabelMap, reference: LabelMap) -> dict[str, float]:
    case = evaluate(prediction, reference, Settings(_DICE))
    return {score.name: score.values["dice"] for score in case.scores}


def _helps(own: Sequence[float], others: Sequence[Sequence[float]]) -> bool:
    """Return whether changes of Dice are a gain for a label, and do no harm to others."""
    higher, lower = (sum(sign * change > 0 for change in own) for sign in (1, -1))
    return (
        higher >= 2
        and higher > lower
        and fmean(own) > _GAIN
        and all(fmean(changes) >= 0 for changes in others)
        and all(min(changes) > -_GRAVE for changes in (own, *others))
    )


def _worst(cases: Sequence[Case]) -> list[WorstCase]:
    """Return the label with the lowest Dice of each of the worst cases, first the worst."""
    found = []
    for case in cases:
        defined = [score for score in case.scores if math.isfinite(score.values["dice"])]
        if defined:
            score = min(defined, key=lambda score: score.values["dice"])
            found.append(WorstCase(case=case.name, label=score.name, dice=round(score.values["dice"], 6)))
    return sorted(found, key=lambda worst: worst.dice)[:_WORST]


def _number(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None


def _title(column: str) -> str:
    name, _, unit = column.partition("_")
    return f"{METRICS[name].title} {unit}".strip()


def _interval(score: LabelScore) -> str:
    if score.mean is None:
        return "-"
    digits = 3 if score.metric == "dice" else 2
    ends = "" if score.low is None else f" [{score.low:.{digits}f}, {score.high:.{digits}f}]"
    return f"{score.mean:.{digits}f}{ends}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows of a table, the first column to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
