"""The training loop: patches in, weights out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass
from math import cos, pi
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from monai.data.meta_obj import get_track_meta, set_track_meta
from monai.losses import DiceCELoss
from torch import Tensor, nn
from torch.nn import functional

from medseg.bundle import Weights
from medseg.errors import PlanError, UsageError
from medseg.inference import new_network
from medseg.networks import start_from
from medseg.plan import Plan
from medseg.training.data import Sample
from medseg.training.losses import weighted_cross_entropy
from medseg.transforms import augmentation

T = TypeVar("T")
_WARM_UP = 1 / 30  # of all steps: the learning rate rises
_READ_AHEAD = 4  # batches
_DICE_CE = DiceCELoss(softmax=True, to_onehot_y=True, include_background=False, batch=True)


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Parameters
    ----------
    steps : int
        Updates of the weights.
    batch : int
        Patches in each.
    rate : float
        Highest learning rate of AdamW; it falls to zero along a cosine.
    averaging : float
        Decay of the running mean of the weights; the mean is what is returned.
    loss : 'dice_ce' or 'border'
        Dice and cross-entropy, or the border-weighted cross-entropy of the U-Net paper, for samples that have weights.
    elastic : bool
        Elastic deformation too.
    seed : int
        Of the weights, the choice of cases and the augmentation.
    """

    steps: int
    batch: int = 2
    rate: float = 2e-3
    weight_decay: float = 1e-2
    averaging: float = 0.995
    clip: float = 12.0
    loss: Literal["dice_ce", "border"] = "dice_ce"
    elastic: bool = False
    seed: int = 0


def fit(
    samples: Sequence[Sample],
    plan: Plan,
    recipe: Recipe,
    *,
    start: Weights | None = None,
    device: str | torch.device = "cpu",
    on_step: Callable[[int, float], None] | None = None,
) -> Weights:
    """Return trained weights, by parameter name, as float32 arrays.

    Deep supervision where the network has it, AdamW, a cosine schedule, and a running mean of the weights.

    Parameters
    ----------
    samples : sequence of Sample
        Cases on the plan's grid.
    plan : Plan
        Says network, patch and labels.
    recipe : Recipe
        Steps, batch, rates and seed.
    start : weights by name, optional
        Those that fit by name and shape are taken over: FCN-32s, then 16s, then 8s.
    device : str or torch.device
        Where to train.
    on_step : callable
        Called after each step with its number (from 1) and the loss.

    Raises
    ------
    PlanError
        If the network does not fit the plan, or none of `start` fits the network.
    UsageError
        If the loss needs weights that the samples do not have.
    """
    if recipe.loss == "border" and any(sample.weights is None for sample in samples):
        raise UsageError("loss 'border' needs the weights of each sample", hint="add them by with_border_weights()")
    torch.manual_seed(recipe.seed)
    network = new_network(plan)
    if start is not None:
        start_from(network, {name: torch.from_numpy(array) for name, array in start.items()})
    network.to(device)
    average = deepcopy(network)
    optimizer = torch.optim.AdamW(network.parameters(), lr=recipe.rate, weight_decay=recipe.weight_decay)
    network.train()
    for step, parts in enumerate(_batches(samples, plan, recipe), start=1):
        for group in optimizer.param_groups:
            group["lr"] = _rate(step, recipe)
        batch = {key: tensor.to(device) for key, tensor in parts.items()}
        loss = _supervise(network(batch["image"]), batch["label"], batch.get("weights"))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), recipe.clip)
        optimizer.step()
        _average(average, network, decay=min(recipe.averaging, (step + 1) / (step + 10)))
        if on_step:
            on_step(step, loss.item())
    return {name: tensor.float().cpu().numpy() for name, tensor in average.state_dict().items()}


def _batches(samples: Sequence[Sample], plan: Plan, recipe: Recipe) -> Iterator[dict[str, Tensor]]:
    """Yield batches of image, label and weights; one thread reads ahead, so that they depend on the seed alone."""
    rng = np.random.default_rng(recipe.seed)
    transform = augmentation(plan.patch[: plan.axes], elastic=recipe.elastic, seed=recipe.seed)

    def batch() -> dict[str, Tensor]:
        chosen = rng.choice(len(samples), recipe.batch, replace=len(samples) < recipe.batch)
        patches = [transform(_drawn(samples[n], plan.axes, rng, weighted=recipe.loss == "border"))[0] for n in chosen]
        return {
            key: torch.stack([torch.as_tensor(patch[key]) for patch in patches]).float()
            for key in ("image", "label", "weights")
            if key in patches[0]
        }

    tracked = get_track_meta()
    set_track_meta(False)  # affines are of no use here, and cost a third of the time of a patch
    try:
        yield from _read_ahead(batch, recipe.steps)
    finally:
        set_track_meta(tracked)


def _drawn(sample: Sample, axes: int, rng: np.random.Generator, *, weighted: bool) -> dict[str, npt.NDArray[Any]]:
    """Return a case as the augmentation takes it: whole, or for a 2D network one of its slices."""
    box = (..., int(rng.integers(sample.image.shape[3]))) if axes == 2 else ...
    parts: dict[str, npt.NDArray[Any]] = {"image": sample.image[box], "label": sample.target[box]}
    if weighted and sample.weights is not None:
        parts["weights"] = sample.weights[box]
    return parts


def _read_ahead(make: Callable[[], T], count: int) -> Iterator[T]:
    """Yield `count` results of `make`, called in one thread, a few ahead of their use."""
    with ThreadPoolExecutor(1) as pool:
        ahead = deque(pool.submit(make) for _ in range(min(_READ_AHEAD, count)))
        for number in range(count):
            if number + len(ahead) < count:
                ahead.append(pool.submit(make))
            yield ahead.popleft().result()


def _supervise(answer: Tensor | list[Tensor], targets: Tensor, weights: Tensor | None) -> Tensor:
    """Return the loss over all stages, each coarser one counting half as much: border-weighted if there are weights."""
    answers = answer if isinstance(answer, list) else [answer]
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
            loss = _DICE_CE(logits, target)
        else:
            loss = weighted_cross_entropy(logits, target, functional.interpolate(weights, logits.shape[2:]))
        total = total + share / sum(shares) * loss
    return total


def _rate(step: int, recipe: Recipe) -> float:
    return recipe.rate * min(1.0, step / (_WARM_UP * recipe.steps)) * (1 + cos(pi * (step - 1) / recipe.steps)) / 2


@torch.no_grad()
def _average(average: nn.Module, network: nn.Module, *, decay: float) -> None:
    for mean, value in zip(average.parameters(), network.parameters(), strict=True):
        mean.lerp_(value, 1 - decay)
    for kept, now in zip(average.buffers(), network.buffers(), strict=True):  # running statistics of a norm
        kept.copy_(now)
