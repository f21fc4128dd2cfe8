"""Plots as SVG text: how the scores of each label are spread, one dot for each case."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _ROW, _LEFT, _RIGHT, _TOP = 860, 34, 190, 110, 28
_STEPS = (1, 2, 2.5, 5, 10)
_MOST_DOTS = 3000  # in one plot; with more, only what lies outside the whiskers is drawn


@dataclass(frozen=True)
class Strip:
    """One row of a plot.

    Parameters
    ----------
    name : str
        Shown on the left.
    values : sequence of float
        A dot each; only finite ones.
    cases : sequence of str
        Name of each dot.
    quartiles : three floats
        The box and its line.
    mean : three floats
        Mean, and both ends of its interval (nan for none).
    misses : int
        Missed and spurious ones, which have no dot.
    """

    name: str
    values: Sequence[float]
    cases: Sequence[str]
    quartiles: tuple[float, float, float]
    mean: tuple[float, float, float]
    misses: int


def strips(title: str, unit: str, rows: Sequence[Strip], *, limits: tuple[float, float] | None = None) -> str:
    """Return an SVG with a row of dots, a box and a mean for each label.

    Parameters
    ----------
    title, unit : str
        Of the values.
    rows : sequence of Strip
        One for each label.
    limits : two floats, optional
        Ends of the axis; from the values if left out.
    """
    low, high = limits or _limits([value for row in rows for value in row.values])
    ticks = _ticks(low, high)
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    bottom = _TOP + _ROW * len(rows)

    def x(value: float) -> float:
        return round(_LEFT + (value - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT), 1)

    label = f"{title} ({unit})" if unit else title
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {bottom + 24}" width="{_WIDTH}" role="img" aria-label="{escape(label)}">',
        f'<text x="{_LEFT}" y="14" class="title">{escape(label)}</text>',
    ]
    for tick in ticks:
        parts.append(f'<line x1="{x(tick)}" x2="{x(tick)}" y1="{_TOP}" y2="{bottom}" class="grid"/>')
        parts.append(f'<text x="{x(tick)}" y="{bottom + 16}" text-anchor="middle" class="tick">{tick:g}</text>')
    every = sum(len(row.values) for row in rows) <= _MOST_DOTS
    for number, row in enumerate(rows):
        middle = _TOP + _ROW * number + _ROW / 2
        parts += [_name(row, middle), *_dots(row, middle, x, every=every), *_box(row, middle, x)]
    return "\n".join([*parts, "</svg>"])


def _name(row: Strip, middle: float) -> str:
    shown = row.name if len(row.name) <= 26 else row.name[:25] + "…"
    left = f'<text x="{_LEFT - 10}" y="{middle + 4}" text-anchor="end">{escape(shown)}</text>'
    if not row.misses:
        return left
    note = f"{row.misses} missed or spurious"
    return (
        left
        + f'<text x="{_WIDTH - _RIGHT + 8}" y="{middle + 4}" class="miss">✕ {row.misses}<title>{note}</title></text>'
    )


def _dots(row: Strip, middle: float, x: Callable[[float], float], *, every: bool) -> list[str]:
    """Return the dots, set apart up and down by a fixed pattern so that equal values can be told apart."""
    first, _, third = row.quartiles
    reach = 1.5 * (third - first)
    return [
        f'<circle cx="{x(value)}" cy="{middle + (number * 0.618 % 1 - 0.5) * 18:.1f}" r="2.6" class="dot">'
        f"<title>{escape(case)}: {value:.4g}</title></circle>"
        for number, (value, case) in enumerate(zip(row.values, row.cases, strict=True))
        if every or not first - reach <= value <= third + reach
    ]


def _box(row: Strip, middle: float, x: Callable[[float], float]) -> list[str]:
    parts = []
    if all(map(math.isfinite, row.quartiles)):
        first, median, third = (x(value) for value in row.quartiles)
        parts.append(f'<rect x="{first}" y="{middle - 9}" width="{third - first:.1f}" height="18" class="box"/>')
        parts.append(f'<line x1="{median}" x2="{median}" y1="{middle - 9}" y2="{middle + 9}" class="median"/>')
    mean, low, high = row.mean
    if math.isfinite(low):
        parts.append(f'<line x1="{x(low)}" x2="{x(high)}" y1="{middle}" y2="{middle}" class="interval"/>')
    if math.isfinite(mean):
        at = x(mean)
        points = f"{at - 5},{middle} {at},{middle - 5} {at + 5},{middle} {at},{middle + 5}"
        parts.append(f'<polygon points="{points}" class="mean"><title>mean {mean:.4g}</title></polygon>')
    return parts


def _limits(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values, default=0.0), max(values, default=1.0)
    low = min(low, 0.0) if low < (high - low) else low
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _ticks(low: float, high: float) -> list[float]:
    """Return about six round numbers that span the axis."""
    rough = (high - low) / 6
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in _STEPS if factor * power >= rough)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]
