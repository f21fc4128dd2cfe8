"""`medseg info`: what a scan is, and what is odd about it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def info(
    scan: Annotated[Path, typer.Argument(metavar="SCAN", help="A scan in any format that medseg reads.")],
    volume: Annotated[
        int | None, typer.Option("--volume", metavar="N", min=0, help="Which volume of a 4D scan, counted from 0.")
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Print shape, spacing, orientation, type, intensities and every oddity of a scan."""
    from medseg.io import read

    image = read(scan, volume=volume)
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


def _directions(letters: str) -> str:
    words = {"R": "right", "L": "left", "A": "front", "P": "back", "S": "up", "I": "down"}
    return ", ".join(words[letter] for letter in letters)
