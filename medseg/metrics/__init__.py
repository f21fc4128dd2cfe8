"""Metrics: arrays in, floats out; no torch. Undefined is nan, and a missed structure is never a good one."""

from medseg.metrics.membranes import components, thinned, v_info, v_rand
from medseg.metrics.overlap import dice, iou, pixel_error
from medseg.metrics.probabilities import auc, sensitivity_at_specificity
from medseg.metrics.surface import hausdorff_distance

__all__ = [
    "auc",
    "components",
    "dice",
    "hausdorff_distance",
    "iou",
    "pixel_error",
    "sensitivity_at_specificity",
    "thinned",
    "v_info",
    "v_rand",
]
