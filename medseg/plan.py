"""All that turns a scan into network input and logits into labels: as data, never as code.

A `Plan` is a frozen pydantic model that refuses unknown keys. It travels in the header of a bundle together
with the `Fingerprint` of the training cases, against which the quality check holds each new scan, and the `Calibration`
that makes its probabilities honest.
"""

from __future__ import annotations

import colorsys
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from medseg.errors import PlanError
from medseg.geometry import parse_orientation


class Record(BaseModel):
    """Base of all that is stored: frozen, closed against unknown keys, free of NaN and Infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def parse(cls, data: Any) -> Self:
        """Return a record from plain data.

        Raises
        ------
        PlanError
            With the first thing that does not fit, and where it stands.
        """
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or cls.__name__.lower()
            raise PlanError(
                f"{cls.__name__.lower()}: {where}: {first['msg']}",
                hint="the file was written by another version of medseg or by hand; get it again",
            ) from None


class Code(Record):
    """A coded concept: by default of SNOMED CT."""

    value: str
    meaning: str
    scheme: str = "SCT"

    def __str__(self) -> str:
        return f"[{self.scheme} {self.value} {self.meaning}]"


class Label(Record):
    """A named set of atoms (voxel values). Most labels have one atom: their own value."""

    value: Annotated[int, Field(ge=1, le=65535)]
    name: Annotated[str, Field(min_length=1)]
    atoms: tuple[Annotated[int, Field(ge=1, le=65535)], ...] = ()
    color: tuple[int, int, int] | None = None
    code: Code | None = None
    modifier: Code | None = None

    @property
    def codes(self) -> tuple[Code, ...]:
        """Code and modifier, where there are any."""
        return tuple(code for code in (self.code, self.modifier) if code)

    @property
    def rgb(self) -> tuple[int, int, int]:
        """The colour: its own, or one of a series in which neighbours differ."""
        return self.color or _colour(self.value)

    @model_validator(mode="before")
    @classmethod
    def _own_value_is_the_atom(cls, data: Any) -> Any:
        if isinstance(data, dict) and not data.get("atoms") and "value" in data:
            return {**data, "atoms": (data["value"],)}
        return data


def _colour(value: int) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb((value * 0.61803398875) % 1.0, 0.75, 0.95)  # steps of the golden angle
    return round(red * 255), round(green * 255), round(blue * 255)


class ZScore(Record):
    """Clip to two percentiles of the scan's own voxels, then zero mean and unit deviation. For MR."""

    kind: Literal["zscore"] = "zscore"
    clip_percentiles: tuple[float, float] = (0.5, 99.5)


class Window(Record):
    """Clip to fixed limits, then subtract a mean and divide by a deviation, all in units of the scan. For CT."""

    kind: Literal["window"] = "window"
    low: float
    high: float
    mean: float
    deviation: Annotated[float, Field(gt=0)]


class Channel(Record):
    """One input of the network: its name (`--channel NAME=FILE`) and how its intensities are normalised."""

    name: Annotated[str, Field(min_length=1)]
    intensity: Annotated[ZScore | Window, Field(discriminator="kind")]


class Network(Record):
    """An architecture of `medseg.networks.ARCHITECTURES` by name, and its options."""

    architecture: str
    options: dict[str, JsonValue] = Field(default_factory=dict)


class Plan(Record):
    """What turns a scan into network input, and logits into labels.

    Parameters
    ----------
    axes : 2 or 3
        2: the network sees slices along k, 3: whole windows.
    channels : tuple of Channel
        Inputs of the network, in order.
    labels : tuple of Label
        Output channel n of the network is atom n - 1 of this table (`Plan.atoms`); channel 0 is background. Labels
        that share atoms overlap; for labels of one atom each, channel n is label n - 1.
    orientation : str
        Axis order in which the network sees a scan.
    spacing : three floats, optional
        Grid in mm on which the network works; None keeps the scan's own.
    crop : float, optional
        Voxels above this intensity (in any channel) are foreground; the scan is cropped to their box.
    patch : three ints
        Size of the sliding window in voxels (K = 1 for `axes` 2).
    overlap : float
        Fraction that neighbouring windows share, [0, 1).
    mirror : tuple of int
        Axes along which the network was trained on mirrored scans, so that it may be asked about them.
    network : Network
        Architecture and options.
    largest_component : tuple of str
        Labels of which only the largest connected component is kept.
    minimum_ml : mapping of str to float
        Labels of which smaller connected components are removed.
    fill_holes : tuple of str
        Labels that get the background which they enclose.
    locate : Locate, optional
        A first stage that finds where in a scan this plan has to look.
    """

    axes: Literal[2, 3]
    channels: Annotated[tuple[Channel, ...], Field(min_length=1)]
    labels: Annotated[tuple[Label, ...], Field(min_length=1)]
    orientation: str = "RAS"
    spacing: tuple[float, float, float] | None = None
    crop: float | None = None
    patch: tuple[int, int, int]
    overlap: Annotated[float, Field(ge=0, lt=1)] = 0.5
    mirror: tuple[Annotated[int, Field(ge=0, le=2)], ...] = ()
    network: Network
    largest_component: tuple[str, ...] = ()
    minimum_ml: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    fill_holes: tuple[str, ...] = ()
    locate: Locate | None = None

    @property
    def atoms(self) -> tuple[int, ...]:
        """Voxel values that the network tells apart, in the order of its output channels, without background."""
        return tuple(dict.fromkeys(atom for label in self.labels for atom in label.atoms))

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        names = [label.name for label in self.labels]
        if len({*names}) < len(names) or len({label.value for label in self.labels}) < len(names):
            raise ValueError("two labels share a name or a value")
        for field in ("largest_component", "minimum_ml", "fill_holes"):
            if unknown := [name for name in getattr(self, field) if name not in names]:
                raise ValueError(f"{field} names unknown labels: {', '.join(unknown)}")
        parse_orientation(self.orientation)
        if min(self.patch) < 1 or (self.axes == 2 and self.patch[2] != 1):
            raise ValueError(f"patch {self.patch} does not fit {self.axes} axes")
        if self.spacing and min(self.spacing) <= 0:
            raise ValueError(f"spacing {self.spacing} must be positive")
        if self.locate and (self.locate.plan.locate or len(self.locate.plan.channels) != len(self.channels)):
            raise ValueError("the plan that locates must have the same channels, and none that locates for it")
        return self


class Locate(Record):
    """Where to look: in the box around all that a coarse network finds, made larger on all sides.

    Parameters
    ----------
    plan : Plan
        Of the coarse network, with a spacing of its own.
    margin_mm : float
        How much larger on each side; in voxels for a picture without a physical size.
    """

    plan: Plan
    margin_mm: Annotated[float, Field(ge=0)]


Plan.model_rebuild()


class Range(Record):
    """Smallest and largest value seen in training."""

    low: float
    high: float


class LabelRange(Record):
    """What one label looked like in training."""

    volume_ml: Range
    components: Range


class Fingerprint(Record):
    """What the training cases looked like; a scan outside it is flagged by the quality check."""

    cases: Annotated[int, Field(ge=1)]
    spacing_mm: tuple[Range, Range, Range]
    extent_mm: tuple[Range, Range, Range]
    intensity: dict[str, Range]
    labels: dict[str, LabelRange]


class DiceLine(Record):
    """The Dice to expect of a label: `intercept + slope * soft`, where soft is its soft Dice; and how well that held.

    Parameters
    ----------
    intercept, slope : float
        Of the line, which is cut off at 0 and 1.
    low : float
        The lowest that it gives of all held-out cases.
    cases : int
        Held-out cases in which the label was found.
    error : float
        Mean absolute difference from their Dice; each fifth of the cases by the line of the others.
    pearson, spearman : float, optional
        Correlation with their Dice, likewise; None where there is none.
    error_damaged : float, optional
        The error in damaged copies of held-out cases, likewise.
    """

    intercept: float
    slope: Annotated[float, Field(ge=0)]
    low: float
    cases: Annotated[int, Field(ge=1)]
    error: Annotated[float, Field(ge=0)]
    pearson: float | None = None
    spearman: float | None = None
    error_damaged: float | None = None

    def at(self, soft: float) -> float:
        """Return the Dice to expect, 0 to 1."""
        return min(1.0, max(0.0, self.intercept + self.slope * soft))


class Calibration(Record):
    """What makes probabilities honest, found in cases that the members asked had not seen.

    Parameters
    ----------
    how : str
        In words: which cases were held out, by whom they were predicted.
    cases, damaged : int
        How many, and how many damaged copies of them helped to find the lines.
    temperature : float
        Logits are divided by it before the softmax (Guo et al. 2017); that changes no label.
    nll : two floats
        Mean negative log likelihood of a voxel, in nats, without temperature and with it.
    labels : mapping of str to DiceLine
        For each label that enough cases have.
    """

    how: str
    cases: Annotated[int, Field(ge=1)]
    damaged: Annotated[int, Field(ge=0)] = 0
    temperature: Annotated[float, Field(ge=0.1, le=10)]
    nll: tuple[float, float]
    labels: dict[str, DiceLine]
