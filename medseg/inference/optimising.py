"""How an optimised form is made: converted, held against torch, and kept only where both give nearly the same."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from medseg.bundle import Bundle
from medseg.errors import BundleError, UsageError
from medseg.inference.backends.openvino_cpu import OpenVinoBackend, convert, quantise
from medseg.inference.ensemble import Ensemble
from medseg.inference.optimised import Form, keep
from medseg.inference.windows import Windows
from medseg.kernels import Host
from medseg.plan import Plan
from medseg.prepare import Prepared

Window = npt.NDArray[np.float32]

_APART = {"float32": 1e-3, "bfloat16": 0.1, "int8": 0.5}  # from torch at most, as a fraction of the largest logit
_SAME = {"float32": 0.999, "bfloat16": 0.95, "int8": 0.9}  # fraction of voxels with the same label, on windows of scans
_TRIALS = 3  # windows to compare on


@dataclass(frozen=True)
class Trial:
    """How a form compares with torch on some windows.

    Parameters
    ----------
    difference, largest : float
        Largest difference of a value, and largest value.
    agreement : float
        Fraction of voxels with the same label.
    before, after : float
        Seconds per window in torch, float32, and in the form.
    """

    difference: float
    largest: float
    agreement: float
    before: float
    after: float


def make(
    bundle: Bundle,
    *,
    precision: str = "float32",
    mirror: bool = False,
    disagreement: bool = False,
    threads: int | None = None,
    windows: Sequence[Window] = (),
) -> tuple[Form, Trial]:
    """Make the form of a model, hold it against torch, and keep it in place of an older one.

    Parameters
    ----------
    bundle : Bundle
        Loaded from a file.
    precision : str
        'float32', 'bfloat16' or 'int8'.
    mirror, disagreement : bool
        As in `Ensemble.of`.
    threads : int, optional
        To compare with.
    windows : sequence of (1, C, I, J, K) arrays of float32
        Of scans: int8 is scaled by them. Without any, torch and form are compared on noise.

    Raises
    ------
    BundleError
        If the form gives other answers than torch; it is not kept.
    DeviceError
        If this CPU has no units for the precision.
    OutputError
        If the cache folder cannot be written.
    UsageError
        If OpenVINO or nncf is not installed, or int8 is asked for without windows.
    """
    if precision not in _APART:
        raise UsageError(f"there is no precision {precision!r} here", hint=f"choose from: {', '.join(_APART)}")
    if precision == "int8" and not windows:
        raise UsageError("int8 is scaled by what scans look like", hint="name some with --calibrate, 10 or more")
    plan = bundle.plan
    network = Ensemble.of(bundle, mirror=mirror, disagreement=disagreement)
    model: Any = convert(network, (1, len(plan.channels), *plan.patch), exact=precision != "int8")
    if precision == "int8":
        model = quantise(model, windows)
    form = OpenVinoBackend(model, precision=precision, host=Host(threads), threads=threads)
    seen = windows[:: -(-len(windows) // _TRIALS)] if windows else _noise(plan)
    found = _compare(_in_torch(network, threads), form, seen, channels=len(plan.atoms) + 1)
    alike = found.difference <= _APART[precision] * found.largest  # not if it is no number
    if not alike or (windows and found.agreement < _SAME[precision]):
        raise BundleError(
            f"{bundle.card.name}: its {precision} form differs from torch by {found.difference:.2g}, where the largest"
            f" value is {found.largest:.2g}, and gives {found.agreement:.2%} of the voxels the same label",
            hint="choose another --precision, or stay with torch",
        )
    return keep(model, bundle, precision=precision, mirror=mirror, disagreement=disagreement), found


def windows_of(prepared: Prepared, plan: Plan) -> Iterator[Window]:
    """Yield windows (1, C, I, J, K) side by side over a prepared scan, zero outside it."""
    windows = Windows.over(prepared.geometry.shape, plan.patch, 0.0)
    for strip in windows.strips(1):
        for corner in strip.corners:
            yield prepared.window(corner, windows.end(corner))[None]


def _in_torch(network: Ensemble, threads: int | None) -> Callable[[Window], Window]:
    if threads:
        torch.set_num_threads(threads)

    def answer(windows: Window) -> Window:
        with torch.inference_mode():
            logits: Window = network(torch.from_numpy(windows)).numpy()
        return logits

    return answer


def _noise(plan: Plan) -> list[Window]:
    """Return windows of noise with air in half of each, whose equal voxels show how well means are computed."""
    shape = (_TRIALS, 1, len(plan.channels), *plan.patch)
    windows = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    windows[..., : plan.patch[0] // 2, :, :] = -3
    return list(windows)


def _compare(
    before: Callable[[Window], Window], after: Callable[[Window], Window], windows: Sequence[Window], *, channels: int
) -> Trial:
    """Return how two networks compare. The first window is answered twice: a first call takes longer."""
    seconds, answers = [], []
    for network in (before, after):
        network(windows[0])
        start = time.perf_counter()
        answers.append(np.concatenate([network(window).copy() for window in windows]))
        seconds.append((time.perf_counter() - start) / len(windows))
    one, other = answers
    same = one[:, :channels].argmax(1) == other[:, :channels].argmax(1)
    return Trial(float(np.abs(one - other).max()), float(np.abs(one).max()), float(same.mean()), *seconds)
