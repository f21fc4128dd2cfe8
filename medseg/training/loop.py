"""The training loop: patches in, weights out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from medseg.bundle import Weights
from medseg.errors import PlanError, TrainingError, UsageError
from medseg.plan import Plan
from medseg.training.batches import Batches
from medseg.training.devices import Alone, Devices
from medseg.training.held_back import HeldBack
from medseg.training.losses import dice_cross_entropy, region_table, weighted_cross_entropy
from medseg.training.patches import Sample
from medseg.training.recipe import EPOCH, Recipe
from medseg.training.trainee import Trainee, half_type

_CHECKPOINTS = 0.02  # share of the time that may go into them
_SHORTEST = 1.0  # seconds between two


@dataclass(frozen=True)
class Step:
    """What one step came to.

    Parameters
    ----------
    step : int
        From 1.
    done : float
        Fraction of the training that lies behind.
    seconds : float
        Time in the loop so far.
    rate, loss : float
        Learning rate and loss of the step.
    idle : float
        Share of the time since the last epoch ended in which the device waited for patches.
    dice : mapping of str to float
        At the end of an epoch: Dice of each label over patches of held-back cases.
    """

    step: int
    done: float
    seconds: float
    rate: float
    loss: float
    idle: float
    dice: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Place:
    """Where a loop runs, and where its checkpoints go.

    Parameters
    ----------
    devices : Devices
        One or several.
    checkpoint : Path, optional
        File to go on from, and to write to.
    mark : str
        What tells this training from another one.
    """

    devices: Devices = field(default_factory=Alone)
    checkpoint: Path | None = None
    mark: str = ""

    @classmethod
    def on(cls, device: str) -> Place:
        """Return a place on one device, without checkpoints."""
        return cls(Alone(device))


def fit(
    samples: Sequence[Sample],
    plan: Plan,
    recipe: Recipe,
    *,
    start: Weights | None = None,
    held_back: Sequence[Sample] = (),
    place: Place | None = None,
    on_step: Callable[[Step], None] | None = None,
) -> Weights:
    """Return trained weights, by parameter name, as float32 arrays.

    Deep supervision where the network has it, half precision where the device has it, and a running mean of the
    weights. With a checkpoint the loop can be killed at any moment: called again, it goes on, and comes to the same
    weights as if nothing had happened.

    Parameters
    ----------
    samples : sequence of Sample
        Cases on the plan's grid.
    plan : Plan
        Says network, patch and labels.
    recipe : Recipe
        Steps or seconds, batch, rates and seed.
    start : weights by name, optional
        Those that fit by name and shape are taken over: FCN-32s, then 16s, then 8s.
    held_back : sequence of Sample
        Cases of which the Dice is followed; nothing is learned from them.
    place : Place, optional
        Devices and checkpoint; the CPU and none when left out.
    on_step : callable
        Called after each step.

    Raises
    ------
    PlanError
        If the network does not fit the plan, or none of `start` fits the network.
    TrainingError
        If the loss is no longer a number.
    UsageError
        If the loss needs weights that the samples do not have.
    """
    if recipe.loss == "border" and any(sample.weights is None for sample in samples):
        raise UsageError("loss 'border' needs the weights of each sample", hint="add them by with_border_weights()")
    place = place or Place()
    trainee = Trainee.new(plan, recipe, start=start, device=place.devices.device)
    if place.checkpoint:
        trainee.load(place.checkpoint, place.mark)
    loop = _Loop(trainee, plan, recipe, place)
    for step in loop.run(Batches(samples, plan, recipe, place.devices), HeldBack(held_back, plan)):
        if on_step:
            on_step(step)
    return {name: tensor.numpy() for name, tensor in trainee.weights().items()}


class _Loop:
    """The steps of one training."""

    def __init__(self, trainee: Trainee, plan: Plan, recipe: Recipe, place: Place) -> None:
        self.trainee, self.recipe, self.place, self.devices = trainee, recipe, place, place.devices
        self.network = place.devices.wrap(trainee.network)
        self.half = half_type(place.devices.device)
        table = region_table(plan)
        self.regions = None if table is None else table.to(place.devices.device)
        self.saved = time.perf_counter()
        self.pause = _SHORTEST
        self.waited = self.epoch_began = 0.0

    def run(self, batches: Batches, held_back: HeldBack) -> Iterator[Step]:
        """Yield each step until the training is over."""
        trainee, recipe = self.trainee, self.recipe
        began = time.perf_counter() - trainee.seconds
        self.epoch_began = trainee.seconds
        source = batches.after(trainee.step)
        try:
            while (done := self._done()) < 1:
                asked = time.perf_counter()
                batch = next(source)
                self.waited += time.perf_counter() - asked
                rate = recipe.rate_at(done, trainee.step)
                loss = self._learn(batch, rate)
                trainee.step += 1
                ends = trainee.step % EPOCH == 0
                dice = held_back.dice(trainee.average, self.devices.device) if ends else {}
                trainee.seconds = time.perf_counter() - began
                share = self.waited / max(trainee.seconds - self.epoch_began, 1e-9)
                yield Step(trainee.step, recipe.done(trainee.step, trainee.seconds), trainee.seconds, rate, loss,
                           share, dice)  # fmt: skip
                if ends:
                    self.waited, self.epoch_began = 0.0, trainee.seconds
                if dice and recipe.patience:
                    trainee.note(float(np.nanmean([*dice.values()])))
                self._keep()
        finally:
            source.close()
        self._keep(now=True)

    def _learn(self, batch: Mapping[str, Tensor], rate: float) -> float:
        """Take one step; return its loss, the mean over all processes."""
        trainee, recipe = self.trainee, self.recipe
        for group in trainee.optimizer.param_groups:
            group["lr"] = rate
        parts = {key: tensor.to(self.devices.device, non_blocking=True) for key, tensor in batch.items()}
        torch.manual_seed(recipe.seed + trainee.step)  # of dropout
        self.network.train()
        with torch.autocast(self.devices.device.type, self.half) if self.half else nullcontext():
            answer = self.network(parts["image"])
        loss = self._supervise(answer, parts["label"], parts.get("weights"))
        trainee.optimizer.zero_grad(set_to_none=True)
        self.devices.backward(trainee.scaler.scale(loss))
        trainee.scaler.unscale_(trainee.optimizer)
        nn.utils.clip_grad_norm_(trainee.network.parameters(), recipe.clip)
        trainee.scaler.step(trainee.optimizer)
        trainee.scaler.update()
        trainee.follow(min(recipe.averaging, (trainee.step + 2) / (trainee.step + 11)))
        value = float(self.devices.mean(loss.detach()))
        if not math.isfinite(value):
            raise TrainingError(
                f"the loss of step {trainee.step + 1} is no number",
                hint="look for impossible intensities with `medseg check`, or choose another --network",
            )
        return value

    def _supervise(self, answer: Tensor | list[Tensor], targets: Tensor, weights: Tensor | None) -> Tensor:
        """Return the loss over all stages, each coarser one counting half as much."""
        answers = [part.float() for part in (answer if isinstance(answer, list) else [answer])]
        if answers[0].shape[2:] != targets.shape[2:]:
            raise PlanError(
                f"the network gives {tuple(answers[0].shape[2:])} voxels for a patch of {tuple(targets.shape[2:])}",
                hint="give a network that keeps the size of its input",
            )
        shares = [0.5**stage for stage in range(len(answers))]
        total = torch.zeros((), device=targets.device)
        for share, logits in zip(shares, answers, strict=True):
            target = functional.interpolate(targets, logits.shape[2:], mode="nearest")
            if weights is None:
                loss = dice_cross_entropy(logits, target, self.regions)
            else:
                loss = weighted_cross_entropy(logits, target, functional.interpolate(weights, logits.shape[2:]))
            total = total + share / sum(shares) * loss
        return total

    def _done(self) -> float:
        """Return the fraction of the training that lies behind: 1 too when patience is at an end."""
        trainee, patience = self.trainee, self.recipe.patience
        enough = patience is not None and trainee.stale >= patience
        return self.devices.agree(1.0 if enough else self.recipe.done(trainee.step, trainee.seconds))

    def _keep(self, *, now: bool = False) -> None:
        """Write a checkpoint, unless the last one is so fresh that it would cost too much of the time."""
        if self.place.checkpoint is None or self.devices.rank:
            return
        began = time.perf_counter()
        if now or began - self.saved >= self.pause:
            self.trainee.save(self.place.checkpoint, self.place.mark)
            self.saved = time.perf_counter()
            self.pause = max(_SHORTEST, (self.saved - began) / _CHECKPOINTS)
