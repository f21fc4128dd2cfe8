"""The training loop: patches in, weights out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass
from math import cos, pi
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from monai.data.meta_obj import get_track_meta, set_track_meta
from monai.losses import DiceCELoss
from torch import Tensor, nn
from torch.nn import functional

from medseg.bundle import Weights
from medseg.errors import PlanError
from medseg.inference import new_network
from medseg.plan import Plan
from medseg.training.data import Sample
from medseg.transforms import augmentation

T = TypeVar("T")
_WARM_UP = 1 / 30  # of all steps: the learning rate rises
_READ_AHEAD = 4  # batches


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
    seed : int
        Of the weights, the choice of cases and the augmentation.
    """

    steps: int
    batch: int = 2
    rate: float = 2e-3
    weight_decay: float = 1e-2
    averaging: float = 0.995
    clip: float = 12.0
    seed: int = 0


def fit(
    samples: Sequence[Sample],
    plan: Plan,
    recipe: Recipe,
    *,
    device: str | torch.device = "cpu",
    on_step: Callable[[int, float], None] | None = None,
) -> Weights:
    """Return trained weights, by parameter name, as float32 arrays.

    Dice and cross-entropy with deep supervision, AdamW, a cosine schedule, and a running mean of the weights.

    Parameters
    ----------
    samples : sequence of Sample
        Cases on the plan's grid.
    plan : Plan
        Says network, patch and labels.
    recipe : Recipe
        Steps, batch, rates and seed.
    device : str or torch.device
        Where to train.
    on_step : callable
        Called after each step with its number (from 1) and the loss.
    """
    torch.manual_seed(recipe.seed)
    network = new_network(plan).to(device)
    average = deepcopy(network)
    optimizer = torch.optim.AdamW(network.parameters(), lr=recipe.rate, weight_decay=recipe.weight_decay)
    loss_of = DiceCELoss(softmax=True, to_onehot_y=True, include_background=False, batch=True)
    network.train()
    for step, (images, targets) in enumerate(_batches(samples, plan, recipe), start=1):
        for group in optimizer.param_groups:
            group["lr"] = _rate(step, recipe)
        loss = _supervise(network(images.to(device)), targets.to(device), loss_of)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), recipe.clip)
        optimizer.step()
        _average(average, network, decay=min(recipe.averaging, (step + 1) / (step + 10)))
        if on_step:
            on_step(step, loss.item())
    return {name: tensor.cpu().numpy() for name, tensor in average.state_dict().items()}


def _batches(samples: Sequence[Sample], plan: Plan, recipe: Recipe) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield image and target batches; one thread reads ahead, so that the sequence depends on the seed alone."""
    rng = np.random.default_rng(recipe.seed)
    transform = augmentation(plan.patch[: plan.axes], seed=recipe.seed)

    def batch() -> tuple[Tensor, Tensor]:
        chosen = rng.choice(len(samples), recipe.batch, replace=len(samples) < recipe.batch)
        patches = [transform(_drawn(samples[n], plan.axes, rng))[0] for n in chosen]
        images = torch.stack([torch.as_tensor(patch["image"]) for patch in patches]).float()
        return images, torch.stack([torch.as_tensor(patch["label"]) for patch in patches])

    tracked = get_track_meta()
    set_track_meta(False)  # affines are of no use here, and cost a third of the time of a patch
    try:
        yield from _read_ahead(batch, recipe.steps)
    finally:
        set_track_meta(tracked)


def _drawn(sample: Sample, axes: int, rng: np.random.Generator) -> dict[str, npt.NDArray[Any]]:
    """Return a case as the augmentation takes it: whole, or for a 2D network one of its slices."""
    box = (..., int(rng.integers(sample.image.shape[3]))) if axes == 2 else ...
    return {"image": sample.image[box], "label": sample.target[box]}


def _read_ahead(make: Callable[[], T], count: int) -> Iterator[T]:
    """Yield `count` results of `make`, called in one thread, a few ahead of their use."""
    with ThreadPoolExecutor(1) as pool:
        ahead = deque(pool.submit(make) for _ in range(min(_READ_AHEAD, count)))
        for number in range(count):
            if number + len(ahead) < count:
                ahead.append(pool.submit(make))
            yield ahead.popleft().result()


def _supervise(answer: Tensor | list[Tensor], targets: Tensor, loss_of: nn.Module) -> Tensor:
    """Return the loss over all stages, each coarser one counting half as much."""
    answers = answer if isinstance(answer, list) else [answer]
    if answers[0].shape[2:] != targets.shape[2:]:
        raise PlanError(
            f"the network gives {tuple(answers[0].shape[2:])} voxels for a patch of {tuple(targets.shape[2:])}",
            hint="give a network that keeps the size of its input",
        )
    weights = [0.5**stage for stage in range(len(answers))]
    total = torch.zeros((), device=targets.device)
    for weight, logits in zip(weights, answers, strict=True):
        target = functional.interpolate(targets.float(), logits.shape[2:], mode="nearest")
        total = total + weight / sum(weights) * loss_of(logits, target)
    return total


def _rate(step: int, recipe: Recipe) -> float:
    return recipe.rate * min(1.0, step / (_WARM_UP * recipe.steps)) * (1 + cos(pi * (step - 1) / recipe.steps)) / 2


@torch.no_grad()
def _average(average: nn.Module, network: nn.Module, *, decay: float) -> None:
    for mean, value in zip(average.parameters(), network.parameters(), strict=True):
        mean.lerp_(value, 1 - decay)
    for kept, now in zip(average.buffers(), network.buffers(), strict=True):  # running statistics of a norm
        kept.copy_(now)
