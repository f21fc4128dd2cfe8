"""What runs the network: torch everywhere, OpenVINO on a CPU. Each is one class in one file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from medseg.kernels import Place


class Backend(Protocol):
    """A network on a device.

    Parameters
    ----------
    name : str
        As a report names it, such as "torch, float32, cpu".
    batch : int
        Windows in one call; may be made smaller.
    place : Place
        Where answers live.
    """

    name: str
    batch: int
    place: Place

    def __call__(self, windows: npt.NDArray[np.float32]) -> Any:
        """Return the logits (B, L, I, J, K) of windows (B, C, I, J, K), as an array of `place`."""

    def taken(self, windows: npt.NDArray[np.float32]) -> int:
        """Return the bytes that a call takes where the network runs, its answer included."""

    def room(self) -> int | None:
        """Return the bytes that are free on a device with memory of its own; None where that is the host's."""

    def free(self) -> None:
        """Give back memory that is kept for later calls, and from now on keep as little as possible."""


@dataclass(frozen=True)
class How:
    """What the user asked for.

    Parameters
    ----------
    device : str
        'auto' (CUDA, then MPS, then CPU), 'cpu', 'cuda', 'cuda:1' or 'mps'.
    backend : str
        'auto', 'torch', 'compiled' (torch, compiled first) or 'openvino' (CPU).
    precision : str, optional
        'float32', 'float16', 'bfloat16' or 'int8'; 'float16' on CUDA when left out, elsewhere 'float32', or what
        `medseg models optimize` was told.
    mirror : bool
        Ask the network about mirrored windows too.
    threads : int, optional
        Of the CPU.
    keep : bool
        Memory may stay with the process while windows are answered, which is faster.
    """

    device: str = "auto"
    backend: str = "auto"
    precision: str | None = None
    mirror: bool = False
    threads: int | None = None
    keep: bool = True
