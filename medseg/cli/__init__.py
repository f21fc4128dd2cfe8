"""The command `medseg`: one file per command, and one way in which all of them fail.

Nothing heavy is imported before a command runs, so that `--help` answers at once.
"""

from __future__ import annotations

import io
import os
import sys
from typing import Annotated

import typer

from medseg.cli.batch import batch
from medseg.cli.check import check
from medseg.cli.convert import convert
from medseg.cli.evaluate import evaluate
from medseg.cli.info import info
from medseg.cli.models import models
from medseg.cli.predict import predict
from medseg.cli.serve import serve
from medseg.cli.status import retry, status
from medseg.cli.train import train
from medseg.dicom.privacy import withheld
from medseg.errors import MedsegError

app = typer.Typer(
    name="medseg",
    help="Medical image segmentation with the geometry always right. For research use only; not a medical device.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command()(predict)
app.command()(batch)
app.command()(status)
app.command()(retry)
app.command()(serve)
app.command()(evaluate)
app.command()(train)
app.command()(check)
app.command()(info)
app.command()(convert)
app.add_typer(models, name="models")


def _version(asked: bool) -> None:
    if asked:
        from medseg import __version__

        print(f"medseg {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command; a failure that medseg foresaw is one line and exit code 2, without a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file name need not be valid text
    try:
        with withheld():
            app()
    except MedsegError as error:
        if "--debug" in sys.argv:
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # the reader of our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
