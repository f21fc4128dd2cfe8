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
    """Return the cases with a score for every label of any of them: `undefined` where neither file has it."""
    labels = list(dict.fromkeys((score.label, score.name) for case in cases for score in case.scores))
    if any(len(case.scores) < len(labels) for case in cases):
        labels.sort()  # else the order is that in which the user asked for them, or by number already
    values = absent(metrics)
    done = []
    for case in cases:
        own = {(score.label, score.name): score for score in case.scores}
        scores = (own.get(label, Score(case.name, *label, "undefined", values)) for label in labels)
        done.append(replace(case, scores=tuple(scores)))
    return done


def summarise(cases: Sequence[Case], metrics: Sequence[Metric]) -> list[Summary]:
    """Return a summary of each label, from completed cases."""
    if not cases:
        return []
    draws = _draws(len(cases))
    summaries = []
    for scores in zip(*(case.scores for case in cases), strict=True):
        states = Counter(score.state for score in scores)
        spreads = {
            metric.name: _spread(_values(scores, metric), with_misses(cases, scores, metric), draws)
            for metric in metrics
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


def bootstrap(values: Floats, draws: Floats | None = None) -> Mean:
    """Return the mean of the finite values with its 95 % interval."""
    finite = np.isfinite(values)
    n = int(finite.sum())
    if not n:
        return Mean(0, math.nan, math.nan, math.nan)
    mean = float(values[finite].mean())
    if n == 1:
        return Mean(1, mean, math.nan, math.nan)
    weights = (_draws(len(values)) if draws is None else draws)[:, finite]
    totals = weights.sum(axis=1)
    drawn = totals > 0
    means = (weights[drawn] @ values[finite]) / totals[drawn]
    low, high = np.percentile(means, (2.5, 97.5)).tolist()
    return Mean(n, mean, low, high)


def _spread(values: Floats, filled: Floats, draws: Floats) -> Spread:
    finite = np.sort(values[np.isfinite(values)])
    if not len(finite):
        return Spread(bootstrap(values, draws), bootstrap(filled, draws), math.nan, (math.nan,) * 3, math.nan, math.nan)
    deviation = float(finite.std(ddof=1)) if len(finite) > 1 else math.nan
    first, median, third = np.percentile(finite, (25, 50, 75)).tolist()
    return Spread(
        bootstrap(values, draws),
        bootstrap(filled, draws),
        deviation,
        (first, median, third),
        float(finite[0]),
        float(finite[-1]),
    )


def _values(scores: Sequence[Score], metric: Metric) -> Floats:
    return np.array([score.values[metric.name] for score in scores], np.float64)


def _draws(cases: int) -> Floats:
    """Return how often each case is drawn in each resample: (resamples, cases)."""
    return np.random.default_rng(0).multinomial(cases, np.full(cases, 1 / cases), RESAMPLES).astype(np.float64)
