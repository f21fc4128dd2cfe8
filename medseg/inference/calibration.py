"""Calibration: a temperature, and the Dice to expect of each label, from cases that the network had not seen.

The same pass that predicts a held-out case is watched by a `Witness`, who holds the planes of logits against the
reference. What it says of all cases together is the `Calibration` of the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from medseg.errors import UsageError
from medseg.inference.uncertainty import fresh_rows, joint, lead, soft_dice, unclear
from medseg.inference.windows import Strip, Windows
from medseg.kernels import Place
from medseg.plan import Calibration, DiceLine, Plan
from medseg.prepare import Prepared
from medseg.resampling import cubic_matrix
from medseg.restore import Settled, resample_labels, softmax
from medseg.volume import LabelMap

_STEPS = np.arange(-4, 9) / 4
TEMPERATURES = tuple((2.0**_STEPS).tolist())  # 0.5 to 4; between them, splines
_UNDRAWN = 255
_FEWEST = 8  # cases from which a line is drawn
_STEEPEST = 3.0  # of a line: half as much again as that of any label of the shipped model
_UNHARMED = 2.0  # weight of all cases as they are against all damaged copies
_PARTS = 5  # of the cases: each is judged by what the others say
_TRIED = 3001  # temperatures
_TURNS = 30  # of the search for the line of least absolute differences
_FINE = 1e-3  # of Dice

Floats = npt.NDArray[np.float64]
Line = tuple[float, float]  # intercept, slope


@dataclass(frozen=True)
class Evidence:
    """What one held-out case says of how sure the network may be.

    Parameters
    ----------
    case : str
        Its name.
    voxels : int
        How many were looked at.
    nll : tuple of float
        Negative log likelihood of all of them, in nats, at each of `TEMPERATURES`.
    soft : mapping of str to tuple of float
        Soft Dice of each label that was found, likewise.
    dice : mapping of str to float
        Dice of each label.
    damaged : bool
        Whether this is a damaged copy of the case.
    """

    case: str
    voxels: int
    nll: tuple[float, ...]
    soft: Mapping[str, tuple[float, ...]]
    dice: Mapping[str, float]
    damaged: bool = False


class Witness:
    """Watches a pass over a held-out case.

    Parameters
    ----------
    plan : Plan
        Of the model.
    reference : LabelMap
        With the atoms of the plan, on the grid of the scan.
    drawn : (I, J, K) array of bool, optional
        Where the reference has been drawn; everywhere when left out.

    Raises
    ------
    UsageError
        If the plan has more than 254 atoms.
    """

    maps = 0

    def __init__(self, plan: Plan, reference: LabelMap, drawn: npt.NDArray[np.bool_] | None = None) -> None:
        if len(plan.atoms) >= _UNDRAWN:
            raise UsageError(f"{len(plan.atoms)} atoms", hint=f"a calibration takes fewer than {_UNDRAWN}")
        self._plan, self._geometry = plan, reference.geometry
        channels = reference.places([[atom] for atom in plan.atoms]).astype(np.uint8)
        self._channels = channels if drawn is None else np.where(drawn, channels, np.uint8(_UNDRAWN))

    def begin(self, prepared: Prepared, windows: Windows, place: Place) -> None:
        """Forget what was seen: a pass begins, perhaps the same once more."""
        self._place = place
        self._truth = resample_labels(self._channels, self._geometry, prepared.geometry).transpose(windows.axes)
        count = len(self._plan.atoms) + 1
        self._nll = np.zeros(len(TEMPERATURES))
        self._joint = np.zeros((len(TEMPERATURES), count, count))
        self._voxels = 0

    def __call__(self, strip: Strip, first: int, planes: Sequence[Settled]) -> None:
        """Hold settled planes, of which the first has number `first`, against the reference."""
        rows = fresh_rows(strip)
        start, count = rows.start - strip.rows[0], len(self._joint[0])
        for number, (plane, labels) in enumerate(planes, first):
            logits, winners = plane[:count, start:], self._place.get(labels[start:])
            truth = self._truth[number, rows]
            drawn = truth != _UNDRAWN
            ahead = self._place.get(lead(logits))
            mask = drawn & (unclear(ahead, TEMPERATURES[-1]) | (winners != truth))
            values = self._place.get(logits[:, self._place.put(mask)]).astype(np.float64)
            self._add(values, ahead[mask], winners[mask], truth[mask])
            self._joint += np.diag(np.bincount(winners[drawn & ~mask], minlength=count))
            self._voxels += int(np.count_nonzero(drawn))

    def evidence(self, case: str, dice: Mapping[str, float], *, damaged: bool = False) -> Evidence:
        """Return what was seen, with the Dice of the label map that came of it."""
        found = [soft_dice(each, self._plan) for each in self._joint]
        soft = {name: tuple(round(each[name], 6) for each in found) for name in found[0]}
        nll = tuple(round(value, 3) for value in self._nll.tolist())
        return Evidence(case, self._voxels, nll, soft, dict(dice), damaged)

    def _add(
        self, values: Floats, ahead: npt.NDArray[np.float32], won: npt.NDArray[np.uint8], truth: npt.NDArray[np.uint8]
    ) -> None:
        """Add voxels by logits (L, N), lead, label and reference (N,); a lead that is large enough leaves no doubt."""
        voxels = np.arange(len(won))
        missing = (values[won, voxels] - values[truth, voxels]).sum()
        for number, temperature in enumerate(TEMPERATURES):
            near = unclear(ahead, temperature)
            shares = softmax(values[:, near], temperature)
            self._nll[number] += missing / temperature - np.log(shares.max(axis=0)).sum()
            self._joint[number] += joint(won[near], shares, won[~near])


def fit(evidence: Sequence[Evidence], labels: Sequence[str], how: str) -> Calibration | None:
    """Return the calibration of a model; None where fewer than eight cases speak for it.

    The temperature is the one of least negative log likelihood in the cases as they are (Guo et al. 2017). From soft
    Dice to Dice leads a line through the mean of the cases, so that it is right on average. It is as steep as the line
    of least absolute differences over cases and damaged copies, and at least as steep as the one from (0, 0).

    Parameters
    ----------
    evidence : sequence of Evidence
        Of held-out cases, and perhaps of damaged copies of them, without which lines hold for good scans alone.
    labels : sequence of str
        Of the plan.
    how : str
        In words: which cases were held out, by whom they were predicted.
    """
    whole = [each for each in evidence if not each.damaged]
    if len(whole) < _FEWEST:
        return None
    temperature, nll = _temperature(whole)
    lines = {label: _judged_line(evidence, label, temperature) for label in labels}
    return Calibration(
        how=how,
        cases=len(whole),
        damaged=len(evidence) - len(whole),
        temperature=round(temperature, 4),
        nll=nll,
        labels={label: line for label, line in lines.items() if line},
    )


def expected_dice(evidence: Evidence, calibration: Calibration) -> dict[str, float]:
    """Return the Dice that a calibration lets expect of each label that was found in a case."""
    step = np.log2([calibration.temperature])
    soft = {name: float(_at(step, np.array(curve))[0]) for name, curve in evidence.soft.items()}
    return {name: line.at(soft[name]) for name, line in calibration.labels.items() if name in soft}


@dataclass(frozen=True)
class _Points:
    """Soft Dice and Dice of one label in some cases (N,), and which of them are damaged copies."""

    soft: Floats
    dice: Floats
    damaged: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, evidence: Sequence[Evidence], label: str, temperature: float) -> _Points:
        found = [each for each in evidence if label in each.soft and isfinite(each.dice[label])]
        curves = np.array([each.soft[label] for each in found]).reshape(len(found), len(_STEPS)).T
        dice = [each.dice[label] for each in found]
        return cls(
            _at(np.log2([temperature]), curves)[0], np.array(dice), np.array([each.damaged for each in found], bool)
        )


def _judged_line(evidence: Sequence[Evidence], label: str, temperature: float) -> DiceLine | None:
    """Return the line of a label, and how well lines of four fifths of the cases hold in the fifth; None of too few."""
    points = _Points.of(evidence, label, temperature)
    line = _line(points)
    if line is None:
        return None
    names = sorted({each.case for each in evidence})
    expected, dice, damaged = [], [], []
    for part in range(_PARTS):
        held = {*names[part::_PARTS]}
        others = [each for each in evidence if each.case not in held]
        apart, _ = _temperature([each for each in others if not each.damaged])
        other = _line(_Points.of(others, label, apart), fewest=1)
        if other is None:  # all cases with this label are among those held out here
            continue
        own = _Points.of([each for each in evidence if each.case in held], label, apart)
        expected.append(_along(other, own.soft))
        dice.append(own.dice)
        damaged.append(own.damaged)
    if not dice:
        return None
    return _described(line, points, np.concatenate(expected), np.concatenate(dice), np.concatenate(damaged))


def _described(line: Line, points: _Points, expected: Floats, dice: Floats, damaged: npt.NDArray[np.bool_]) -> DiceLine:
    """Return a line with what is known of it: its own lowest value, and how far `expected` lies from `dice`."""
    away, whole = np.abs(expected - dice), ~damaged
    return DiceLine(
        intercept=round(line[0], 6),
        slope=round(line[1], 6),
        low=round(float(_along(line, points.soft[~points.damaged]).min()), 6),
        cases=int(np.count_nonzero(whole)),
        error=round(float(away[whole].mean()), 6),
        pearson=_correlation(expected[whole], dice[whole]),
        spearman=_correlation(rankdata(expected[whole]), rankdata(dice[whole])),
        error_damaged=round(float(away[damaged].mean()), 6) if damaged.any() else None,
    )


def _temperature(whole: Sequence[Evidence]) -> tuple[float, tuple[float, float]]:
    """Return the best temperature, and the mean negative log likelihood of a voxel at 1 and at that."""
    curve = np.array([each.nll for each in whole]).sum(axis=0) / sum(each.voxels for each in whole)
    tried = np.linspace(_STEPS[0], _STEPS[-1], _TRIED)
    losses = _at(tried, curve)
    best = int(losses.argmin())
    return float(2.0 ** tried[best]), (round(float(_at(np.zeros(1), curve)[0]), 8), round(float(losses[best]), 8))


def _at(steps: Floats, curve: Floats) -> Floats:
    """Return the values of a curve (or of several, side by side) over `TEMPERATURES` at powers of two (N,)."""
    values: Floats = cubic_matrix(len(_STEPS), (steps - _STEPS[0]) / (_STEPS[1] - _STEPS[0])).astype(np.float64) @ curve
    return values


def _line(points: _Points, fewest: int = _FEWEST) -> Line | None:
    """Return the line through the mean of the cases, as steep as that of least absolute differences; None of few."""
    soft, dice, whole = points.soft, points.dice, ~points.damaged
    cases = int(np.count_nonzero(whole))
    if cases < fewest:
        return None
    weight = np.where(whole, _UNHARMED / cases, 1 / max(1, len(soft) - cases))
    least = float(np.mean(dice[whole]) / np.mean(soft[whole]))
    slope, pull = least, weight
    for _ in range(_TURNS):
        x, y = soft - np.average(soft, weights=pull), dice - np.average(dice, weights=pull)
        spread = float((pull * x * x).sum())
        slope = float((pull * x * y).sum()) / spread if spread else least
        away = y - slope * x
        pull = weight / np.abs(away).clip(_FINE)
    slope = min(max(slope, least), max(_STEEPEST, least))
    return float(np.mean(dice[whole] - slope * soft[whole])), slope


def _along(line: Line, soft: Floats) -> Floats:
    found: Floats = np.clip(line[0] + line[1] * soft, 0, 1)
    return found


def _correlation(a: Floats, b: Floats) -> float | None:
    """Return Pearson's correlation; None where one of them is constant."""
    return round(float(np.corrcoef(a, b)[0, 1]), 4) if a.std() > 0 and b.std() > 0 else None
