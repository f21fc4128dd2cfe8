"""From a scan to a label map: windows, backends, one streaming pass, and the `Predictor` that holds them together."""

from importlib import import_module
from typing import Any

_HOME = {
    "Prediction": "medseg.inference.predictor",
    "Predictor": "medseg.inference.predictor",
    "gaussian_weights": "medseg.inference.windows",
    "load_network": "medseg.inference.network",
    "new_network": "medseg.inference.network",
    "window_starts": "medseg.inference.windows",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:  # a prediction with OpenVINO must not wait for torch
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'medseg.inference' has no attribute {name!r}")
