"""One picture of a result: three planes through the labels, without and with them, with legend and scale.

Drawn with Pillow alone: no font cache, no configuration folder, the same bytes each time. Planes are shown as
radiologists see them, the patient's right on the left side; letters say so on every plane.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from medseg.report.planes import Plane, cut, fullest, oriented, paint, views_of
from medseg.volume import LabelMap, Volume

_PANEL = 340  # pixels of the longest side of a plane
_GAP = 14
_LEGEND = 20  # pixels of a line
_THUMBNAIL = (320, 12, 128)  # pixels of its longer side, pixels between planes before they shrink, colours
_INK, _PAPER, _DIM = (235, 235, 235), (18, 18, 20), (150, 150, 155)
_VERDICT = {"ok": (90, 200, 120), "check": (240, 180, 60), "refuse": (240, 90, 80)}
_RULERS = (1, 2, 5, 10, 20, 50, 100, 200)  # mm


def draw(
    scan: Volume, labels: LabelMap, *, title: str, legend: Sequence[str], verdict: str, notes: Sequence[str]
) -> bytes:
    """Return a PNG of a scan and its labels.

    Parameters
    ----------
    scan : Volume
        Its first channel is shown.
    labels : LabelMap
        On the same grid.
    title : str
        First line of the picture.
    legend : sequence of str
        A line for each label, in the order of the table.
    verdict : str
        'ok', 'check' or 'refuse'.
    notes : sequence of str
        Reasons of the verdict.
    """
    planes = _planes(scan, labels)
    pixels_per_mm = min(_PANEL / max(plane.size_mm) for plane in planes)
    colours = [label.rgb for label in labels.labels]
    rows = [
        [paint(plane, pixels_per_mm, ()) for plane in planes],
        [paint(plane, pixels_per_mm, colours) for plane in planes],
    ]
    canvas = _Canvas(len(planes), len(legend))
    canvas.header(title, verdict, notes)
    for row in rows:
        canvas.row(row, planes)
    canvas.footer(legend, colours, pixels_per_mm, physical=scan.geometry.physical)
    return canvas.png()


def thumbnail(png: bytes) -> bytes:
    """Return a small PNG of a picture that `draw` made: its planes with labels, at most 320 pixels long.

    Drawn close together, without title and legend, in a palette of its own: about 20 kB.
    """
    sheet = Image.open(io.BytesIO(png)).convert("RGB")
    drawn = (np.asarray(sheet) != _PAPER).any(axis=-1)
    # Two bands, one below the other, hold the planes; lines of text are lower than they are.
    top, bottom = max(_runs(drawn.any(axis=1)), key=lambda run: (run[1] - run[0], run))
    planes = [sheet.crop((left, top, right, bottom)) for left, right in _runs(drawn[top:bottom].any(axis=0))]
    longest, gap, colours = _THUMBNAIL
    strip = Image.new("RGB", (sum(plane.width + gap for plane in planes) - gap, bottom - top), _PAPER)
    x = 0
    for plane in planes:
        strip.paste(plane, (x, 0))
        x += plane.width + gap
    strip.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    strip.quantize(colours, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _runs(flags: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Return first and last plus one of each run of true values."""
    edges = np.flatnonzero(np.diff(flags, prepend=False, append=False)).tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))


def contact_sheet(scan: Volume, maps: Mapping[str, LabelMap], *, columns: int = 5) -> bytes:
    """Return a PNG of one plane of a scan (sagittal where there is one): as it is, and with each of several label maps.

    Parameters
    ----------
    scan : Volume
        Its first channel is shown.
    maps : mapping of str to LabelMap
        By title, on the scan's grid; the first one chooses the plane, the one with most of its voxels.
    columns : int
        Tiles in a row.
    """
    turned = [oriented(scan, labels) for labels in maps.values()]
    view = views_of(turned[0][0])[-1]
    at = fullest(turned[0][1], view)
    planes = [cut(volume, labels, view, at) for volume, labels in turned]
    pixels_per_mm = _PANEL / max(planes[0].size_mm)
    colours = [[label.rgb for label in labels.labels] for labels in maps.values()]
    painted = [paint(plane, pixels_per_mm, each) for plane, each in zip(planes, colours, strict=True)]
    tiles = [paint(planes[0], pixels_per_mm, ()), *painted]
    width, height = tiles[0].width + _GAP, tiles[0].height + _GAP + _LEGEND
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (columns * width + _GAP, rows * height + _GAP), _PAPER)
    pen = ImageDraw.Draw(sheet)
    for number, (title, tile) in enumerate(zip(["scan", *maps], tiles, strict=True)):
        x, y = _GAP + number % columns * width, _GAP + number // columns * height
        pen.text((x, y), title, fill=_INK, font=ImageFont.load_default(15))
        sheet.paste(tile, (x, y + _LEGEND))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def planes_of(labels: LabelMap, *, seen_in: Sequence[str]) -> bytes:
    """Return a PNG of the planes through a label map on black, side by side.

    Parameters
    ----------
    labels : LabelMap
        Painted in the colours of its labels.
    seen_in : sequence of str
        Names of the labels that choose the planes: those with most of their voxels.
    """
    black = Volume(np.zeros((1, *labels.array.shape), np.uint8), labels.geometry)
    scan, labels = oriented(black, labels)
    chosen = labels.places([[atom for name in seen_in for atom in labels.label(name).atoms]])
    choosing = LabelMap(chosen if chosen.any() else labels.array, labels.geometry)
    planes = [cut(scan, labels, view, fullest(choosing, view)) for view in views_of(scan)]
    colours = [label.rgb for label in labels.labels]
    painted = [paint(plane, _PANEL / max(plane.size_mm), colours) for plane in planes]
    sheet = Image.new("RGB", (len(planes) * (_PANEL + _GAP) - _GAP, max(image.height for image in painted)), _PAPER)
    pen = ImageDraw.Draw(sheet)
    for column, (image, plane) in enumerate(zip(painted, planes, strict=True)):
        sheet.paste(image, (column * (_PANEL + _GAP) + (_PANEL - image.width) // 2, 0))
        pen.text((column * (_PANEL + _GAP) + 4, 3), plane.view.title, fill=_DIM, font=ImageFont.load_default(12))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _planes(scan: Volume, labels: LabelMap) -> list[Plane]:
    scan, labels = oriented(scan, labels)
    return [cut(scan, labels, view, fullest(labels, view)) for view in views_of(scan)]


class _Canvas:
    """The sheet on which the planes are laid out, from top to bottom."""

    def __init__(self, columns: int, labels: int) -> None:
        self.width = max(2, columns) * (_PANEL + _GAP) + _GAP
        most = 2 * (_PANEL + _GAP) + labels * _LEGEND + 300  # and title, reasons, last line
        self._image = Image.new("RGB", (self.width, most), _PAPER)
        self._draw = ImageDraw.Draw(self._image)
        self._y = _GAP

    def header(self, title: str, verdict: str, notes: Sequence[str]) -> None:
        """Write title, verdict and its reasons."""
        self._line(title, 18, _INK)
        self._line(f"quality check: {verdict}", 15, _VERDICT[verdict])
        for note in notes[:4]:
            self._line(note, 13, _DIM)
        if len(notes) > 4:
            self._line(f"and {len(notes) - 4} more reasons: see the report", 13, _DIM)
        self._y += _GAP // 2

    def row(self, images: Sequence[Image.Image], planes: Sequence[Plane]) -> None:
        """Place planes side by side, with the letters of their edges."""
        height = max(image.height for image in images)
        for column, (image, plane) in enumerate(zip(images, planes, strict=True)):
            x = _GAP + column * (_PANEL + _GAP) + (_PANEL - image.width) // 2
            y = self._y + (height - image.height) // 2
            self._image.paste(image, (x, y))
            middle = (x + image.width // 2, y + image.height // 2)
            places = (
                (x + 4, middle[1], "lm"),
                (x + image.width - 4, middle[1], "rm"),
                (middle[0], y + 3, "ma"),
                (middle[0], y + image.height - 3, "md"),
            )
            for letter, (left, top, anchor) in zip(plane.view.letters, places, strict=False):
                self._text((left, top), letter, 13, _INK, anchor)
            self._text((x + 4, y + 3), plane.view.title, 12, _INK, "la")
        self._y += height + _GAP

    def footer(
        self, legend: Sequence[str], colours: Sequence[tuple[int, int, int]], pixels_per_mm: float, *, physical: bool
    ) -> None:
        """Write the legend, the scale and the line that every result carries."""
        for text, colour in zip(legend, colours, strict=True):
            self._draw.rectangle((_GAP, self._y + 2, _GAP + 12, self._y + 14), fill=colour)
            self._text((_GAP + 20, self._y), text, 14, _INK, "la")
            self._y += _LEGEND
        unit = "mm" if physical else "pixels"
        length = max((mm for mm in _RULERS if mm * pixels_per_mm <= _PANEL * 0.4), default=1)
        right, y = self.width - _GAP, self._y - 6
        self._draw.line((right - length * pixels_per_mm, y, right, y), fill=_INK, width=3)
        self._text((right, y - 6), f"{length} {unit}", 14, _INK, "rd")
        self._line("For research use only. Not a medical device.", 12, _DIM)

    def png(self) -> bytes:
        """Return the sheet, cut to its content, as a PNG file."""
        buffer = io.BytesIO()
        self._image.crop((0, 0, self.width, self._y + _GAP // 2)).save(buffer, "PNG")
        return buffer.getvalue()

    def _line(self, text: str, size: int, colour: tuple[int, int, int]) -> None:
        font = ImageFont.load_default(size)
        while len(text) > 4 and font.getlength(text) > self.width - 2 * _GAP:
            text = text[:-4] + "..."
        self._text((_GAP, self._y), text, size, colour, "la")
        self._y += size + 6

    def _text(self, at: tuple[float, float], text: str, size: int, colour: tuple[int, int, int], anchor: str) -> None:
        font = ImageFont.load_default(size)
        self._draw.text(at, text, fill=colour, font=font, anchor=anchor, stroke_width=1, stroke_fill=_PAPER)
