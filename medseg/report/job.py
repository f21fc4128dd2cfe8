"""What is to be done for one scan: the files it is read from, and where its results go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os.path import realpath  # unlike Path.resolve, it survives a loop of links
from pathlib import Path

from medseg.errors import UsageError

FORMATS = {"nifti": ".nii.gz", "nrrd": ".nrrd", "mha": ".mha", "seg.nrrd": ".seg.nrrd"}
DICOM_FORMATS = {
    "dicom-seg": ".dcm",
    "dicom-labelmap": "_labelmap.dcm",
    "rtstruct": "_rtstruct.dcm",
    "sr": "_sr.dcm",
    "sc": "_sc.dcm",
}
MAPS = ("probabilities", "uncertainty", "disagreement")


@dataclass(frozen=True)
class Job:
    """One scan and where its results go.

    Parameters
    ----------
    scan : sequence of Path
        A file for each channel of the model.
    targets : dict
        Where to write, by kind: the formats of `FORMATS` and `DICOM_FORMATS`, those of `MAPS`, 'picture',
        'thumbnail', 'report'.
    volume : int, optional
        Which volume of a 4D file.
    series : str, optional
        Which series of a DICOM folder: row, UID or description.
    repair : bool
        Interpolate over missing and unevenly spaced DICOM slices.
    suv : bool
        DICOM PET as standardised uptake values.
    optional : tuple of str
        Kinds that the user did not ask for by name: left out, with a warning, where the scan cannot carry them.
    name : str
        What reports call the scan where its path must not be told; results are then told without their folder too.
    """

    scan: tuple[Path, ...]
    targets: dict[str, Path]
    volume: int | None = None
    series: str | None = None
    repair: bool = False
    suv: bool = False
    optional: tuple[str, ...] = ()
    name: str = ""

    @property
    def shown(self) -> str:
        """How a report calls the scan."""
        return self.name or str(self.scan[0])

    def place(self, kind: str) -> str:
        """How a report calls the file of a result."""
        return self.targets[kind].name if self.name else str(self.targets[kind])


def plan_targets(
    name: str,
    folder: Path,
    formats: Sequence[str],
    *,
    picture: bool = True,
    thumbnail: bool = False,
    probabilities: bool = False,
    maps: Sequence[str] = (),
) -> dict[str, Path]:
    """Return where the results of a scan go: `<name>.<suffix>` in a folder, for every kind of result.

    Beside probabilities, `maps` may name 'uncertainty' and 'disagreement'.

    Raises
    ------
    UsageError
        If a format is unknown.
    """
    known = FORMATS | DICOM_FORMATS
    if unknown := [kind for kind in formats if kind not in known]:
        raise UsageError(f"there is no format {unknown[0]!r}", hint=f"choose from: {', '.join(known)}")
    targets = {kind: folder / f"{name}{known[kind]}" for kind in formats}
    for kind in ("probabilities", *maps) if probabilities else maps:
        targets[kind] = folder / f"{name}_{kind}.nii.gz"
    if picture:
        targets["picture"] = folder / f"{name}.png"
    if thumbnail:
        targets["thumbnail"] = folder / f"{name}_small.png"
    targets["report"] = folder / f"{name}.json"
    return targets


def check_distinct(jobs: Sequence[Job]) -> None:
    """Refuse, before any work, results that would overwrite each other or a scan.

    Raises
    ------
    UsageError
        With the two inputs that collide.
    """
    owner: dict[str, Path] = {}
    scans = {realpath(path) for job in jobs for path in job.scan}
    for job in jobs:
        for target in job.targets.values():
            place = realpath(target)
            if place in scans:
                raise UsageError(f"{target} is a scan, and would be overwritten", hint="choose another place with -o")
            if place in owner:
                raise UsageError(
                    f"{owner[place]} and {job.scan[0]} would both be written to {target}",
                    hint="rename one, or predict them one at a time with -o",
                )
            owner[place] = job.scan[0]
