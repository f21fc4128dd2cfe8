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
from medseg.volume import LabelMap, looked_up

AGREED, EXTRA, MISSING, OTHER = KINDS = (
    Label(value=1, name="in both", color=(150, 150, 155)),
    Label(value=2, name="only in the prediction", color=(255, 140, 40)),
    Label(value=3, name="only in the reference", color=(70, 150, 255)),
    Label(value=4, name="another label", color=(235, 80, 220)),
)
# whether a voxel is in the prediction (1), in the reference (2), and differs (4), added up, to the kind above:
_KIND_OF_CODE = np.array([0, 0, 0, AGREED.value, 0, EXTRA.value, MISSING.value, OTHER.value], np.uint8)
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
    kinds = np.zeros_like(reference.array, np.uint8)
    for group in groups(match_labels(prediction, reference, settings.labels)):
        predicted = prediction.places([label.prediction for label in group])
        true = reference.places([label.reference for label in group])
        code = (predicted > 0).view(np.uint8) | (true > 0).view(np.uint8) << 1 | (predicted != true).view(np.uint8) << 2
        np.maximum(kinds, looked_up(_KIND_OF_CODE, code), out=kinds)
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
