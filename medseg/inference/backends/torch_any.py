"""The network in torch, on any device."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from medseg.errors import DeviceError
from medseg.inference.device import describe
from medseg.inference.ensemble import Ensemble
from medseg.inference.heap import give_back, kept
from medseg.inference.memory import taken_by
from medseg.kernels import Host, Place

_LIGHT = 1 << 26  # bytes of an answer: it lies in the way of what is kept, so that with large ones memory would grow
PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class TorchBackend:
    """A network in torch.

    Parameters
    ----------
    network : Ensemble
        In evaluation mode.
    device : torch.device
        Where it computes.
    precision : str, optional
        'float32', 'float16' or 'bfloat16'; on CUDA 'float16' when left out, elsewhere 'float32'.
    host : Host
        For answers of a network on the CPU.
    compiled : bool
        Compile it first; the first window then takes up to minutes.
    threads : int, optional
        Of the CPU; torch's own choice when left out.
    keep : bool
        On the CPU, memory of layers stays with the process between calls until the end of a pass: faster, and some
        more memory.

    Raises
    ------
    DeviceError
        If the device does not compute in this precision, or would at a crawl.
    """

    def __init__(
        self,
        network: Ensemble,
        device: torch.device,
        *,
        precision: str | None = None,
        host: Host,
        compiled: bool = False,
        threads: int | None = None,
        keep: bool = True,
    ) -> None:
        if threads:
            torch.set_num_threads(threads)
        cuda = device.type == "cuda"
        precision = precision or ("float16" if cuda else "float32")
        _check(precision, device)
        self._type = PRECISIONS[precision]
        self._device = device
        self._layout = torch.channels_last_3d if cuda and network.axes == 3 else torch.preserve_format
        network = network.to(device)
        if cuda and network.axes == 3:
            network = network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self._network: Any = torch.compile(network) if compiled else network
        self.place: Place = host
        if device.type != "cpu":
            from medseg.kernels.device import Device

            self.place = Device(device)
        self._keep, self._keeps = keep, False  # whether it may, and does: from the second call on
        self.batch = 4 if cuda else 1
        self.name = f"torch{' compiled' if compiled else ''}, {precision}, {describe(device)}"

    def __call__(self, windows: npt.NDArray[np.float32]) -> Any:
        """Return the logits (B, L, I, J, K) of windows (B, C, I, J, K)."""
        given = torch.from_numpy(windows)
        if self._device.type == "cuda":
            given = given.pin_memory()
        given = given.to(self._device, non_blocking=True, memory_format=self._layout)
        half = self._type is not torch.float32
        memory = kept() if self._keeps else nullcontext()
        with memory, torch.inference_mode(), torch.autocast(self._device.type, self._type, enabled=half):
            logits: torch.Tensor = self._network(given).float()
        if self._device.type != "cpu":
            return logits
        self._keeps = self._keep and logits.nbytes <= _LIGHT
        return logits.numpy()

    def taken(self, windows: npt.NDArray[np.float32]) -> int:
        """Return the bytes that a call takes on the CUDA device or on the host, its answer included."""
        if self._device.type != "cuda":
            return taken_by(lambda: self(windows))
        torch.cuda.reset_peak_memory_stats(self._device)
        before = torch.cuda.memory_allocated(self._device)
        self(windows)
        return torch.cuda.max_memory_allocated(self._device) - before

    def room(self) -> int | None:
        """Return the bytes that are free on a CUDA device, or kept by torch for later; None elsewhere."""
        if self._device.type != "cuda":
            return None
        unused = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
        return torch.cuda.mem_get_info(self._device)[0] + unused

    def free(self) -> None:
        """Give back memory that torch keeps for later calls."""
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        self._keep = self._keeps = False
        give_back()


def _check(precision: str, device: torch.device) -> None:
    """Refuse a precision for which the hardware has no units: a CPU without them is up to 300 times slower."""
    if precision not in PRECISIONS:
        hint = f"choose from: {', '.join(PRECISIONS)}; for int8 on a CPU see `medseg models optimize --help`"
        raise DeviceError(f"torch has no precision {precision!r}", hint=hint)
    fast = {
        "cpu": {"bfloat16": torch.cpu._is_avx512_bf16_supported()},  # noqa: SLF001 - torch has no public name for it
        "cuda": {"float16": True, "bfloat16": torch.cuda.is_available() and torch.cuda.is_bf16_supported()},
    }.get(device.type, {})
    if precision != "float32" and not fast.get(precision):
        raise DeviceError(f"{precision} is slow or unknown on {device}", hint="use --precision float32")
