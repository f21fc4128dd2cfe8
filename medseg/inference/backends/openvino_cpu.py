"""The network in OpenVINO, on a CPU. The only file that imports OpenVINO, and always without its telemetry.

OpenVINO's telemetry looks up a host for analytics and writes to the home folder on a plain import. Where its module
cannot be imported, OpenVINO and nncf fall back to a stub that does nothing.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg.errors import DeviceError, UsageError
from medseg.inference.memory import taken_by
from medseg.kernels import Host, Place

Network = Any  # openvino.Model
Windows = npt.NDArray[np.float32]

_CPU = Path("/proc/cpuinfo")
_BFLOAT16 = {"avx512_bf16", "amx_bf16"}


def convert(network: Any, shape: Sequence[int], *, exact: bool = True) -> Network:
    """Return a torch module in the form of OpenVINO, for windows of one shape.

    Parameters
    ----------
    network : torch.nn.Module
        In evaluation mode.
    shape : sequence of int
        (B, C, I, J, K).
    exact : bool
        Compute the means of instance norms as exactly as torch does, which takes up to a sixth more time. Not for what
        is quantised: that would quantise the means.

    Raises
    ------
    UsageError
        If OpenVINO is not installed.
    """
    openvino = _openvino()
    import torch

    from medseg.inference.backends.norms import with_exact_means

    network = with_exact_means(network) if exact else network
    with warnings.catch_warnings(), torch.no_grad():
        for category in (torch.jit.TracerWarning, DeprecationWarning):  # type: ignore[attr-defined]
            warnings.simplefilter("ignore", category)  # our checks of the shape may become constants: there is but one
        traced = torch.jit.trace(network, torch.zeros(*shape), check_trace=False, strict=False)
        return openvino.convert_model(traced, input=[list(shape)])


def quantise(network: Network, windows: Sequence[Windows]) -> Network:
    """Return a network whose convolutions compute in int8, scaled by what some windows (B, C, I, J, K) look like.

    Weights take half of the range of int8: the units of a CPU without VNNI add two products in 16 bits, which would
    overflow, and a form may be used on another computer than that on which it was made.

    Raises
    ------
    UsageError
        If nncf is not installed.
    """
    _openvino()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries that it loads
        try:
            import nncf
        except ImportError:
            raise UsageError("int8 needs nncf, which is not installed", hint="pip install 'medseg[int8]'") from None
        halved = nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE)
        return nncf.quantize(network, nncf.Dataset(windows), subset_size=len(windows), advanced_parameters=halved)


def save(network: Network, path: Path) -> None:
    """Write a network to a `.xml` file, and its weights to a `.bin` file beside it, in the type that they have."""
    _openvino().save_model(network, path, compress_to_fp16=False)


def has_bfloat16() -> bool:
    """Return whether this CPU has units for bfloat16; one without is up to 300 times slower with it than without it."""
    try:
        with open(_CPU, encoding="ascii", errors="replace") as file:
            flags = next((line for line in file if line.startswith("flags")), "")
    except OSError:  # no Linux
        return "BF16" in _openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return bool(_BFLOAT16 & set(flags.split()))


class OpenVinoBackend:
    """A network in OpenVINO, on a CPU, one window at a time.

    An answer is a view of memory that the next call writes to.

    Parameters
    ----------
    network : Path or openvino.Model
        A `.xml` file, or what `convert` returns.
    precision : str
        'float32', 'bfloat16', or 'int8' for a network that `quantise` returned.
    host : Host
        For the answers.
    threads : int, optional
        OpenVINO's own choice when left out.

    Raises
    ------
    DeviceError
        If the CPU has no units for the precision.
    UsageError
        If OpenVINO is not installed.
    """

    def __init__(
        self, network: Path | Network, *, precision: str = "float32", host: Host, threads: int | None = None
    ) -> None:
        openvino = _openvino()
        if precision == "bfloat16" and not has_bfloat16():
            raise DeviceError("this CPU has no units for bfloat16", hint="use --precision float32")
        settings = {
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bfloat16" else "f32",  # its own choice may be bf16
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,  # with it, two processes share the first cores and leave the others idle
        }
        if threads:
            settings["INFERENCE_NUM_THREADS"] = threads
        self._compiled = openvino.Core().compile_model(network, "CPU", settings)
        self._request = self._compiled.create_infer_request()
        self.name = f"openvino, {precision}, cpu"
        self.batch = 1
        self.place: Place = host

    def __call__(self, windows: Windows) -> Windows:
        """Return the logits (1, L, I, J, K) of windows (1, C, I, J, K), until the next call."""
        answers = self._request.infer([np.ascontiguousarray(windows)], share_inputs=True, share_outputs=True)
        logits: Windows = answers[0]
        return logits

    def taken(self, windows: Windows) -> int:
        """Return the bytes that a call takes, its answer included."""
        return taken_by(lambda: self(windows))

    def room(self) -> None:
        """Return None: the memory is the host's."""

    def free(self) -> None:
        """Give back the memory of intermediate results; the next call takes it again."""
        self._compiled.release_memory()


def _openvino() -> Any:
    """Return the module, imported without its telemetry."""
    modules: dict[str, Any] = sys.modules
    modules["openvino_telemetry"] = None  # to the import system: it is not there
    try:
        import openvino
    except ImportError:
        raise UsageError("OpenVINO is not installed", hint="pip install 'medseg[cpu]'") from None
    return openvino
