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
DEVICE = Annotated[str, typer.Option("--device", metavar="D", help="auto, cpu, cuda, cuda:N or mps.")]
THREADS = Annotated[int | None, typer.Option("--threads", metavar="N", min=1, help="CPU threads.")]
BACKEND = Annotated[
    str, typer.Option("--backend", metavar="B", help="auto, torch, compiled (torch) or openvino (CPU).")
]
PRECISION = Annotated[
    str | None,
    typer.Option(
        "--precision",
        metavar="P",
        help="float32, float16, bfloat16 or int8. Default: float16 on CUDA; else float32, or as optimized.",
    ),
]
OVERLAP = Annotated[
    float | None, typer.Option("--overlap", metavar="F", help="Of neighbouring windows; default: as the model says.")
]
MIRROR = Annotated[
    bool, typer.Option("--mirror", help="Look at mirrored windows too, if the model was trained on such.")
]
DEBUG = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
