"""`medseg convert`: a scan or label map from one format into another, with the geometry unchanged."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from medseg.cli.options import DEBUG, REPAIR, SERIES, SUV, VOLUME


class Objects(StrEnum):
    """The DICOM objects that a label map can become."""

    dicom_seg = "dicom-seg"
    dicom_labelmap = "dicom-labelmap"
    rtstruct = "rtstruct"


def convert(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="A scan, label map, DICOM folder, SEG or RTSTRUCT.")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="File; its suffix says the format. .dcm for DICOM.")],
    scan: Annotated[
        Path | None,
        typer.Option("--scan", metavar="SCAN", help="The scan of a label map: gives SEG and RTSTRUCT their grid."),
    ] = None,
    kind: Annotated[Objects, typer.Option("--format", help="What a .dcm is to be.")] = Objects.dicom_seg,
    labels: Annotated[bool, typer.Option("--labels", help="SRC is a label map, though its format does not say so.")] = (
        False
    ),
    volume: VOLUME = None,
    series: SERIES = None,
    repair: REPAIR = False,
    suv: SUV = False,
    debug: DEBUG = False,
) -> None:
    """Write a scan or label map in another format: DICOM to NIfTI, SEG and RTSTRUCT to NIfTI and back.

    SEG, RTSTRUCT and .seg.nrrd are read as label maps, and what becomes .seg.nrrd or DICOM is one. A label map becomes
    DICOM only with --scan: the DICOM series that it was drawn on.
    """
    from medseg.cli.conversion import as_dicom, explain_overlaps, read_any
    from medseg.io import write
    from medseg.volume import LabelMap

    choice = {"volume": volume, "series": series, "repair": repair, "suv": suv}
    to_dicom = target.suffix.lower() == ".dcm"
    wanted = labels or to_dicom or target.name.lower().endswith(".seg.nrrd")
    image = read_any(source, scan, labels=wanted, choice=choice)
    for warning in image.source.warnings if image.source else ():
        print(f"warning: {source}: {warning}", file=sys.stderr)
    if not to_dicom and isinstance(image, LabelMap) and (overlaps := explain_overlaps(image, target)):
        print(f"warning: {source}: {overlaps}", file=sys.stderr)
    if to_dicom:
        as_dicom(image, target, scan, kind.value, choice)
    else:
        write(image, target)
    print(f"wrote {target}")
