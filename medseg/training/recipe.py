"""How a network is trained: numbers only, and the schedule that follows from them."""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, pi
from typing import Literal

EPOCH = 100  # steps

_WARM_UP = 1 / 30  # of the training: the learning rate rises
_POWER = 0.9  # of the polynomial schedule (Isensee et al. 2021)


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Parameters
    ----------
    steps : int
        Updates of the weights; with `seconds`, the most there may be.
    batch : int
        Patches in each, over all devices.
    seconds : float, optional
        Time for the loop: the schedule then follows the clock, and ends with it.
    optimizer : 'adamw' or 'sgd'
        SGD has a Nesterov momentum of 0.99.
    schedule : 'cosine' or 'poly'
        How the learning rate falls to zero, after a short rise.
    rate : float
        Highest learning rate.
    averaging : float
        Decay of the running mean of the weights; the mean is what is returned.
    clip : float
        Largest norm of the gradient.
    loss : 'dice_ce' or 'border'
        Dice and cross-entropy, or the border-weighted cross-entropy of the U-Net paper, for samples that have weights.
    foreground : float
        Share of patches that are centred on a labelled voxel.
    mirror : tuple of int
        Axes along which patches are mirrored at random.
    elastic : bool
        Elastic deformation too.
    patience : int, optional
        Stop after so many epochs in which the Dice of held-back cases has not risen, and return the best weights.
    freeze : bool
        Leave the encoder as it is.
    seed : int
        Of the weights, the choice of cases and the augmentation.
    """

    steps: int
    batch: int = 2
    seconds: float | None = None
    optimizer: Literal["adamw", "sgd"] = "adamw"
    schedule: Literal["cosine", "poly"] = "cosine"
    rate: float = 2e-3
    weight_decay: float = 1e-2
    averaging: float = 0.995
    clip: float = 12.0
    loss: Literal["dice_ce", "border"] = "dice_ce"
    foreground: float = 0.5
    mirror: tuple[int, ...] = ()
    elastic: bool = False
    patience: int | None = None
    freeze: bool = False
    seed: int = 0

    def done(self, step: int, seconds: float) -> float:
        """Return the fraction of the training that lies behind, 0 to 1, after so many steps in so many seconds."""
        by_steps = step / self.steps
        return min(1.0, by_steps if self.seconds is None else max(by_steps, seconds / self.seconds))

    def rate_at(self, done: float, step: int) -> float:
        """Return the learning rate where a fraction is done and `step` (from 0) comes next."""
        fall = float((1 - done) ** _POWER) if self.schedule == "poly" else (1 + cos(pi * done)) / 2
        rise = (done + 1 / self.steps) / _WARM_UP if self.seconds is None else max(done / _WARM_UP, (step + 1) / 1000)
        return self.rate * min(1.0, rise) * fall
