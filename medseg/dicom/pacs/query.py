"""What is looked for in a PACS, and what is found there."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Protocol

from medseg.errors import PacsError, UsageError

_MODALITY = re.compile(r"[A-Z0-9_]{1,16}")
_UID = re.compile(
    r"(?!\.+$)[0-9A-Za-z._-]{1,64}"
)  # wider than the standard; nothing that means more in a path or a query


@dataclass(frozen=True)
class Query:
    """What to look for; what is empty may be anything.

    Parameters
    ----------
    modality : tuple of str
        Of the series, any of them: CT, MR.
    dates : two str
        First and last date of the study, YYYYMMDD.
    description : str
        Of the series: a shell pattern, upper and lower case alike.

    Raises
    ------
    UsageError
        If a modality or a date is none.
    """

    modality: tuple[str, ...] = ()
    dates: tuple[str, str] = ("", "")
    description: str = ""

    def __post_init__(self) -> None:
        for modality in self.modality:
            if not _MODALITY.fullmatch(modality):
                raise UsageError(f"{modality!r} is no modality", hint="write it as in DICOM: CT, MR, PT")
        for date in self.dates:
            if date and not _is_date(date):
                raise UsageError(f"{date!r} is no date", hint="write it as in DICOM: 20240131")
        if all(self.dates) and self.dates[0] > self.dates[1]:
            raise UsageError("the last date lies before the first", hint="exchange them")

    @property
    def span(self) -> str:
        """The dates as DICOM matches them, '20240101-20240131'; empty for any."""
        return "-".join(self.dates) if any(self.dates) else ""

    def matches(self, remote: Remote) -> bool:
        """Return whether a series is one of those looked for; a PACS may tell more than was asked."""
        first, last = self.dates
        date = remote.date.replace(".", "")  # as some old ones write it
        return (
            (not self.modality or remote.modality in self.modality)
            and (not date or (first or date) <= date <= (last or date))
            and (not self.description or fnmatchcase(remote.description.casefold(), self.description.casefold()))
        )


@dataclass(frozen=True)
class Remote:
    """One series in a PACS.

    Parameters
    ----------
    patient, study, series : str
        PatientID, StudyInstanceUID, SeriesInstanceUID; '' where the PACS does not say.
    modality, description : str
        Of the series.
    date : str
        Of the study.
    images : int, optional
        How many objects it has; None where the PACS does not say.
    """

    patient: str = field(repr=False)
    study: str = field(repr=False)
    series: str = field(repr=False)
    modality: str
    description: str = field(repr=False)
    date: str = field(repr=False)
    images: int | None


class Pacs(Protocol):
    """What can be asked of a PACS, whatever it speaks."""

    def find(self, query: Query) -> Iterator[Remote]:
        """Yield the series that match, each once.

        Raises
        ------
        PacsError
            If it cannot be asked, or does not tell all.
        """

    def retrieve(self, remote: Remote, folder: Path) -> int:
        """Write each object of a series into an empty folder, under a number; return how many there are.

        Raises
        ------
        PacsError
            If fewer arrive than were announced; nothing is left in the folder.
        OutputError
            If they cannot be written; likewise.
        UsageError
            If the folder is not empty.
        """

    def store(self, files: Sequence[Path]) -> tuple[Path, ...]:
        """Send DICOM files; return those whose kind (SOP class or transfer syntax) the PACS does not take.

        Raises
        ------
        PacsError
            If one is not stored for any other reason; those before it are.
        """


def check_named(remote: Remote) -> None:
    """Refuse a series whose UIDs are none, before they become part of a question.

    Raises
    ------
    PacsError
        If so.
    """
    if not (is_uid(remote.study) and is_uid(remote.series)):
        raise PacsError("the PACS names a study or series by something that is no UID", hint="have it corrected there")


def is_uid(text: str) -> bool:
    """Return whether a text can be a UID: no wildcard, no separator of any kind."""
    return bool(_UID.fullmatch(text))


def count(text: str) -> int | None:
    """Return a number of images as a PACS tells it; None where it is none."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None


def _is_date(text: str) -> bool:
    try:
        return len(text) == 8 and text.isascii() and bool(datetime.strptime(text, "%Y%m%d"))  # noqa: DTZ007 - a day
    except ValueError:
        return False
