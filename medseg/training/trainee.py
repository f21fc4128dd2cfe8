"""What changes while a network learns - weights, their mean, the optimizer - and its checkpoints.

A checkpoint is a `.safetensors` file: tensors and one JSON text, so that no code in it can run. Everything else that a
step depends on is a function of seed and step number, so that a run which goes on from a checkpoint is the same run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from medseg.atomic import write_atomic
from medseg.bundle import Weights
from medseg.errors import UsageError
from medseg.inference import new_network
from medseg.networks import Architecture, start_from
from medseg.plan import Plan
from medseg.training.recipe import Recipe

_FORM = "1"
_MOMENTUM = 0.99


@dataclass(eq=False)
class Trainee:
    """A network in training.

    Parameters
    ----------
    network, average : nn.Module
        What learns, and the running mean of its weights.
    optimizer : torch.optim.Optimizer
        Over the parameters that are not frozen.
    scaler : torch.amp.GradScaler
        Of half-precision gradients; it does nothing elsewhere.
    step : int
        Updates so far.
    seconds : float
        Time that they took, without what lay between a kill and going on.
    best, stale : float, int
        Highest Dice of held-back cases, and epochs since then.
    best_weights : dict
        Of the mean at that time; empty unless there is a patience.
    """

    network: nn.Module
    average: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    step: int = 0
    seconds: float = 0.0
    best: float = -1.0
    stale: int = 0
    best_weights: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def new(
        cls, plan: Plan, recipe: Recipe, *, start: Weights | None = None, device: torch.device | None = None
    ) -> Trainee:
        """Return a network that has not learned yet; all of `start` that fits by name and shape is taken over.

        Raises
        ------
        PlanError
            If the network does not fit the plan, or none of `start` fits the network.
        UsageError
            If the recipe freezes the encoder of a network that has none.
        """
        device = device or torch.device("cpu")
        torch.manual_seed(recipe.seed)
        network = new_network(plan)
        if start is not None:
            start_from(network, {name: torch.from_numpy(array) for name, array in start.items()})
        network.to(device)
        if recipe.freeze:
            _freeze(network, plan)
        average = deepcopy(network)
        learned = [parameter for parameter in network.parameters() if parameter.requires_grad]
        scaler = torch.amp.GradScaler(device.type, enabled=half_type(device) is torch.float16)
        return cls(network, average, _optimizer(learned, recipe), scaler)

    def weights(self) -> dict[str, Tensor]:
        """Return the mean weights (the best ones, where there is a patience), as float32 on the CPU."""
        kept = self.best_weights or self.average.state_dict()
        return {name: tensor.detach().float().cpu() for name, tensor in kept.items()}

    @torch.no_grad()
    def follow(self, decay: float) -> None:
        """Bring the mean weights a step closer to those of the network."""
        for mean, value in zip(self.average.parameters(), self.network.parameters(), strict=True):
            mean.lerp_(value, 1 - decay)
        for kept, now in zip(self.average.buffers(), self.network.buffers(), strict=True):  # statistics of a norm
            kept.copy_(now)

    def note(self, dice: float) -> None:
        """Remember the Dice of held-back cases, and the mean weights where it is the best so far."""
        self.stale += 1
        if dice > self.best:
            self.best, self.stale = dice, 0
            self.best_weights = {name: tensor.detach().clone() for name, tensor in self.average.state_dict().items()}

    def save(self, path: Path, mark: str) -> None:
        """Write a checkpoint, whole or not at all; `mark` says what it belongs to."""
        parts = {"network": self.network.state_dict(), "average": self.average.state_dict(), "best": self.best_weights}
        tensors = {f"{part}.{name}": tensor for part, state in parts.items() for name, tensor in state.items()}
        for number, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{key}": torch.as_tensor(value) for key, value in state.items()}
        content = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
        numbers = {"step": self.step, "seconds": self.seconds, "best": self.best, "stale": self.stale,
                   "scaler": self.scaler.state_dict()}  # fmt: skip
        write_atomic(
            path, [safetensors.torch.save(content, {"form": _FORM, "mark": mark, "json": json.dumps(numbers)})]
        )

    def load(self, path: Path, mark: str) -> bool:
        """Take over a checkpoint; return whether there was one.

        Raises
        ------
        UsageError
            If it is damaged, or belongs to another training.
        """
        if not path.exists():
            return False
        try:
            with safetensors.safe_open(path, "pt") as file:
                said = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
            numbers = json.loads(said["json"])
        except (safetensors.SafetensorError, KeyError, ValueError, OSError) as error:
            raise UsageError(
                f"{path}: the checkpoint is damaged", hint="remove that file, and this member begins anew"
            ) from error
        if said.get("form") != _FORM or said.get("mark") != mark:
            raise UsageError(f"{path}: the checkpoint is of another training", hint="begin anew with --restart")
        self._take(tensors, numbers)
        return True

    def _take(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        self.network.load_state_dict(_part(tensors, "network"))
        self.average.load_state_dict(_part(tensors, "average"))
        device = next(self.network.parameters()).device
        self.best_weights = {name: tensor.to(device) for name, tensor in _part(tensors, "best").items()}
        memory: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _part(tensors, "optimizer").items():
            number, key = name.split(".", 1)
            memory.setdefault(int(number), {})[key] = tensor
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": memory})
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(numbers["scaler"])
        self.step, self.seconds = numbers["step"], numbers["seconds"]
        self.best, self.stale = numbers["best"], numbers["stale"]


def half_type(device: torch.device) -> torch.dtype | None:
    """Return the type in which a device multiplies faster at no loss of accuracy; None for full precision."""
    if device.type != "cuda":
        return None
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def _optimizer(learned: list[nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(
            learned, lr=recipe.rate, momentum=_MOMENTUM, nesterov=True, weight_decay=recipe.weight_decay
        )
    return torch.optim.AdamW(learned, lr=recipe.rate, weight_decay=recipe.weight_decay)


def _freeze(network: nn.Module, plan: Plan) -> None:
    parts = network.encoder() if isinstance(network, Architecture) else []
    if not parts:
        name = plan.network.architecture
        raise UsageError(f"network {name!r} has no encoder that could be frozen", hint="leave out --freeze")
    for part in parts:
        part.requires_grad_(requires_grad=False)


def _part(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    front = f"{name}."
    return {key.removeprefix(front): tensor for key, tensor in tensors.items() if key.startswith(front)}
