"""What lies in an archive: its files folder by folder, and what each of them is, told by a look at its beginning."""

from __future__ import annotations

import csv
import os
import stat
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from medseg.dicom.elements import Elements, read_elements
from medseg.dicom.parts import Damaged, Part, find, is_dicom
from medseg.dicom.planes import no_scan
from medseg.errors import ScanError, UsageError
from medseg.io import SUFFIXES, stem_of, suffix_of

DICOM, SCAN, DAMAGED, LOST, OTHER = "dicom", "scan", "damaged", "lost", "other"
_VOLUMES = {suffix for suffix, kind in SUFFIXES.items() if kind in {"nifti", "nrrd", "mha"}} - {".seg.nrrd"}
_DETACHED = {".mhd", ".nhdr", ".hdr"}  # refused with a reason when they are read
_RESULTS = ("_seg", "_dseg", "_mask", "_label", "_labels")  # endings of names that are no scans
_NAMED_LIKE_DICOM = {"", ".dcm", ".ima", ".dicom"}
_HEAD = 144
_TOGETHER = 8  # files that a thread looks at in one go: giving them out one by one takes as long as looking
_AHEAD = 10_000  # files whose looks are held at most
_LISTS = {".txt", ".csv", ".tsv", ".list"}
_HEADINGS = {"path", "file", "filename", "scan", "image", "folder", "series", "study"}

File = tuple[str, int, int]  # name, bytes, time of change in ns


@dataclass(frozen=True, slots=True)
class Look:
    """What a file, or a member of a zip archive, is.

    Parameters
    ----------
    kind : str
        `DICOM` (with pixels of a scan), `SCAN` (a file of another format), `DAMAGED`, `LOST` (may have been a scan,
        and holds nothing) or `OTHER`.
    member : str
        Name in the zip archive.
    size : int
        Bytes, of a member.
    elements : Elements, optional
        Of DICOM.
    code, problem : str
        Of what is damaged.
    passing : bool
        Whether it may be another thing the next time, with the same size and time.
    """

    kind: str
    member: str = ""
    size: int = 0
    elements: Elements | None = None
    code: str = ""
    problem: str = ""
    passing: bool = False


def roots_of(archive: Path) -> tuple[Path, list[Path]]:
    """Return the folder that names in an archive are relative to, and what is to be walked.

    An archive is a folder, a zip archive, a scan, or a list: a text file with a path in each line, or a CSV file with
    one in its first column (its first row may be a heading), relative to the folder of the list.

    Raises
    ------
    UsageError
        If there is none, or a list names what does not exist.
    """
    archive = archive.absolute()
    if archive.is_dir():
        return archive, [archive]
    if not archive.is_file():
        raise UsageError(f"{archive}: there is no such archive", hint="give a folder, a zip archive or a list of paths")
    if archive.suffix.lower() not in _LISTS:
        return archive.parent, [archive]
    paths = [(number, archive.parent / text) for number, text in _listed(archive)]
    missing = [number for number, path in paths if not path.exists()]
    if missing or not paths:
        what = f"line {missing[0]} names what does not exist" if missing else "names nothing"
        raise UsageError(f"{archive}: {what}", hint=f"give one path in each line, relative to {archive.parent}")
    return archive.parent, [path for _, path in paths]


def _listed(archive: Path) -> Iterator[tuple[int, str]]:
    """Yield line number and path of the entries of a list."""
    comma = {".csv": ",", ".tsv": "\t"}.get(archive.suffix.lower())
    try:
        with open(archive, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            rows = csv.reader(file, delimiter=comma) if comma else ([line] for line in file)
            for number, row in enumerate(rows, start=1):
                text = row[0].strip() if row else ""
                heading = comma and number == 1 and text.casefold() in _HEADINGS
                if text and not heading and not text.startswith("#"):
                    yield number, text
    except (OSError, csv.Error) as error:
        raise UsageError(f"{archive}: cannot be read as a list ({error})", hint="give one path in each line") from None


def folders(roots: list[Path], without: Path) -> Iterator[tuple[Path, list[File], list[str]]]:
    """Yield each folder with its files, and the names of entries that cannot be read.

    Links are followed, each folder once. `without` is passed over with all that is in it.
    """
    alone: dict[Path, set[str]] = {}
    waiting, visited = [root for root in roots if root.is_dir()], set()
    for root in roots:
        if not root.is_dir() and not any(root.is_relative_to(folder) for folder in waiting):
            alone.setdefault(root.parent, set()).add(root.name)
    with suppress(OSError):
        visited.add(_identity(without.stat()))
    for folder, names in alone.items():
        yield _folder(folder, names)[0]
    while waiting:
        folder = waiting.pop()
        try:
            status = folder.stat()
        except OSError:
            continue
        if _identity(status) in visited or folder.name == "derivatives" or (folder / ".medseg").is_dir():
            continue  # seen before, of BIDS, or results of another run
        visited.add(_identity(status))
        found, below = _folder(folder)
        waiting += reversed(below)
        yield found


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _folder(folder: Path, only: set[str] | None = None) -> tuple[tuple[Path, list[File], list[str]], list[Path]]:
    """Return a folder's files, names of what cannot be read, and the folders in it."""
    files: list[File] = []
    lost: list[str] = []
    below: list[Path] = []
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return (folder, [], ["."]), []
    for entry in entries:
        if only is not None and entry.name not in only:
            continue
        try:
            status = entry.stat()
        except OSError:
            lost.append(entry.name)
            continue
        if stat.S_ISDIR(status.st_mode):
            below.append(folder / entry.name)
        elif stat.S_ISREG(status.st_mode):
            files.append((entry.name, status.st_size, status.st_mtime_ns))
    return (folder, files, lost), below


def looks_of(folder: Path, files: list[File], pool: ThreadPoolExecutor) -> Iterator[tuple[File, list[Look]]]:
    """Yield what files of a folder are; no more than are looked at soon are held."""

    def look_at(some: list[File]) -> list[list[Look]]:
        return [look(folder / name, size) for name, size, _ in some]

    for start in range(0, len(files), _AHEAD):
        block = files[start : start + _AHEAD]
        parts = [block[begin : begin + _TOGETHER] for begin in range(0, len(block), _TOGETHER)]
        for part, looks in zip(parts, pool.map(look_at, parts), strict=True):
            yield from zip(part, looks, strict=True)


def look(path: Path, size: int) -> list[Look]:
    """Return what a file is: one look, or one for each member of a zip archive."""
    kind = _by_name(path, size)
    return [Look(kind)] if kind else _by_content(path, size)


def _by_name(path: Path, size: int) -> str:
    """Return the kind of a file where its name and length tell it; else ''."""
    if path.name.startswith("."):
        return OTHER
    if path.suffix.lower() in _DETACHED or suffix_of(path) in _VOLUMES:
        stem = stem_of(path).lower()
        return OTHER if stem.endswith(_RESULTS) else SCAN
    if not size:
        return LOST if path.suffix.lower() in _NAMED_LIKE_DICOM else OTHER
    return ""


def _by_content(path: Path, size: int) -> list[Look]:
    try:
        with open(path, "rb", buffering=0) as file:
            head = file.read(_HEAD)
        if is_dicom(head):
            return [_dicom(Part(path), size, sure=head[128:132] == b"DICM")]
        if head[:2] == b"PK" and zipfile.is_zipfile(path):
            return [_dicom(part, part.size(), sure=True) for part in find(path).parts] or [Look(OTHER)]
    except ScanError as error:
        return [Look(DAMAGED, code=error.code, problem=error.problem.removeprefix(f"{path}: "))]
    except OSError:
        return [Look(LOST, passing=True)]
    short = size < 132 and path.suffix.lower() in _NAMED_LIKE_DICOM - {""}
    return [Look(LOST if short else OTHER)]


def _dicom(part: Part, size: int, *, sure: bool) -> Look:
    try:
        elements = read_elements(part)
    except Damaged as error:
        if not sure:
            return Look(OTHER, part.member)
        return Look(DAMAGED, part.member, size, code="DICOM_DAMAGED", problem=f"a DICOM file cannot be read: {error}")
    if no_scan(elements) or not (elements.offset or elements.short(0x00280010)):
        return Look(OTHER, part.member)
    return Look(DICOM, part.member, size, elements)
