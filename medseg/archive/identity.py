"""Whose a file of an archive is: by its DICOM header, or by what its path says."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from medseg.archive.walk import DAMAGED, DICOM, SCAN
from medseg.dicom.elements import Elements
from medseg.dicom.planes import description

_MODALITIES = {"bold": "MR", "dwi": "MR", "flair": "MR", "t1w": "MR", "t2w": "MR", "pdw": "MR", "pet": "PT", "ct": "CT"}


@dataclass(frozen=True)
class Identity:
    """A series as the index knows it.

    Parameters
    ----------
    identity : bytes
        What tells it from all others.
    kind : str
        `DICOM`, `SCAN` or `DAMAGED`.
    patient, study, name : bytes
        Identifiers.
    modality, description : str
        For rules.
    """

    identity: bytes
    kind: str
    patient: bytes
    study: bytes
    name: bytes
    modality: str = ""
    description: str = ""


def of_dicom(elements: Elements, folder: Path) -> Identity:
    """Return the series of a DICOM object; one without UIDs is of its folder."""
    tags = (0x00100020, 0x0020000D, 0x0020000E)
    patient, study, uid = (elements.values.get(tag, b"").rstrip(b"\0 ") for tag in tags)
    place = os.fsencode(folder)
    identity = b"\0".join([b"dicom", patient, study, uid or place])
    modality, text = elements.code(0x00080060), description(elements)
    return Identity(identity, DICOM, patient, study or place, uid or place, modality, text)


def of_file(path: Path, base: Path) -> Identity:
    """Return the series that a file of another format is; BIDS says whose it is, else each file stands for itself."""
    relative = os.path.relpath(path, base)
    stem = path.name.split(".")[0]
    entities = dict(part.split("-", 1) for part in stem.split("_") if "-" in part)
    patient = _subject(Path(relative), entities["sub"]) if "sub" in entities else relative
    study = f"{patient}/ses-{entities['ses']}" if "ses" in entities else patient
    modality = _MODALITIES.get(stem.rsplit("_", 1)[-1].lower(), "")
    text = path.name.encode("utf-8", "replace").decode()
    place = os.fsencode(relative)
    return Identity(b"file\0" + place, SCAN, os.fsencode(patient), os.fsencode(study), place, modality, text)


def _subject(relative: Path, name: str) -> str:
    """Return a subject of BIDS by data set and name: two data sets have a sub-01 each."""
    above = []
    for part in relative.parent.parts:
        if part.startswith("sub-"):
            break
        above.append(part)
    return "/".join([*above, f"sub-{name}"])


def of_ruin(folder: Path, base: Path) -> Identity:
    """Return what stands for a folder of nothing but damaged files."""
    place = os.fsencode(os.path.relpath(folder, base))
    return Identity(b"ruin\0" + place, DAMAGED, place, place, place)
