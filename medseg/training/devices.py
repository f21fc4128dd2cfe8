"""Where a network learns: on one device, or on several that share each batch (`distributed.py`)."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn


class Devices(Protocol):
    """What the loop needs to know of the devices; each of several processes has its own."""

    @property
    def device(self) -> torch.device:
        """The one of this process."""

    @property
    def rank(self) -> int:
        """Number of this process, from 0; the first one writes files."""

    @property
    def count(self) -> int:
        """How many processes share each batch."""

    def wrap(self, network: nn.Module) -> nn.Module:
        """Return a network whose gradients are those of all processes."""

    def backward(self, loss: Tensor) -> None:
        """Compute the gradients."""

    def agree(self, value: float) -> float:
        """Return the value of the first process."""

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean over all processes."""

    def wait(self) -> None:
        """Wait until all processes are here."""


class Alone:
    """One process, one device."""

    rank = 0
    count = 1

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)

    def wrap(self, network: nn.Module) -> nn.Module:
        """Return the network as it is."""
        return network

    def backward(self, loss: Tensor) -> None:
        """Compute the gradients."""
        loss.backward()

    def agree(self, value: float) -> float:
        """Return the value."""
        return value

    def mean(self, values: Tensor) -> Tensor:
        """Return the values."""
        return values

    def wait(self) -> None:
        """Go on."""
