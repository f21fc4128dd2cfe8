"""Training: cases, the loop, and what a bundle remembers of both."""

from medseg.training.data import (
    Case,
    Sample,
    prepare_sample,
    read_decathlon,
    select,
    with_border_weights,
)
from medseg.training.fit import Recipe, fit
from medseg.training.losses import border_weights, weighted_cross_entropy
from medseg.training.studies import STUDIES, Study, mean_scores, read_drive, read_isbi2012

__all__ = [
    "STUDIES",
    "Case",
    "Recipe",
    "Sample",
    "Study",
    "border_weights",
    "fit",
    "mean_scores",
    "prepare_sample",
    "read_decathlon",
    "read_drive",
    "read_isbi2012",
    "select",
    "weighted_cross_entropy",
    "with_border_weights",
]
