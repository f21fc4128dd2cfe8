"""Which backend runs a model: the one asked for, or the fastest that is ready on this machine."""

from __future__ import annotations

import ctypes
import platform
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, get_args

from medseg.bundle import Bundle
from medseg.errors import UsageError
from medseg.inference import optimised
from medseg.inference.backends import Backend, How
from medseg.kernels import Host

Name = Literal["auto", "torch", "compiled", "openvino"]


def open_backend(
    bundle: Bundle, how: How, host: Host, *, disagreement: bool = False
) -> tuple[Backend, tuple[str, ...]]:
    """Return what runs a model, and what the user should know of the choice.

    Raises
    ------
    UsageError, DeviceError, BundleError
        If what is asked for is not there, or does not fit together.
    """
    if how.backend not in get_args(Name):
        raise UsageError(f"there is no backend {how.backend!r}", hint=f"choose from: {', '.join(get_args(Name))}")
    on_cpu = how.device == "cpu" or (how.device == "auto" and (how.backend == "openvino" or not has_gpu()))
    if how.backend == "openvino" and not on_cpu:
        raise UsageError("OpenVINO runs on the CPU here", hint="use --device cpu, or --backend torch")
    if how.backend in {"auto", "openvino"} and on_cpu:
        backend = optimised.open_form(bundle, how, host, disagreement=disagreement)
        if backend:
            return backend, ()
    advice = _advice(bundle, how, disagreement=disagreement) if on_cpu and how.backend == "auto" else ()
    return _torch(bundle, how, host, disagreement=disagreement), advice


def has_gpu() -> bool:
    """Return whether torch has a GPU to compute on, found out without the seconds that it takes to import torch."""
    if sys.platform == "darwin":
        return platform.machine() == "arm64"
    torch = find_spec("torch")
    if torch is None or torch.origin is None:
        return False
    version = Path(torch.origin).with_name("version.py")  # of a torch for CPUs alone, `cuda` and `hip` are None there
    built = dict(re.findall(r"^(cuda|hip)\b[^=\n]*=\s*(['\"].*)$", version.read_text("utf-8"), re.MULTILINE))
    if "cuda" not in built:
        return "hip" in built
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int()
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


def _torch(bundle: Bundle, how: How, host: Host, *, disagreement: bool) -> Backend:
    from medseg.inference import device
    from medseg.inference.backends.torch_any import TorchBackend
    from medseg.inference.ensemble import Ensemble

    network = Ensemble.of(bundle, mirror=how.mirror, disagreement=disagreement)
    return TorchBackend(
        network,
        device.choose(how.device),
        precision=how.precision,
        host=host,
        compiled=how.backend == "compiled",
        threads=how.threads,
        keep=how.keep,
    )


def _advice(bundle: Bundle, how: How, *, disagreement: bool) -> tuple[str, ...]:
    """Return what would be faster on a CPU."""
    if find_spec("openvino") is None:
        return ("OpenVINO is not installed: `pip install 'medseg[cpu]'` makes a CPU up to three times as fast",)
    _, wrong = optimised.find(bundle, precision=how.precision, mirror=how.mirror, disagreement=disagreement)
    if wrong or not bundle.sha256:
        return (wrong,) if wrong else ()
    words = optimised.command(bundle, precision=how.precision, mirror=how.mirror, disagreement=disagreement)
    return (f"`{words}`, once, makes this CPU up to three times as fast",)
