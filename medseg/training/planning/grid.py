"""The grid on which a network works: two axes or three, in which order, at which spacing."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
import numpy.typing as npt

from medseg.errors import UsageError
from medseg.geometry import tuple_of_three
from medseg.training.planning.choice import ASKED, Choice, Wishes, counted, times
from medseg.training.planning.survey import Survey

_SAME = 1e-3  # relative: spacings this close are one
_THICK = 3  # times as coarse as the other axes: the axis is looked at apart
_FINER = 10  # percentile of the spacings along such an axis
_HARDLY_ANY = 4  # slices: fewer, and 3D cannot help
_FEW, _VERY_THICK = 8, 5  # slices; times as thick as wide: both together, and 3D cannot help
_MOST_VOXELS = 1 << 31  # of a case
_ORDERS = {2: (0, 1, 2), 1: (0, 2, 1), 0: (1, 2, 0)}  # by the axis across the slices, which comes last
_ORIENTATIONS = {2: "RAS", 1: "RSA", 0: "ASR"}


@dataclass(frozen=True, eq=False)
class Grid:
    """The grid of a plan.

    Parameters
    ----------
    axes : 2 or 3
        Spatial axes of the network.
    orientation : str
        Axis order of the plan.
    left_right : int or None
        The plan's axis that runs from left to right; None where nobody knows.
    spacing : three floats
        mm along the plan's axes; 1 where there is no physical size.
    physical : bool
        Whether there is one.
    shapes : (N, 3) array of int
        Voxels of each case on this grid, uncropped, along the plan's axes.
    """

    axes: int
    orientation: str
    left_right: int | None
    spacing: tuple[float, float, float]
    physical: bool
    shapes: npt.NDArray[np.int64]

    @property
    def typical(self) -> tuple[int, int, int]:
        """Median size of a case."""
        return tuple_of_three(int(n) for n in np.ceil(np.median(self.shapes, axis=0)))

    @property
    def voxels(self) -> int:
        """Voxels of all cases."""
        return int(self.shapes.prod(axis=1).sum())

    def covered_by(self, patch: tuple[int, int, int]) -> bool:
        """Return whether a patch covers a typical case."""
        return all(n >= typical for n, typical in zip(patch[: self.axes], self.typical, strict=False))


def plan_grid(survey: Survey, wishes: Wishes) -> tuple[Grid, tuple[Choice, ...]]:
    """Return the grid, and why it is that one.

    Raises
    ------
    UsageError
        If `wishes` do not fit the scans.
    """
    across = _across(survey)
    axes, why = _axes(survey, wishes, across)
    last = across if axes == 2 else 2
    order, orientation = _ORDERS[last], _ORIENTATIONS[last]
    spacing, reason = _spacing(survey.spacings[:, order], survey.shapes[:, order], wishes, physical=survey.physical)
    shapes = np.maximum(1, np.rint(survey.shapes[:, order] * survey.spacings[:, order] / spacing)).astype(np.int64)
    if not survey.physical:
        shapes = survey.shapes
    grid = Grid(axes, orientation, order.index(0) if survey.physical else None, spacing, survey.physical, shapes)
    if prod(grid.typical) > _MOST_VOXELS and wishes.spacing:
        raise UsageError(
            f"--spacing {times(spacing)}: a case would have {times(grid.typical)} voxels", hint="give a coarser one"
        )
    if axes == 2 and survey.physical and max(grid.typical[2:]) > 1:
        reason += "; the last across the slices"
    choices = [
        Choice("axes", f"{axes}D", why),
        Choice("spacing", f"{times(spacing)} mm" if survey.physical else "as stored", reason),
    ]
    if orientation != "RAS":
        choices.insert(1, Choice("orientation", orientation, "so that the slices lie along the last axis"))
    return grid, tuple(choices)


def _across(survey: Survey) -> int:
    """Return the axis across the slices: the last of a picture, else one of few voxels, else the coarsest."""
    if not survey.physical:
        return 2
    slices, spacing = np.median(survey.shapes, axis=0), np.median(survey.spacings, axis=0)
    if slices.min() < _HARDLY_ANY:
        return int(2 - slices[::-1].argmin())
    return int(2 - spacing[::-1].argmax()) if spacing.max() > 1.5 * spacing.min() else 2


def _axes(survey: Survey, wishes: Wishes, across: int) -> tuple[int, str]:
    slices = float(np.median(survey.shapes, axis=0)[across])
    spacing = np.median(survey.spacings, axis=0)
    ratio = float(spacing[across] / np.delete(spacing, across).max())
    if slices == 1:
        if wishes.axes == 3:
            raise UsageError("--axes 3: the scans have one slice", hint="give --axes 2, or leave it out")
        return 2, ASKED if wishes.axes else "pictures" if not survey.physical else "the scans have one slice"
    if wishes.axes:
        return wishes.axes, ASKED
    if slices < _HARDLY_ANY:
        return 2, f"only {slices:g} slices"
    if slices < _FEW and ratio > _VERY_THICK:
        return 2, f"only {slices:g} slices, {ratio:.1f} times as thick as wide: neighbours tell little"
    return 3, f"{slices:g} slices" + (f", {ratio:.1f} times as thick as wide" if ratio > 1.5 else "")


def _spacing(
    spacings: npt.NDArray[np.float64], shapes: npt.NDArray[np.int64], wishes: Wishes, *, physical: bool
) -> tuple[tuple[float, float, float], str]:
    """Return mm per axis and the reason."""
    if not physical:
        if wishes.spacing:
            raise UsageError(
                f"--spacing {times(wishes.spacing)}: not every scan has a physical size",
                hint="leave it out, or give files with a spacing in mm",
            )
        return (1.0, 1.0, 1.0), "no physical size"
    if wishes.spacing:
        return tuple_of_three(wishes.spacing), ASKED
    cases = counted(len(spacings), "case")
    middle = np.median(spacings, axis=0)
    if (np.ptp(spacings, axis=0) <= _SAME * middle).all():
        return _tidy(middle), "the same in every case" if len(spacings) > 1 else "that of the case"
    coarse = int(middle.argmax())
    others = np.delete(middle, coarse)
    sizes = np.median(shapes * spacings / middle, axis=0)
    if middle[coarse] > _THICK * others.max() and sizes[coarse] * _THICK < np.delete(sizes, coarse).min():
        finer = max(float(np.percentile(spacings[:, coarse], _FINER)), float(others.max()))
        ratio = middle[coarse] / others.max()
        middle[coarse] = finer
        return _tidy(middle), f"median of {cases}; {_FINER}th percentile along the axis {ratio:.1f} times as coarse"
    low, high = spacings.min(axis=0), spacings.max(axis=0)
    return _tidy(middle), f"median of {cases}, from {times(_tidy(low))} to {times(_tidy(high))}"


def _tidy(spacing: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    """Return six digits of each: headers hold noise of single precision."""
    return tuple_of_three(float(f"{mm:.6g}") for mm in spacing)
