"""`medseg models`: which models and networks there are, what they are for, and whether a file is sound."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medseg.errors import BundleError

models = typer.Typer(help="List, show, verify and add models.", no_args_is_help=True, rich_markup_mode=None)
Model = Annotated[str, typer.Argument(metavar="NAME|FILE", help="A model by name or file.")]
File = Annotated[Path, typer.Argument(metavar="FILE", help="A .safetensors file of medseg.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


@models.command("list")
def list_models(debug: Debug = False) -> None:
    """List the models that `medseg predict --model` knows by name."""
    from medseg.bundle import Bundle
    from medseg.zoo import DEFAULT
    from medseg.zoo import models as known

    for name, path in known().items():
        try:
            summary = Bundle.load(path).card.summary
        except BundleError as error:  # a damaged file in the store must not hide the others
            summary = f"cannot be used: {error}"
        print(f"{name}{' (default)' if name == DEFAULT else ''}: {summary}")


@models.command("show")
def show(model: Model, debug: Debug = False) -> None:
    """Print what a model is for, its labels, scores and limits."""
    from medseg.bundle import Bundle
    from medseg.cli.cards import rows
    from medseg.zoo import find

    path = find(model)
    for name, text in rows(Bundle.load(path), path):
        print(f"{name + ':':<13}{text}")


@models.command("networks")
def networks(
    axes: Annotated[list[int] | None, typer.Option("--axes", min=2, max=3, help="2 or 3; both when left out.")] = None,
    debug: Debug = False,
) -> None:
    """Print what each architecture needs, computed from its defaults: one channel in, two out."""
    from medseg.networks import ARCHITECTURES
    from medseg.networks.needs import SIZES, needs

    row = "{:<16}{:>13}{:>8}{:>17}{:>18}{:>20}  {}"
    for number in axes or sorted(SIZES):
        size = " x ".join(map(str, SIZES[number]))
        print(f"{number}D; operations and memory for an input of {size} voxels")
        print(
            row.format(
                "network", "parameters", "stride", "receptive field", "kFLOP per voxel", "kB per voxel *", "sizes"
            )
        )
        for name in ARCHITECTURES:
            found = needs(name, axes=number)
            print(
                row.format(
                    name,
                    f"{found.parameters / 1e6:.2f} M",
                    found.stride[0],
                    found.receptive_field[0],
                    f"{found.flops_per_voxel / 1e3:.0f}",
                    f"{found.activations_per_voxel / 1e3:.2f}",
                    found.size_rule,
                ),
                flush=True,
            )
        print()
    print("* activations that training in float32 keeps for the way back; both per voxel of the input")


@models.command("verify")
def verify(file: File, debug: Debug = False) -> None:
    """Check a model file: format, keys, finite weights that fit its network. Prints its sha256."""
    from medseg.bundle import Bundle
    from medseg.inference import load_network

    bundle = Bundle.load(file)
    for member in range(len(bundle.members)):
        load_network(bundle, member)
    print(f"{file}: sound; {bundle.card.name} {bundle.card.version}, sha256 {bundle.sha256}")


@models.command("add")
def add_model(file: File, debug: Debug = False) -> None:
    """Copy a model file into your own store, from where it is known by name."""
    from medseg.zoo import add, store

    print(f"added {add(file)} to {store()}")
