"""A model's network as an ONNX file, for other programs to run."""

from __future__ import annotations

import logging
import warnings
from importlib.util import find_spec
from pathlib import Path

import torch

from medseg.atomic import write_atomic
from medseg.bundle import Bundle, canonical_json
from medseg.errors import UsageError
from medseg.inference.ensemble import Ensemble


def export(bundle: Bundle, path: Path, *, mirror: bool = False) -> None:
    """Write all members of a model as one ONNX network, whole or not at all.

    It maps `windows` (B, C, I, J, K) of the size of the plan's patch, normalised as the plan says, to `logits`
    (B, L, I, J, K). Its metadata hold the header of the model (`medseg`) and the sha256 of its file (`sha256`).

    Raises
    ------
    OutputError
        If the file cannot be written.
    UsageError
        If the model has two stages, onnx or onnxscript is not installed, or mirrored views are asked for and the model
        was not trained for any.
    """
    if bundle.plan.locate:
        raise UsageError(
            f"{bundle.card.name} has two stages, which are no single network", hint="export models of one stage"
        )
    for name in ("onnx", "onnxscript"):
        if find_spec(name) is None:
            raise UsageError(f"{name} is not installed", hint="pip install 'medseg[onnx]'")
    network = Ensemble.of(bundle, mirror=mirror)
    example = torch.zeros(2, len(bundle.plan.channels), *bundle.plan.patch)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of operations that no network of ours has
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about its own parts
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            verbose=False,
            input_names=["windows"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("windows_in_one_call")},),
        )
    proto = program.model_proto  # type: ignore[union-attr]
    for key, value in {"medseg": canonical_json(bundle.header), "sha256": bundle.sha256}.items():
        proto.metadata_props.add(key=key, value=value)
    write_atomic(path, [proto.SerializeToString()])
