"""Compressed frames held against their header, before a decoder sees them: size, depth, and whether they are whole.

A decoder trusts the size in its own stream. Where that differs from Rows and Columns it crops or scrambles the slice,
and a stream cut short is filled with invented pixels. JPEG: ITU-T T.81 annex B; JPEG-LS: T.87; JPEG 2000: T.800
annex A; fragments: DICOM PS3.5 annex A.4.
"""

from __future__ import annotations

import struct

from medseg.dicom.elements import Elements
from medseg.dicom.parts import Stream

_FRAME_MARKERS = frozenset({*range(0xC0, 0xD0), 0xF7}) - {0xC4, 0xC8, 0xCC}  # SOF0 to SOF15, and SOF55 of JPEG-LS
_ALONE = frozenset({0x01, *range(0xD0, 0xDA)})  # markers without a length
_HEAD = 65536  # bytes of a stream in which its size must stand
_MAX_FRAGMENTS = 1 << 20
_ITEM, _END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"


def check_streams(file: Stream, elements: Elements) -> str:
    """Return what is wrong with the compressed pixels of an object; empty where nothing is.

    Parameters
    ----------
    file : Stream
        The object.
    elements : Elements
        Its header; the pixel data are encapsulated.
    """
    found = _fragments(file, elements)
    if found is None:
        return "its compressed pixels are cut off"
    frames = elements.frames()
    if len(found) < frames:
        return f"it declares {frames} frames and holds {len(found)}"
    if frames == 1:  # all fragments together are the frame
        return _fault(file, elements, found[0], found[-1])
    if len(found) > frames:
        return ""  # which fragments make up a frame is for the decoder to find
    return next((fault for one in found if (fault := _fault(file, elements, one, one))), "")


def _fragments(file: Stream, elements: Elements) -> list[tuple[int, int]] | None:
    """Return offset and length of each fragment behind the offset table; None where the sequence does not end."""
    position = elements.offset
    found: list[tuple[int, int]] = []
    while position + 8 <= elements.size and len(found) < _MAX_FRAGMENTS:
        file.seek(position)
        head = file.read(8)
        if head[:4] == _END:
            return found[1:]
        length = int.from_bytes(head[4:], "little")
        if head[:4] != _ITEM or position + 8 + length > elements.size:
            return None
        found.append((position + 8, length))
        position += 8 + length
    return found[1:] if position == elements.size else None  # some writers leave out the end of the sequence


def _fault(file: Stream, elements: Elements, first: tuple[int, int], last: tuple[int, int]) -> str:
    """Return what is wrong with the frame that begins in one fragment and ends in another."""
    file.seek(first[0])
    head = file.read(min(first[1], _HEAD))
    found = _size_in_codestream(head) if head.startswith(b"\xff\x4f") else _size_in_jpeg(head)
    if found is None:
        return ""  # RLE has no size of its own; what else begins so is for the decoder to refuse
    rows, columns, samples, precision = found
    declared = (elements.short(0x00280010), elements.short(0x00280011), elements.short(0x00280002, 1))
    if (rows, columns, samples) != declared or precision > elements.short(0x00280100):
        return f"its compressed pixels are {rows} x {columns} of {precision} bits, its header says otherwise"
    file.seek(last[0] + max(0, last[1] - 16))
    tail = file.read(min(last[1], 16)).rstrip(b"\0")
    if head.startswith(b"\xff\xd8") and not tail.endswith(b"\xff\xd9"):
        return "its compressed pixels are cut off"
    return ""


def _size_in_jpeg(head: bytes) -> tuple[int, int, int, int] | None:
    """Return rows, columns, samples and precision of a JPEG or JPEG-LS stream."""
    if not head.startswith(b"\xff\xd8"):
        return None
    position = 2
    while position + 10 <= len(head):
        if head[position] != 0xFF:
            return None
        marker = head[position + 1]
        if marker in _FRAME_MARKERS:
            precision, rows, columns, samples = struct.unpack_from(">BHHB", head, position + 4)
            return rows, columns, samples, precision
        if marker == 0xFF:  # a fill byte
            position += 1
        elif marker in _ALONE:
            position += 2
        else:
            position += 2 + int.from_bytes(head[position + 2 : position + 4], "big")
    return None


def _size_in_codestream(head: bytes) -> tuple[int, int, int, int] | None:
    """Return rows, columns, samples and precision of a JPEG 2000 codestream."""
    if len(head) < 43 or head[2:4] != b"\xff\x51":
        return None
    right, bottom, left, top = struct.unpack_from(">4I", head, 8)
    samples, depth = struct.unpack_from(">HB", head, 40)
    return bottom - top, right - left, samples, (depth & 0x7F) + 1
