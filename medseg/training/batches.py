"""Batches of random patches: each patch a function of seed, step and place alone, made ahead in threads."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import local
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medseg.plan import Plan
from medseg.training.devices import Devices
from medseg.training.patches import Sample, draw
from medseg.training.recipe import Recipe
from medseg.transforms import augmentation, seed

_AHEAD = 4  # batches
_MOST_THREADS = 12


class Batches:
    """Random batches of image, label and weights, one for each step.

    Parameters
    ----------
    samples : sequence of Sample
        Cases on the plan's grid.
    plan, recipe
        Say what a patch is, and how it is drawn.
    devices : Devices
        Each process makes its own share of every batch.
    """

    def __init__(self, samples: Sequence[Sample], plan: Plan, recipe: Recipe, devices: Devices) -> None:
        self.samples, self.plan, self.recipe, self.devices = samples, plan, recipe, devices
        self._own = local()  # transforms hold the state of their random numbers: one set for each thread

    def after(self, step: int) -> Generator[dict[str, Tensor], None, None]:
        """Yield the batches that follow a step, without end; threads make some ahead of their use."""
        places = range(self.devices.rank, self.recipe.batch, self.devices.count)
        with ThreadPoolExecutor(self._threads(), initializer=self._prepare_thread) as pool:
            pinned = self.devices.device.type == "cuda"  # so that copies to the card overlap its work
            ahead: deque[list[Future[dict[str, Any]]]] = deque()
            try:
                while True:
                    while len(ahead) < _AHEAD:
                        ahead.append([pool.submit(self._patch, step, place) for place in places])
                        step += 1
                    yield _stacked([future.result() for future in ahead.popleft()], pinned=pinned)
            finally:
                pool.shutdown(cancel_futures=True)

    def _patch(self, step: int, place: int) -> dict[str, Any]:
        """Return one patch; cases are drawn without return until all have had their turn."""
        recipe, plan, count = self.recipe, self.plan, len(self.samples)
        turn, number = divmod(step * recipe.batch + place, count)
        order = np.random.default_rng((recipe.seed, 1, turn)).permutation(count)
        rng = np.random.default_rng((recipe.seed, 2, step, place))
        drawn = draw(
            self.samples[order[number]],
            plan.patch,
            plan.axes,
            rng,
            foreground=recipe.foreground,
            weighted=recipe.loss == "border",
            spacing=plan.spacing,
        )
        transforms = self._own.transforms
        seed(transforms, recipe.seed, step, place)
        patch: dict[str, Any] = transforms(drawn)
        return patch

    def _prepare_thread(self) -> None:
        torch.set_num_threads(1)  # of this thread: on few voxels, sharing them out costs more than the work
        plan, recipe = self.plan, self.recipe
        spacing = plan.spacing and plan.spacing[: plan.axes]
        self._own.transforms = augmentation(
            plan.patch[: plan.axes], mirror=recipe.mirror, elastic=recipe.elastic, spacing=spacing
        )

    def _threads(self) -> int:
        if self.devices.device.type == "cpu":
            return 1  # the network has the others
        return max(1, min(_MOST_THREADS, (os.cpu_count() or 2) // self.devices.count - 1))


def _stacked(patches: Sequence[dict[str, Any]], *, pinned: bool) -> dict[str, Tensor]:
    batch: dict[str, Tensor] = {
        key: torch.stack([torch.as_tensor(patch[key]) for patch in patches]).float()
        for key in ("image", "label", "weights")
        if key in patches[0]
    }
    return {key: tensor.pin_memory() for key, tensor in batch.items()} if pinned else batch
