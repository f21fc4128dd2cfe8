"""Where a prediction and its reference differ, as a label map of its own."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from medseg.boxes import box_around
from medseg.evaluation.case import Settings
from medseg.evaluation.grids import on_grid_of
from medseg.evaluation.labels import groups, match_labels
from medseg.geometry import tuple_of_three
from medseg.plan import Label
from medseg.volume import LabelMap

AGREED, EXTRA, MISSING, OTHER = KINDS = (
    Label(value=1, name="in both", color=(150, 150, 155)),
    Label(value=2, name="only in the prediction", color=(255, 140, 40)),
    Label(value=3, name="only in the reference", color=(70, 150, 255)),
    Label(value=4, name="another label", color=(235, 80, 220)),
)
_MARGIN = 0.15  # of the labels' box


def differences(prediction: LabelMap, reference: LabelMap, settings: Settings) -> LabelMap:
    """Return where the two agree and where they do not, cut to the box around all labels.

    Where labels overlap, a difference in any of them counts.

    Raises
    ------
    GeometryError, UsageError
        As `evaluate`.
    """
    prediction, _ = on_grid_of(reference, prediction, resample=settings.resample)
    kinds = np.zeros(reference.array.shape, np.uint8)
    for group in groups(match_labels(prediction, reference, settings.labels)):
        predicted = prediction.places([label.prediction for label in group])
        true = reference.places([label.reference for label in group])
        found = np.where(predicted == true, AGREED.value * (true > 0), OTHER.value).astype(np.uint8)
        found[(predicted > 0) & (true == 0)] = EXTRA.value
        found[(predicted == 0) & (true > 0)] = MISSING.value
        np.maximum(kinds, found, out=kinds)
    start, stop = _window(kinds)
    cut = tuple(slice(low, high) for low, high in zip(start, stop, strict=True))
    return LabelMap(kinds[cut], reference.geometry.cropped(start, stop), KINDS)


def _window(kinds: npt.NDArray[np.uint8]) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Return start and stop of the box around what is not 0, with a margin; the whole where there is nothing."""
    box = box_around(kinds) or tuple(slice(0, n) for n in kinds.shape)
    margins = [2 + int(_MARGIN * (span.stop - span.start)) for span in box]
    start = tuple_of_three(max(0, span.start - margin) for span, margin in zip(box, margins, strict=True))
    ends = zip(box, margins, kinds.shape, strict=True)
    return start, tuple_of_three(min(n, span.stop + margin) for span, margin, n in ends)
