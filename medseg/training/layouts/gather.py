"""From the cases that a layout names to a data set: which files are there, and how many channels each case has."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medseg.errors import ScanError, UsageError
from medseg.gate import Gate
from medseg.io import SUFFIXES, suffix_of
from medseg.io.nifti_header import NIFTI1_BYTES, NIFTI2_BYTES, is_version_2, parse
from medseg.io.stream import GZIP_MAGIC, Stream
from medseg.training.dataset import Case, Dataset, File, Finding
from medseg.training.layouts.declared import Declared

LAYOUTS = (
    "give a folder with images/ and labels/, imagesTr/ and labelsTr/, x.nii.gz beside x_seg.nii.gz, a folder for each "
    "case with seg.nii.gz, a dataset.json (Decathlon, nnU-Net), or a CSV with columns image and label"
)


@dataclass(frozen=True)
class Listed:
    """A case as a layout names it; whether its files are there is not yet known.

    Parameters
    ----------
    name : str
        Of the case.
    images : mapping of str to Path
        The file of each channel; the channel of a case of one file is ''.
    reference : Path, optional
        None where an image has no label.
    group : str
        Of the patient.
    """

    name: str
    images: Mapping[str, Path]
    reference: Path | None
    group: str = ""


@dataclass(frozen=True)
class Listing:
    """What a layout names: cases, what was odd, and the channels that each case must have, in order."""

    cases: tuple[Listed, ...]
    findings: tuple[Finding, ...] = ()
    channels: tuple[str, ...] = ()


def gather(place: Path, name: str, listing: Listing, said: Declared) -> Dataset:
    """Return the data set of the cases that are whole; what the others lack becomes a finding.

    Parameters
    ----------
    place : Path
        Folder or file, for messages.
    name : str
        Of the data set.
    listing : Listing
        Of its layout.
    said : Declared
        What it says of channels and labels.

    Raises
    ------
    UsageError
        If no case is whole, two cases have one name, or a name cannot name a file.
    """
    channels = _in_order(_channels_of(listing, said), said.channels, place)
    findings, cases = list(listing.findings), list[Case]()
    counts: dict[str, int] = {}
    for listed in listing.cases:
        found = list(_lacks(listed, channels))
        findings += found
        if listed.reference and not any(finding.severity == "error" for finding in found):
            images = [listed.images[channel] for channel in channels]
            counts[listed.name] = len(images) if len(images) > 1 else _volumes(images[0])
            cases.append(Case(listed.name, _files(images, counts[listed.name]), File(listed.reference), listed.group))
    _check_names(cases, place)
    uneven = _uneven(counts, said.channels)
    findings += uneven
    apart = {finding.case for finding in uneven}
    whole = sorted((case for case in cases if case.name not in apart), key=lambda case: case.name)
    if not whole:
        first = next((found.detail for found in findings if found.severity == "error"), "no image has its label")
        raise UsageError(f"{place}: no case can be used: {first}", hint=LAYOUTS)
    named = all(channel and not channel.isdigit() for channel in channels)
    names = said.channels or (channels if named else ())
    return Dataset(name, tuple(whole), names, said.labels, said.ignore, tuple(findings))


def short(path: Path) -> str:
    """Return the name of a file with that of its folder."""
    return f"{path.parent.name}/{path.name}"


def _channels_of(listing: Listing, said: Declared) -> tuple[str, ...]:
    """Return the channels that each case must have: those listed or said, or those that half of the cases have."""
    if listing.channels:
        return listing.channels
    found = [listed.images for listed in listing.cases if listed.images and listed.reference]
    counts = Counter(channel for images in found for channel in images)
    usual = [channel for channel, count in counts.items() if 2 * count >= len(found)]
    if len(said.channels) > 1 and len(usual) > 1 and all(channel.isdigit() for channel in usual):
        width = len(usual[0])
        return tuple(f"{number:0{width}d}" for number in range(len(said.channels)))
    return tuple(sorted(usual or counts, key=lambda channel: (len(channel) if channel.isdigit() else 0, channel)))


def _in_order(channels: tuple[str, ...], said: tuple[str, ...], place: Path) -> tuple[str, ...]:
    """Return named channels in the order in which they were said; numbered ones are in it."""
    if len(channels) < 2 or not said or all(channel.isdigit() for channel in channels):
        return channels
    known = {channel.lower(): channel for channel in channels}
    if not known.keys() & {name.lower() for name in said}:
        raise UsageError(
            f"{place}: says the channels {', '.join(said)}, but its files are named {', '.join(channels)}",
            hint="use one set of names",
        )
    return tuple(known.get(name.lower(), name) for name in said)


def _lacks(listed: Listed, channels: Sequence[str]) -> Iterable[Finding]:
    """Yield what a case lacks, and what it has beyond its channels."""
    files = [*listed.images.values(), *([listed.reference] if listed.reference else [])]
    if gone := [path for path in files if not os.path.exists(path)]:  # noqa: PTH110 - says False of impossible names
        more = f" ({len(gone)} files of the case are missing)" if len(gone) > 1 else ""
        yield Finding("error", "MISSING_FILE", listed.name, f"{gone[0]} is not there{more}; copy it, or drop the case")
    if not files:
        yield Finding("error", "NO_IMAGE", listed.name, f"{listed.name} names neither image nor label; drop it")
    elif listed.reference is None:
        image = files[0]
        yield Finding("error", "NO_LABEL", short(image), f"{image} has no label of its name; add it, or drop the image")
    elif not listed.images:
        path = listed.reference
        yield Finding("error", "NO_IMAGE", short(path), f"{path} has no image of its name; add it, or drop the label")
    elif missing := [channel for channel in channels if channel not in listed.images]:
        images = ", ".join(path.name for path in listed.images.values())
        detail = f"{listed.name} has no channel {', '.join(missing)}, only {images}; add the file"
        yield Finding("error", "MISSING_CHANNEL", listed.name, detail)
    elif extra := [path for channel, path in listed.images.items() if channel not in channels]:
        detail = f"is none of the channels {', '.join(channels)} of {listed.name}, and is not used"
        yield from (Finding("warning", "EXTRA_FILE", short(path), f"{path} {detail}") for path in extra)


def _files(images: Sequence[Path], count: int) -> tuple[File, ...]:
    if len(images) == 1 and count > 1:
        return tuple(File(images[0], number) for number in range(count))
    return tuple(map(File, images))


def _volumes(path: Path) -> int:
    """Return how many volumes the header of a NIfTI file declares; 0 of another file, or a damaged one."""
    if SUFFIXES.get(suffix_of(path)) != "nifti":
        return 0
    try:
        with open(path, "rb") as file:
            stream = Stream(file, Gate(path), compression="gzip" if file.peek(2)[:2] == GZIP_MAGIC else "")
            first = stream.read(NIFTI1_BYTES)
            if is_version_2(first):
                first += stream.read(NIFTI2_BYTES - NIFTI1_BYTES)
        return parse(first, Gate(path)).volumes
    except (ScanError, OSError):
        return 0  # whoever opens the case says what is wrong


def _uneven(counts: Mapping[str, int], said: Sequence[str]) -> list[Finding]:
    """Return the cases with another number of channels than was said, or than most have.

    Of a file that is no NIfTI the number is not known: a colour picture has three. Whoever opens it counts them.
    """
    known = {name: count for name, count in counts.items() if count}
    wanted = len(said) or max(Counter(known.values()).items(), key=lambda item: item[::-1], default=(0, 0))[0]
    names = f" ({', '.join(said)})" if said else ""
    return [
        Finding(
            "error",
            "MISSING_CHANNEL" if count < wanted else "EXTRA_CHANNEL",
            name,
            f"{name} has {count} of {wanted} channels{names}; give one file or one volume for each",
        )
        for name, count in known.items()
        if count != wanted
    ]


def _check_names(cases: Sequence[Case], place: Path) -> None:
    for name, count in Counter(case.name for case in cases).items():
        if count > 1:
            files = " and ".join(str(case.images[0].path) for case in cases if case.name == name)
            raise UsageError(f"{place}: {count} cases are named {name!r}: {files}", hint="give each a name of its own")
        if name in {"", ".", ".."} or not name.isprintable() or {*name} & {*"/\\"}:
            raise UsageError(f"{place}: the name {name!r} of a case cannot name a file", hint="use letters and digits")
