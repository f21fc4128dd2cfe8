"""What came of an evaluation, and its files: `scores.csv` and `scores.json`.

What is undefined or infinite is null in JSON and an empty cell in CSV, as NaN and Infinity are no JSON; the column
`state` says why.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from medseg import __version__
from medseg.evaluation.case import Case, Settings
from medseg.evaluation.paired import Difference
from medseg.evaluation.summary import Mean, Summary

Row = dict[str, Any]


@dataclass(frozen=True)
class Failure:
    """A case that could not be evaluated, and why."""

    case: str
    reason: str


@dataclass(frozen=True)
class Evaluation:
    """Scores of a set of predictions.

    Parameters
    ----------
    prediction, reference : str
        Where they came from.
    settings : Settings
        How they were compared.
    cases : tuple of Case
        Completed: each with every label.
    summaries : tuple of Summary
        One for each label.
    failures : tuple of Failure
        Cases that could not be evaluated.
    only_predictions, only_references : tuple of str
        Files without a partner.
    compared_with : str
        Where the second set came from; "" if there is none.
    differences : tuple of Difference
        Second set minus this one.
    """

    prediction: str
    reference: str
    settings: Settings
    cases: tuple[Case, ...]
    summaries: tuple[Summary, ...]
    failures: tuple[Failure, ...] = ()
    only_predictions: tuple[str, ...] = ()
    only_references: tuple[str, ...] = ()
    compared_with: str = ""
    differences: tuple[Difference, ...] = ()

    @property
    def physical(self) -> bool:
        """Whether the grids have a size in mm."""
        return all(case.physical for case in self.cases)


def rows(evaluation: Evaluation) -> list[Row]:
    """Return a row for each case and label: `case`, `label`, `name`, `state`, and a column for each metric."""
    columns = {metric.name: metric.column(physical=evaluation.physical) for metric in evaluation.settings.metrics}
    return [
        {
            "case": score.case,
            "label": score.label,
            "name": score.name,
            "state": score.state,
            **{column: _number(score.values[name]) for name, column in columns.items()},
        }
        for case in evaluation.cases
        for score in case.scores
    ]


def as_csv(evaluation: Evaluation) -> bytes:
    """Return the rows as CSV, UTF-8."""
    return _csv(rows(evaluation))


def differences_as_csv(evaluation: Evaluation) -> bytes:
    """Return the paired differences as CSV, UTF-8."""
    return _csv([_difference(difference) for difference in evaluation.differences])


def as_record(evaluation: Evaluation) -> Row:
    """Return all of an evaluation as plain data that JSON can hold."""
    settings = evaluation.settings
    return {
        "medseg": __version__,
        "prediction": evaluation.prediction,
        "reference": evaluation.reference,
        "settings": {
            "tolerance": settings.tolerance,
            "tolerances": dict(settings.tolerances),
            "unit": "mm" if evaluation.physical else "px",
            "surface": settings.surface,
        },
        "cases": rows(evaluation),
        "summary": [_summary(summary) for summary in evaluation.summaries],
        "failed": [{"case": failure.case, "reason": failure.reason} for failure in evaluation.failures],
        "unpaired": {
            "predictions": list(evaluation.only_predictions),
            "references": list(evaluation.only_references),
        },
        "resampled": [case.name for case in evaluation.cases if case.resampled],
        "compared_with": evaluation.compared_with or None,
        "differences": [_difference(difference) for difference in evaluation.differences],
    }


def _summary(summary: Summary) -> Row:
    metrics = {
        name: {
            **_mean(spread.defined),
            **_mean(spread.with_misses, "_with_misses"),
            "deviation": _number(spread.deviation),
            "quartiles": [_number(value) for value in spread.quartiles],
            "least": _number(spread.least),
            "most": _number(spread.most),
        }
        for name, spread in summary.metrics.items()
    }
    return {
        "label": summary.label,
        "name": summary.name,
        "n": summary.n,
        "ok": summary.ok,
        "missed": summary.missed,
        "spurious": summary.spurious,
        "undefined": summary.undefined,
        "metrics": metrics,
    }


def _mean(mean: Mean, suffix: str = "") -> Row:
    return {
        f"n{suffix}": mean.n,
        f"mean{suffix}": _number(mean.mean),
        f"low{suffix}": _number(mean.low),
        f"high{suffix}": _number(mean.high),
    }


def _difference(difference: Difference) -> Row:
    return {
        "label": difference.label,
        "name": difference.name,
        "metric": difference.metric,
        "n": difference.difference.n,
        "first": _number(difference.first),
        "second": _number(difference.second),
        "difference": _number(difference.difference.mean),
        "low": _number(difference.difference.low),
        "high": _number(difference.difference.high),
        "higher": difference.higher,
        "lower": difference.lower,
        "p": _number(difference.p),
    }


def _number(value: float) -> float | None:
    """Return nine digits of a number; None if it is undefined or infinite."""
    return float(f"{value:.9g}") if math.isfinite(value) else None


def _csv(table: Sequence[Row]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(table[0]) if table else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue().encode("utf-8", "backslashreplace")
