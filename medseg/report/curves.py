"""The course of a training as one picture for print: loss and Dice over time, of one member or of several.

Drawn with Pillow alone, on white: no font cache, no configuration folder, the same bytes each time. Lines are drawn
three times as large and averaged, text is not. The font has no letters but those of English.
"""

from __future__ import annotations

import io
import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from medseg.plan import Label

Colour = tuple[int, int, int]
Floats = npt.NDArray[np.float64]

_SIZE = (1200, 560)
_LEFT, _RIGHT, _TOP, _BOTTOM, _GAP = 74, 1176, 122, 492, 84  # pixels: edges of the panels, space between them
_NAMES = 222  # to the right of the second panel
_LINE = 19  # from one name to the next
_FINE = 3  # times as large
_REACH, _LEAD = 5, 34  # pixels of a layer beside and above its panel, and to its right: there lines lead to names
_INK, _DIM, _GRID, _PAPER, _RED = (28, 30, 36), (96, 101, 112), (228, 231, 236), (255, 255, 255), (190, 40, 35)
_STEP, _DARK, _PALE = (196, 211, 233), (24, 60, 120), (116, 160, 210)  # a step; the first and the last member
_ROUND = (1, 2, 2.5, 5)
_FEW = 40  # validations that get a mark each
_BLOCKS = 400  # of steps, of which running means are made
_UNITS = ((120, 1, "seconds"), (3 * 3600, 60, "minutes"), (math.inf, 3600, "hours"))


@dataclass(frozen=True)
class Point:
    """One step of a training.

    Parameters
    ----------
    seconds : float
        Of training so far.
    loss : float
        Of the step; nan or infinite where it went wrong.
    dice : mapping of str to float
        Of each label by name, nan where it is undefined; empty for a step without validation.
    """

    seconds: float
    loss: float
    dice: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class _Run:
    """A member in arrays: time and loss of steps, both of its running mean; time and (n, labels) of validations."""

    name: str
    time: Floats
    loss: Floats
    mean: tuple[Floats, Floats]
    when: Floats
    dice: Floats


@dataclass(frozen=True)
class _Scale:
    """An axis: its ends, its ticks, and whether it counts powers."""

    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool = False

    def share(self, values: Floats) -> Floats:
        """Return how far along the axis values lie, 0 to 1 within it."""
        low, high = self.low, self.high
        if self.log:
            values, low, high = np.log(values.clip(low, None)), math.log(low), math.log(high)
        return (values - low) / (high - low)

    def texts(self) -> list[str]:
        """Return the ticks as text: each with as many decimals, or each for itself where they count powers."""
        if self.log or max(map(abs, self.ticks)) >= 1e5:
            return [f"{tick:g}" if 1e-3 <= abs(tick) < 1e5 or not tick else f"{tick:.3g}" for tick in self.ticks]
        decimals = max(len(f"{tick:.6g}".partition(".")[2]) for tick in self.ticks)
        return [f"{tick:.{decimals}f}" for tick in self.ticks]


def curves(runs: Mapping[str, Sequence[Point]], labels: Sequence[Label], *, title: str) -> bytes:
    """Return a PNG with the loss of every step and its running mean on the left, and Dice on the right.

    The loss has a logarithmic axis if it spans more than a factor of ten. The axis of Dice ends at 1 and begins below
    the later half of the curves. Beside it stand the last values of the labels, means over the members.

    Parameters
    ----------
    runs : mapping of str to sequence of Point
        Steps of each member by its name, in order.
    labels : sequence of Label
        Those that have a Dice; their colours are used, darkened where they would be too pale on white.
    title : str
        Name of the model.
    """
    longest = max((point.seconds for points in runs.values() for point in points), default=0.0)
    _, second, unit = next(each for each in _UNITS if longest <= each[0])
    members = [_run(name, points, labels, second) for name, points in runs.items() if points]
    time = _linear(0.0, longest / second or 1.0)
    width = (_RIGHT - _NAMES - _GAP - _LEFT) // 2
    sheet = _Sheet()
    start = _LEFT - _REACH
    sheet.text((start, 22), _fitted(title, 20, _RIGHT - start), 20, _INK)
    length = sheet.text((start, 54), _summary(members, f"{longest / second:.3g} {unit}"), 14, _DIM)
    if wrong := sum(int((~np.isfinite(member.loss)).sum()) for member in members):
        sheet.text((start + length + 24, 54), f"{_many(wrong, 'step')} without a finite loss", 14, _RED)
    _draw_loss(sheet, _Panel((_LEFT, _TOP, _LEFT + width, _BOTTOM), time, _loss_scale(members)), members)
    left = _LEFT + width + _GAP
    _draw_dice(sheet, _Panel((left, _TOP, left + width, _BOTTOM), time, _dice_scale(members)), members, labels)
    for middle in (_LEFT + width // 2, left + width // 2):
        sheet.text((middle, _BOTTOM + 32), f"{unit} of training", 14, _INK, "ma")
    return sheet.png()


class _Sheet:
    """The paper."""

    def __init__(self) -> None:
        self.image = Image.new("RGB", _SIZE, _PAPER)
        self.pen = ImageDraw.Draw(self.image)

    def text(self, at: tuple[float, float], text: str, size: int, colour: Colour, anchor: str = "la") -> float:
        """Write a text and return its length in pixels."""
        font = ImageFont.load_default(size)
        self.pen.text(at, text, fill=colour, font=font, anchor=anchor)
        return font.getlength(text)

    def png(self) -> bytes:
        """Return the sheet as a PNG file."""
        buffer = io.BytesIO()
        self.image.save(buffer, "PNG")
        return buffer.getvalue()


class _Panel:
    """One plot: a box on the sheet, its axes, and the layer on which lines and dots are drawn finely."""

    def __init__(self, box: tuple[int, int, int, int], x: _Scale, y: _Scale) -> None:
        self.box, self.x, self.y = box, x, y
        left, top, right, bottom = box
        size = (_FINE * (_REACH + right - left + _LEAD), _FINE * (_REACH + bottom - top))
        self._layer = Image.new("RGB", size, _PAPER)
        for tick in y.ticks:
            self.lead(tick, self.height(tick), _GRID, start=left, end=right)

    def height(self, value: float) -> float:
        """Return where on the sheet a value stands, or the end of the axis beyond which it lies."""
        _, top, _, bottom = self.box
        return bottom - min(max(float(self.y.share(np.array(value))), 0.0), 1.0) * (bottom - top)

    def dots(self, time: Floats, values: Floats, colour: Colour, radius: float) -> None:
        """Draw a dot for each finite value; those beyond the axis stand at its end."""
        points = self._places(time, values.clip(self.y.low, self.y.high))
        reach = radius * _FINE
        if len(points) < 1000:
            pen = ImageDraw.Draw(self._layer)
            for x, y in points.tolist():
                pen.ellipse((x - reach, y - reach, x + reach, y + reach), fill=colour)
            return
        pixels = np.array(self._layer)
        for shift in np.argwhere(np.ones((9, 9))) - 4:
            if math.hypot(*shift) <= reach:
                columns, rows = (points + shift).round().astype(int).T
                inside = (columns >= 0) & (columns < pixels.shape[1]) & (rows >= 0) & (rows < pixels.shape[0])
                pixels[rows[inside], columns[inside]] = colour
        self._layer = Image.fromarray(pixels)

    def line(self, time: Floats, values: Floats, colour: Colour, width: float) -> None:
        """Draw a line through the finite values; what lies beyond the axis is cut off."""
        far = 4.0 * self._layer.height
        points = self._places(time, values).clip(-far, far).tolist()
        if len(points) > 1:
            pen = ImageDraw.Draw(self._layer)
            pen.line([(x, y) for x, y in points], fill=colour, width=round(width * _FINE), joint="curve")

    def lead(self, value: float, height: float, colour: Colour, *, start: int, end: int) -> None:
        """Draw a thin line from a value to a height on the sheet, between two places across it."""
        left, top, _, _ = self.box
        ends = ((start, self.height(value)), (end, height))
        places = [(_FINE * (x - left + _REACH), _FINE * (y - top + _REACH)) for x, y in ends]
        ImageDraw.Draw(self._layer).line(places, fill=colour, width=_FINE)

    def paste(self, sheet: _Sheet, heading: str) -> float:
        """Lay the panel onto the sheet, with its axes and a heading, and return where the heading ends."""
        left, top, right, bottom = self.box
        sheet.image.paste(self._layer.reduce(_FINE), (left - _REACH, top - _REACH))
        sheet.pen.line((left - _REACH, bottom, right + _REACH, bottom), fill=_INK)
        for tick, text in zip(self.x.ticks, self.x.texts(), strict=True):
            across = round(left + float(self.x.share(np.array(tick))) * (right - left))
            sheet.pen.line((across, bottom, across, bottom + 5), fill=_INK)
            sheet.text((across, bottom + 10), text, 13, _DIM, "ma")
        for tick, text in zip(self.y.ticks, self.y.texts(), strict=True):
            sheet.text((left - _REACH - 6, round(self.height(tick))), text, 13, _DIM, "rm")
        return left - _REACH + sheet.text((left - _REACH, top - 20), heading, 15, _INK, "ls")

    def _places(self, time: Floats, values: Floats) -> Floats:
        """Return where on the layer the finite values stand: (n, 2), to the right and down."""
        finite = np.isfinite(values)
        left, top, right, bottom = self.box
        across = self.x.share(time[finite]) * (right - left)
        down = (1 - self.y.share(values[finite])) * (bottom - top)
        return _FINE * (_REACH + np.stack([across, down], axis=1))


def _draw_loss(sheet: _Sheet, panel: _Panel, members: Sequence[_Run]) -> None:
    """Draw every step pale, running means dark, and a mark above each step whose loss is no number."""
    for member in members:
        panel.dots(member.time, member.loss, _STEP, 1.6 if len(member.loss) < 2000 else 1.0)
    colours = [_between(_DARK, _PALE, n / max(1, len(members) - 1)) for n in range(len(members))]
    for member, colour in zip(members, colours, strict=True):
        panel.line(*member.mean, colour, 2.0 if len(members) == 1 else 1.4)
        if len(member.loss) == 1:
            panel.dots(member.time, member.loss, colour, 2.4)
    for member in members:
        wrong = member.time[~np.isfinite(member.loss)]
        panel.dots(wrong, np.full(len(wrong), panel.y.high), _RED, 1.6)
    x = panel.paste(sheet, "Loss (log)" if panel.y.log else "Loss") + 16
    _, top, right, _ = panel.box
    names = [member.name for member in members] if len(members) > 1 else ["running mean"][: len(members)]
    for text, colour in zip([_fitted(name, 13, 110) for name in names], colours, strict=True):
        if x + 17 + ImageFont.load_default(13).getlength(text) > right + _LEAD:
            sheet.text((x, top - 20), "...", 13, _DIM, "ls")
            break
        sheet.pen.line((x, top - 25, x + 12, top - 25), fill=colour, width=3)
        x += 17 + sheet.text((x + 17, top - 20), text, 13, _DIM, "ls") + 12


def _draw_dice(sheet: _Sheet, panel: _Panel, members: Sequence[_Run], labels: Sequence[Label]) -> None:
    """Draw Dice of each label in its colour, their mean in black, and names beside the ends of the lines."""
    colours = [_readable(label.rgb) for label in labels] + [_INK] * (len(labels) > 1)
    alone = len(members) == 1
    for member in members:
        for values, colour in zip(member.dice.T, colours, strict=True):
            panel.line(member.when, values, colour, 1.8 if alone or colour == _INK else 1.0)
            if len(member.when) <= (_FEW if alone else 1):
                seen = np.where(values >= panel.y.low, values, math.nan)
                panel.dots(member.when, seen, colour, 2.4 if alone else 1.6)
    _, top, right, bottom = panel.box
    names = [label.name for label in labels] + ["mean"] * (len(labels) > 1)
    found = [entry for entry in zip(_final(members), names, colours, strict=False) if math.isfinite(entry[0])]
    found.sort(key=lambda entry: entry[0])
    room = (bottom - top) // _LINE
    shown = [entry for n, entry in enumerate(found) if n < room - 1 or entry[2] == _INK][::-1]
    heights = _apart([panel.height(value) for value, _, _ in shown], top, bottom)
    for (value, _, colour), height in zip(shown, heights, strict=True):
        panel.lead(value, height, colour, start=right + 5, end=right + _LEAD - 3)
    panel.paste(sheet, "Dice in patches of held-back cases" if found else "Dice: no validation yet")
    for (value, name, _), height in zip(shown, heights, strict=True):
        sheet.text((right + _LEAD, round(height)), f"{value:.3f}", 13, _INK, "lm")
        sheet.text((right + _LEAD + 44, round(height)), _fitted(name, 13, _NAMES - _LEAD - 44), 13, _DIM, "lm")
    if len(shown) < len(found):
        sheet.text((right + _LEAD, top - 20), f"lowest of {len(labels)} labels", 13, _DIM, "ls")


def _run(name: str, points: Sequence[Point], labels: Sequence[Label], second: float) -> _Run:
    """Return a member as arrays; with several labels the last column of Dice is their mean."""
    time = np.array([point.seconds for point in points]) / second
    loss = np.array([point.loss for point in points], np.float64)
    names = [label.name for label in labels]
    table = [[point.dice.get(label, math.nan) for label in names] for point in points if point.dice]
    dice = np.array(table, np.float64).reshape(-1, len(names))
    seen = np.isfinite(dice).any(axis=1)
    when, dice = time[[bool(point.dice) for point in points]][seen], dice[seen]
    if len(names) > 1:
        ever = np.isfinite(dice).any(axis=0)  # the mean is always one of the same labels
        dice = np.column_stack([dice, dice[:, ever].sum(axis=1) / max(1, ever.sum())])
    return _Run(name, time, loss, _running_mean(time, loss), when, dice)


def _running_mean(time: Floats, loss: Floats) -> tuple[Floats, Floats]:
    """Return times and the mean of finite losses around them, over about a twentieth of the steps.

    Made of sums of blocks, and not as a running sum, in which an explosion would drown all that comes after it.
    """
    starts = np.linspace(0, len(loss), min(len(loss), _BLOCKS), endpoint=False).astype(int)
    finite = np.isfinite(loss)
    window = np.ones(2 * (len(starts) // 40) + 1)
    margin = len(window) // 2
    with np.errstate(over="ignore"):
        sums, counts, times = (
            np.convolve(np.add.reduceat(values, starts), window)[margin : margin + len(starts)]
            for values in (np.where(finite, loss, 0.0), finite.astype(np.float64), np.where(finite, time, 0.0))
        )
    known = (counts > 0) & np.isfinite(sums)
    return times[known] / counts[known], sums[known] / counts[known]


def _loss_scale(members: Sequence[_Run]) -> _Scale:
    losses = np.concatenate([np.zeros(0), *(member.loss for member in members)])
    losses = losses[np.isfinite(losses)]
    if not len(losses):
        return _linear(0.0, 1.0)
    means = np.concatenate([member.mean[1] for member in members])
    low = float(min(np.percentile(losses, 0.5), means.min(initial=math.inf)))  # one lucky patch stretches no axis
    high = float(losses.max())
    if low > 0 and high / low > 10:
        return _powers(low / 1.15, high * 1.15)
    margin = 0.06 * (high - low)
    low = 0.0 if 0 <= low <= high / 2 or high == low > 0 else low - margin
    return _linear(low, high + (margin or abs(high) / 4 or 1.0))


def _dice_scale(members: Sequence[_Run]) -> _Scale:
    """Return an axis that ends at 1 and begins below the later half of every curve."""
    late = [values[np.isfinite(values)] for member in members for values in member.dice.T]
    worst = min((float(values[len(values) // 2 :].min()) for values in late if len(values)), default=0.0)
    return _linear(min(max(math.floor(worst * 10 - 0.2), 0), 9) / 10, 1.0)


def _linear(low: float, high: float) -> _Scale:
    """Return an axis with about five round numbers."""
    rough = (high - low) / 6
    power = 10.0 ** math.floor(math.log10(rough))
    step = next((factor * power for factor in _ROUND if factor * power >= rough), 10 * power)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return _Scale(low, high, tuple(float(f"{number * step:.12g}") for number in range(first, last + 1)))


def _powers(low: float, high: float) -> _Scale:
    """Return an axis of powers of ten, with twice and five times each where it spans few."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    factors = (1, 2, 5) if high / low < 300 else (1,)
    step = -(-(last - first) // 8)
    numbers = (float(f"{factor}e{power}") for power in range(first, last + 1, step) for factor in factors)
    return _Scale(low, high, tuple(number for number in numbers if low <= number <= high), log=True)


def _final(members: Sequence[_Run]) -> list[float]:
    """Return the last Dice of each column, as mean over the members that have one; nan where none has."""
    last = [[values[np.isfinite(values)][-1:] for values in member.dice.T] for member in members]
    columns = [np.concatenate(column) for column in zip(*last, strict=True)]
    return [float(column.mean()) if len(column) else math.nan for column in columns]


def _apart(heights: Sequence[float], top: float, bottom: float) -> list[float]:
    """Return ascending heights moved as little as possible, so that a line of text fits at each."""
    from scipy.optimize import isotonic_regression

    steps = _LINE * np.arange(len(heights))
    if not len(steps):
        return []
    found: list[float] = (isotonic_regression(heights - steps).x.clip(top, bottom - steps[-1]) + steps).tolist()
    return found


def _summary(members: Sequence[_Run], duration: str) -> str:
    """Return how long was trained and what came of it, in one line."""
    losses = [member.mean[1][-1] for member in members if len(member.mean[1])]
    parts = [_many(len(members), "member")] if len(members) > 1 else []
    parts += [duration] if members else ["no step yet"]
    parts += [f"loss {sum(losses) / len(losses):.3g}"] if losses else []
    *single, dice = _final(members) or [math.nan]
    if math.isfinite(dice):
        labels = sum(map(math.isfinite, single))
        parts.append(f"Dice {dice:.3f}" + (f" (mean of {_many(labels, 'label')})" if single else ""))
    return "  \u00b7  ".join(parts)


def _fitted(text: str, size: int, width: float) -> str:
    """Return a text in letters that the font has (accents dropped, others as ?), cut to a width in pixels."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    plain = shown = " ".join(plain.encode("ascii", "replace").decode().split())
    font = ImageFont.load_default(size)
    while plain and font.getlength(shown) > width:
        plain = plain[:-1]
        shown = plain + "..."
    return shown


def _readable(colour: Colour) -> Colour:
    """Return a colour, darkened until it stands out against white by the factor of three that WCAG 2.1 asks for."""
    linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in np.array(colour) / 255]
    if float(np.dot(linear, (0.2126, 0.7152, 0.0722))) <= 0.3:
        return colour
    return _readable(_between(colour, (0, 0, 0), 0.05))


def _between(one: Colour, other: Colour, share: float) -> Colour:
    red, green, blue = (round(a + share * (b - a)) for a, b in zip(one, other, strict=True))
    return red, green, blue


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
