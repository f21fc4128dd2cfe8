"""Metrics: arrays in, floats out; no torch. Undefined is nan, and a missed structure is never a good one."""

from medseg.metrics.lesions import Lesions, detection_f1, lesion_dice, panoptic_quality
from medseg.metrics.membranes import components, thinned, v_info, v_rand
from medseg.metrics.overlap import (
    Overlap,
    absolute_volume_error,
    confusion_matrix,
    dice,
    iou,
    overlaps,
    pixel_error,
    precision,
    relative_volume_error,
    sensitivity,
    specificity,
    volume,
)
from medseg.metrics.probabilities import auc, brier, calibration_error, sensitivity_at_specificity
from medseg.metrics.shape import boundary_iou, centreline_dice
from medseg.metrics.surface import (
    SurfaceDistances,
    average_surface_distance,
    hausdorff_distance,
    label_surface_distances,
    rms_surface_distance,
    surface_dice,
    surface_distances,
)

__all__ = [
    "Lesions",
    "Overlap",
    "SurfaceDistances",
    "absolute_volume_error",
    "auc",
    "average_surface_distance",
    "boundary_iou",
    "brier",
    "calibration_error",
    "centreline_dice",
    "components",
    "confusion_matrix",
    "detection_f1",
    "dice",
    "hausdorff_distance",
    "iou",
    "label_surface_distances",
    "lesion_dice",
    "overlaps",
    "panoptic_quality",
    "pixel_error",
    "precision",
    "relative_volume_error",
    "rms_surface_distance",
    "sensitivity",
    "sensitivity_at_specificity",
    "specificity",
    "surface_dice",
    "surface_distances",
    "thinned",
    "v_info",
    "v_rand",
    "volume",
]
