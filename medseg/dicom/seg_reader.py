"""DICOM Segmentation objects (SEG) of any writer as label maps: bits, fractions and label maps.

PS3.3 A.51 and C.8.20. Frames are decoded one after the other and laid onto the label map at once: neither a mask of
each segment nor all frames are ever in memory.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.utils import iter_pixels
from pydicom.uid import UID, ExplicitVRBigEndian

from medseg.dicom.privacy import quiet
from medseg.dicom.seg_planes import Placement, Planes, nearest, on_grid, read_planes, regular
from medseg.dicom.seg_segments import background_of, read_segments
from medseg.dicom.seg_writer import LABELMAP_CLASS
from medseg.errors import MedsegError
from medseg.gate import HINT_COPY, HINT_EXPORT, Gate
from medseg.geometry import AxisOrder, Geometry
from medseg.plan import Label
from medseg.volume import LabelMap, Source

T = TypeVar("T")
Array = npt.NDArray[Any]

SEG_CLASSES = frozenset({"1.2.840.10008.5.1.4.1.1.66.4", LABELMAP_CLASS})
_KINDS = ("BINARY", "FRACTIONAL", "LABELMAP")
_BITS = {"BINARY": (1, 8), "FRACTIONAL": (8,), "LABELMAP": (8, 16)}
_MAX_VALUE = 65535
_MAX_RATIO = 20_000  # bytes that one byte of an image compression can become: an empty JPEG 2000 frame has 3,000
_HINT_OTHER = "give the scan that it was made on, or let each voxel take the nearest pixel"
_DECODERS = ("pylibjpeg", "pyjpegls", "pydicom", "pillow")
_FAULTS = (  # what pydicom and the decoders are known to raise on damaged objects
    ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, OSError, RuntimeError, TypeError,
    ValueError, struct.error, zlib.error,
)  # fmt: skip


def read_segmentation(path: Path, dataset: Dataset, *, grid: Geometry | None = None, resample: bool = True) -> LabelMap:
    """Return the label map of a DICOM SEG: on its own grid, or on that of the scan.

    Parameters
    ----------
    path : Path
        The file, for messages.
    dataset : Dataset
        The object, with its pixels.
    grid : Geometry, optional
        Where to lay it: voxel for voxel where its frames lie on planes of the grid, stored in whatever axis order,
        else by the nearest pixel, with a warning. Left out: the smallest regular grid that holds its frames.
    resample : bool
        Whether the nearest pixel may be taken; else frames that do not lie on the grid are refused (OTHER_GRID).

    Raises
    ------
    ScanError
        If the object is damaged, of slide microscopy, or its frames form no grid.

    Notes
    -----
    Values are segment numbers, but those of the labels themselves in an object that medseg wrote. Fractions count
    from one half on, with a warning.
    """
    gate = Gate(path)
    return _tried(
        lambda: _read(dataset, grid, gate, resample=resample), gate, "HEADER", "its header is damaged or incomplete"
    )


def source_instances(dataset: Dataset) -> set[str]:
    """Return the SOP instance UIDs of the images that an object refers to; empty where it names none."""
    with quiet():
        try:
            found = _instances(dataset, "ReferencedSeriesSequence", "ReferencedInstanceSequence")
            for study in dataset.get("StudiesContainingOtherReferencedInstancesSequence") or []:
                found |= _instances(study, "ReferencedSeriesSequence", "ReferencedInstanceSequence")
            for group in () if found else dataset.get("PerFrameFunctionalGroupsSequence") or []:
                found |= _instances(group, "DerivationImageSequence", "SourceImageSequence")
        except _FAULTS:
            return set()
    return found


def _instances(dataset: Dataset, outer: str, inner: str) -> set[str]:
    items = (image for item in dataset.get(outer) or [] for image in item.get(inner) or [])
    return {str(image.ReferencedSOPInstanceUID) for image in items if image.get("ReferencedSOPInstanceUID")}


def _tried(call: Callable[[], T], gate: Gate, code: str, problem: str) -> T:
    """Return what a call returns; refuse the object where it meets what no sound one holds.

    The refusal is raised outside the handler: the fault, which may quote values of elements, must not be shown.
    """
    try:
        with quiet():
            return call()
    except MedsegError:
        raise
    except _FAULTS:
        pass
    return gate.refuse(code, problem, HINT_COPY)


@dataclass(frozen=True)
class _Header:
    """What of the image pixel module counts."""

    kind: str
    size: tuple[int, int]
    frames: int
    bits: int


def _read(dataset: Dataset, grid: Geometry | None, gate: Gate, *, resample: bool) -> LabelMap:
    header = _header(dataset, gate)
    planes = read_planes(dataset, header.size, gate)
    segments = read_segments(dataset, gate, labelmap=header.kind == "LABELMAP")
    numbers = _frame_segments(dataset, header, segments, gate)
    _check_pixels(dataset, header, gate)
    if planes is None:
        place, beside = _without_place(header, grid, gate), False
    else:
        found = _place(planes, grid, gate) if grid is not None else None
        place, beside = found or regular(planes, gate), found is None
    if grid is None or not beside:
        array, labels = _paint(dataset, header, place, segments, numbers, gate)
        return LabelMap(array, place.geometry, labels, Source(gate.path, "dicom", tuple(gate.warnings)))
    if not resample:
        gate.refuse("OTHER_GRID", "its frames do not lie on the slices of the scan", _HINT_OTHER)
    gate.warn("its frames do not lie on the slices of the scan; each voxel took the nearest pixel")
    array, labels = _paint(dataset, header, place, segments, numbers, gate)
    _check_memory(grid.shape, array.itemsize, gate)
    array = nearest(LabelMap(array, place.geometry), grid)
    return LabelMap(array, grid, labels, Source(gate.path, "dicom", tuple(gate.warnings)))


def _place(planes: Planes, grid: Geometry, gate: Gate) -> Placement | None:
    if not grid.physical:
        gate.refuse("GEOM_MISSING", "lies in a patient, the scan is a picture", "give the scan that it was made on")
    return on_grid(planes, grid)


def _header(dataset: Dataset, gate: Gate) -> _Header:
    if str(dataset.get("SOPClassUID")) not in SEG_CLASSES:
        gate.refuse("SOP_CLASS", "is no DICOM segmentation", "give a DICOM SEG")
    kind = str(dataset.get("SegmentationType"))
    if kind not in _KINDS or (kind == "LABELMAP") != (dataset.SOPClassUID == LABELMAP_CLASS):
        gate.refuse("HEADER", "has no valid SegmentationType", HINT_EXPORT)
    columns, rows, frames, bits = (
        _integer(dataset, keyword, gate) for keyword in ("Columns", "Rows", "NumberOfFrames", "BitsAllocated")
    )
    if bits not in _BITS[kind]:
        gate.refuse("HEADER", f"has {bits} bits for each pixel of a {kind} segmentation", HINT_EXPORT)
    if dataset.get("SamplesPerPixel", 1) != 1 or dataset.get("PixelRepresentation", 0) != 0:
        gate.refuse("HEADER", "its pixels are no single unsigned numbers", HINT_EXPORT)
    groups = len(dataset.get("PerFrameFunctionalGroupsSequence") or [])
    tiled = str(dataset.get("DimensionOrganizationType") or "").startswith("TILED")
    if groups != frames and not tiled:
        gate.refuse("HEADER", f"describes {groups} of {frames} frames", HINT_EXPORT)
    return _Header(kind, (columns, rows), frames, bits)


def _integer(dataset: Dataset, keyword: str, gate: Gate) -> int:
    try:
        number = int(dataset[keyword].value)
    except _FAULTS:
        number = 0
    if number < 1:
        gate.refuse("HEADER", f"has no valid {keyword}", HINT_EXPORT)
    return number


def _check_memory(shape: Sequence[int], itemsize: int, gate: Gate) -> None:
    needed = int(np.prod(shape, dtype=object)) * itemsize
    gate.size(needed, needed, compressed=False)


def _encapsulated(dataset: Dataset) -> bool:
    return bool(dataset["PixelData"].is_undefined_length) or _syntax(dataset).is_encapsulated


def _syntax(dataset: Dataset) -> UID:
    syntax = UID(str(getattr(dataset, "file_meta", Dataset()).get("TransferSyntaxUID") or "1.2.840.10008.1.2"))
    return syntax if syntax.is_transfer_syntax else UID("1.2.840.10008.1.2")


def _check_pixels(dataset: Dataset, header: _Header, gate: Gate) -> None:
    """Refuse, before anything is allocated, more frames than the file can hold."""
    if "PixelData" not in dataset or not dataset.PixelData:
        gate.refuse("PIXEL_TRUNCATED", "holds no pixels", HINT_COPY)
    columns, rows = header.size
    stored = len(dataset.PixelData)
    packed = _encapsulated(dataset)
    if columns * rows * header.frames * header.bits > stored * 8 * (_MAX_RATIO if packed else 1):
        gate.refuse("PIXEL_TRUNCATED", f"declares {header.frames} frames, but holds fewer pixels", HINT_COPY)
    if packed:
        _check_memory((columns, rows), 2, gate)


def _without_place(header: _Header, grid: Geometry | None, gate: Gate) -> Placement:
    """Return a picture: all frames on one plane of pixels without a physical size."""
    geometry = Geometry(np.eye(4), (*header.size, 1), physical=False)
    if grid is not None and (grid.physical or grid.shape != geometry.shape):
        gate.refuse("GEOM_MISSING", "does not say where its frames lie", "give the picture that it was made on")
    starts = np.zeros((header.frames, 3), np.int64)
    return Placement(grid or geometry, AxisOrder((0, 1, 2), (False, False, False)), starts)


def _frame_segments(dataset: Dataset, header: _Header, segments: dict[int, Label], gate: Gate) -> list[int]:
    """Return the segment number of each frame; empty for a label map."""
    if header.kind == "LABELMAP":
        return []
    shared = next(iter(dataset.get("SharedFunctionalGroupsSequence") or []), Dataset())
    numbers = []
    for group in dataset.get("PerFrameFunctionalGroupsSequence") or []:
        holder = group if "SegmentIdentificationSequence" in group else shared
        item = next(iter(holder.get("SegmentIdentificationSequence") or []), Dataset())
        number = item.get("ReferencedSegmentNumber")
        if number not in segments:
            gate.refuse("HEADER", "holds a frame of a segment that it does not describe", HINT_EXPORT)
        numbers.append(int(number))
    return numbers


@dataclass
class _Canvas:
    """A label map that grows frame by frame: an atom for each combination of labels that occurs."""

    array: Array
    values: Sequence[int]
    gate: Gate
    members: dict[int, tuple[int, ...]] = field(default_factory=dict)
    atoms: dict[tuple[int, ...], int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.members = {0: ()} | {value: (value,) for value in self.values}
        self.atoms = {those: atom for atom, those in self.members.items()}
        taken = {*self.values}
        self._free = (number for number in range(1, _MAX_VALUE + 1) if number not in taken)

    def add(self, plane: Array, mask: Array, value: int) -> None:
        """Add a label where a mask is, on a plane of the array."""
        covered = plane[mask]
        if covered.any():
            table = np.zeros(int(covered.max()) + 1, self.array.dtype)
            for atom in np.flatnonzero(np.bincount(covered)).tolist():
                table[atom] = self._with(atom, value)
            plane[mask] = table[covered]
        else:
            plane[mask] = value

    def labels(self, given: Sequence[Label]) -> tuple[Label, ...]:
        """Return the labels with the atoms in which they take part, their own value first."""
        shared = [(atom, those) for atom, those in self.members.items() if len(those) > 1]
        return tuple(
            label.model_copy(update={"atoms": (label.value, *(a for a, those in shared if label.value in those))})
            for label in given
        )

    def _with(self, atom: int, value: int) -> int:
        those = tuple(sorted({*self.members[atom], value}))
        if those not in self.atoms:
            new = next(self._free, None)
            if new is None:
                self.gate.refuse("NOT_LABELS", f"holds more than {_MAX_VALUE} combinations of segments", HINT_EXPORT)
            self.atoms[those], self.members[new] = new, those
        return self.atoms[those]


def _paint(
    dataset: Dataset, header: _Header, place: Placement, segments: dict[int, Label], numbers: list[int], gate: Gate
) -> tuple[Array, tuple[Label, ...]]:
    """Return the atoms on the grid, and the labels."""
    _refuse_twice(place, numbers, gate)
    _check_memory(place.geometry.shape, 2, gate)
    array = np.zeros(place.geometry.shape, np.uint16, order="F")
    turned = place.order.apply(array).T  # (planes, rows, columns), as pixels are stored
    canvas = _Canvas(array, [label.value for label in segments.values()], gate)
    table = np.zeros(_MAX_VALUE + 1, np.uint16)
    known: npt.NDArray[np.bool_] = np.zeros(_MAX_VALUE + 1, np.bool_)
    known[background_of(dataset) if header.kind == "LABELMAP" else 0] = True
    for number, label in segments.items():
        table[number], known[number] = label.value, True
    most = int(dataset.MaximumFractionalValue) if header.kind == "FRACTIONAL" else 1
    half = (most + 1) // 2  # a mask has ones from 1 on, fractions from one half on
    if not 1 <= most <= 255:
        gate.refuse("HEADER", "has no valid MaximumFractionalValue", HINT_EXPORT)
    outside = 0
    for n, frame in enumerate(_frames(dataset, header, gate)):
        plane, seen = _window(turned, place.starts[n], header.size)
        whole: Array
        if header.kind == "LABELMAP":
            if not known[frame].all():
                gate.refuse("HEADER", "holds pixels of a segment that it does not describe", HINT_EXPORT)
            whole = table[frame]
            plane[...] = whole[seen]
        else:
            whole = frame >= half
            canvas.add(plane, whole[seen], segments[numbers[n]].value)
        if plane.shape != frame.shape:
            outside += int(np.count_nonzero(whole) - np.count_nonzero(whole[seen]))
    if outside:
        gate.warn(f"{outside} of its pixels lie outside the scan and are left out")
    if header.kind == "FRACTIONAL":
        gate.warn(f"holds fractions; pixels count from {half} of {most} on")
    small = np.uint8 if max(canvas.members) < 256 else np.uint16
    return array.astype(small, copy=False), canvas.labels([*segments.values()])


def _refuse_twice(place: Placement, numbers: list[int], gate: Gate) -> None:
    """Refuse two frames of one segment at one position."""
    spots = list(zip(numbers or [0] * len(place.starts), place.starts[:, 2].tolist(), strict=True))
    if len({*spots}) < len(spots):
        gate.refuse("DUP_POSITION", "holds two frames of one segment at one position", HINT_EXPORT)


def _window(turned: Array, start: npt.NDArray[np.int64], size: tuple[int, int]) -> tuple[Array, tuple[slice, slice]]:
    """Return the part of the grid that a frame covers, (rows, columns), and the part of the frame that covers it."""
    planes, *bounds = turned.shape
    column, row, k = start.tolist()
    spans = []
    for first, count, bound in ((row, size[1], bounds[0]), (column, size[0], bounds[1])):
        low, high = max(0, -first), min(count, bound - first)
        spans.append((slice(first + low, first + high), slice(low, high)) if low < high else (slice(0), slice(0)))
    (down, rows), (across, columns) = spans
    if not 0 <= k < planes:
        return turned[0, :0, :0], (slice(0), slice(0))
    return turned[k, down, across], (rows, columns)


def _frames(dataset: Dataset, header: _Header, gate: Gate) -> Iterator[Array]:
    """Yield the frames, (rows, columns), one after the other."""
    if not _encapsulated(dataset) and _syntax(dataset) != ExplicitVRBigEndian:
        yield from _native(dataset.PixelData, header)
        return
    problem = "its pixels cannot be decoded: they are damaged, or stored in a form that medseg does not know"
    frames = _tried(
        lambda: iter_pixels(dataset, raw=True, decoding_plugin=_plugin(dataset)), gate, "PIXEL_DAMAGED", problem
    )
    for _ in range(header.frames):
        frame = _tried(lambda: next(frames, None), gate, "PIXEL_DAMAGED", problem)
        if frame is None:
            gate.refuse("PIXEL_TRUNCATED", f"declares {header.frames} frames, but holds fewer", HINT_COPY)
        if frame.shape != header.size[::-1] or frame.dtype.kind != "u":
            gate.refuse("PIXEL_DAMAGED", problem, HINT_COPY)
        yield frame


def _plugin(dataset: Dataset) -> str:
    """Return the decoder to use. Never GDCM, which ends the process at some damaged frames."""
    available = get_decoder(_syntax(dataset)).available_plugins
    return next((plugin for plugin in _DECODERS if plugin in available), "")


def _native(data: bytes, header: _Header) -> Iterator[Array]:
    columns, rows = header.size
    pixels = columns * rows
    if header.bits > 1:
        array = np.frombuffer(data, f"<u{header.bits // 8}", pixels * header.frames)
        yield from array.reshape(header.frames, rows, columns)
        return
    packed = np.frombuffer(data, np.uint8)
    for n in range(header.frames):  # one frame may end within a byte
        byte, bit = divmod(n * pixels, 8)
        bits = np.unpackbits(packed[byte : byte + (bit + pixels + 7) // 8], bitorder="little")
        yield bits[bit : bit + pixels].reshape(rows, columns)
