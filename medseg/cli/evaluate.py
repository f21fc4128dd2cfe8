"""`medseg evaluate`: predictions against references; a table on the screen, and files with all there is to say."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from medseg.cli.options import DEBUG
from medseg.cli.progress import EVALUATING, Style, shown


class Surface(StrEnum):
    """What a surface is made of."""

    voxels = "voxels"
    elements = "elements"


def evaluate(
    prediction: Annotated[Path, typer.Argument(metavar="PRED", help="A label map, or a folder of label maps.")],
    reference: Annotated[Path, typer.Argument(metavar="REF", help="The expert's; in a folder under the same names.")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FOLDER", help="Write scores.csv, scores.json and report.html there."),
    ] = None,
    labels: Annotated[
        str, typer.Option("--labels", metavar="LIST", help="NAME, NUMBER, NAME=NUMBER or NAME=N+M; all if left out.")
    ] = "",
    tolerance: Annotated[
        str, typer.Option("--tolerance", metavar="MM", help="Of the surface Dice, such as 2 or 2,liver=3.")
    ] = "2",
    metrics: Annotated[
        str, typer.Option("--metrics", metavar="LIST", help="Such as dice,hd95,nsd; default, or all (docs/metrics.md).")
    ] = "default",
    surface: Annotated[
        Surface, typer.Option("--surface", help="Surface as voxels, or as elements weighted by area (DeepMind).")
    ] = Surface.voxels,
    resample: Annotated[
        bool, typer.Option("--resample", help="Bring predictions on another grid onto the reference's (nearest voxel).")
    ] = False,
    compare: Annotated[
        Path | None,
        typer.Option("--compare", metavar="PRED2", help="Second set of predictions: paired differences and test."),
    ] = None,
    pictures: Annotated[
        int, typer.Option("--pictures", metavar="N", min=0, help="Worst cases that the page shows.")
    ] = 8,
    progress: Annotated[Style, typer.Option("--progress", help="How to show progress, on stderr.")] = Style.auto,
    debug: DEBUG = False,
) -> None:
    """Score label maps against an expert's: overlap, surface distances in mm, volumes; with intervals and misses.

    Pairs the files of two folders by name (_seg at the end does not count) and lists what has no partner. Grids must
    be the same points in space, in any storage order. NaN and infinity are written as null; the column state says ok,
    missed, spurious or undefined.

    Exit code: 0 all done, 1 some cases failed or references have no prediction, 2 nothing could be done.
    """
    from medseg.atomic import check_writable
    from medseg.cli.scoring import as_settings, assemble, score_files, table
    from medseg.evaluation import pair_files
    from medseg.report.scores import write_scores

    settings = as_settings(labels, tolerance, metrics, surface.value, resample=resample)
    pairings = [pair_files(folder, reference) for folder in (prediction, compare) if folder]
    if output:
        check_writable(output)
    with shown(progress, sum(len(pairing.pairs) for pairing in pairings), EVALUATING) as display:
        done = [0, len(pairings[0].pairs)]
        runs = [
            score_files(pairing, settings, display, before, debug=debug)
            for pairing, before in zip(pairings, done, strict=False)
        ]
    places = [str(folder) for folder in (prediction, reference, compare or "")]
    evaluation = assemble(places, settings, pairings, runs)
    written = []
    if output and evaluation.cases:  # before anything is printed: whoever reads may stop reading
        written = write_scores(output, evaluation, pairings[0].pairs, pictures=pictures)
    print(table(evaluation))
    for path in written:
        print(f"wrote {path}")
    for partner, left in (("prediction", evaluation.only_references), ("reference", evaluation.only_predictions)):
        for name in left:
            print(f"warning: {name}: has no {partner}, not evaluated", file=sys.stderr)
    if evaluation.failures or evaluation.only_references:
        raise typer.Exit(1 if evaluation.cases else 2)
