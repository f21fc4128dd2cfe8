"""The elements of a DICOM header that tell where an image lies and what its numbers mean, read without a copy.

A parser of the file format (PS3.5 section 7, PS3.10 section 7) that keeps the elements of `WANTED` and steps over
all others, so that a header costs one read of 8 kB. It does not recurse: sequences are walked with a list of open
ones, and nothing is allocated by what a length says.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from dataclasses import dataclass

from medseg.dicom.parts import Damaged, Part, Stream
from medseg.gate import most_inflated, readable

UNDEFINED = 0xFFFFFFFF
PIXELS = 0x7FE00010
MODALITY_TABLE = 0x00283000  # a sequence: only that it is there is kept
WANTED = frozenset(
    {
        0x00020002, 0x00020003, 0x00020010, 0x00080005, 0x00080008, 0x00080016, 0x00080018, 0x0008002A, 0x00080031,
        0x00080032, 0x00080033, 0x00080060, 0x0008103E, 0x00100020, 0x00180050, 0x00180081, 0x00180088, 0x00181060,
        0x00189087, 0x00189089, 0x0020000D, 0x0020000E, 0x00200011, 0x00200012, 0x00200013, 0x00200032, 0x00200037,
        0x00200052, 0x00200100, 0x00201002, 0x00209056, 0x00280002, 0x00280004, 0x00280006, 0x00280008, 0x00280010,
        0x00280011, 0x00280030, 0x00280100, 0x00280101, 0x00280102, 0x00280103, 0x00280120, 0x00280121, 0x00281052,
        0x00281053, 0x00281054, 0x00541001,
    }
)  # fmt: skip
_LONG = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
_SHORT = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
_PAIR, _WORD, _EXPLICIT_HEAD, _IMPLICIT_HEAD = (
    {order: struct.Struct(order + form).unpack_from for order in "<>"} for form in ("HH", "I", "HH2sH", "HHI")
)
_SYNTAX = 0x00020010
_IMPLICIT, _EXPLICIT, _BIG = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
DEFLATED = "1.2.840.10008.1.2.1.99"
NATIVE = frozenset({_IMPLICIT, _EXPLICIT, _BIG, DEFLATED})
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_DECIMAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?")
_FIRST, _MORE = 8192, 65536
_MAX_VALUE = 1 << 16  # bytes of a wanted element
_MAX_DEPTH = 64  # sequences within sequences
_MAX_INFLATED = 1 << 30
_ALWAYS_INFLATED = 1 << 22  # bytes that are little, however tightly packed: an empty slice


@dataclass(frozen=True, slots=True)
class Elements:
    """The wanted elements of one object, as bytes by tag, and where its pixels lie.

    Parameters
    ----------
    values : dict
        Tag to the bytes of its value.
    order : str
        '<' or '>', the byte order.
    syntax : str
        Transfer syntax UID.
    offset, length : int
        Of the pixel data in the stream, in bytes; the length is `UNDEFINED` where it is encapsulated, and both are 0
        where there is none.
    size : int
        Length of the stream.
    words : bool
        Whether the pixel data are words of 16 bits (OW), whatever a pixel is.
    """

    values: dict[int, bytes]
    order: str
    syntax: str
    offset: int
    length: int
    size: int
    words: bool = True

    def text(self, tag: int) -> str:
        """Return a value as text, '' where there is none; only for elements of plain letters."""
        return self.values.get(tag, b"").rstrip(b"\0 ").lstrip().decode("ascii", "replace").replace("\ufffd", "?")

    def texts(self, tag: int) -> list[str]:
        """Return the parts of a value with several."""
        text = self.text(tag)
        return [part.strip() for part in text.split("\\")] if text else []

    def numbers(self, tag: int) -> list[float]:
        """Return a decimal string as numbers; empty where there is none or it is not made of finite numbers."""
        parts = self.texts(tag)
        if not all(_DECIMAL.fullmatch(part) for part in parts):
            return []
        found = [float(part) for part in parts]
        return found if all(abs(number) < 1e9 for number in found) else []

    def number(self, tag: int) -> float | None:
        """Return the first number of a decimal string, or None."""
        return next(iter(self.numbers(tag)), None)

    def frames(self) -> int:
        """Return NumberOfFrames, 1 where it is missing.

        Raises
        ------
        Damaged
            If it is no whole number from 1.
        """
        text = self.text(0x00280008)
        if not re.fullmatch(r"\+?0*[1-9]\d{0,6}|", text):
            raise Damaged("its number of frames is none")
        return int(text or 1)

    def code(self, tag: int) -> str:
        """Return a value of few plain letters, fit to be shown; '?' for any other."""
        text = self.text(tag)
        return text if re.fullmatch(r"[A-Z0-9_ ]{1,16}", text) else "?"

    def short(self, tag: int, default: int = 0) -> int:
        """Return an unsigned 16-bit value, or the default where there is none."""
        value = self.values.get(tag, b"")
        return int(struct.unpack_from(self.order + "H", value)[0]) if len(value) >= 2 else default


def read_elements(part: Part) -> Elements:
    """Return the wanted elements of an object.

    Raises
    ------
    Damaged
        If the header cannot be walked to its end.
    OSError
        If the file cannot be read.
    """
    with part.open() as file:
        try:
            return _walk(_Window(file, part.size()))
        except struct.error:
            raise Damaged("the header ends within an element") from None


def inflated(file: Stream) -> io.BytesIO:
    """Return a deflated object as a stream in which its elements lie plainly.

    Raises
    ------
    Damaged
        If it is no whole deflate stream, or grows beyond 1 GB or what `limited` allows.
    """
    file.seek(0)
    head = file.read(_FIRST)
    start = _end_of_meta(head)
    file.seek(start)
    engine = zlib.decompressobj(wbits=-15)
    packed = file.read()
    most = min(_MAX_INFLATED, max(_ALWAYS_INFLATED, most_inflated(len(packed))))
    try:
        body = engine.decompress(packed, most)
    except zlib.error:
        raise Damaged("the deflated data set is damaged") from None
    if not engine.eof:
        raise Damaged(f"the deflated data set is cut off, or grows beyond {readable(most)}")
    return io.BytesIO(head[:start] + body)


class _Window:
    """A stretch of a stream in memory, moved when something outside it is asked for."""

    def __init__(self, file: Stream, size: int) -> None:
        self.file, self.size = file, size
        self.start, self.bytes = 0, file.read(_FIRST)

    def at(self, position: int, count: int) -> int:
        """Return where `position` lies in `bytes`, with `count` bytes behind it."""
        place = position - self.start
        if place < 0 or place + count > len(self.bytes):
            self.file.seek(position)
            self.start, self.bytes = position, self.file.read(max(count, _MORE))
            if len(self.bytes) < count:
                raise Damaged("the header ends within an element")
            return 0
        return place


def _end_of_meta(head: bytes) -> int:
    """Return where the file meta group ends and the data set begins."""
    position = 132 if head[128:132] == b"DICM" else 0
    while position + 8 <= len(head) and head[position : position + 2] == b"\x02\0":
        if head[position + 4 : position + 6] in _LONG:
            position += 12 + struct.unpack_from("<I", head, position + 8)[0]
        else:
            position += 8 + struct.unpack_from("<H", head, position + 6)[0]
    return position


def _walk(window: _Window) -> Elements:
    head = window.bytes
    start = _end_of_meta(head)
    values: dict[int, bytes] = {}
    _collect(window, 132 if head[128:132] == b"DICM" else 0, start, values, "<", explicit=True)
    syntax = values.get(_SYNTAX, b"").rstrip(b"\0 ").decode("ascii", "replace")
    if syntax == DEFLATED:
        plain = inflated(window.file)
        window = _Window(plain, plain.getbuffer().nbytes)
    order = ">" if syntax == _BIG else "<"
    explicit = syntax != _IMPLICIT if syntax else head[start + 4 : start + 6].isalpha()
    offset, length = _collect(window, start, window.size, values, order, explicit=explicit)
    words = not explicit or (offset >= 12 and window.bytes[offset - 8 - window.start :][:2] == b"OW")
    return Elements(values, order, syntax or (_EXPLICIT if explicit else _IMPLICIT), offset, length, window.size, words)


def _collect(
    window: _Window, position: int, end: int, values: dict[int, bytes], order: str, *, explicit: bool
) -> tuple[int, int]:
    """Fill `values` from the elements between two positions; return offset and length of the pixel data, or 0, 0."""
    while position + 8 <= end:
        place = position - window.start
        if not 0 <= place <= len(window.bytes) - 12:
            place = window.at(position, min(12, end - position))
        if window.bytes.startswith(b"\0\0\0\0", place):  # padding behind the last element
            break
        tag, header, length, explicit_inside = _element(window.bytes, place, order, explicit=explicit)
        position += header
        if tag in WANTED and length <= _MAX_VALUE and position + length <= end:
            if tag not in values:
                place = window.at(position, length)
                values[tag] = window.bytes[place : place + length]
        elif tag >= PIXELS:
            return (position, length) if tag == PIXELS else (0, 0)
        elif tag == MODALITY_TABLE and length:
            values[tag] = b"1"
        if length == UNDEFINED:
            position = _after_sequence(window, position, order, explicit=explicit_inside)
        elif position + length > end:
            raise Damaged(f"element ({tag >> 16:04x},{tag & 0xFFFF:04x}) claims more bytes than there are")
        else:
            position += length
    return 0, 0


def _element(buffer: bytes, place: int, order: str, *, explicit: bool) -> tuple[int, int, int, bool]:
    """Return tag, bytes of the header, length of the value, and whether elements inside it name their kind."""
    if not explicit:
        group, element, length = _IMPLICIT_HEAD[order](buffer, place)
        return group << 16 | element, 8, length, False
    group, element, kind, length = _EXPLICIT_HEAD[order](buffer, place)
    if kind in _SHORT:
        return group << 16 | element, 8, length, True
    if kind not in _LONG:
        raise Damaged("an element has no valid value representation")
    return group << 16 | element, 12, _WORD[order](buffer, place + 8)[0], kind != b"UN"


def _after_sequence(window: _Window, position: int, order: str, *, explicit: bool) -> int:
    """Return the position behind a sequence of undefined length that begins here."""
    levels = [explicit]  # for each open sequence, whether its elements name their representation
    while levels:
        place = window.at(position, 8)
        group, element = _PAIR[order](window.bytes, place)
        tag = group << 16 | element
        if group == 0xFFFE:
            length = _WORD[order](window.bytes, place + 4)[0]
            position += 8
            if tag == _SEQUENCE_END:
                levels.pop()
            elif tag == _ITEM and length != UNDEFINED:
                position += length
            elif tag not in (_ITEM, _ITEM_END):
                raise Damaged("a sequence holds an unknown mark")
            continue
        place = window.at(position, min(12, window.size - position))
        _, header, length, inside = _element(window.bytes, place, order, explicit=levels[-1])
        position += header
        if length == UNDEFINED:
            if len(levels) >= _MAX_DEPTH:
                raise Damaged(f"sequences lie more than {_MAX_DEPTH} deep in one another")
            levels.append(inside)
        else:
            position += length
        if position > window.size:
            raise Damaged("a sequence claims more bytes than there are")
    return position
