"""Training: cases, the loop, and what a bundle remembers of both."""

from medseg.training.data import Case, Sample, prepare_sample, read_decathlon, select
from medseg.training.fit import Recipe, fit

__all__ = ["Case", "Recipe", "Sample", "fit", "prepare_sample", "read_decathlon", "select"]
