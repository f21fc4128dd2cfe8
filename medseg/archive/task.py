"""What a worker is told to do and what it answers: plain data, that can go through a pipe or to another machine."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Self

DEPTH = 3  # tasks that a worker has at a time: one is read, one computed, one written
DONE, FAILED, PASSED, AGAIN, STOP = "done", "failed", "passed", "again", "stop"


@dataclass(frozen=True)
class Settings:
    """How workers compute and what they write: see `medseg predict`; and the tokens of PACS, which no file may hold."""

    device: str = "auto"
    threads: int | None = None
    backend: str = "auto"
    precision: str | None = None
    overlap: float | None = None
    mirror: bool = False
    memory: int | None = None
    repair: bool = False
    suv: bool = False
    picture: bool = True
    token: str = field(default="", repr=False)
    store_token: str = field(default="", repr=False)

    @property
    def of_answer(self) -> dict[str, Any]:
        """Those on which a label map depends."""
        names = ("precision", "overlap", "mirror", "repair", "suv")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Task:
    """One item.

    Parameters
    ----------
    place : str
        Its name: patient/study/series/model.
    folder : str
        Where its results go.
    model, sha256 : str
        File of the model, and its hash.
    kind : str
        'dicom' or 'scan' for files, 'pacs' for a series to fetch.
    files : list of (path, member)
        Of the series; member is '' outside of zip archives.
    row : int
        Which volume of the series.
    mark : str
        Fingerprint of what was judged.
    formats : list of str
        Of results.
    slices, spacing_mm : list, optional
        Limits of the rule that are still to be checked.
    warnings : list of str
        For the report.
    remote : dict
        Of 'pacs': the fields of `medseg.dicom.pacs.Remote`.
    pacs, store : str
        Addresses to fetch from and to store at.
    spool : str
        Folder for what is fetched.
    """

    place: str
    folder: str
    model: str
    sha256: str
    kind: str
    files: list[tuple[str, str]] = field(default_factory=list)
    row: int = 1
    mark: str = ""
    formats: list[str] = field(default_factory=list)
    slices: list[int] | None = None
    spacing_mm: list[float] | None = None
    warnings: list[str] = field(default_factory=list)
    remote: dict[str, Any] = field(default_factory=dict)
    pacs: str = ""
    store: str = ""
    spool: str = ""

    def plain(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Outcome:
    """What became of a task.

    Parameters
    ----------
    state : str
        `DONE`; `FAILED` by a fault of the scan; `PASSED` over, as the rule did not mean it; `AGAIN`: a fault that may
        pass, of a network or of memory that others held; `STOP`: a fault that every task would meet.
    code, problem, hint : str
        Of the fault.
    seconds : dict
        Of each stage.
    result : dict
        Of what is done.
    """

    state: str
    code: str = ""
    problem: str = ""
    hint: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)

    @classmethod
    def of(cls, data: dict[str, Any]) -> Self:
        """Return it from plain data."""
        return cls(**data)
