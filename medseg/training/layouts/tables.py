"""Cases listed one by one: the rows of a CSV, or the objects of a list in JSON."""

from __future__ import annotations

import csv
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from medseg.dicom.parts import holds_dicom
from medseg.errors import UsageError
from medseg.io import suffix_of
from medseg.training.layouts.folders import channel_files, label_beside, stem
from medseg.training.layouts.gather import LAYOUTS, Listed, Listing

_LABEL = ("label", "labels", "mask", "seg", "segmentation", "reference")
_CASE = ("case", "name", "id", "case_id")
_GROUP = ("group", "patient", "subject", "patient_id", "subject_id")
_DELIMITERS = ",;\t"
_CHANNEL = re.compile(r"_\d{4}$")

Row = Mapping[str, Any]


def read_csv(path: Path) -> list[Row]:
    """Return the rows of a table whose cells are set apart by commas, semicolons or tabs; blank ones are left out.

    Parameters
    ----------
    path : Path
        UTF-8, with or without a byte order mark; its first line names the columns.

    Raises
    ------
    UsageError
        If it is no such table.
    """
    try:
        text = path.read_text("utf-8-sig")
        first = next((line for line in text.splitlines() if line.strip()), "")
        lines = [*csv.reader(StringIO(text, newline=""), delimiter=max(_DELIMITERS, key=first.count), strict=True)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path}: is no table ({error})", hint="save it as CSV in UTF-8") from error
    rows = [(number, cells) for number, cells in enumerate(lines, start=1) if any(cell.strip() for cell in cells)]
    head = [_plain(name) for name in rows[0][1]] if rows else []
    if len(rows) < 2:
        raise UsageError(f"{path}: has no rows", hint="write a line of names (image, label) and one for each case")
    if twice := next((name for name in head if name and head.count(name) > 1), ""):
        raise UsageError(f"{path}: two columns are named {twice!r}", hint="give each column a name of its own")
    if wide := next((row for row in rows if len(row[1]) > len(head)), None):
        cells = f"has {len(wide[1])} cells, the first line {len(head)}"
        raise UsageError(f"{path}: line {wide[0]} {cells}", hint="put names with a comma into quotes")
    return [{name: cell.strip() for name, cell in zip(head, cells, strict=False) if name} for _, cells in rows[1:]]


def read_json(path: Path) -> Any:
    """Return the plain data of a JSON file in which no object names a thing twice.

    Raises
    ------
    UsageError
        If it is damaged.
    """
    try:
        return json.loads(path.read_text("utf-8-sig"), object_pairs_hook=_once)
    except (OSError, ValueError, RecursionError) as error:
        said = "nested too deeply" if isinstance(error, RecursionError) else error
        raise UsageError(f"{path}: cannot be used ({said})", hint=LAYOUTS) from error


def rows_of(entries: Sequence[Any], path: Path) -> list[Row]:
    """Return the objects of a list in JSON as rows; of a lone path it is the image, beside a folder of labels.

    Raises
    ------
    UsageError
        If one is neither an object nor a path.
    """
    rows: list[Row] = []
    for number, entry in enumerate(entries):
        if not isinstance(entry, str | dict):
            raise UsageError(f"{path}: case {number} of the list is {str(entry)[:60]!r}", hint=LAYOUTS)
        if isinstance(entry, str):
            label = label_beside(path.parent / entry)
            row = {"image": entry, "label": label and os.path.relpath(label, path.parent)}
        else:
            row = {_plain(key): value for key, value in entry.items()}
        image = row.get("image")
        if not (isinstance(image, str) and Path(image).name.startswith("._")):  # what macOS leaves beside a file
            rows.append(row)
    return rows


def cases_of(rows: Sequence[Row], path: Path) -> Listing:
    """Return the cases that rows name; paths start from the folder of the table.

    Images stand in the column `image` (in JSON also as a list) and in all others that name scans which are there,
    each a channel.

    Parameters
    ----------
    rows : sequence of mappings
        Names of columns in lower case and without `_path`, and what stands in them.
    path : Path
        The table.

    Raises
    ------
    UsageError
        If no column names images or labels, or two name labels; or a cell holds something else.
    """
    columns = [*dict.fromkeys(name for row in rows for name in row)]
    label, case, group = (_column(columns, names) for names in (_LABEL, _CASE, _GROUP))
    if both := [name for name in _LABEL if name in columns and name != label]:
        raise UsageError(f"{path}: the columns {label} and {both[0]} may both be labels", hint="keep one of them")
    images = [name for name in columns if name == "image" or name not in {label, case, group}]
    images = [name for name in images if name == "image" or _names_scans(rows, name, path.parent)]
    if not images or not label:
        what = "images" if not images else "labels"
        raise UsageError(f"{path}: none of the columns {', '.join(columns)} names {what}", hint=LAYOUTS)
    found = []
    for row in rows:
        files = _files(row, images, path)
        name, patient = ("" if row.get(column) is None else str(row[column]).strip() for column in (case, group))
        found.append(Listed(name, files, _path(row.get(label), path), patient))
    return Listing(tuple(_with_names(found)), channels=tuple(images) if len(images) > 1 else ())


def _files(row: Row, columns: Sequence[str], path: Path) -> dict[str, Path]:
    """Return the images of a row by their channels."""
    if len(columns) > 1:
        found = {name: _path(row.get(name), path) for name in columns}
        return {name: file for name, file in found.items() if file}
    stated = row.get(columns[0])
    if isinstance(stated, list):
        several = {str(number): _path(each, path) for number, each in enumerate(stated)}
        return {name: file for name, file in several.items() if file}
    one = _path(stated, path)
    if one is None:
        return {}
    return {"0": one} if one.exists() else channel_files(one) or {"0": one}


def _path(stated: Any, table: Path) -> Path | None:
    if stated is None or stated == "":
        return None
    if not isinstance(stated, str) or "\0" in stated:
        raise UsageError(f"{table}: {str(stated)[:60]!r} is no path", hint="write the name of a file in quotes")
    path = table.parent / stated.strip()
    return path.resolve() if ".." in Path(stated).parts else path


def _names_scans(rows: Sequence[Row], column: str, folder: Path) -> bool:
    for row in rows:
        stated = row.get(column)
        if isinstance(stated, str) and stated and "\0" not in stated:
            path = folder / stated
            if (suffix_of(path) or path.suffix.lower() == ".dcm" or path.is_dir()) and path.exists():
                return not path.is_dir() or holds_dicom(path)
    return False


def _with_names(cases: Sequence[Listed]) -> list[Listed]:
    """Return cases with names: their own, or of file, folder, or both, whichever first tells all of them apart."""
    firsts = [next(iter(listed.images.values()), listed.reference or Path()) for listed in cases]
    stems = [stem(path) for path in firsts]
    stems = [_CHANNEL.sub("", stems[n]) if len(listed.images) > 1 else stems[n] for n, listed in enumerate(cases)]
    folders = [path.parent.name for path in firsts]
    both = [f"{folder}_{name}" for folder, name in zip(folders, stems, strict=True)]
    unnamed = [number for number, listed in enumerate(cases) if not listed.name]
    schemes = [stems, folders, both]
    names = next((names for names in schemes if len({names[n] for n in unnamed}) == len(unnamed)), stems)
    return [
        Listed(listed.name or name, listed.images, listed.reference, listed.group)
        for listed, name in zip(cases, names, strict=True)
    ]


def _column(columns: Sequence[str], names: Sequence[str]) -> str:
    return next((name for name in names if name in columns), "")


def _plain(name: str) -> str:
    return re.sub(r"[-_ ](path|file|filename)$", "", name.strip().lower())


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    counts = Counter(key for key, _ in pairs)
    if twice := [key for key, count in counts.items() if count > 1]:
        raise ValueError(f"{twice[0]!r} stands twice in one object")
    return dict(pairs)
