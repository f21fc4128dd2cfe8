"""The folder of scans to label, and in it the labels that people drew."""

from __future__ import annotations

import json
import os
import re
from itertools import product
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from medseg.atomic import Outputs, check_writable
from medseg.errors import GeometryError, MedsegError, ShapeMismatch
from medseg.evaluation.grids import on_common_grid, on_grid_of
from medseg.gate import limited
from medseg.geometry import Geometry
from medseg.io import read, read_labels, save, scans_in, stem_of, suffix_of
from medseg.server.answers import Rejected
from medseg.server.settings import Limits
from medseg.volume import LabelMap, Volume

FINAL = "final"  # the tag of labels that a person approved
PLAIN, NAMED = ".nii.gz", ".seg.nrrd"  # of labels; the latter for segments with names, which may overlap
_TAG = re.compile(r"[A-Za-z0-9_-]{1,40}")
_NAME = re.compile(r"\w[\w .,:()\[\]+=@#-]{0,99}" if os.name != "nt" else r"\w(?:[\w .,()\[\]+=@#-]{0,98}[\w)\]])?")
_LEVELS = 8  # of what a client says of its labels
_SAME = 0.01  # mm: rounding of headers


class Datastore:
    """A folder of scans, and in it the folder `labels` with what people drew.

    Those lie in `labels/<tag>/<scan>.nii.gz`, or `.seg.nrrd` where the segments came with names and may overlap; what
    the client said of them lies beside, as JSON.

    Parameters
    ----------
    folder : Path
        Its scans are those directly in it.
    limits : Limits
        Of what is read.
    """

    def __init__(self, folder: Path, limits: Limits) -> None:
        self._folder, self._limits = folder, limits
        self._lock = Lock()

    def scans(self) -> dict[str, Path]:
        """Return the files of all scans by name; the second of one name keeps its suffix."""
        found: dict[str, Path] = {}
        for path in scans_in(self._folder):
            found[path.name if stem_of(path) in found else stem_of(path)] = path
        return found

    def scan(self, name: str) -> Path:
        """Return the file of a scan.

        Raises
        ------
        Rejected
            If there is none of this name.
        """
        found = self.scans().get(name)
        if found is None:
            raise Rejected(404, "IMAGE", "there is no such scan", "see GET /datastore/?output=all")
        return found

    def labels(self) -> dict[str, dict[str, Path]]:
        """Return the label files of all scans: by scan, then by tag."""
        found: dict[str, dict[str, Path]] = {name: {} for name in self.scans()}
        for path in sorted((self._folder / "labels").glob("*/*")):
            if suffix_of(path) in {PLAIN, NAMED} and (scan := stem_of(path)) in found:
                found[scan][path.parent.name] = path
        return found

    def first_without_label(self) -> tuple[str, Path] | None:
        """Return the first scan of which nobody approved a label map."""
        tags = self.labels()
        return next(((name, path) for name, path in self.scans().items() if FINAL not in tags[name]), None)

    def add(self, name: str, file: Path) -> None:
        """Keep a scan that a client sent, as `<name>.nii.gz`; none is ever overwritten.

        Raises
        ------
        Rejected
            If the name is none for a file, the file no scan, or another scan has the name.
        """
        if not _NAME.fullmatch(name):
            raise Rejected(400, "NAME", "the name is none for a file", "rename the volume: letters, digits and spaces")
        scan = self._read(file, "the scan")
        with self._lock:
            if known := self.scans().get(name):
                before = self._read(known, "the scan of this name")
                if before.geometry.same_as(scan.geometry, tolerance=_SAME) and np.array_equal(before.array, scan.array):
                    return
                raise Rejected(409, "EXISTS", "another scan has this name", "rename the volume")
            check_writable(self._folder)
            with Outputs() as outputs:
                save(scan, self._folder / f"{name}{PLAIN}", outputs)

    def save(self, scan: str, tag: str, file: Path, about: dict[str, Any]) -> Path:
        """Keep a label map that a client sent, if it lies on the grid of its scan; an earlier one of the tag goes.

        Raises
        ------
        Rejected
            If the tag is none, or the file is no label map of this scan.
        """
        if not _TAG.fullmatch(tag):
            raise Rejected(400, "TAG", "the tag is none", "use letters, digits, - and _")
        labels = self._labels(file, self._read(self.scan(scan), "the scan").geometry)
        folder = self._folder / "labels" / tag
        check_writable(folder)
        kept, other = (NAMED, PLAIN) if labels.labels else (PLAIN, NAMED)
        with self._lock:
            with Outputs() as outputs:
                save(labels, folder / f"{scan}{kept}", outputs)
                outputs.write(folder / f"{scan}.json", [json.dumps(about).encode()])
            (folder / f"{scan}{other}").unlink(missing_ok=True)
        return folder / f"{scan}{kept}"

    def about(self, label: Path) -> dict[str, Any]:
        """Return what the client said when it sent a label map; nothing where that cannot be told."""
        beside = label.with_name(f"{stem_of(label)}.json")
        try:
            return said(beside.read_text("utf-8")) if beside.is_file() else {}
        except ValueError:
            return {}

    def _read(self, path: Path, what: str) -> Volume:
        try:
            with limited(self._limits.voxels, self._limits.ratio):
                return read(path)
        except MedsegError as error:
            raise _without(path, what, error) from None

    def _labels(self, path: Path, grid: Geometry) -> LabelMap:
        try:
            with limited(self._limits.voxels, self._limits.ratio):
                return laid_on(grid, read_labels(path, grid=grid))
        except MedsegError as error:
            raise _without(path, "the labels", error) from None


def laid_on(grid: Geometry, labels: LabelMap) -> LabelMap:
    """Return labels on the grid of a scan; they may be stored in another axis order, or fill a part of it.

    Raises
    ------
    ShapeMismatch
        If they lie on another grid.

    Examples
    --------
    >>> scan = Geometry(np.eye(4), (3, 1, 1))
    >>> laid_on(scan, LabelMap(np.full((1, 1, 1), 7), scan.cropped((2, 0, 0), (3, 1, 1)))).array.ravel().tolist()
    [0, 0, 7]
    """
    blank = LabelMap(np.zeros(grid.shape, np.uint8), grid)
    whole = blank.geometry.reordered(grid.order_to("RAS")).shape
    if labels.geometry.physical and grid.physical and _inside(labels.geometry, grid):
        part = on_common_grid(labels, blank)[0]
        labels = part if part.geometry.shape == whole else labels
    try:
        return on_grid_of(blank, labels)[0]
    except GeometryError:
        hint = "draw them on the scan, or resample them"
        raise ShapeMismatch("the labels do not lie on the grid of the scan", hint=hint) from None


def said(text: str) -> dict[str, Any]:
    """Return what a client says as JSON, if that is an object.

    Raises
    ------
    ValueError
        If it is no JSON, or such that it could not be told again: not a number, half a letter, or nested too deeply.
    """
    try:
        found = json.loads(text)
        json.dumps(found, allow_nan=False, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if _deeper(found, _LEVELS):
        raise ValueError("nested too deeply")
    return found if isinstance(found, dict) else {}


def _deeper(value: object, levels: int) -> bool:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels < 0 or any(_deeper(part, levels - 1) for part in parts)


def _inside(own: Geometry, grid: Geometry) -> bool:
    """Return whether the corners of a grid lie in another one."""
    at = grid.to_index(own.to_world(list(product(*((0, size - 1) for size in own.shape)))))
    return bool((at > -0.1).all() and (at < np.array(grid.shape) - 0.9).all())


def _without(path: Path, what: str, error: MedsegError) -> Rejected:
    """Return an error about a file without its place on this computer."""
    problem = error.problem.replace(f"{path}: ", f"{what}: ").replace(str(path), what).replace(path.name, what)
    return Rejected(422, "LABELS" if what == "the labels" else "SCAN", problem, error.hint)
