"""The memory that a step of training takes, counted on the network itself without allocating it."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, prod

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from medseg.inference import new_network
from medseg.networks import Architecture
from medseg.plan import Plan

_FLOAT = 4  # bytes
_COPIES = 5  # of the weights: themselves, their gradient, two means of AdamW, the running average
_LOSS = 8  # arrays of the size of the logits: softmax, one-hot targets, their products and gradients
_BACK = 1.5  # times what is kept: the way back holds gradients beside it
_SLACK = 200 << 20  # bytes: code, work space of convolutions, the next batch


@dataclass(frozen=True)
class Memory:
    """Bytes that training takes, estimated.

    Parameters
    ----------
    fixed : int
        For weights, optimiser and work space.
    patch : int
        For each patch of a batch.
    weights : int
        How many numbers are learned.
    coarsest : tuple of int
        Voxels of the coarsest features of a patch, per axis; empty where the network does not say.
    """

    fixed: int
    patch: int
    weights: int
    coarsest: tuple[int, ...]

    def of(self, batch: int) -> int:
        """Return the bytes for a batch."""
        return self.fixed + batch * self.patch


def memory(plan: Plan) -> Memory:
    """Return what training the network of a plan takes, in single precision.

    Raises
    ------
    PlanError
        If the network does not fit the plan.
    """
    with torch.device("meta"):
        network = new_network(plan).train()
        x = torch.empty(1, len(plan.channels), *plan.patch[: plan.axes])
    weights = sum(parameter.numel() for parameter in network.parameters())
    logits = prod(plan.patch) * (len(plan.atoms) + 1)
    stride = network.stride if isinstance(network, Architecture) else ()
    return Memory(
        fixed=_COPIES * _FLOAT * weights + _SLACK,
        patch=int(_BACK * _kept(network, x)) + _LOSS * _FLOAT * logits,
        weights=weights,
        coarsest=tuple(ceil(n / step) for n, step in zip(plan.patch, stride, strict=False)),
    )


def _kept(network: nn.Module, x: Tensor) -> int:
    """Return the bytes that a network keeps of an input for the way back."""
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            kept[StorageWeakRef(tensor.untyped_storage()).cdata] = tensor  # views of one storage count once
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(x)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def amount(size: int) -> str:
    """Return bytes as people say them.

    >>> amount(2_140_000_000), amount(46_000_000)
    ('2.1 GB', '46 MB')
    """
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{ceil(size / 1e6)} MB"
