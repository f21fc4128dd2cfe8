"""What the user named on the command line, turned into jobs: files, folders, channels."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medseg.dicom.parts import holds_dicom
from medseg.errors import UsageError
from medseg.io import PICTURES, SUFFIXES, scans_in, stem_of, suffix_of
from medseg.plan import Plan
from medseg.report.job import DICOM_FORMATS, MAPS, Job, plan_targets

_CHANNEL = re.compile(r"_(\d{4})$")
FORMAT_OF_SUFFIX = {".nii.gz": "nifti", ".nii": "nifti", ".nrrd": "nrrd", ".seg.nrrd": "seg.nrrd", ".mha": "mha"}


@dataclass(frozen=True)
class Options:
    """What else the user asked for."""

    output: Path | None
    formats: tuple[str, ...]  # empty: what suits the scan
    picture: bool
    probabilities: bool
    volume: int | None = None
    series: str | None = None
    repair: bool = False
    suv: bool = False
    maps: tuple[str, ...] = ()  # beside probabilities


def find_jobs(inputs: Sequence[Path], channels: Sequence[str], plan: Plan, options: Options) -> list[Job]:
    """Return a job for each scan that the user named.

    A folder means every scan directly in it, without segmentations (`.seg.nrrd`) and the results of an earlier run;
    for a model of several channels its files `case_0000`, `case_0001`, ... make up one scan. A folder with DICOM at
    any depth, and no other scan directly in it, is one scan.

    Raises
    ------
    UsageError
        If the arguments do not fit together or to the model.
    """
    if channels and inputs:
        raise UsageError("both INPUT and --channel were given", hint="name every file by --channel NAME=FILE")
    scans = [_by_channel(channels, plan)] if channels else []
    for path in inputs:
        scans += _in_folder(path, plan) if path.is_dir() else [(path,)]
    if not scans:
        raise UsageError("no scan was named", hint="give a file, several, or a folder; see `medseg predict --help`")
    alone = len(scans) == 1
    optional = () if options.formats else ("dicom-seg",)
    return [
        Job(
            scan,
            _targets(scan, options, alone=alone),
            options.volume,
            options.series,
            options.repair,
            options.suv,
            optional,
        )
        for scan in scans
    ]


def _by_channel(channels: Sequence[str], plan: Plan) -> tuple[Path, ...]:
    files = {name: file for name, _, file in (text.partition("=") for text in channels)}
    wanted = [channel.name for channel in plan.channels]
    if sorted(files) != sorted(wanted) or len(channels) != len(wanted) or not all(files.values()):
        raise UsageError(
            f"--channel names {', '.join(files)}; the model needs {', '.join(wanted)}",
            hint=" ".join(f"--channel {name}=FILE" for name in wanted),
        )
    return tuple(Path(files[name]) for name in wanted)


def _in_folder(folder: Path, plan: Plan) -> list[tuple[Path, ...]]:
    found = scans_in(folder)
    if plan.axes == 3:
        found = [path for path in found if SUFFIXES.get(suffix_of(path)) not in PICTURES]
    stems = {stem_of(path) for path in found} | {stem_of(folder)}  # of DICOM, results are named after the folder
    found = [path for path in found if suffix_of(path) != ".seg.nrrd" and not _is_result(stem_of(path), stems)]
    if not found and holds_dicom(folder):
        return [(folder,)]
    if found and any(holds_dicom(path) for path in folder.iterdir() if not path.is_dir()):
        raise UsageError(
            f"{folder}: holds DICOM files and other scans",
            hint="put the DICOM files into a folder of their own, or name the scans",
        )
    if not found:
        raise UsageError(
            f"{folder}: holds no scan", hint=f"give a folder with files of {', '.join(SUFFIXES)} directly in it"
        )
    if len(plan.channels) == 1:
        return [(path,) for path in found]
    groups: dict[str, list[Path]] = {}
    for path in found:
        groups.setdefault(_CHANNEL.sub("", stem_of(path)), []).append(path)
    return [tuple(group) for group in groups.values()]


def _is_result(stem: str, stems: set[str]) -> bool:
    base = next((stem.removesuffix(f"_{kind}") for kind in MAPS if stem.endswith(f"_{kind}")), stem)
    return base.endswith("_seg") and any(
        name in stems for name in (base.removesuffix("_seg"), base.removesuffix("_seg") + "_0000")
    )


def _targets(scan: tuple[Path, ...], options: Options, *, alone: bool) -> dict[str, Path]:
    stem = stem_of(scan[0])
    stem = _CHANNEL.sub("", stem) if len(scan) > 1 else stem
    output = options.output
    from_dicom = holds_dicom(scan[0])
    if output is None or output.is_dir() or not suffix_of(output):
        if output is not None and output.suffix.lower() == ".dcm":
            raise UsageError(f"{output}: which DICOM object?", hint="give a folder after -o, and --format dicom-seg")
        folder = scan[0].resolve().parent if output is None and scan[0].is_dir() else scan[0].parent
        formats = options.formats or (("nifti", "dicom-seg") if from_dicom else ("nifti",))
        if not from_dicom and (asked := [kind for kind in formats if kind in DICOM_FORMATS]):
            raise UsageError(f"{asked[0]} needs a DICOM series to refer to", hint="give DICOM, or another --format")
        return _planned(f"{stem}_seg", output or folder, formats, options)
    if not alone:
        raise UsageError(f"{output} is one file, but there are several scans", hint="give a folder after -o")
    chosen = FORMAT_OF_SUFFIX.get(suffix_of(output))
    if chosen is None:
        raise UsageError(f"{output}: a label map cannot be a picture", hint="choose .nii.gz, .nrrd, .mha or .seg.nrrd")
    return {**_planned(stem_of(output), output.parent, [chosen], options), chosen: output}


def _planned(name: str, folder: Path, formats: Sequence[str], options: Options) -> dict[str, Path]:
    picture, probabilities = options.picture, options.probabilities
    return plan_targets(name, folder, formats, picture=picture, probabilities=probabilities, maps=options.maps)
