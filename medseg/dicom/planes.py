"""Image planes: what one file, or one frame of a multi-frame file, says of where it lies and what its numbers mean."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.charset import convert_encodings, decode_bytes

from medseg.dicom.elements import DEFLATED, Elements, inflated
from medseg.dicom.parts import Damaged, Part
from medseg.dicom.privacy import quiet
from medseg.volume import Frame

IMAGES = "1.2.840.10008.5.1.4.1.1."  # how the UIDs of image classes begin
_RADIOGRAPHS = frozenset({"1", "1.1", "1.1.1", "1.2", "1.2.1", "1.3", "1.3.1"})
_SLOPE, _INTERCEPT = 0x00281053, 0x00281052
_GROUPED = frozenset(  # SOP classes whose frames have functional groups (PS3.3 C.7.6.16)
    f"{IMAGES}{end}"
    for end in ("2.1", "2.2", "4.1", "4.3", "4.4", "128.1", "130", "7.2", "7.3", "7.4", "13.1.1", "13.1.2", "13.1.3")
)
_NO_SCANS = {  # SOP classes with pixels that are no scans
    "66.4": "segmentations",
    "66.7": "segmentations",
    "481.2": "radiotherapy doses",
    "30": "parametric maps",
    "77.1.6": "slides",
    "11.1": "presentation states",
}
_MOMENTS = {  # elements that may tell one pass over the same positions from the next, most telling first
    0x00200100: "temporal position",
    0x00189087: "b-value",
    0x00181060: "trigger time",
    0x00200012: "acquisition number",
    0x0008002A: "acquisition time",
    0x00080032: "acquisition time",
    0x00080033: "content time",
}


@dataclass(frozen=True, slots=True)
class Plane:
    """One image plane.

    Parameters
    ----------
    part : Part
        Where the object lies.
    elements : Elements
        Of the object; pixel format and place of the pixels.
    number : int
        Frame number from 1 of a multi-frame object, else 0.
    series, reference : str
        UIDs of the series and of its frame of reference.
    image_type : tuple of str
        ImageType of the frame.
    position, orientation, spacing : tuples of floats
        Of the image plane (PS3.3 C.7.6.2), in mm and LPS+; empty where missing or no numbers.
    thickness, between : float, optional
        SliceThickness and SpacingBetweenSlices, in mm.
    slope, intercept : float
        Stored values to physical ones; nan where the header holds no number.
    rescaled : bool
        Whether the header has them.
    echo, stack : str
        What further splits a series into volumes.
    moments : tuple of (name, value)
        What may tell one pass over the same positions from the next.
    """

    part: Part
    elements: Elements
    number: int = 0
    series: tuple[str, str] = ("", "")
    reference: str = ""
    image_type: tuple[str, ...] = ()
    position: tuple[float, ...] = ()
    orientation: tuple[float, ...] = ()
    spacing: tuple[float, ...] = ()
    thickness: float | None = None
    between: float | None = None
    slope: float = 1.0
    intercept: float = 0.0
    rescaled: bool = False
    echo: str = ""
    stack: str = ""
    moments: tuple[tuple[str, str], ...] = field(default=())

    @property
    def size(self) -> tuple[int, int]:
        """Columns and rows."""
        return self.elements.short(0x00280011), self.elements.short(0x00280010)

    @property
    def instance(self) -> float:
        """InstanceNumber, or the number of the frame."""
        return self.number or self.elements.number(0x00200013) or 0

    @property
    def name(self) -> str:
        """How messages call the plane: by its number, never by its file."""
        return f"frame {self.number}" if self.number else f"slice {self.instance:g}"

    @property
    def modality(self) -> str:
        """CT, MR, PT, ...; '?' for what is no such code."""
        return self.elements.code(0x00080060)

    @property
    def radiograph(self) -> bool:
        """Whether it is a projection (CR, DX, MG): a picture that has no place in the patient."""
        return not self.position and self.frame().sop_class.removeprefix(IMAGES) in _RADIOGRAPHS

    @property
    def placeless(self) -> bool:
        """Whether it stands for several frames that do not say where they lie."""
        return not self.number and self.elements.frames() > 1

    def frame(self) -> Frame:
        """Return what results need to refer to the plane."""
        sop_class, sop_instance = (
            self.elements.text(tag) or self.elements.text(meta)
            for tag, meta in ((0x00080016, 0x00020002), (0x00080018, 0x00020003))
        )
        return Frame(self.part.path, self.part.member, self.number, sop_class, sop_instance)


def no_scan(elements: Elements) -> str:
    """Return what an object with pixels is where it is no scan, in the plural; '' for a scan."""
    kind = elements.text(0x00080016) or elements.text(0x00020002)
    return _NO_SCANS.get(kind.removeprefix(IMAGES), "")


def planes_of(part: Part, elements: Elements) -> list[Plane]:
    """Return the image planes of an object, none where it is no image.

    Raises
    ------
    Damaged
        If its header cannot be read.
    """
    if not elements.offset:
        if elements.short(0x00280010):
            raise Damaged("it has rows, but no pixels")
        return []
    plane, count = _single(part, elements), elements.frames()
    if elements.text(0x00080016) in _GROUPED or elements.text(0x00020002) in _GROUPED:
        return _frames(plane, read_dataset(part), count)
    return [plane]


def description(elements: Elements) -> str:
    """Return SeriesDescription as text in its own character set, without characters that steer a terminal."""
    encodings = [name or "ISO_IR 6" for name in elements.texts(0x00080005)] or ["ISO_IR 6"]
    with quiet():
        try:
            known = convert_encodings(encodings)
            text = decode_bytes(elements.values.get(0x0008103E, b""), known, {0x5C})
        except (LookupError, ValueError):
            text = elements.text(0x0008103E)
    return "".join(letter if letter.isprintable() else " " for letter in text[:64].rstrip("\0 ")).strip()


def read_dataset(part: Part, *, pixels: bool = False) -> Dataset:
    """Return an object as a pydicom dataset.

    Raises
    ------
    Damaged
        If pydicom cannot read it.
    """
    try:
        with quiet(), part.open() as file:
            head = file.read(1024)
            if DEFLATED.encode() in head:  # pydicom would inflate it without a limit
                content = _undeflated(inflated(file).getvalue())
            elif part.archive is not None:
                content = head + file.read()
            else:
                return dcmread(part.path, stop_before_pixels=not pixels, force=True)
            return dcmread(io.BytesIO(content), stop_before_pixels=not pixels, force=True)
    except Damaged:
        raise
    except (RecursionError, MemoryError, OSError):
        raise Damaged("its sequences lie too deep in one another, or claim more bytes than there are") from None
    except Exception as error:  # noqa: BLE001 - pydicom's parser raises a dozen types on damaged files
        raise Damaged(f"pydicom cannot read it ({type(error).__name__})") from None


def _undeflated(content: bytes) -> bytes:
    """Return a data set that was inflated, under the transfer syntax that it has now."""
    place = content.index(DEFLATED.encode())
    plain = b"1.2.840.10008.1.2.1".ljust(len(DEFLATED), b"\0")
    return content[:place] + plain + content[place + len(DEFLATED) :]


def _single(part: Part, elements: Elements) -> Plane:
    """Return the plane of an object of one frame."""
    return Plane(
        part,
        elements,
        series=(elements.text(0x0020000D), elements.text(0x0020000E)),
        reference=elements.text(0x00200052),
        image_type=tuple(elements.texts(0x00080008)),
        position=_exactly(3, elements.numbers(0x00200032)),
        orientation=_exactly(6, elements.numbers(0x00200037)),
        spacing=_exactly(2, elements.numbers(0x00280030)),
        thickness=elements.number(0x00180050),
        between=elements.number(0x00180088),
        slope=_scale(elements, _SLOPE, 1.0),
        intercept=_scale(elements, _INTERCEPT, 0.0),
        rescaled=bool(elements.text(_SLOPE) or elements.text(_INTERCEPT)),
        echo=elements.text(0x00180081),
        moments=tuple((name, _moment(elements, tag)) for tag, name in _MOMENTS.items() if tag in elements.values),
    )


def _moment(elements: Elements, tag: int) -> str:
    if tag != 0x00189087:
        return elements.text(tag)
    doubles = (elements.values.get(key, b"") for key in (tag, 0x00189089))
    numbers = [np.frombuffer(some, elements.order + "f8") for some in doubles if len(some) % 8 == 0]
    return " ".join(f"{number:.6g}" for values in numbers for number in values)


def _exactly(count: int, numbers: list[float]) -> tuple[float, ...]:
    return tuple(numbers) if len(numbers) == count else ()


def _scale(elements: Elements, tag: int, default: float) -> float:
    """Return slope or intercept; nan where there is something else than one number."""
    if not elements.text(tag):
        return default
    numbers = elements.numbers(tag)
    return numbers[0] if len(numbers) == 1 else math.nan


def _frames(plane: Plane, dataset: Dataset, count: int) -> list[Plane]:
    """Return the frames of an enhanced multi-frame object (PS3.3 C.7.6.16)."""
    try:
        with quiet():
            shared = next(iter(dataset.get("SharedFunctionalGroupsSequence") or []), Dataset())
            groups = list(dataset.get("PerFrameFunctionalGroupsSequence") or [])
            frames = [_frame(plane, number, shared, group) for number, group in enumerate(groups, start=1)]
            indices = [_index(shared, group) for group in groups]
    except (RecursionError, Exception) as error:  # noqa: BLE001 - pydicom parses values when asked for them
        raise Damaged(f"the functional groups of its frames cannot be read ({type(error).__name__})") from None
    if not frames:  # some secondary captures: they say nothing of their frames
        return [plane]
    if len(frames) != count:
        raise Damaged(f"it declares {count} frames and describes {len(frames)}")
    return [
        replace(frame, moments=(*frame.moments, ("dimension", key)))
        for frame, key in zip(frames, _without_places(frames, indices), strict=True)
    ]


def _of(shared: Dataset, group: Dataset, sequence: str, keyword: str) -> Any:
    """Return a value of a functional group, of the frame itself or shared by all; None where neither has it."""
    for place in (group, shared):
        item = next(iter(place.get(sequence) or []), None)
        if item is not None and item.get(keyword) is not None:
            return item.get(keyword)
    return None


def _frame(plane: Plane, number: int, shared: Dataset, group: Dataset) -> Plane:
    of = partial(_of, shared, group)
    moments = {
        "temporal position": of("FrameContentSequence", "TemporalPositionIndex"),
        "b-value": of("MRDiffusionSequence", "DiffusionBValue"),
        "acquisition time": of("FrameContentSequence", "FrameAcquisitionDateTime"),
    }
    slope = of("PixelValueTransformationSequence", "RescaleSlope")
    intercept = of("PixelValueTransformationSequence", "RescaleIntercept")
    kinds = ("MRImageFrameTypeSequence", "CTImageFrameTypeSequence", "PETFrameTypeSequence")
    kind = next((found for name in kinds if (found := of(name, "FrameType"))), plane.image_type)
    return replace(
        plane,
        number=number,
        image_type=tuple(kind),
        position=_numbers(of("PlanePositionSequence", "ImagePositionPatient"), 3),
        orientation=_numbers(of("PlaneOrientationSequence", "ImageOrientationPatient"), 6),
        spacing=_numbers(of("PixelMeasuresSequence", "PixelSpacing"), 2),
        thickness=_number(of("PixelMeasuresSequence", "SliceThickness")),
        between=_number(of("PixelMeasuresSequence", "SpacingBetweenSlices")),
        slope=plane.slope if slope is None else float(slope),
        intercept=plane.intercept if intercept is None else float(intercept),
        rescaled=plane.rescaled or slope is not None or intercept is not None,
        echo=str(of("MREchoSequence", "EffectiveEchoTime") or ""),
        stack=str(of("FrameContentSequence", "StackID") or ""),
        moments=tuple((name, str(value)) for name, value in moments.items() if value not in (None, "")),
    )


def _index(shared: Dataset, group: Dataset) -> tuple[int, ...]:
    value = _of(shared, group, "FrameContentSequence", "DimensionIndexValues")
    if value is None:
        return ()
    return tuple(int(part) for part in value) if hasattr(value, "__iter__") else (int(value),)


def _without_places(frames: list[Plane], indices: list[tuple[int, ...]]) -> list[str]:
    """Return for each frame its dimension indices but those that follow from its position."""
    width = min((len(index) for index in indices), default=0)
    kept = []
    for column in range(width):
        pairs = {(frame.position, index[column]) for frame, index in zip(frames, indices, strict=True)}
        if len(pairs) > len({frame.position for frame in frames}):
            kept.append(column)
    return [" ".join(f"{index[column]:05d}" for column in kept) for index in indices]


def _numbers(value: Any, count: int) -> tuple[float, ...]:
    numbers = tuple(float(part) for part in value) if value is not None else ()
    return numbers if len(numbers) == count and np.isfinite(numbers).all() else ()


def _number(value: Any) -> float | None:
    return None if value is None or not np.isfinite(float(value)) else float(value)
