"""A result to be looked at plane by plane: kept in a folder as bytes, so that a plane costs no memory and no time."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Collection
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg.errors import UsageError
from medseg.geometry import Geometry
from medseg.io import write
from medseg.report.planes import PICTURE, VIEWS, Plane, View, fullest, oriented, paint, rows, views_of
from medseg.volume import LabelMap, Volume

_SCAN, _LABELS, _ABOUT = "planes_scan.npy", "planes_labels.npy", "planes.json"
_SIDE = 512  # pixels of the longest side of a picture
_SAMPLES = 1 << 20  # voxels from which black and white are found
_PARTS = 1 << 26  # bytes that are turned into grey at a time
_SOLID = 1 << 27  # voxels that a graphics card is given; of more, every second or third


def keep_planes(scan: Volume, labels: LabelMap, folder: Path) -> None:
    """Keep what `Kept` shows: one byte for each voxel of the scan, and the labels, turned as they are looked at."""
    turned, labels = oriented(scan, labels)
    grey = turned.array[0]
    low, high = _window(grey)
    bright = turned.source is not None and turned.source.low_is_bright
    shape = turned.geometry.shape
    shown = np.lib.format.open_memmap(folder / _SCAN, "w+", np.uint8, shape)
    step = max(1, _PARTS // (8 * max(1, shape[1] * shape[2])))
    for start in range(0, shape[0], step):
        part = slice(start, start + step)
        values = np.clip((grey[part].astype(np.float32) - low) / (high - low or 1), 0, 1) * 255
        shown[part] = 255 - values.astype(np.uint8) if bright else values.astype(np.uint8)
    shown.flush()
    np.save(folder / _LABELS, np.ascontiguousarray(labels.array.astype(np.uint16, copy=False)))
    about = {
        "physical": turned.geometry.physical,
        "extent": turned.geometry.extent,
        "affine": turned.geometry.affine.tolist(),
        "views": [
            {"view": view.title or "picture", "planes": shape[view.across], "first": fullest(labels, view),
             "letters": view.letters}
            for view in views_of(turned)
        ],
        "labels": [
            {"name": label.name, "rgb": label.rgb, "atoms": sorted(label.atoms)} for label in labels.labels
        ],
    }  # fmt: skip
    (folder / _ABOUT).write_text(json.dumps(about), "utf-8")


class Kept:
    """What `keep_planes` kept.

    Parameters
    ----------
    folder : Path
        Where.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.about: dict[str, Any] = json.loads((folder / _ABOUT).read_text("utf-8"))

    def png(self, view: str, at: int, *, hidden: Collection[str] = ()) -> bytes:
        """Return a plane with the labels that are not hidden, as a PNG of at most 512 pixels.

        Raises
        ------
        UsageError
            If there is no such view or plane.
        """
        known = {each["view"]: each["planes"] for each in self.about["views"]}
        if view not in known or not 0 <= at < known[view]:
            raise UsageError("there is no such plane", hint=f"views and numbers of planes: {known}")
        chosen = next(each for each in (*VIEWS, PICTURE) if (each.title or "picture") == view)
        labels = [label for label in self.about["labels"] if label["name"] not in hidden]
        plane = self._plane(chosen, at, [label["atoms"] for label in labels])
        picture = paint(plane, _SIDE / max(plane.size_mm), [tuple(label["rgb"]) for label in labels])
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        return buffer.getvalue()

    def solid(self, which: str) -> Path:
        """Return the 'scan' in grey levels, or its 'labels' counted from 1 in their order, as NIfTI for 3D.

        It is written when it is first asked for. Where labels overlap, the last one is seen.

        Raises
        ------
        UsageError
            If there is nothing of this name.
        """
        if which not in {"scan", "labels"}:
            raise UsageError("there is nothing of this name in 3D", hint="choose from: scan, labels")
        path = self._folder / f"solid_{which}.nii.gz"
        if not path.is_file():
            array: npt.NDArray[Any] = np.lib.format.open_memmap(
                self._folder / (_SCAN if which == "scan" else _LABELS), "r"
            )
            step = math.ceil((array.size / _SOLID) ** (1 / 3))
            array = array[::step, ::step, ::step]
            if which == "labels":
                array = self._counted(array)
            geometry = Geometry(np.array(self.about["affine"]) @ np.diag([step, step, step, 1.0]), array.shape)
            write(Volume(array[None], geometry), path)
        return path

    def _counted(self, array: npt.NDArray[Any]) -> npt.NDArray[np.uint16]:
        atoms = [label["atoms"] for label in self.about["labels"]]
        table = np.zeros(1 + max([int(array.max()), *chain.from_iterable(atoms)]), np.uint16)
        for number, each in enumerate(atoms, 1):
            table[each] = number
        counted: npt.NDArray[np.uint16] = table[array]
        return counted

    def _plane(self, view: View, at: int, atoms: list[list[int]]) -> Plane:
        scan, labels = (np.lib.format.open_memmap(self._folder / name, "r") for name in (_SCAN, _LABELS))
        values = rows(labels, view, at)
        masks = tuple(np.isin(values, each) for each in atoms)
        extent = self.about["extent"]
        grey = (rows(scan, view, at) / 255).astype(np.float32)
        return Plane(view, grey, masks, (extent[view.right], extent[view.down]))


def _window(grey: npt.NDArray[Any]) -> tuple[float, float]:
    """Return what is shown as black and as white: percentiles of what is not the darkest, from a part of the voxels."""
    step = max(1, round((grey.size / _SAMPLES) ** (1 / 3)))
    sample = grey[::step, ::step, ::step]
    low, high = np.percentile(sample, (1, 99.5)).tolist()
    return low, high
