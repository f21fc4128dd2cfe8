"""Planes through a scan and its labels, cut and painted as radiologists see them: the patient's right on the left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from medseg.strides import slabs
from medseg.volume import LabelMap, Volume

_OPACITY = 0.4


@dataclass(frozen=True)
class View:
    """How a plane is cut and shown: across one axis, two others to the right and down, with letters at its edges."""

    title: str
    across: int
    right: int
    down: int
    letters: str  # left, right, upper and lower edge


PICTURE = View("", across=2, right=0, down=1, letters="")
VIEWS = (  # of a grid whose axes point to left, back and down
    View("axial", across=2, right=0, down=1, letters="RLAP"),
    View("coronal", across=1, right=0, down=2, letters="RLSI"),
    View("sagittal", across=0, right=1, down=2, letters="APSI"),
)


@dataclass(frozen=True)
class Plane:
    """What is seen in one view: intensities, a mask for each label, and its size."""

    view: View
    grey: npt.NDArray[np.float32]  # (rows, columns), 0 to 1
    masks: tuple[npt.NDArray[np.bool_], ...]
    size_mm: tuple[float, float]  # width, height


def views_of(scan: Volume) -> Sequence[View]:
    """Return the views in which an oriented scan is more than a line."""
    if not scan.geometry.physical:
        return [PICTURE]
    shape = scan.geometry.shape
    return [view for view in VIEWS if shape[view.right] > 1 and shape[view.down] > 1] or VIEWS[:1]


def oriented(scan: Volume, labels: LabelMap) -> tuple[Volume, LabelMap]:
    """Return both with axes that point to left, back and down."""
    if not scan.geometry.physical:
        return scan, labels
    order = scan.geometry.order_to("LPI")
    geometry = scan.geometry.reordered(order)
    return Volume(order.apply(scan.array), geometry, scan.source), LabelMap(
        order.apply(labels.array), geometry, labels.labels
    )


def fullest(labels: LabelMap, view: View) -> int:
    """Return the plane with the most labelled voxels, or the middle one if there are none."""
    areas = np.zeros(labels.geometry.shape[view.across], np.int64)
    for part in slabs(labels.array):
        areas[part[view.across]] += np.count_nonzero(labels.array[part], axis=(view.right, view.down))
    return int(areas.argmax()) if areas.any() else len(areas) // 2


def cut(scan: Volume, labels: LabelMap, view: View, at: int) -> Plane:
    """Return one plane of an oriented scan and its labels; black and white are its 1st and 99th percentile."""
    grey = rows(scan.array[0], view, at).astype(np.float32)
    low, high = np.percentile(grey, (1, 99)).tolist()
    atoms = rows(labels.array, view, at)
    masks = tuple(np.isin(atoms, label.atoms) for label in labels.labels)
    shown = np.clip((grey - low) / (high - low or 1), 0, 1)
    if scan.source and scan.source.low_is_bright:
        shown = 1 - shown
    return Plane(view, shown, masks, (scan.geometry.extent[view.right], scan.geometry.extent[view.down]))


def rows(array: npt.NDArray[Any], view: View, at: int) -> npt.NDArray[Any]:
    """Return a plane of an array: rows run along the axis that is shown downwards."""
    plane: npt.NDArray[Any] = np.moveaxis(array, view.across, 0)[at]
    return plane.T


def paint(plane: Plane, pixels_per_mm: float, colours: Sequence[tuple[int, int, int]]) -> Image.Image:
    """Return a plane as a picture: labels in their colours over the intensities, with their outline."""
    size = tuple(max(1, round(mm * pixels_per_mm)) for mm in plane.size_mm)
    grey = Image.fromarray((plane.grey * 255).astype(np.uint8)).resize((size[0], size[1]), Image.Resampling.BILINEAR)
    pixels = np.array(grey.convert("RGB"))
    for mask, colour in zip(plane.masks, colours, strict=False):
        large = np.array(Image.fromarray(mask).resize((size[0], size[1]), Image.Resampling.NEAREST))
        pixels[large] = ((1 - _OPACITY) * pixels[large] + _OPACITY * np.array(colour)).astype(np.uint8)
        pixels[_outline(large)] = colour
    return Image.fromarray(pixels)


def _outline(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    edge: npt.NDArray[np.bool_] = mask & ~inner
    return edge
