"""The steps of `medseg convert`: what a source holds, and a label map as a DICOM object of its scan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from medseg import __version__
from medseg.atomic import write_atomic
from medseg.dicom.parts import holds_dicom
from medseg.errors import UsageError
from medseg.evaluation.grids import on_grid_of
from medseg.io import read, read_labels, suffix_of
from medseg.plan import Label
from medseg.volume import LabelMap, Volume


def read_any(source: Path, scan: Path | None, *, labels: bool, choice: Mapping[str, Any]) -> Volume | LabelMap:
    """Return what a source holds: a label map where it says so or `labels` does, else a scan.

    Parameters
    ----------
    source : Path
        File or DICOM folder.
    scan : Path, optional
        On whose grid a SEG or RTSTRUCT is laid.
    labels : bool
        Whether it is a label map in any case.
    choice : mapping
        Which volume and series: the keywords of `io.read`.
    """
    from_dicom = holds_dicom(source)
    options = dict(choice) if from_dicom or scan is None else {"volume": choice["volume"]}
    if from_dicom and (labels or source.is_file()):
        from medseg.dicom.labels import count_labels

        if count_labels(source):
            return read_labels(source) if scan is None else _labels_of(source, _scan(scan, choice))
    if labels or suffix_of(source) == ".seg.nrrd":
        return read_labels(source, volume=None if from_dicom else choice["volume"])
    return read(source, **options)


def explain_overlaps(labels: LabelMap, target: Path) -> str:
    """Return which values stand for several labels at once, for a format that has no names; else ''."""
    if suffix_of(target) == ".seg.nrrd":
        return ""
    held = {atom: [label.name for label in labels.labels if atom in label.atoms] for atom in labels.values()}
    shared = [f"{atom} = {' + '.join(names)}" for atom, names in held.items() if len(names) > 1]
    return f"labels overlap: {', '.join(shared)}" if shared else ""


def _labels_of(source: Path, scan: Volume) -> LabelMap:
    """Return a SEG or RTSTRUCT on the grid of its scan; from the slices of a tilted scan by the nearest voxel."""
    from medseg.dicom.frames import grid_of

    stack = scan.source.stack if scan.source else None
    slices = grid_of(stack) if stack else None
    labels = read_labels(source, grid=slices or scan.geometry)
    placed, moved = on_grid_of(_empty(scan), labels, resample=True)
    if not moved or placed.source is None:
        return placed
    warning = "the slices of the scan were straightened; each voxel of the label map is the nearest one"
    return replace(placed, source=replace(placed.source, warnings=(*placed.source.warnings, warning)))


def _empty(scan: Volume) -> LabelMap:
    return LabelMap(np.zeros(scan.geometry.shape, np.uint8), scan.geometry)


def as_dicom(image: Volume | LabelMap, target: Path, scan: Path | None, kind: str, choice: Mapping[str, Any]) -> None:
    """Write a label map as a DICOM object of its scan.

    Raises
    ------
    UsageError
        If it is no label map, there is no scan, or they do not lie on one grid.
    """
    from medseg.dicom.frames import Producer
    from medseg.dicom.results import encode

    if not isinstance(image, LabelMap):
        raise UsageError("a scan cannot become DICOM", hint="convert label maps; scans stay as they are in the archive")
    if scan is None or not holds_dicom(scan):
        raise UsageError("a DICOM object needs the DICOM series of its scan", hint="name its folder with --scan")
    onto = _scan(scan, choice)
    image, _ = on_grid_of(_empty(onto), image)
    named = replace(image, source=onto.source, labels=image.labels or _numbered(image))
    encoded = encode([kind], named, Producer("medseg convert", __version__, sha256(named.array.tobytes()).hexdigest()))
    write_atomic(target, [encoded[kind]])


def _scan(scan: Path, choice: Mapping[str, Any]) -> Volume:
    if holds_dicom(scan):
        return read(scan, **choice)
    return read(scan, volume=choice["volume"])


def _numbered(labels: LabelMap) -> tuple[Label, ...]:
    """Return labels for a map that has no names: 'label 1', 'label 2', ..."""
    return tuple(Label(value=value, name=f"label {value}") for value in labels.values())
