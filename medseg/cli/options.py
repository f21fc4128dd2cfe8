"""Options that several commands have, so that they are one option everywhere."""

from __future__ import annotations

from typing import Annotated

import typer

VOLUME = Annotated[
    int | None, typer.Option("--volume", metavar="N", min=0, help="Which volume of a 4D scan, counted from 0.")
]
SERIES = Annotated[
    str | None, typer.Option("--series", metavar="N|UID|TEXT", help="Which DICOM series (see `medseg info`).")
]
REPAIR = Annotated[
    bool, typer.Option("--repair", help="Interpolate over missing or uneven DICOM slices instead of refusing.")
]
SUV = Annotated[bool, typer.Option("--suv", help="DICOM PET as SUV by body weight instead of Bq/mL.")]
DEBUG = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
