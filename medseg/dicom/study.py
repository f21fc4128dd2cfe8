"""What a result inherits from the scan it was made from: patient and study, fit to be written again.

Old and damaged headers lack attributes that the standard wants at least empty, and hold values that no writer may
write. A result takes over what is legal, in UTF-8, and leaves the rest empty; who it belongs to is never guessed.
"""

from __future__ import annotations

import math
import struct
import unicodedata
import zipfile
import zlib

from pydicom import DataElement, Dataset
from pydicom.config import RAISE
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.valuerep import DA, DT, TM, validate_value

from medseg.dicom.frames import header
from medseg.dicom.privacy import quiet
from medseg.errors import UsageError
from medseg.volume import Stack

UTF_8 = "ISO_IR 192"
_NEEDED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID", "SOPInstanceUID")
_EMPTY = (  # type 2 of the modules Patient and General Study
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
    "StudyID",
    "AccessionNumber",
)
_INHERITED = (  # and what else says whose study it is
    "IssuerOfPatientID",
    "PatientIdentityRemoved",
    "DeidentificationMethod",
    "DeidentificationMethodCodeSequence",
    "StudyInstanceUID",
    "StudyDescription",
)
_NUMBERS = {"DS", "IS"}
_TIMES = {"DA": DA, "TM": TM, "DT": DT}
UNREADABLE = (  # what pydicom and zipfile raise where bytes are not what they should be
    ArithmeticError,
    AttributeError,
    BytesLengthException,
    EOFError,
    InvalidDicomError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)
_HINT_SOURCE = "send the scan from the archive again, and segment it anew"


def study_header(stack: Stack) -> Dataset:
    """Return the dataset of the first frame's object without pixels, as `completed` makes it.

    Raises
    ------
    UsageError
        If the file is gone, or lacks a UID without which a result belongs to no study.
    """
    frame = stack.frames[0]
    try:
        with quiet():
            found = header(frame)
    except UNREADABLE:
        raise UsageError(
            "the scan that was segmented is no longer there, or cannot be read",
            hint="put the scan back where it was, and write the result again",
        ) from None
    return completed(found)


def header_to_refer_to(stack: Stack) -> Dataset:
    """Return `study_header`, once it is sure that a result can refer to every frame and lie where they lie.

    Raises
    ------
    UsageError
        As `study_header`, and if a UID of an image or of the frame of reference is missing.
    """
    for keyword, uids in (
        ("SOPInstanceUID", [frame.sop_instance for frame in stack.frames]),
        ("SOPClassUID", [frame.sop_class for frame in stack.frames]),
    ):
        if not all(uids):
            raise UsageError(f"the scan has no {keyword}, so a result cannot refer to it", hint=_HINT_SOURCE)
    source = study_header(stack)
    if not source.get("FrameOfReferenceUID"):
        raise UsageError("the scan has no FrameOfReferenceUID, so a result cannot lie in it", hint=_HINT_SOURCE)
    return source


def completed(found: Dataset) -> Dataset:
    """Return a copy of a header that can be written again, in UTF-8.

    Without private elements, elements that cannot be read, and dates, times and numbers that are none; with the
    attributes of patient and study that must be there, empty where they are missing. UIDs are kept as they are.

    Raises
    ------
    UsageError
        If a UID is missing without which a result belongs to no study.
    """
    with quiet():
        kept = _legal(found)
        kept.decode()
        kept.SpecificCharacterSet = UTF_8
        for keyword in _NEEDED:
            if not kept.get(keyword):
                raise UsageError(f"the scan has no {keyword}, so a result cannot refer to it", hint=_HINT_SOURCE)
        for keyword in _EMPTY:
            if kept.get(keyword) is None:
                setattr(kept, keyword, "")
        if kept.PatientSex not in {"M", "F", "O"}:
            kept.PatientSex = ""
    if hasattr(found, "file_meta"):
        kept.file_meta = found.file_meta
    return kept


def inherit(source: Dataset) -> Dataset:
    """Return a new dataset with the patient and the study of a `completed` header."""
    made = Dataset()
    made.SpecificCharacterSet = UTF_8
    for keyword in (*_EMPTY, *_INHERITED):
        if keyword in source:
            made.add(source[keyword])
    return made


def fit(text: str, length: int = 64) -> str:
    """Return text that fits into one value of an element: one line, without backslashes, not longer than `length`."""
    plain = "".join(" " if char == "\\" or unicodedata.category(char)[0] == "C" else char for char in text)
    return " ".join(plain.split())[:length].rstrip()


def _legal(found: Dataset) -> Dataset:
    """Return a copy with those elements that can be written again, in the items of sequences too."""
    kept = Dataset()
    if charset := found.get("SpecificCharacterSet"):
        kept.SpecificCharacterSet = charset
    for tag in list(found.keys()):
        if tag.is_private or tag.element == 0:
            continue
        try:
            element = found[tag]
            if element.VR == "SQ":
                kept.add(DataElement(tag, "SQ", [_legal(item) for item in element.value]))
            elif element.VR in _TIMES:
                kept.add(DataElement(tag, element.VR, _time(element)))
            else:
                _check_numbers(element)
                kept.add(DataElement(tag, element.VR, element.value, already_converted=True))
        except UNREADABLE:
            continue
    return kept


def _check_numbers(element: DataElement) -> None:
    """Raise ValueError where text stands for a number: pydicom hands on what it cannot convert."""
    values = element.value if element.VM > 1 else [element.value]
    if element.VR in _NUMBERS and not all(math.isfinite(float(value)) for value in values if value not in {None, ""}):
        raise ValueError(element.VR)


def _time(element: DataElement) -> str:
    """Return the one date or time of an element, without the dots and colons of before DICOM 3.0."""
    text = str(element.value or "").strip()
    text = text.replace(".", "") if element.VR == "DA" else text.replace(":", "")
    validate_value(element.VR, text, RAISE)
    _TIMES[element.VR](text)
    return text
