"""One case: a prediction against its reference, label by label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medseg.evaluation.columns import METRICS, Comparison, Metric
from medseg.evaluation.grids import check_axes, on_grid_of
from medseg.evaluation.labels import Matched, Wanted, groups, match_labels
from medseg.metrics import Overlap, SurfaceDistances, label_surface_distances, overlaps
from medseg.metrics.masks import Mask
from medseg.metrics.surfaces import Kind
from medseg.volume import LabelMap

State = Literal["ok", "missed", "spurious", "undefined"]
Places = npt.NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True)
class Settings:
    """How cases are compared.

    Parameters
    ----------
    metrics : tuple of Metric
        Columns of the scores.
    labels : tuple of Wanted
        Labels to compare; all where it is empty.
    tolerance : float
        Of the surface Dice and the boundary IoU, in mm (pixels for pictures).
    tolerances : mapping of str to float
        Of single labels by name.
    surface : 'voxels' or 'elements'
        See `medseg.metrics.surface_distances`.
    resample : bool
        Whether a prediction on another grid may be brought onto the reference's.
    """

    metrics: tuple[Metric, ...] = tuple(metric for metric in METRICS.values() if metric.by_default)
    labels: tuple[Wanted, ...] = ()
    tolerance: float = 2.0
    tolerances: Mapping[str, float] = field(default_factory=dict)
    surface: Kind = "voxels"
    resample: bool = False


@dataclass(frozen=True)
class Score:
    """What one label of one case got.

    Parameters
    ----------
    case : str
        Name of the case.
    label : int
        Number of the label.
    name : str
        Name of the label.
    state : str
        'ok': in both; 'missed': in the reference alone; 'spurious': in the prediction alone; 'undefined': in neither.
    values : mapping of str to float
        By name of the metric; nan where it is undefined, inf where a distance is to nothing.
    """

    case: str
    label: int
    name: str
    state: State
    values: Mapping[str, float]


@dataclass(frozen=True)
class Case:
    """The scores of a case, and what is needed to stand for a miss.

    Parameters
    ----------
    name : str
        Name of the case.
    scores : tuple of Score
        One for each label.
    physical : bool
        Whether the grid has a size in mm.
    diagonal : float
        Of the image in mm (pixels for a picture): the worst that a distance can be.
    resampled : bool
        Whether the prediction was brought onto the reference's grid.
    """

    name: str
    scores: tuple[Score, ...]
    physical: bool
    diagonal: float
    resampled: bool = False


def evaluate(
    prediction: LabelMap, reference: LabelMap, settings: Settings | None = None, *, case: str = "case"
) -> Case:
    """Return the scores of every label of a prediction.

    All labels that do not overlap are done in one pass. Memory beside the maps: about four bytes for each voxel.

    Parameters
    ----------
    prediction, reference : LabelMap
        Of one patient; stored in any order, on one grid.
    settings : Settings, optional
        Metrics, labels, tolerances.
    case : str
        Its name.

    Raises
    ------
    GeometryError
        If the grids differ, or have axes that are not at right angles.
    UsageError
        If the labels cannot be matched.

    Examples
    --------
    >>> from medseg.geometry import Geometry
    >>> labels = LabelMap(np.pad(np.ones((2, 2, 2), np.uint8), 2), Geometry(np.eye(4), (6, 6, 6)))
    >>> score = evaluate(labels, labels).scores[0]
    >>> score.state, score.values["dice"], score.values["hd95"]
    ('ok', 1.0, 0.0)
    """
    settings = settings or Settings()
    prediction, resampled = on_grid_of(reference, prediction, resample=settings.resample)
    if any(metric.needs in {"spacing", "surface"} for metric in settings.metrics):
        check_axes(reference.geometry)
    scores: dict[str, Score] = {}
    labels = match_labels(prediction, reference, settings.labels)
    for group in groups(labels):
        scores |= {score.name: score for score in _scores(case, group, prediction, reference, settings)}
    geometry = reference.geometry
    return Case(
        case,
        tuple(scores[label.name] for label in labels),
        geometry.physical,
        float(np.linalg.norm(geometry.extent)),
        resampled,
    )


def _scores(
    case: str, group: Sequence[Matched], prediction: LabelMap, reference: LabelMap, settings: Settings
) -> list[Score]:
    """Return the scores of labels that do not overlap, from one look at both maps."""
    predicted = prediction.places([label.prediction for label in group])
    true = reference.places([label.reference for label in group])
    geometry = reference.geometry
    distances: dict[int, SurfaceDistances] = {}
    if any(metric.needs == "surface" for metric in settings.metrics):
        distances = label_surface_distances(predicted, true, geometry.spacing, surface=settings.surface)
    cut = _Cut(predicted, true)
    scores = []
    counts = overlaps(predicted, true, len(group) + 1)[1:]
    for place, (label, overlap) in enumerate(zip(group, counts, strict=True), start=1):
        comparison = Comparison(
            overlap,
            distances.get(place, SurfaceDistances.none()),
            partial(cut.masks, place),
            geometry.spacing,
            geometry.voxel_volume / 1000 if geometry.physical else 1.0,
            settings.tolerances.get(label.name, settings.tolerance),
        )
        values = {metric.name: metric.compute(comparison) for metric in settings.metrics}
        scores.append(Score(case, label.value, label.name, _state(overlap), values))
    return scores


def _state(overlap: Overlap) -> State:
    match overlap.predicted > 0, overlap.true > 0:
        case True, True:
            return "ok"
        case False, True:
            return "missed"
        case True, False:
            return "spurious"
        case _:
            return "undefined"


class _Cut:
    """Cuts the masks of single labels out of two maps, in the box around both with a margin of one voxel."""

    def __init__(self, prediction: Places, reference: Places) -> None:
        self._maps = (prediction, reference)

    @cached_property
    def _boxes(self) -> list[list[tuple[slice, ...] | None]]:
        return [ndimage.find_objects(places) for places in self._maps]

    def masks(self, place: int) -> tuple[Mask, Mask]:
        found = [boxes[place - 1] for boxes in self._boxes if len(boxes) >= place]
        known = [box for box in found if box is not None]
        if not known:
            nothing = np.zeros((1, 1, 1), bool)
            return nothing, nothing
        around = tuple(
            slice(max(0, min(part.start for part in parts) - 1), max(part.stop for part in parts) + 1)
            for parts in zip(*known, strict=True)
        )
        return self._maps[0][around] == place, self._maps[1][around] == place
