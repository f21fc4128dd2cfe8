"""What a file is, told by its content; the suffix only decides when the content is silent."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any, NoReturn

from isal import isal_zlib

from medseg.dicom.parts import holds_dicom, is_dicom
from medseg.errors import UsageError
from medseg.gate import Gate
from medseg.io.stream import GZIP_MAGIC

SUFFIXES = {
    ".nii.gz": "nifti",
    ".nii": "nifti",
    ".seg.nrrd": "nrrd",
    ".nrrd": "nrrd",
    ".mha": "mha",
    ".png": "png",
    ".jpeg": "jpeg",
    ".jpg": "jpeg",
    ".tiff": "tiff",
    ".tif": "tiff",
    ".gif": "gif",
}
PICTURES = frozenset({"png", "jpeg", "tiff", "gif"})
_DETACHED = {".mhd": ".mha", ".nhdr": ".nrrd", ".hdr": ".nii.gz", ".img": ".nii.gz"}
_NIFTI_SIZES = (b"\x5c\x01\0\0", b"\0\0\x01\x5c", b"\x1c\x02\0\0", b"\0\0\x02\x1c")
_MAGICS = (
    (b"NRRD", "nrrd"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"\xff\xd8\xff", "jpeg"),
    (b"II*\0", "tiff"),
    (b"MM\0*", "tiff"),
    (b"II+\0", "tiff"),
    (b"MM\0+", "tiff"),
    (b"GIF8", "gif"),
)
_ISAL_ERROR: Any = isal_zlib.error
_FOREIGN = (
    (b"PK\x03\x04", "a zip archive without DICOM", "unpack it and give a scan inside"),
    (b"\x80", "a Python pickle", "medseg never loads pickles; export the scan as .nii.gz"),
    (b"\x89HDF", "an HDF5 file", "export the scan as .nii.gz"),
    (b"%PDF", "a PDF document", "give a scan"),
    (b"<!doctype html", "a web page", "the download failed; fetch the file again"),
    (b"<html", "a web page", "the download failed; fetch the file again"),
    (b"<?xml", "an XML file", "give a scan"),
    (b"version https://git-lfs", "a git-lfs pointer, not the file itself", "run `git lfs pull`"),
)


def suffix_of(path: Path) -> str:
    """Return the volume suffix of a name, in lower case: '.nii.gz', '.seg.nrrd', ...; '' when it has none."""
    name = path.name.lower()
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix) and name != suffix), "")


def stem_of(path: Path) -> str:
    """Return the name without the suffix of its format; of a folder its whole name."""
    suffix = suffix_of(path) or next((end for end in (".dcm", ".zip") if path.name.lower().endswith(end)), "")
    if path.is_dir():
        return path.resolve().name
    return path.name[: -len(suffix)] if suffix and len(path.name) > len(suffix) else path.name


def sniff(path: Path) -> str:
    """Return the format of a scan: 'nifti', 'nrrd', 'mha', 'dicom', 'png', 'jpeg', 'tiff' or 'gif'.

    A folder or zip archive is 'dicom' where a DICOM file lies in it, at any depth.

    Raises
    ------
    ScanError
        If the file is missing, empty, no regular file, or no scan; the message says what it is instead.
    """
    gate = Gate(path)
    if path.is_dir():
        if not holds_dicom(path):
            gate.refuse("NOT_A_FILE", "is a folder without DICOM", "give a file; `medseg predict` takes folders")
        return "dicom"
    head = _head(path, gate)
    if path.suffix.lower() in _DETACHED:
        gate.refuse(
            "DETACHED",
            "may keep its voxels in any other file on this computer",
            f"convert it to one {_DETACHED[path.suffix.lower()]} file",
        )
    found = _by_content(head)
    if found:
        return found
    if is_dicom(head) or (head[:2] == b"PK" and holds_dicom(path)):
        return "dicom"
    by_suffix = SUFFIXES.get(suffix_of(path), "")
    if not (by_suffix and _says_nothing(head)):
        _refuse_foreign(head, by_suffix, gate)
    return by_suffix  # its reader says best what is wrong


def scans_in(folder: Path) -> list[Path]:
    """Return the files directly in a folder that may be scans, by suffix or else by content, in the order of names.

    Raises
    ------
    UsageError
        If the folder cannot be listed.
    """
    try:
        return sorted(path for path in folder.iterdir() if not path.is_dir() and _looks_like_scan(path))
    except OSError as error:
        raise UsageError(f"{folder}: cannot be listed: {error.strerror}", hint="check the permissions") from error


def _looks_like_scan(path: Path) -> bool:
    if path.name.startswith("."):
        return False
    if suffix_of(path) or path.suffix.lower() in _DETACHED:
        return True
    if not path.is_file():  # a pipe would wait for its writer
        return False
    try:
        with open(path, "rb") as file:
            return bool(_by_content(file.read(512)))
    except OSError:
        return False


def _head(path: Path, gate: Gate) -> bytes:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            gate.refuse("NOT_A_FILE", "is a pipe, socket or device", "give a regular file")
        with open(path, "rb") as file:
            head = file.read(1024)
    except FileNotFoundError:
        gate.refuse("MISSING", "does not exist", "check the path")
    except OSError as error:
        gate.refuse("UNREADABLE", f"cannot be read: {error.strerror}", "check the disk and the permissions")
    if not head:
        gate.refuse("EMPTY", "is empty", "copy it again from the source")
    return head


def _by_content(head: bytes) -> str:
    if head[128:132] == b"DICM":  # its preamble may say that it is TIFF too
        return ""
    if head[:2] == GZIP_MAGIC:
        head = _inflate(head)
    if head[:4] in _NIFTI_SIZES and (head[344:346] in (b"n+", b"ni") or head[4:6] in (b"n+", b"ni")):
        return "nifti"
    for magic, name in _MAGICS:
        if head.startswith(magic):
            return name
    first = head.split(b"\n", 1)[0].split(b"=", 1)[0].strip()
    return "mha" if first in (b"ObjectType", b"NDims", b"Comment") and b"=" in head else ""


def _inflate(head: bytes) -> bytes:
    try:
        return isal_zlib.decompressobj(wbits=31).decompress(head, 1024)
    except _ISAL_ERROR:
        return b""


def _says_nothing(head: bytes) -> bool:
    """Return whether the content is neither a known foreign format nor plain text."""
    if any(head[:64].lower().startswith(magic.lower()) for magic, _, _ in _FOREIGN):
        return False
    return any(byte < 9 or byte > 126 for byte in head[:512])


def _refuse_foreign(head: bytes, by_suffix: str, gate: Gate) -> NoReturn:
    renamed = f" (its name says {by_suffix})" if by_suffix else ""
    for magic, what, hint in _FOREIGN:
        if head[:64].lstrip().lower().startswith(magic.lower()):
            gate.refuse("NOT_A_SCAN", f"is {what}{renamed}", hint)
    if _says_nothing(head):
        known = ", ".join(SUFFIXES)
        gate.refuse("NOT_A_SCAN", "is of no known format", f"medseg reads {known}")
    gate.refuse("NOT_A_SCAN", f"is a text file{renamed}", "give a scan; a failed download often leaves a text")
