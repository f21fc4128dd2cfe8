"""What the headers of one series say, before a pixel is read: which volumes it holds, and which must not be used."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medseg.archive.naming import fingerprint
from medseg.dicom.elements import Elements, read_elements
from medseg.dicom.parts import Damaged, Found, Part, find
from medseg.dicom.planes import Plane, planes_of
from medseg.dicom.series import Row, Survey, read_row, rows_of, survey_of
from medseg.errors import ScanError
from medseg.io import SUFFIXES, read, suffix_of
from medseg.io.nifti import read_header
from medseg.volume import Volume

UNREADABLE = "UNREADABLE"
_ENDS = 1 << 16
_SERIES = Path("series")  # what messages call it: a path may name the patient


@dataclass(frozen=True)
class Verdict:
    """What is known of one volume from headers.

    Parameters
    ----------
    number : int
        Its row in the series, from 1.
    slices : int, optional
        How many; None where it is not DICOM.
    spacing_mm : sequence of three floats, optional
        Between columns, rows and slices.
    moments : int
        How many volumes were taken at the same positions.
    aside : str
        Why it is no scan to be segmented (a localizer, ...); empty for a scan.
    code, problem, hint : str
        Why it must not be used; empty where it may.
    repairable : bool
        Whether slices may be interpolated instead.
    fingerprint : str
        A hash of what it is made of.
    warnings : sequence of str
        What a report must say of it.
    """

    number: int
    slices: int | None = None
    spacing_mm: Sequence[float] | None = None
    moments: int = 1
    aside: str = ""
    code: str = ""
    problem: str = ""
    hint: str = ""
    repairable: bool = False
    fingerprint: str = ""
    warnings: Sequence[str] = ()


def pack(elements: Elements) -> str:
    """Return a header as text, for the time until its series is judged."""
    values = {str(tag): value.decode("latin-1") for tag, value in elements.values.items()}
    fields = [elements.order, elements.syntax, elements.offset, elements.length, elements.size, elements.words]
    return json.dumps([values, fields])


def unpack(text: str) -> Elements:
    """Return a header that was packed."""
    values, fields = json.loads(text)
    return Elements({int(tag): value.encode("latin-1") for tag, value in values.items()}, *fields)


def judge(
    files: Sequence[tuple[Part, int, Elements | None]], damage: tuple[str, str] | None, lost: int
) -> list[Verdict]:
    """Return what the volumes of a series are.

    Parameters
    ----------
    files : sequence of (part, bytes, header)
        All that belongs to the series; a header that is not at hand is read.
    damage : (code, problem), optional
        Of a file that belongs to the series, and cannot be read.
    lost : int
        How many files beside those of the series cannot be read, and may belong to it.
    """
    sizes = {part: size for part, size, _ in files}
    try:
        unread = iter(reachable([part for part, _, head in files if not head]))
        planes = [plane for part, _, head in files for plane in planes_of(part, head or read_elements(next(unread)))]
    except Damaged as error:
        damage, planes = ("DICOM_DAMAGED", f"a DICOM file cannot be read: {error}"), []
    except ScanError as error:
        damage, planes = (error.code, "the archive that holds it cannot be read"), []
    except OSError:
        damage, planes = (UNREADABLE, "a file cannot be read now"), []
    if damage or not planes:
        code, problem = damage or ("NO_IMAGES", "holds no images")
        mark = fingerprint([f"{part.path.name}{part.member}{size}" for part, size in sizes.items()])
        return [Verdict(1, code=code, problem=problem, hint="copy it again from its source", fingerprint=mark)]
    warnings = (f"{lost} files beside it cannot be read",) if lost else ()
    return [_verdict(row, sizes, warnings) for row in rows_of(planes)]


def _verdict(row: Row, sizes: dict[Part, int], warnings: Sequence[str]) -> Verdict:
    first, fault = row.placements[0], next((one.fault for one in row.placements if one.fault), None)
    spacing = (row.first.spacing[1], row.first.spacing[0], first.step) if row.first.spacing else None
    return Verdict(
        row.number,
        len(first.planes),
        spacing,
        len(row.placements),
        row.aside,
        fault.code if fault else "",
        fault.problem if fault else "",
        fault.hint if fault else "",
        repairable=bool(fault and fault.repairable),
        fingerprint=_mark(row, sizes),
        warnings=warnings,
    )


def _mark(row: Row, sizes: dict[Part, int]) -> str:
    """Return a hash of the objects of a row: their UIDs, frames, lengths, and headers as far as they matter."""
    heads = {plane.part: repr(sorted(plane.elements.values.items())) for plane in _planes(row)}
    return fingerprint(
        [f"{_name(plane)} {plane.number} {sizes.get(plane.part, 0)} {heads[plane.part]}" for plane in _planes(row)]
    )


def _planes(row: Row) -> list[Plane]:
    return [plane for one in row.placements for plane in (*one.planes, *(twin for _, twin in one.twins))]


def _name(plane: Plane) -> str:
    return plane.frame().sop_instance or plane.part.path.name


def judge_file(path: Path) -> Verdict:
    """Return what a file of another format is; slices lie across the axis of the largest steps."""
    mark = digest_of_ends(path)
    if not mark:
        text = "it cannot be read now"
        return Verdict(1, code=UNREADABLE, problem=text, hint="check disk, network and permissions, and run again")
    if SUFFIXES.get(suffix_of(path)) != "nifti":
        return Verdict(1, fingerprint=mark)
    try:
        header = read_header(path)
    except (ScanError, OSError, MemoryError):
        return Verdict(1, fingerprint=mark)  # its reader says best what is wrong
    grid = header.geometry
    order = sorted(range(3), key=lambda axis: grid.spacing[axis])
    spacing = tuple(grid.spacing[axis] for axis in order)
    return Verdict(1, grid.shape[order[2]], spacing, header.volumes, fingerprint=mark)


def digest_of_ends(path: Path) -> str:
    """Return a hash of a file's size, beginning and end: a gzip stream ends with the checksum of all its content.

    Of what has no checksum the time of change counts too. '' where it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        status = path.stat()
        digest.update(str(status.st_size).encode())
        with open(path, "rb", buffering=0) as file:
            head = file.read(_ENDS)
            file.seek(max(0, status.st_size - _ENDS))
            digest.update(head + file.read(_ENDS))
        if head[:2] != b"\x1f\x8b":
            digest.update(str(status.st_mtime_ns).encode())
    except OSError:
        return ""
    return digest.hexdigest()


def read_file(path: Path, mark: str) -> Volume:
    """Return the scan in a file, as it was judged.

    Raises
    ------
    ScanError
        As `medseg.read`; 'CHANGED' where the file is no longer the one that was judged.
    """
    if digest_of_ends(path) != mark:
        raise _changed()
    return read(path)


def reachable(parts: Sequence[Part]) -> list[Part]:
    """Return parts that can be read: those of one zip archive share it.

    Raises
    ------
    ScanError
        If an archive is damaged; 'CHANGED' where it does not hold one of them any more.
    """
    inside = {path: {one.member: one for one in find(path).parts} for path in {one.path for one in parts if one.member}}
    try:
        return [inside[part.path][part.member] if part.member else part for part in parts]
    except KeyError:
        raise _changed() from None


def _changed() -> ScanError:
    text = "its files changed since they were listed"
    return ScanError(text, hint="run again once the archive is at rest", code="CHANGED")


def read_volume(parts: Sequence[Part], number: int, mark: str, *, repair: bool = False, suv: bool = False) -> Volume:
    """Return one volume of a series, as it was judged.

    Parameters
    ----------
    parts : sequence of Part
        All files of the series.
    number : int
        The row.
    mark : str
        Its fingerprint.
    repair, suv : bool
        As in `medseg.read`.

    Raises
    ------
    ScanError
        As `medseg.read`; 'CHANGED' where the files are no longer those that were judged.
    """
    try:
        sizes = {part: part.size() for part in parts}
        found: Survey = survey_of(Found(list(parts), Counter()), _SERIES)
    except OSError as error:
        raise ScanError(
            f"a file cannot be read: {error.strerror}", hint="check disk and network, and run again", code=UNREADABLE
        ) from None
    row = next((row for row in found.rows if row.number == number), None)
    if row is None or _mark(row, sizes) != mark:
        raise _changed()
    return read_row(found, row, repair=repair, suv=suv)


def read_only_scan(parts: Sequence[Part], *, repair: bool = False, suv: bool = False) -> Volume:
    """Return the only scan in files that were fetched.

    Raises
    ------
    ScanError
        If there is none, or more than one.
    """
    found = survey_of(Found(list(parts), Counter()), _SERIES)
    scans = [row for row in found.rows if not row.aside]
    if len(scans) != 1:
        count = f"{len(scans)} volumes" if scans else "no scan"
        raise ScanError(
            f"the series holds {count}",
            hint="choose other series by the rules",
            code="SEVERAL_SERIES" if scans else "NO_IMAGES",
        )
    return read_row(found, scans[0], repair=repair, suv=suv)
