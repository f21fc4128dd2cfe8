"""`medseg check`: what is wrong or odd with a data set, before anything is learned from it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medseg.cli.options import DEBUG
from medseg.cli.progress import Style, shown


def check(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="A folder of pairs, a dataset.json, or a CSV of paths.")],
    fix: Annotated[
        Path | None,
        typer.Option("--fix", metavar="FOLDER", help="Write labels off by rounding noise anew, and a dataset.json."),
    ] = None,
    listing: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write all findings as JSON there.")
    ] = None,
    progress: Annotated[Style, typer.Option("--progress", help="How to show progress, on stderr.")] = Style.auto,
    debug: DEBUG = False,
) -> None:
    """Open every case of a data set and name what is wrong: grids, values, duplicates, labels of other scans.

    With --fix, labels whose grid is off their image's by rounding noise (at most 0.1 voxel) are written anew into a new
    folder, beside a dataset.json of all sound cases to train on; your own files stay as they are.

    Exit code: 0 sound, or warnings alone; 2 errors.
    """
    from medseg.cli.checking import finding_lines, write_findings
    from medseg.training.check import check as run
    from medseg.training.check.mending import check_empty, mend
    from medseg.training.layouts import find_dataset

    dataset = find_dataset(data)
    if fix:
        check_empty(fix)
    with shown(progress, 1, {"check": 1.0}) as display:
        checked = run(dataset, fix=fix is not None, progress=display.of(data, 0))
    written = [*mend(checked, fix)] if fix and checked.dataset.cases else []
    if listing:
        write_findings(listing, checked)
        written.append(listing)
    for line in finding_lines(checked):
        print(line)
    for path in written:
        print(f"wrote {path}")
    if any(finding.severity == "error" for finding in checked.findings):
        raise typer.Exit(2)
