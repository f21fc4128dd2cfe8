"""What the cases of a data set look like: the numbers from which a plan is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, eq=False)
class CaseFacts:
    """What one case looks like, from its own files; axes are those of RAS, however it is stored.

    Parameters
    ----------
    name : str
        Of the case.
    shape : three ints
        Voxels along x, y, z (as stored where there is no physical size).
    spacing : three floats
        In mm (1 where there is no physical size).
    physical : bool
        Whether the grid has a size in mm.
    foreground : (C, N) array of float32
        Intensities at up to 2000 labelled voxels, evenly drawn; N may be 0.
    whole : (C, M) array of float32
        Intensities at up to 2000 voxels of the whole scan, evenly drawn.
    floor_share : float
        Share of voxels that have the scan's lowest value in every channel: air that a tool has blanked.
    volumes_ml : dict
        mL of each label (voxels / 1000 where there is no physical size), 0 where it is absent.
    coarse : (X, Y, Z) array of float32, optional
        The scan in at most 12 cells along each axis (`symmetry.coarse`).
    """

    name: str
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    physical: bool
    foreground: npt.NDArray[np.float32]
    whole: npt.NDArray[np.float32]
    floor_share: float
    volumes_ml: dict[str, float]
    coarse: npt.NDArray[np.float32] | None = None


@dataclass(frozen=True, eq=False)
class Survey:
    """The facts of all cases of a data set."""

    cases: tuple[CaseFacts, ...]

    @property
    def shapes(self) -> npt.NDArray[np.int64]:
        """Voxels of each case along x, y, z: (N, 3)."""
        return np.array([case.shape for case in self.cases], np.int64)

    @property
    def spacings(self) -> npt.NDArray[np.float64]:
        """Spacing of each case in mm: (N, 3)."""
        return np.array([case.spacing for case in self.cases], np.float64)

    @property
    def physical(self) -> bool:
        """Whether every case has a size in mm."""
        return all(case.physical for case in self.cases)

    @property
    def channels(self) -> int:
        """Channels of the scans."""
        return len(self.cases[0].whole)

    def intensities(self, *, foreground: bool = True) -> npt.NDArray[np.float32]:
        """Return sampled intensities of all cases, at labelled voxels or anywhere: (C, N)."""
        parts = [case.foreground if foreground else case.whole for case in self.cases]
        return np.concatenate(parts, axis=1)

    def as_record(self) -> dict[str, Any]:
        """Return the survey in a few numbers, as plain data that JSON can hold."""
        low, median, high = (np.percentile(self.spacings, q, axis=0).round(4).tolist() for q in (0, 50, 100))
        least, middle, most = (np.percentile(self.shapes, q, axis=0).round(1).tolist() for q in (0, 50, 100))
        values = self.intensities()
        quantiles = np.percentile(values, (0.5, 50, 99.5), axis=1).round(4).T.tolist() if values.size else []
        labels = {
            name: {
                "cases": sum(case.volumes_ml[name] > 0 for case in self.cases),
                "median_ml": round(float(np.median([case.volumes_ml[name] for case in self.cases])), 4),
            }
            for name in self.cases[0].volumes_ml
        }
        return {
            "cases": len(self.cases),
            "spacing_mm": {"low": low, "median": median, "high": high},
            "shape": {"low": least, "median": middle, "high": most},
            "foreground_percentiles_0.5_50_99.5": quantiles,
            "labels": labels,
        }
