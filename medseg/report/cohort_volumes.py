"""How the volumes of a label are spread over an archive: counted in fixed memory, drawn as SVG."""

from __future__ import annotations

import math
import random
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

VERDICTS = ("ok", "check", "refuse")
MOST_VALUES = 2000  # of one label and verdict that are kept; with more, that many of them, by chance
_BINS = 14, 28  # about, of few and many values
_STEPS = (1, 2, 2.5, 5, 10)
_REACH = 3.0  # interquartile ranges: what lies further from the quartiles is counted at the edge
_WIDTH, _HEIGHT, _AXIS = 280, 64, 16  # pixels

Bar = dict[str, float]  # a count for each verdict


class Sample:
    """Values by chance, each with the same chance, of however many are added."""

    def __init__(self) -> None:
        self.values = array("d")
        self.seen = 0
        self._chance = random.Random(0)  # noqa: S311 - picks dots of a plot, the same ones each time

    def add(self, value: float) -> None:
        """Keep a value, or drop it or another one where there are enough."""
        self.seen += 1
        if len(self.values) < MOST_VALUES:
            self.values.append(value)
        elif (place := int(self._chance.random() * self.seen)) < MOST_VALUES:
            self.values[place] = value


@dataclass
class Spread:
    """Volumes of one label; those of 0 mL are only counted, as there is nothing to measure."""

    absent: int = 0
    _samples: dict[str, Sample] = field(default_factory=lambda: {verdict: Sample() for verdict in VERDICTS})

    def add(self, volume: float, verdict: str) -> None:
        """Count a volume (mL) in a result with this verdict."""
        if volume > 0:
            self._samples[verdict].add(volume)
        else:
            self.absent += 1

    @property
    def count(self) -> int:
        """How many volumes are above 0."""
        return sum(sample.seen for sample in self._samples.values())

    @property
    def sampled(self) -> bool:
        """Whether there were more volumes than are kept."""
        return any(sample.seen > len(sample.values) for sample in self._samples.values())

    def points(self) -> list[tuple[float, float, str]]:
        """Return volume, weight and verdict of each kept volume, in order; weights add up to the count."""
        return sorted(
            (value, sample.seen / len(sample.values), verdict)
            for verdict, sample in self._samples.items()
            for value in sample.values
        )


@dataclass(frozen=True)
class Histogram:
    """Counts in bins of equal width.

    Parameters
    ----------
    first, step : float
        Lower end and width of the first bin, in mL.
    bins : list of dict
        How many lie in each bin, for each verdict.
    below, above : dict
        How many lie outside, for each verdict.
    low, median, high : float
        Percentiles 5, 50 and 95: of the volumes themselves, not means of two.
    """

    first: float
    step: float
    bins: list[Bar]
    below: Bar
    above: Bar
    low: float
    median: float
    high: float


def histogram(spread: Spread) -> Histogram:
    """Return the bins of a label of which there is at least one volume; few that lie far away do not stretch them."""
    points = spread.points()
    first, third = _quantile(points, 0.25), _quantile(points, 0.75)
    reach = _REACH * (third - first) or math.inf
    start, end = max(points[0][0], first - reach), min(points[-1][0], third + reach)
    if start == end:
        start, end = 0.9 * start, 1.1 * end
    wanted = min(max(2 * spread.count ** (1 / 3), _BINS[0]), _BINS[1])  # Rice's rule
    step = _round_step((end - start) / wanted)
    origin = math.floor(start / step + 1e-9)
    count = math.floor(end / step + 1e-9) - origin + 1
    bars = [dict.fromkeys(VERDICTS, 0.0) for _ in range(count + 2)]
    for value, weight, verdict in points:
        place = math.floor(value / step + 1e-9) - origin
        bars[min(max(place, -1), count) + 1][verdict] += weight
    low, median, high = (_quantile(points, share) for share in (0.05, 0.5, 0.95))
    return Histogram(origin * step, step, bars[1:-1], bars[0], bars[-1], low, median, high)


def _quantile(points: Sequence[tuple[float, float, str]], share: float) -> float:
    """Return the least value up to which there lies at least this share of the weight."""
    wanted = share * sum(weight for _, weight, _ in points) - 1e-9
    reached = 0.0
    for value, weight, _ in points:
        reached += weight
        if reached >= wanted:
            return value
    return points[-1][0]


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in _STEPS if factor * power >= rough * (1 - 1e-9))


def figure(name: str, spread: Spread) -> str:
    """Return a label's name, its histogram with stacked verdicts, and its numbers, as HTML."""
    absent = f" &middot; not found in {spread.absent:,}" if spread.absent else ""
    if not spread.count:
        return (
            f'<figure><figcaption><b dir="auto">{escape(name)}</b><br><small>0 mL{absent}</small></figcaption></figure>'
        )
    found = histogram(spread)
    line = (
        f"n {spread.count:,} &middot; median {_ml(found.median)} mL &middot; "
        f"5&ndash;95&nbsp;%: {_ml(found.low)}&ndash;{_ml(found.high)}{absent}"
    )
    return (
        f'<figure><figcaption><b dir="auto">{escape(name)}</b></figcaption>{_svg(name, found)}'
        f"<figcaption><small>{line}</small></figcaption></figure>"
    )


def _svg(name: str, found: Histogram) -> str:
    """Return stacked bars; those of what lies outside stand apart, half a bar away."""
    below, above = (sum(bar.values()) for bar in (found.below, found.above))
    left, right = 1.5 * (below > 0), 1.5 * (above > 0)
    width = _WIDTH / (len(found.bins) + left + right)
    columns = [(left + place, bar) for place, bar in enumerate(found.bins)]
    columns += [(0.0, found.below), (_WIDTH / width - 1, found.above)]
    tallest = max(sum(bar.values()) for _, bar in columns)
    paths = dict.fromkeys(VERDICTS, "")
    for place, bar in columns:
        floor = float(_HEIGHT)
        for verdict, count in bar.items():
            if count:
                height = count / tallest * _HEIGHT
                floor -= height
                across = f"M{place * width + 0.5:.1f} {floor:.1f}h{width - 1:.1f}"
                paths[verdict] += f"{across}v{height:.1f}h{1 - width:.1f}z"
    bars = "".join(f'<path class="{verdict}" d="{path}"/>' for verdict, path in paths.items() if path)
    low = f"{below:,.0f} below {_ml(found.first)}" if below else _ml(found.first)
    end = found.first + len(found.bins) * found.step
    high = f"{above:,.0f} above {_ml(end)} mL" if above else f"{_ml(end)} mL"
    bottom = _HEIGHT + _AXIS
    return (
        f'<svg viewBox="0 0 {_WIDTH} {bottom}" role="img" aria-label="{escape(name)}: spread of volumes">{bars}'
        f'<path class="axis" d="M0 {_HEIGHT + 0.5}h{_WIDTH}"/><text y="{bottom - 3}">{low}</text>'
        f'<text x="{_WIDTH}" y="{bottom - 3}" text-anchor="end">{high}</text></svg>'
    )


def _ml(value: float) -> str:
    """Return three digits, without an exponent where people would not write one."""
    return f"{value:,.0f}" if value >= 999.5 else f"{value:.3g}"
