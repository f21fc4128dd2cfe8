"""The network of a bundle for medseg's peers: the same modules of torch with the same weights, and the stub.

Needs torch, safetensors and the modules in `medseg.networks`, so that it runs in nnU-Net's environment too.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # where medseg is not installed
from medseg.networks import ARCHITECTURES, build

RANGE = 10_000.0  # intensity at the far end of an axis
DEVIATION = 1000.0  # of the plan
HEIGHT = 4.0  # logit at the centre of an organ


class Stub(nn.Module):
    """Says where in the scan a window lies, which organ is there, and takes next to no time.

    The scan's intensity at the position (u, v, w), each from 0 to 1, is RANGE (u^2 + v^2 + w^2) and noise: how much it
    rises from one face of a window to the other tells the place. An organ is an ellipsoid; its logit falls with the
    square of the distance from its centre, and that of background is 0 everywhere.

    Parameters
    ----------
    axes, in_channels, out_channels : int
        Three, one, and organs with background.
    """

    def __init__(self, axes: int, in_channels: int, out_channels: int) -> None:
        super().__init__()
        organs = out_channels - in_channels
        self.size = nn.Parameter(torch.ones(axes), requires_grad=False)  # voxels of the network's grid
        self.centres = nn.Parameter(torch.rand(organs, axes), requires_grad=False)
        self.radii = nn.Parameter(torch.ones(organs, axes), requires_grad=False)

    def forward(self, windows: Tensor) -> Tensor:
        """Return the logits of windows."""
        answers = [self._organs(window[0].float()) for window in windows]
        return answers[0][None] if len(answers) == 1 else torch.stack(answers)

    def _organs(self, window: Tensor) -> Tensor:
        falls = []
        for axis, (size, centres, radii) in enumerate(zip(self.size, self.centres.T, self.radii.T, strict=True)):
            steps = window.shape[axis] - 1
            rise = (window.select(axis, steps).mean() - window.select(axis, 0).mean()) * DEVIATION
            first = ((rise * size**2 / (RANGE * steps) - steps) / 2 - 0.5).round()
            places = (first + 0.5 + torch.arange(steps + 1, device=window.device)) / size
            falls.append(((places - centres[:, None]) / radii[:, None]) ** 2)
        i, j, k = (nn.functional.pad(-HEIGHT * fall, (0, 0, 1, 0)) for fall in falls)  # background: 0
        i[1:] += HEIGHT
        return (i[:, :, None] + j[:, None])[..., None] + k[:, None, None]


ARCHITECTURES["stub"] = Stub


class Clock:
    """Adds up the time that a network takes, by hooks, which leave its weights their names and do not make it wait."""

    def __init__(self) -> None:
        self.windows = 0
        self._spans: list[tuple[Any, Any]] = []

    def watch(self, network: nn.Module) -> nn.Module:
        """Return the network, whose calls from now on count."""
        network.register_forward_pre_hook(self._start)
        network.register_forward_hook(self._stop)
        return network

    def _start(self, _: nn.Module, given: tuple[Tensor, ...]) -> None:
        self._started = moment(given[0])

    def _stop(self, _: nn.Module, given: tuple[Tensor, ...], answer: Tensor) -> None:
        self._spans.append((self._started, moment(answer)))
        self.windows += len(given[0])

    def read(self) -> tuple[float, int]:
        """Return the seconds in the network and the windows since the last reading."""
        seconds = 0.0
        for start, stop in self._spans:
            if isinstance(start, float):
                seconds += stop - start
            else:
                stop.synchronize()
                seconds += start.elapsed_time(stop) / 1000
        windows, self.windows, self._spans = self.windows, 0, []
        return seconds, windows


def moment(tensor: Tensor) -> Any:
    """Return the time now, or on CUDA an event."""
    if tensor.device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


class Mean(nn.Module):
    """The mean of the members' logits."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, windows: Tensor) -> Tensor:
        """Return the logits of windows."""
        answer = self.members[0](windows)
        for member in self.members[1:]:
            answer = answer + member(windows)
        return answer / len(self.members) if len(self.members) > 1 else answer


def read_bundle(path: str) -> tuple[dict[str, Any], list[nn.Module]]:
    """Return the plan of a bundle as plain data, and its networks in evaluation mode."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["medseg"])
        tensors = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118 - it is no dict
    plan, members = header["plan"], []
    for number in range(header["members"]):
        network = build(
            plan["network"]["architecture"],
            axes=plan["axes"],
            in_channels=len(plan["channels"]),
            out_channels=len(plan["labels"]) + 1,
            **plan["network"]["options"],
        )
        own = {key.removeprefix(f"{number}."): value for key, value in tensors.items() if key.startswith(f"{number}.")}
        network.load_state_dict(own)
        members.append(network.eval())
    return plan, members
