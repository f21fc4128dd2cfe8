"""Many cases in a few numbers, with nothing left out: means with and without misses, intervals, counts.

The mean over defined cases goes up when a structure is missed altogether, as a distance to nothing is no number. So a
second mean stands beside it, in which each missed or spurious structure counts as the worst there is: 0 for a ratio,
the diagonal of its image for a distance. Intervals are 95 % percentile bootstraps over cases (Efron, Annals of
Statistics 7(1), 1979), with the same resamples for all labels and metrics.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from medseg.evaluation.case import Case, Score
from medseg.evaluation.columns import Metric, absent

Floats = npt.NDArray[np.float64]

RESAMPLES = 2000


@dataclass(frozen=True)
class Mean:
    """A mean over `n` cases, with its 95 % interval (nan for fewer than two cases)."""

    n: int
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Spread:
    """How one metric of one label is spread over the cases in which it is defined, and its mean with misses."""

    defined: Mean
    with_misses: Mean
    deviation: float
    quartiles: tuple[float, float, float]
    least: float
    most: float


@dataclass(frozen=True)
class Summary:
    """One label over all cases: how many, how many of each state, and each metric by name."""

    label: int
    name: str
    n: int
    ok: int
    missed: int
    spurious: int
    undefined: int
    metrics: dict[str, Spread]


def complete(cases: Sequence[Case], metrics: Sequence[Metric]) -> list[Case]:
    """Return the cases with a score for every label of any of them: `undefined` where neither file has it.

    A label is one by its name: its number may differ between files that have names, and is that of the first here.
    """
    numbers: dict[str, int] = {}
    for score in (score for case in cases for score in case.scores):
        numbers.setdefault(score.name, score.label)
    names = list(numbers)
    if any(len(case.scores) < len(names) for case in cases):
        names.sort(key=lambda name: (numbers[name], name))  # else the user's order, or by number already
    values = absent(metrics)
    done = []
    for case in cases:
        own = {score.name: score for score in case.scores}
        missing = {name: Score(case.name, number, name, "undefined", values) for name, number in numbers.items()}
        scores = (replace(own.get(name, missing[name]), label=numbers[name]) for name in names)
        done.append(replace(case, scores=tuple(scores)))
    return done


def summarise(cases: Sequence[Case], metrics: Sequence[Metric]) -> list[Summary]:
    """Return a summary of each label, from completed cases."""
    summaries = []
    for scores in zip(*(case.scores for case in cases), strict=True):
        states = Counter(score.state for score in scores)
        spreads = {
            metric.name: _spread(_values(scores, metric), with_misses(cases, scores, metric)) for metric in metrics
        }
        counts = (states["ok"], states["missed"], states["spurious"], states["undefined"])
        summaries.append(Summary(scores[0].label, scores[0].name, len(scores), *counts, spreads))
    return summaries


def with_misses(cases: Sequence[Case], scores: Sequence[Score], metric: Metric) -> Floats:
    """Return the values of one label with the worst for each missed or spurious structure: (n,), nan if undefined."""
    values = _values(scores, metric)
    if metric.worst is not None:
        for place, (case, score) in enumerate(zip(cases, scores, strict=True)):
            if score.state in {"missed", "spurious"}:
                values[place] = case.diagonal if metric.worst == "diagonal" else metric.worst
    return values


def bootstrap(values: Floats) -> Mean:
    """Return the mean of the finite values with its 95 % interval."""
    finite = np.isfinite(values)
    n = int(finite.sum())
    if not n:
        return Mean(0, math.nan, math.nan, math.nan)
    mean = float(values[finite].mean())
    if n == 1:
        return Mean(1, mean, math.nan, math.nan)
    draws = _draws(len(values))
    totals = draws @ finite
    means = (draws @ np.where(finite, values, 0.0))[totals > 0] / totals[totals > 0]
    low, high = np.percentile(means, (2.5, 97.5)).tolist()
    return Mean(n, mean, low, high)


def _spread(values: Floats, filled: Floats) -> Spread:
    means = bootstrap(values), bootstrap(filled)
    finite = values[np.isfinite(values)]
    if not len(finite):
        return Spread(*means, math.nan, (math.nan,) * 3, math.nan, math.nan)
    deviation = float(finite.std(ddof=1)) if len(finite) > 1 else math.nan
    least, first, median, third, most = np.percentile(finite, (0, 25, 50, 75, 100)).tolist()
    return Spread(*means, deviation, (first, median, third), least, most)


def _values(scores: Sequence[Score], metric: Metric) -> Floats:
    return np.array([score.values[metric.name] for score in scores], np.float64)


@lru_cache(maxsize=2)
def _draws(cases: int) -> Floats:
    """Return how often each case is drawn in each resample: (resamples, cases)."""
    return np.random.default_rng(0).multinomial(cases, np.full(cases, 1 / cases), RESAMPLES).astype(np.float64)
