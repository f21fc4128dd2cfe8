"""The segments of a DICOM SEG as labels, and labels as segments: names, codes, colours, values (PS3.3 C.8.20.4).

Segments are numbered 1, 2, 3 ... where they are stored as bits. The value that a label has in medseg is kept in the
description of its segment, so that reading back gives the same map.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from highdicom import AlgorithmIdentificationSequence
from highdicom.color import CIELabColor
from highdicom.seg import SegmentDescription
from highdicom.sr import CodedConcept
from pydicom import Dataset
from pydicom.sr.codedict import codes

from medseg.dicom.frames import Producer, result_uid
from medseg.dicom.study import fit
from medseg.gate import HINT_EXPORT, Gate
from medseg.plan import Code, Label
from medseg.volume import Stack

MAKER = "medseg"  # manufacturer: only in objects of our own is a description read as a value
UNCODED = Code(value="85756007", meaning="Tissue")  # what a label without a code is said to be: true of every label
_CATEGORY = CodedConcept("91723000", "SCT", "Anatomical Structure")
_VALUE = "medseg label value "
_MAX_VALUE = 65535
_FAULTS = (AttributeError, LookupError, TypeError, ValueError, ArithmeticError)


def describe(labels: Sequence[Label], producer: Producer, stack: Stack) -> list[Dataset]:
    """Return the items of the segment sequence, one for each label, numbered from 1."""
    algorithm = AlgorithmIdentificationSequence(
        name=fit(producer.name),
        family=codes.DCM.ArtificialIntelligence,
        version=fit(producer.version),
        source=MAKER,
        parameters={"weights_sha256": producer.sha256},
    )
    return [_segment(number, label, algorithm, producer, stack) for number, label in enumerate(labels, start=1)]


def _segment(
    number: int, label: Label, algorithm: AlgorithmIdentificationSequence, producer: Producer, stack: Stack
) -> Dataset:
    segment = SegmentDescription(
        segment_number=number,
        segment_label=fit(label.name) or "-",
        segmented_property_category=_CATEGORY if label.code else _concept(UNCODED),
        segmented_property_type=_concept(label.code or UNCODED),
        algorithm_type="AUTOMATIC",
        algorithm_identification=algorithm,
        tracking_uid=result_uid(stack, producer, "segment", str(label.value), label.name),
        tracking_id=fit(f"{producer.name} {label.name}"),
        display_color=CIELabColor.from_rgb(*label.rgb),
    )
    segment.SegmentDescription = f"{_VALUE}{label.value}"
    if label.modifier:
        segment.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [
            _concept(label.modifier)
        ]
    return segment


def _concept(code: Code) -> CodedConcept:
    return CodedConcept(code.value, code.scheme, fit(code.meaning) or "-")


def read_segments(dataset: Dataset, gate: Gate, *, labelmap: bool) -> dict[int, Label]:
    """Return the labels by segment number, without background."""
    items = list(dataset.get("SegmentSequence") or [])
    numbered = {_number(item, gate, labelmap=labelmap): item for item in items}
    if len(numbered) < len(items):
        gate.refuse("HEADER", "describes two segments of one number", HINT_EXPORT)
    if labelmap:
        numbered.pop(background_of(dataset), None)
    if not numbered:
        gate.refuse("HEADER", "describes no segment", HINT_EXPORT)
    own = str(dataset.get("Manufacturer")) == MAKER
    values = _values(numbered, own=own)
    labels: dict[int, Label] = {}
    for number, item in numbered.items():
        name = str(item.get("SegmentLabel") or "").strip() or f"segment {number}"
        code = _code(item, "SegmentedPropertyTypeCodeSequence")
        modifier = _modifier(item) if code else None
        if own and code == UNCODED and not modifier:
            code = None
        labels[number] = Label(
            value=values[number],
            name=_unique(name, {label.name for label in labels.values()}),
            color=_color(item),
            code=code,
            modifier=modifier,
        )
    return labels


def background_of(dataset: Dataset) -> int:
    """Return the number that pixels of no segment hold in a label map."""
    return int(dataset.get("PixelPaddingValue", 0))


def _number(item: Dataset, gate: Gate, *, labelmap: bool) -> int:
    number = item.get("SegmentNumber")
    if not isinstance(number, int) or not (not labelmap) <= number <= _MAX_VALUE:
        gate.refuse("HEADER", "describes a segment without a valid number", HINT_EXPORT)
    return number


def _values(numbered: dict[int, Dataset], *, own: bool) -> dict[int, int]:
    """Return the label value of each segment: its number, or what our own writer left in its description."""
    values = {number: number for number in numbered}
    if 0 in values:
        values[0] = next(number for number in range(1, _MAX_VALUE + 2) if number not in numbered)
    if own:
        texts = {number: str(item.get("SegmentDescription") or "") for number, item in numbered.items()}
        found = {number: re.fullmatch(re.escape(_VALUE) + r"([0-9]{1,5})", text) for number, text in texts.items()}
        kept = {number: int(match[1]) for number, match in found.items() if match}
        if len({*kept.values()}) == len(numbered) and all(1 <= value <= _MAX_VALUE for value in kept.values()):
            return kept
    return values


def _unique(name: str, taken: set[str]) -> str:
    """Return a name that is not taken: with a number behind it where it is."""
    new, count = name, 1
    while new in taken:
        count += 1
        new = f"{name} ({count})"
    return new


def _code(item: Dataset, keyword: str) -> Code | None:
    concept = next(iter(item.get(keyword) or []), Dataset())
    value = next((concept.get(k) for k in ("CodeValue", "LongCodeValue", "URNCodeValue") if concept.get(k)), None)
    if not value:
        return None
    meaning, scheme = (str(concept.get(k) or "") for k in ("CodeMeaning", "CodingSchemeDesignator"))
    return Code(value=str(value), meaning=meaning, scheme=scheme)


def _modifier(item: Dataset) -> Code | None:
    keyword = "SegmentedPropertyTypeModifierCodeSequence"
    return _code(item.SegmentedPropertyTypeCodeSequence[0], keyword) or _code(item, keyword)


def _color(item: Dataset) -> tuple[int, int, int] | None:
    value = item.get("RecommendedDisplayCIELabValue")
    try:
        red, green, blue = CIELabColor.from_dicom_value(tuple(int(part) for part in value)).to_rgb()
    except _FAULTS:
        return None
    return int(red), int(green), int(blue)
