"""Predictions against references: scores of cases, their summary, and the comparison of two sets; no torch."""

from medseg.evaluation.case import Case, Score, Settings, evaluate
from medseg.evaluation.columns import METRICS, Metric, choose_metrics
from medseg.evaluation.labels import Wanted
from medseg.evaluation.paired import Difference, compare
from medseg.evaluation.pairs import Pair, Pairing, evaluate_pair, pair_files, read_pair
from medseg.evaluation.result import Evaluation, Failure
from medseg.evaluation.summary import Mean, Spread, Summary, complete, summarise

__all__ = [
    "METRICS",
    "Case",
    "Difference",
    "Evaluation",
    "Failure",
    "Mean",
    "Metric",
    "Pair",
    "Pairing",
    "Score",
    "Settings",
    "Spread",
    "Summary",
    "Wanted",
    "choose_metrics",
    "compare",
    "complete",
    "evaluate",
    "evaluate_pair",
    "pair_files",
    "read_pair",
    "summarise",
]
