"""Other libraries' metrics in one form, for `benchmarks/metrics.py` and `benchmarks/definitions.py`.

Each function takes two masks, their spacing in mm and the names of the scores that are wanted, of `dice`, `hd`, `hd95`,
`assd`, `nsd`; it returns those that the library offers, and computes no other.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Collection, Mapping

import numpy as np

Array = np.ndarray
Spacing = tuple[float, float, float]
Scores = dict[str, float]
Peer = Callable[[Array, Array, Spacing, Collection[str]], Scores]
TOLERANCE = 1.0  # mm, of the surface Dice


def deepmind(prediction: Array, reference: Array, spacing: Spacing, wanted: Collection[str]) -> Scores:
    """Score by surface-distance: all from one set of distances; the mean of its two directed averages."""
    import surface_distance as library

    found = library.compute_surface_distances(reference, prediction, spacing)
    return _computed(
        wanted,
        {
            "dice": lambda: library.compute_dice_coefficient(reference, prediction),
            "hd": lambda: library.compute_robust_hausdorff(found, 100),
            "hd95": lambda: library.compute_robust_hausdorff(found, 95),
            "assd": lambda: np.mean(library.compute_average_surface_distance(found)),
            "nsd": lambda: library.compute_surface_dice_at_tolerance(found, TOLERANCE),
        },
    )


def monai(prediction: Array, reference: Array, spacing: Spacing, wanted: Collection[str]) -> Scores:
    """Score by MONAI: each metric finds its own distances."""
    import torch
    from monai import metrics

    torch.set_num_threads(1)
    masks = [torch.from_numpy(np.ascontiguousarray(mask)[None, None]) for mask in (prediction, reference)]
    options = {"include_background": True, "spacing": spacing}
    return _computed(
        wanted,
        {
            "dice": lambda: metrics.compute_dice(*masks),
            "hd": lambda: metrics.compute_hausdorff_distance(*masks, **options),
            "hd95": lambda: metrics.compute_hausdorff_distance(*masks, percentile=95, **options),
            "assd": lambda: metrics.compute_average_surface_distance(*masks, symmetric=True, **options),
            "nsd": lambda: metrics.compute_surface_dice(*masks, [TOLERANCE], **options),
        },
    )


def medpy(prediction: Array, reference: Array, spacing: Spacing, wanted: Collection[str]) -> Scores:
    """Score by medpy, which has no surface Dice."""
    from medpy.metric import binary

    return _computed(
        wanted,
        {
            "dice": lambda: binary.dc(prediction, reference),
            "hd": lambda: binary.hd(prediction, reference, spacing),
            "hd95": lambda: binary.hd95(prediction, reference, spacing),
            "assd": lambda: binary.assd(prediction, reference, spacing),
        },
    )


def simpleitk(prediction: Array, reference: Array, spacing: Spacing, wanted: Collection[str]) -> Scores:
    """Score by SimpleITK: distances from every voxel of a mask, 0 within the other; no percentile, no surface Dice."""
    import SimpleITK as sitk  # noqa: N813 - the name that everybody knows

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    images = [sitk.GetImageFromArray(mask.astype(np.uint8).T) for mask in (prediction, reference)]
    for image in images:
        image.SetSpacing(spacing)
    overlap, distance = sitk.LabelOverlapMeasuresImageFilter(), sitk.HausdorffDistanceImageFilter()
    overlap.Execute(*images)
    distance.Execute(*images)
    return _computed(
        wanted,
        {
            "dice": lambda: overlap.GetDiceCoefficient(1),
            "hd": distance.GetHausdorffDistance,
            "assd": distance.GetAverageHausdorffDistance,
        },
    )


def panoptica(prediction: Array, reference: Array, spacing: Spacing, wanted: Collection[str]) -> Scores:
    """Score by panoptica; masks may be label maps, whose means it then returns. Its surface Dice takes no tolerance."""
    from panoptica import InputType, Metric, Panoptica_Evaluator

    known = {"dice": Metric.DSC, "hd": Metric.HD, "hd95": Metric.HD95, "assd": Metric.ASSD}
    metrics = {name: metric for name, metric in known.items() if name in wanted}
    with contextlib.redirect_stdout(io.StringIO()):
        found = Panoptica_Evaluator(
            InputType.MATCHED_INSTANCE,
            instance_metrics=list({Metric.DSC, *metrics.values()}),
            global_metrics=[],
            decision_metric=Metric.DSC,
            decision_threshold=0.0,
        ).evaluate(prediction.astype(np.uint8), reference.astype(np.uint8), voxelspacing=spacing)
    scores = next(iter(found.values())).to_dict()
    return {name: float(scores[f"sq_{metric.name.lower()}"]) for name, metric in metrics.items()}


PEERS: dict[str, Peer] = {
    "DeepMind surface-distance": deepmind,
    "MONAI": monai,
    "medpy": medpy,
    "SimpleITK": simpleitk,
    "panoptica": panoptica,
}


def _computed(wanted: Collection[str], scores: Mapping[str, Callable[[], float]]) -> Scores:
    return {name: float(compute()) for name, compute in scores.items() if name in wanted}
