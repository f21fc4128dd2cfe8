"""Predictions against references: scores of cases, their summary, and the comparison of two sets; no torch."""

from medseg.evaluation.case import Case, Score, Settings, evaluate
from medseg.evaluation.columns import METRICS, Metric, choose_metrics
from medseg.evaluation.labels import Wanted

__all__ = ["METRICS", "Case", "Metric", "Score", "Settings", "Wanted", "choose_metrics", "evaluate"]
