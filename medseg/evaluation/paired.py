"""Two sets of predictions of the same cases: by how much the second is better, and whether that could be chance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from medseg.evaluation.case import Case, Score
from medseg.evaluation.columns import Metric
from medseg.evaluation.summary import Floats, Mean, bootstrap, complete, with_misses


@dataclass(frozen=True)
class Difference:
    """One metric of one label: second minus first, over the cases in which both are defined.

    Parameters
    ----------
    label : int
        Number of the label.
    name : str
        Name of the label.
    metric : str
        Name of the metric.
    first, second : float
        Means over those cases, misses counted as the worst.
    difference : Mean
        Mean of the paired differences with its 95 % interval.
    higher, lower : int
        Cases in which the second value is higher, and lower.
    p : float
        Of Wilcoxon's signed-rank test, two-sided; 1 if no case differs, nan without cases.
    """

    label: int
    name: str
    metric: str
    first: float
    second: float
    difference: Mean
    higher: int
    lower: int
    p: float


def compare(first: Sequence[Case], second: Sequence[Case], metrics: Sequence[Metric]) -> list[Difference]:
    """Return the paired differences of each label and metric, over the cases that are in both sets.

    Wilcoxon, Biometrics Bulletin 1(6), 1945. No correction is made for looking at several labels and metrics.
    """
    names = [case.name for case in first]
    both = {case.name for case in second}.intersection(names)
    kept = [[case for case in cases if case.name in both] for cases in (first, second)]
    kept[1].sort(key=lambda case: names.index(case.name))
    filled = complete([*kept[0], *kept[1]], metrics)  # one set of labels for both
    sides = filled[: len(both)], filled[len(both) :]
    columns = zip(*(case.scores for case in filled), strict=True)
    compared = [metric for metric in metrics if metric.better]
    return [_difference(sides, scores, metric) for scores in columns for metric in compared]


def _difference(sides: tuple[list[Case], list[Case]], scores: tuple[Score, ...], metric: Metric) -> Difference:
    """Return the difference of one metric; `scores` holds those of the first side, then those of the second."""
    count = len(sides[0])
    one = with_misses(sides[0], scores[:count], metric)
    two = with_misses(sides[1], scores[count:], metric)
    defined = np.isfinite(one) & np.isfinite(two)
    one, two = (np.where(defined, values, math.nan) for values in (one, two))
    change = two - one
    first, second = (float(values[defined].mean()) if defined.any() else math.nan for values in (one, two))
    return Difference(
        scores[0].label,
        scores[0].name,
        metric.name,
        first,
        second,
        bootstrap(change),  # with nan where undefined, so that all share their resamples
        int((change > 0).sum()),
        int((change < 0).sum()),
        _p(change[defined]),
    )


def _p(change: Floats) -> float:
    if not len(change):
        return math.nan
    return float(stats.wilcoxon(change).pvalue) if change.any() else 1.0
