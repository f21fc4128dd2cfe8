"""`medseg status` and `medseg retry`: what became of an archive, and another try for what failed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from medseg.cli.options import DEBUG

OUT = Annotated[Path, typer.Argument(metavar="OUT", help="The folder that `medseg batch` wrote to.")]


def status(
    output: OUT,
    failed: Annotated[bool, typer.Option("--failed", help="Name every scan that failed, with its reason.")] = False,
    reason: Annotated[str, typer.Option("--reason", metavar="CODE", help="Name only those that failed for it.")] = "",
    paths: Annotated[
        bool, typer.Option("--paths", help="Name those that failed by where they lie (may name patients).")
    ] = False,
    key_file: Annotated[
        Path | None, typer.Option("--key-file", metavar="FILE", help="With --paths: key of the hashes.")
    ] = None,
    audit: Annotated[bool, typer.Option("--audit", help="Check that the audit log is whole and unchanged.")] = False,
    page: Annotated[bool, typer.Option("--page", help="Write results.csv and index.html anew, of all shards.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    debug: DEBUG = False,
) -> None:
    """Show how far a batch run is, how fast, and why scans failed; also while it runs.

    Exit code: 0 all done, 1 some failed or are left, 2 there is no such run, or its audit log was changed.
    """
    from medseg.archive.report import read_report, write_pages
    from medseg.cli.standing import audit_lines, failed_lines, status_lines

    report = read_report(output)
    if page:
        write_pages(output)
    if as_json:
        print(report.as_json())
    else:
        print("\n".join(status_lines(report)))
    if failed or reason or paths:
        for line in failed_lines(output, reason, paths=paths, key_file=key_file):
            print(line, file=sys.stderr if as_json else sys.stdout)
    sound = True
    if audit:
        lines, sound = audit_lines(output)
        print("\n".join(lines), file=sys.stderr if as_json else sys.stdout)
    raise typer.Exit(2 if not sound else int(bool(report.failed or report.left)))


def retry(
    output: OUT,
    reason: Annotated[
        list[str] | None, typer.Option("--reason", metavar="CODE", help="Only what failed for it; repeat.")
    ] = None,
    debug: DEBUG = False,
) -> None:
    """Let what failed be tried again by the next `medseg batch`."""
    from medseg.archive.report import retry as again

    count = again(output, reason)
    print(f"{count} wait for another try: run the same `medseg batch` again" if count else "nothing failed like that")
