"""medseg: medical image segmentation with the geometry always right. For research use only.

>>> import medseg
>>> scan = medseg.read("sample_data/t1_hippocampus.nii.gz")
>>> labels = medseg.Predictor.load("hippocampus-t1")(scan).labels
>>> medseg.write(labels, "out_seg.nii.gz")  # doctest: +SKIP

Nothing heavy is imported until it is used: `import medseg` loads neither torch nor numpy.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "Bundle": "medseg.bundle",
    "Geometry": "medseg.geometry",
    "LabelMap": "medseg.volume",
    "MedsegError": "medseg.errors",
    "Plan": "medseg.plan",
    "Predictor": "medseg.inference",
    "Volume": "medseg.volume",
    "read": "medseg.io",
    "read_labels": "medseg.io",
    "write": "medseg.io",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'medseg' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
