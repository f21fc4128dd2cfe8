"""`medseg models`: which there are, what they are for, whether a file is sound, and the forms that run fastest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from medseg.errors import BundleError

models = typer.Typer(
    help="List, show, verify, add, optimize and export models.", no_args_is_help=True, rich_markup_mode=None
)
Model = Annotated[str, typer.Argument(metavar="NAME|FILE", help="A model by name or file.")]
File = Annotated[Path, typer.Argument(metavar="FILE", help="A .safetensors file of medseg.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


@models.command("list")
def list_models(
    as_json: Annotated[bool, typer.Option("--json", help="A line of JSON for each model, for programs.")] = False,
    debug: Debug = False,
) -> None:
    """List the models that `medseg predict --model` knows by name."""
    from medseg.bundle import Bundle
    from medseg.cli.cards import entry
    from medseg.zoo import DEFAULT
    from medseg.zoo import models as known

    for name, path in known().items():
        try:
            bundle = Bundle.load(path)
        except BundleError as error:  # a damaged file in the store must not hide the others
            said, summary = {"error": str(error)}, f"cannot be used: {error}"
        else:
            said, summary = entry(bundle), bundle.card.summary
        if as_json:
            print(json.dumps({"name": name, "default": name == DEFAULT, "path": str(path), **said}, ensure_ascii=False))
        else:
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
    for stage in filter(None, (bundle.stage_that_locates(), bundle)):
        for member in range(len(stage.members)):
            load_network(stage, member)
    print(f"{file}: sound; {bundle.card.name} {bundle.card.version}, sha256 {bundle.sha256}")


@models.command("add")
def add_model(file: File, debug: Debug = False) -> None:
    """Copy a model file into your own store, from where it is known by name."""
    from medseg.zoo import add, store

    print(f"added {add(file)} to {store()}")


@models.command("optimize")
def optimize(
    model: Model,
    precision: Annotated[
        str, typer.Option("--precision", metavar="P", help="float32, bfloat16 (where the CPU has units), or int8.")
    ] = "float32",
    mirror: Annotated[bool, typer.Option("--mirror", help="For `medseg predict --mirror`.")] = False,
    uncertainty: Annotated[bool, typer.Option("--uncertainty", help="For `medseg predict --uncertainty`.")] = False,
    threads: Annotated[
        int | None, typer.Option("--threads", metavar="N", min=1, help="CPU threads to time with.")
    ] = None,
    calibrate: Annotated[
        list[Path] | None,
        typer.Option("--calibrate", metavar="SCAN", help="A scan or a folder of scans to scale int8 by; repeat."),
    ] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Remove what was made for this model.")] = False,
    debug: Debug = False,
) -> None:
    """Make the form of a model that is fastest on this CPU, compare it with torch, and keep it for `medseg predict`.

    bfloat16 and int8 change a few voxels at the borders of structures: compare their label maps with those of float32
    on scans of yours before you use them.
    """
    from medseg.bundle import Bundle
    from medseg.cli.optimizing import optimize_stage
    from medseg.inference import optimised
    from medseg.zoo import find

    bundle = Bundle.load(find(model))
    stages = [stage for stage in (bundle.stage_that_locates(), bundle) if stage]
    if remove:
        there = [optimised.remove(stage) for stage in stages]
        print(f"{bundle.card.name}: {'removed' if any(there) else 'there was nothing to remove'}")
        return
    from medseg.kernels.host import compile_now

    for stage in stages:
        optimize_stage(
            stage,
            calibrate or [],
            precision=precision,
            mirror=mirror and stage is bundle,
            disagreement=uncertainty and stage is bundle and (mirror or len(bundle.members) > 1),
            threads=threads,
        )
    if not compile_now():
        print("the loops outside the network stay those of numpy: numba is not installed, or does not work here")


@models.command("export")
def export_model(
    model: Model,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="Where to write, such as net.onnx.")],
    mirror: Annotated[
        bool, typer.Option("--mirror", help="Let it ask its members about mirrored windows too.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Write all members of a model as one ONNX network; its metadata say how scans are prepared for it."""
    from medseg.atomic import check_writable
    from medseg.bundle import Bundle
    from medseg.inference.onnx_file import export
    from medseg.zoo import find

    bundle = Bundle.load(find(model))
    check_writable(output.parent)
    export(bundle, output, mirror=mirror)
    print(f"wrote {output}: {bundle.card.name} {bundle.card.version}, sha256 {bundle.sha256}")
