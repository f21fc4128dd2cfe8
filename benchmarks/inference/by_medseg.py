"""medseg, through its public Predictor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import medseg


def clock_of_stub() -> Any:
    """Name the stub among the architectures, and return the clock on which it will be."""
    from network import ARCHITECTURES, Clock, Stub

    clock = Clock()

    def watched(axes: int, in_channels: int, out_channels: int) -> Any:
        return clock.watch(Stub(axes, in_channels, out_channels))

    ARCHITECTURES["stub"] = watched
    return clock


class Method:
    """`medseg.Predictor` with the backend and precision of the job."""

    def __init__(self, job: dict[str, Any]) -> None:
        backend, _, precision = job["variant"].partition(":")
        self.device = job["device"]
        self._clock = clock_of_stub() if job["stub"] else None  # without one, torch may never be imported
        self._predictor = medseg.Predictor(
            medseg.Bundle.load(Path(job["bundle"])),
            device=job["device"],
            threads=job["threads"],
            backend=backend,
            precision=precision or None,
            overlap=job["overlap"],
        )

    def read(self, path: Path) -> medseg.Volume:
        """Return a scan."""
        return medseg.read(path)

    def predict(self, scan: medseg.Volume) -> medseg.LabelMap:
        """Return its label map."""
        self._found = self._predictor(scan)
        return self._found.labels

    def write(self, labels: medseg.LabelMap, path: Path) -> None:
        """Write the label map."""
        medseg.write(labels, path)

    def counts(self) -> dict[str, float]:
        """Return the seconds in the network and the windows of the last scan."""
        seconds = self._clock.read()[0] if self._clock else self._found.seconds["network"]
        return {"network": seconds, "windows": sum(self._found.windows.values())}

    def about(self) -> dict[str, Any]:
        """Return what else a reader wants to know."""
        return {
            "backend": self._found.backend,
            "notes": [*self._found.notes],
            "stages": {name: round(value, 2) for name, value in self._found.seconds.items()},
            "versions": {"medseg": medseg.__version__, "numpy": np.__version__},
        }
