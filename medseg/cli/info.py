"""`medseg info`: what a scan is, and what is odd about it; of a DICOM folder the table of its series."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from medseg.cli.options import DEBUG, REPAIR, SERIES, SUV, VOLUME


def info(
    scan: Annotated[Path, typer.Argument(metavar="SCAN", help="A scan, or a DICOM folder, file or zip archive.")],
    volume: VOLUME = None,
    series: SERIES = None,
    repair: REPAIR = False,
    suv: SUV = False,
    debug: DEBUG = False,
) -> None:
    """Print shape, spacing, orientation, type, intensities and every oddity of a scan.

    Of DICOM, without --series: a table of the volumes in it, with modality, description, slices, spacing and the
    verdict of the geometry check.
    """
    from medseg.io import read, sniff

    if series is None and sniff(scan) == "dicom":
        _table(scan)
        return
    image = read(scan, volume=volume, series=series, repair=repair, suv=suv)
    geometry, array = image.geometry, image.array
    rows = {
        "file": str(scan),
        "format": image.source.format if image.source else "",
        "shape": " x ".join(map(str, geometry.shape)) + (f", {len(array)} channels" if len(array) > 1 else ""),
    }
    if geometry.physical:
        rows |= {
            "spacing": " x ".join(f"{mm:.6g}" for mm in geometry.spacing) + " mm",
            "size": " x ".join(f"{mm:.4g}" for mm in geometry.extent) + " mm",
            "orientation": f"{geometry.orientation} (i, j, k point to {_directions(geometry.orientation)})",
            "origin": ", ".join(f"{mm:.6g}" for mm in geometry.origin) + " mm (right, front, up)",
        }
    else:
        rows["spacing"] = "none (a picture)"
    rows |= {"type": str(array.dtype), "intensities": f"{array.min():g} to {array.max():g}, mean {array.mean():.4g}"}
    for name, text in rows.items():
        print(f"{name + ':':<13}{text}")
    warnings = image.source.warnings if image.source else ()
    print("oddities:    none" if not warnings else "oddities:")
    for warning in warnings:
        print(f"  - {warning}")


def _table(path: Path) -> None:
    """Print the volumes in a DICOM folder, and what was passed over."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from medseg.dicom.planes import description
    from medseg.dicom.series import survey

    found = survey(path)
    table = Table(box=box.SIMPLE, pad_edge=False)
    for name in ("#", "modality", "description", "slices", "spacing (mm)", "verdict"):
        table.add_column(name, overflow="fold")
    for row in found.rows:
        cells = (row.number, row.first.modality, description(row.first.elements), row.slices, row.spacing, row.verdict)
        table.add_row(*(Text(str(cell)) for cell in cells))
    wide = None if sys.stdout.isatty() else 200
    if found.rows:
        Console(width=wide).print(table)
        print("read one with --series and its number")
    else:
        print("no DICOM images")
    if found.passed:
        print(f"passed over: {found.passed_over()}")


def _directions(letters: str) -> str:
    words = {"R": "right", "L": "left", "A": "front", "P": "back", "S": "up", "I": "down"}
    return ", ".join(words[letter] for letter in letters)
