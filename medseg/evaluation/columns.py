"""The metrics of an evaluation by name: title, unit, which way is better, and the worst value."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from medseg.errors import UsageError
from medseg.metrics import Lesions, Overlap, SurfaceDistances, boundary_iou, centreline_dice
from medseg.metrics.masks import Mask


@dataclass(frozen=True, eq=False)
class Comparison:
    """One label in a prediction and in a reference: what every metric is computed from.

    Parameters
    ----------
    overlap : Overlap
        Counts of voxels.
    surface : SurfaceDistances
        Without points if no metric needs them.
    masks : function returning two masks
        Of the box around the label, with a margin; called only by metrics that need them.
    spacing : three floats
        Of the grid in mm (pixels for a picture).
    voxel : float
        Volume of a voxel in mL; of a picture 1 pixel.
    tolerance : float
        Of the surface Dice and the width of the rim, in mm (pixels for a picture).
    """

    overlap: Overlap
    surface: SurfaceDistances
    masks: Callable[[], tuple[Mask, Mask]]
    spacing: tuple[float, float, float]
    voxel: float
    tolerance: float

    @property
    def volume_error(self) -> float:
        """The difference of both volumes, without its sign."""
        return abs(self.overlap.predicted - self.overlap.true) * self.voxel

    @cached_property
    def lesions(self) -> Lesions:
        """The connected pieces of both masks."""
        return Lesions.of(*self.masks())


@dataclass(frozen=True)
class Metric:
    """A column of the scores.

    Parameters
    ----------
    name : str
        What `--metrics` takes.
    title : str
        For tables and plots.
    unit : str
        "" for a ratio; "mm" and "mL" become "px" for pictures without a physical size.
    better : 'more', 'less', 'zero' or None
        Which way is better; None for what is no score (a volume).
    worst : float, 'diagonal' or None
        What stands for a missed or spurious structure in a mean with misses; None if the value needs no stand-in.
    compute : function
        From a comparison to the value; nan if undefined, inf if only one of both is there.
    needs : str
        What it looks at: 'counts' of voxels, 'masks', masks and 'spacing', or the distances of the 'surface'.
    by_default : bool
        Whether it is computed without being asked for.
    """

    name: str
    title: str
    unit: str
    better: Literal["more", "less", "zero"] | None
    worst: float | Literal["diagonal"] | None
    compute: Callable[[Comparison], float]
    needs: Literal["counts", "masks", "spacing", "surface"] = "counts"
    by_default: bool = True

    def column(self, *, physical: bool) -> str:
        """Return the name of its column: with its unit, where there is one."""
        return f"{self.name}_{self.shown_unit(physical=physical).lower()}" if self.unit else self.name

    def shown_unit(self, *, physical: bool) -> str:
        """Return its unit: pixels for pictures without a physical size."""
        return self.unit if physical or not self.unit else "px"


def _surface(name: str, title: str, compute: Callable[[SurfaceDistances], float]) -> Metric:
    return Metric(name, title, "mm", "less", "diagonal", lambda c: compute(c.surface), needs="surface")


def _of_masks(
    name: str, title: str, compute: Callable[[Comparison], float], needs: Literal["masks", "spacing"] = "masks"
) -> Metric:
    return Metric(name, title, "", "more", 0.0, compute, needs=needs, by_default=False)


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("dice", "Dice", "", "more", 0.0, lambda c: c.overlap.dice),
        Metric("iou", "IoU", "", "more", 0.0, lambda c: c.overlap.iou),
        _surface("hd", "Hausdorff distance", lambda d: d.hausdorff()),
        _surface("hd95", "HD95", lambda d: d.hausdorff(95)),
        _surface("assd", "ASSD", lambda d: d.average()),
        Metric("nsd", "Surface Dice", "", "more", 0.0, lambda c: c.surface.dice(c.tolerance), needs="surface"),
        Metric("volume", "Volume", "mL", None, None, lambda c: c.overlap.predicted * c.voxel),
        Metric("reference", "Volume of the reference", "mL", None, None, lambda c: c.overlap.true * c.voxel),
        Metric("sensitivity", "Sensitivity", "", "more", 0.0, lambda c: c.overlap.sensitivity),
        Metric("precision", "Precision", "", "more", 0.0, lambda c: c.overlap.precision),
        Metric("specificity", "Specificity", "", "more", None, lambda c: c.overlap.specificity),
        _surface("rmsd", "RMS surface distance", lambda d: d.root_mean_square()),
        Metric("volume_error", "Absolute volume error", "mL", "less", None, lambda c: c.volume_error),
        Metric(
            "relative_volume_error",
            "Relative volume error",
            "",
            "zero",
            None,
            lambda c: c.overlap.relative_volume_error,
        ),
        _of_masks(
            "boundary_iou", "Boundary IoU", lambda c: boundary_iou(*c.masks(), c.spacing, c.tolerance), "spacing"
        ),
        _of_masks("cldice", "Centreline Dice", lambda c: centreline_dice(*c.masks())),
        _of_masks("lesion_f1", "Lesion F1", lambda c: c.lesions.f1()),
        _of_masks("lesion_dice", "Lesion Dice", lambda c: c.lesions.dice),
        _of_masks("panoptic_quality", "Panoptic quality", lambda c: c.lesions.panoptic_quality),
    )
}


def absent(metrics: Iterable[Metric]) -> dict[str, float]:
    """Return what metrics say of a label that is in neither map: nan, or 0 mL and the like."""
    empty = np.zeros((1, 1, 1), bool)
    nothing = Comparison(
        Overlap(0, 0, 0, 1), SurfaceDistances.none(), lambda: (empty, empty), (1.0, 1.0, 1.0), 1.0, 1.0
    )
    return {metric.name: metric.compute(nothing) for metric in metrics}


def choose_metrics(names: Iterable[str]) -> tuple[Metric, ...]:
    """Return metrics by name, in the order of the table; 'default' and 'all' stand for several.

    Raises
    ------
    UsageError
        If a name is unknown.
    """
    wanted = {name.strip() for name in names}
    if unknown := sorted(wanted - {*METRICS, "all", "default"}):
        raise UsageError(f"unknown metric {unknown[0]!r}", hint=f"choose of: all, default, {', '.join(METRICS)}")
    return tuple(
        metric
        for metric in METRICS.values()
        if metric.name in wanted or "all" in wanted or ("default" in wanted and metric.by_default)
    )
