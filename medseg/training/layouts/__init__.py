"""Whatever a user gives to train on, as a data set: a folder in one of several layouts, a dataset.json, a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medseg.errors import UsageError
from medseg.training.dataset import Case, Dataset, Finding
from medseg.training.layouts.declared import Declared, read_declared
from medseg.training.layouts.folders import cases_in
from medseg.training.layouts.gather import LAYOUTS, Listing, gather
from medseg.training.layouts.tables import Row, cases_of, read_csv, read_json, rows_of

_LISTING = "dataset.json"
_TABLES = {".csv", ".tsv", ".txt"}


def find_dataset(data: Path) -> Dataset:
    """Return the data set in a folder or file; of the voxels nothing is read.

    Parameters
    ----------
    data : Path
        A folder of images beside one of labels (`images` and `labels`, `imagesTr` and `labelsTr`, ...), of pairs
        (`x.nii.gz` and `x_seg.nii.gz`), or of a folder for each case; a folder in the form of the Medical
        Segmentation Decathlon or of nnU-Net, or its `dataset.json`; a CSV or a JSON of paths.

    Raises
    ------
    UsageError
        If it is none of these, is damaged, or no case in it is whole. What some cases lack stands in `findings`.
    """
    try:
        if data.is_dir():
            return _in_folder(data)
        if not data.exists():
            raise UsageError(f"{data}: there is no such file or folder", hint=LAYOUTS)
        if data.is_file() and data.name == _LISTING:
            return _from_json(data, data.resolve().parent.name)
        if data.is_file() and data.suffix.lower() == ".json":
            return _from_json(data, data.stem)
        if data.is_file() and data.suffix.lower() in _TABLES:
            return gather(data, data.stem, cases_of(read_csv(data), data), Declared())
    except OSError as error:
        raise UsageError(f"{data}: cannot be read: {error.strerror}", hint="check disk and permissions") from error
    raise UsageError(f"{data}: is no folder, JSON or CSV", hint=LAYOUTS)


def read_decathlon(folder: Path) -> list[Case]:
    """Return the training cases of a folder in the form of the Medical Segmentation Decathlon, by name.

    Raises
    ------
    UsageError
        If `dataset.json` is missing or damaged, or a case that it lists is not whole.
    """
    dataset = _from_json(folder / _LISTING, folder.name)
    if error := next((found for found in dataset.findings if found.severity == "error"), None):
        raise UsageError(f"{folder / _LISTING}: {error.detail}", hint="get the data set again")
    return list(dataset.cases)


def _in_folder(folder: Path) -> Dataset:
    inner = [path for path in folder.iterdir() if not path.name.startswith((".", "__"))]
    for home in (folder, *(inner if len(inner) == 1 else ())):
        if (home / _LISTING).is_file():
            return _from_json(home / _LISTING, home.resolve().name)
    return gather(folder, folder.resolve().name, cases_in(folder), Declared())


def _from_json(path: Path, name: str) -> Dataset:
    record = read_json(path)
    record = {"training": record} if isinstance(record, list) else record
    if not isinstance(record, dict):
        raise UsageError(f"{path}: holds {str(record)[:60]!r}", hint=LAYOUTS)
    rows, ending = _rows(record, path), record.get("file_ending") or ""
    if not isinstance(ending, str):
        raise UsageError(f"{path}: file_ending is {str(ending)[:60]!r}", hint="write it as '.nii.gz'")
    said = read_declared(record, path)
    listing = cases_of(rows, path) if rows else cases_in(path.parent, ending=ending)
    findings = (*listing.findings, *_oddities(record, rows, listing, path))
    return gather(path, name, Listing(listing.cases, findings, listing.channels), said)


def _rows(record: Mapping[str, Any], path: Path) -> list[Row]:
    """Return the cases that a JSON file lists, in `training` or as nnU-Net does in `dataset`; none if it does not."""
    training, dataset = record.get("training") or [], record.get("dataset") or {}
    if not isinstance(training, list):
        raise UsageError(f"{path}: training is {str(training)[:60]!r}, no list", hint=LAYOUTS)
    if training:
        return rows_of(training, path)
    if not isinstance(dataset, dict) or not all(isinstance(entry, dict) for entry in dataset.values()):
        raise UsageError(f"{path}: dataset is {str(dataset)[:60]!r}", hint=LAYOUTS)
    return [
        {"case": case, "image": entry.get("images"), "label": entry.get("label")} for case, entry in dataset.items()
    ]


def _oddities(record: Mapping[str, Any], rows: Sequence[Row], listing: Listing, path: Path) -> list[Finding]:
    findings = []
    said, count = record.get("numTraining"), len(listing.cases)
    if said is not None and str(said) != str(count):
        detail = f"{path} says numTraining {said}, but there are {count} cases; is the data set complete?"
        findings.append(Finding("warning", "COUNT", path.name, detail))
    stated = [value for row in rows for value in (row.get("image"), row.get("label"))]
    paths = [part for value in stated for part in (value if isinstance(value, list) else [value])]
    outside = [part for part in paths if isinstance(part, str) and Path(part).is_absolute()]
    if outside and path.name == _LISTING:
        detail = f"{path} names {len(outside)} files by absolute paths, such as {outside[0]}; they move with no copy"
        findings.append(Finding("warning", "OUTSIDE", path.name, detail))
    return findings
