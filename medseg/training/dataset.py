"""What a training data set is: cases, their files, and what their channels and labels are called."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from medseg.errors import UsageError
from medseg.io import read, read_labels
from medseg.plan import Label
from medseg.volume import LabelMap, Volume, stack_channels


@dataclass(frozen=True)
class File:
    """A file of a case, and which of its volumes (or pages); None for a file of one volume."""

    path: Path
    volume: int | None = None


@dataclass(frozen=True)
class Case:
    """Files of one patient: the scan, one file or volume after the other, and the expert's label map.

    Parameters
    ----------
    name : str
        Unique in its data set.
    images : tuple of File
        Their channels, in order, are those of the scan.
    reference : File
        The label map.
    group : str
        Cases of one group (one patient) never stand on both sides of a split; empty for a group of its own.
    """

    name: str
    images: tuple[File, ...]
    reference: File
    group: str = ""

    def scan(self) -> Volume:
        """Return the scan with all its channels."""
        return stack_channels([read(file.path, volume=file.volume) for file in self.images])

    def labels(self, labels: tuple[Label, ...] = ()) -> LabelMap:
        """Return the reference as it lies in its file, under the names of `labels`, or under its own."""
        found = read_labels(self.reference.path, volume=self.reference.volume)
        return replace(found, labels=labels) if labels else found


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong (error) or odd (warning) with a data set.

    Parameters
    ----------
    severity : 'error' or 'warning'
        Training stops at errors.
    code : str
        A stable word, such as 'GRID'.
    case : str
        Name of the case, or of the file that belongs to none.
    detail : str
        What was found, with numbers, and what to do.
    """

    severity: Literal["error", "warning"]
    code: str
    case: str
    detail: str


@dataclass(frozen=True)
class Dataset:
    """A data set to train on.

    Parameters
    ----------
    name : str
        Of its folder or file.
    cases : tuple of Case
        By name.
    channels : tuple of str
        Names of the channels of every scan; empty while nobody has said them.
    labels : tuple of Label
        Labels with the values (atoms) that stand in the references; regions share atoms. Empty while unknown.
    ignore : int, optional
        The value in the references where nobody has drawn: there, nothing is learned.
    findings : tuple of Finding
        What was odd in the layout: an image without a label, a label without an image.
    """

    name: str
    cases: tuple[Case, ...]
    channels: tuple[str, ...] = ()
    labels: tuple[Label, ...] = ()
    ignore: int | None = None
    findings: tuple[Finding, ...] = ()


def select(cases: Sequence[Case], names: Sequence[str]) -> list[Case]:
    """Return the cases of the given names, in their order.

    Raises
    ------
    UsageError
        If a name is unknown.
    """
    by_name = {case.name: case for case in cases}
    if missing := [name for name in names if name not in by_name]:
        raise UsageError(f"no case named {missing[0]!r}", hint="check the file of splits")
    return [by_name[name] for name in names]
