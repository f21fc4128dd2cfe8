"""`medseg train`: from a folder of pairs to a model, in one command."""

from __future__ import annotations

import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from medseg.cli.options import DEBUG
from medseg.cli.progress import Style


class Optimizer(StrEnum):
    """What moves the weights."""

    adamw = "adamw"
    sgd = "sgd"


class Schedule(StrEnum):
    """How the learning rate falls."""

    cosine = "cosine"
    poly = "poly"


def train(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="A folder of pairs, a dataset.json, or a CSV of paths.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="Model to write, NAME.safetensors.")],
    minutes: Annotated[
        float | None, typer.Option("--minutes", help="Wall time of all of it, resting time not counted; default 60.")
    ] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", help="Of 100 steps each, instead of --minutes.")] = None,
    folds: Annotated[int, typer.Option("--folds", metavar="N", help="Cross-validate; the model is an ensemble.")] = 0,
    splits: Annotated[
        Path | None, typer.Option("--splits", metavar="FILE", help="Folds of your own: JSON, as nnU-Net has it.")
    ] = None,
    fold: Annotated[
        int | None, typer.Option("--fold", metavar="K", help="Train this one alone; several at once may run.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Hold no case back; nobody will know the scores.")] = False,
    patience: Annotated[
        int | None, typer.Option("--patience", metavar="N", help="Stop after N epochs without a better Dice.")
    ] = None,
    network: Annotated[str | None, typer.Option("--network", help="One of `medseg models networks`.")] = None,
    widths: Annotated[str | None, typer.Option("--widths", metavar="CHANNELS", help="Of a U-Net: 32x64x128.")] = None,
    axes: Annotated[int | None, typer.Option("--axes", help="2 for slices, 3 for volumes.")] = None,
    spacing: Annotated[str | None, typer.Option("--spacing", metavar="MM", help="Such as 1x1x2.5.")] = None,
    patch: Annotated[str | None, typer.Option("--patch", metavar="VOXELS", help="Such as 96x96x64.")] = None,
    batch: Annotated[int | None, typer.Option("--batch", help="Patches in each step.")] = None,
    memory: Annotated[str | None, typer.Option("--memory", help="That training may use, such as 8GB.")] = None,
    optimizer: Annotated[Optimizer, typer.Option("--optimizer", help="What moves the weights.")] = Optimizer.adamw,
    schedule: Annotated[Schedule, typer.Option("--schedule", help="How the rate falls.")] = Schedule.cosine,
    rate: Annotated[float | None, typer.Option("--rate", help="Highest learning rate.")] = None,
    start: Annotated[str | None, typer.Option("--from", metavar="MODEL", help="Fine-tune a model.")] = None,
    freeze: Annotated[bool, typer.Option("--freeze", help="Leave the encoder of --from as it is.")] = False,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="The same weights each time, to the bit; needs --epochs.")
    ] = False,
    fix: Annotated[bool, typer.Option("--fix", help="Accept references off their grid by rounding noise.")] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Begin anew; what was there is removed.")] = False,
    seed: Annotated[int, typer.Option("--seed", help="Of weights, splits and patches.")] = 0,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    devices: Annotated[int, typer.Option("--devices", metavar="N", help="How many share each batch.")] = 1,
    nodes: Annotated[int, typer.Option("--nodes", metavar="N", help="Machines, each with so many devices.")] = 1,
    progress: Annotated[Style, typer.Option("--progress", help="How to show progress, on stderr.")] = Style.auto,
    debug: DEBUG = False,
) -> None:
    """Train a model on your own cases, or go on with a training that was interrupted.

    The same command goes on where it stopped. Beside the model lies NAME.training/ with curves.png, logs and scores.
    """
    began = time.monotonic()
    from medseg.cli.training import Teller, sizes
    from medseg.training.planning.choice import Wishes
    from medseg.training.request import Request
    from medseg.training.run import train as run

    shape = sizes("--spacing", spacing, float), sizes("--patch", patch, int), batch, sizes("--widths", widths, int)
    wishes = Wishes(axes, network, *shape)
    request = Request(
        data=data,
        output=output,
        minutes=minutes,
        epochs=epochs,
        folds=folds,
        splits=splits,
        fold=fold,
        everything=everything,
        wishes=wishes,
        device=device,
        devices=devices,
        nodes=nodes,
        memory=memory,
        optimizer=optimizer.value,
        schedule=schedule.value,
        rate=rate,
        patience=patience,
        deterministic=deterministic,
        start=start,
        freeze=freeze,
        fix=fix,
        restart=restart,
        seed=seed,
    )
    with Teller.shown(progress) as teller:
        bundle = run(request, teller, began=began)
    if bundle is not None:
        teller.finish(bundle, output)
    sys.stdout.flush()
