"""Training: cases, the loop, and what a bundle remembers of both."""

from medseg.training.data import Legend, prepare_case, prepare_sample, with_border_weights
from medseg.training.dataset import Case, Dataset, File, Finding, select
from medseg.training.layouts import read_decathlon
from medseg.training.loop import Place, Step, fit
from medseg.training.losses import border_weights, dice_cross_entropy, weighted_cross_entropy
from medseg.training.patches import Sample
from medseg.training.planning.choice import Wishes
from medseg.training.recipe import EPOCH, Recipe
from medseg.training.request import Listener, Request
from medseg.training.run import train
from medseg.training.studies import STUDIES, Study, mean_scores, read_drive, read_isbi2012

__all__ = [
    "EPOCH",
    "STUDIES",
    "Case",
    "Dataset",
    "File",
    "Finding",
    "Legend",
    "Listener",
    "Place",
    "Recipe",
    "Request",
    "Sample",
    "Step",
    "Study",
    "Wishes",
    "border_weights",
    "dice_cross_entropy",
    "fit",
    "mean_scores",
    "prepare_case",
    "prepare_sample",
    "read_decathlon",
    "read_drive",
    "read_isbi2012",
    "select",
    "train",
    "weighted_cross_entropy",
    "with_border_weights",
]
