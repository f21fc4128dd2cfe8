"""`.seg.nrrd`, the segmentation format of 3D Slicer: an NRRD file whose keys name, colour and code its segments.

The keys: slicer.readthedocs.io, developer guide, segmentations. Segments that overlap are stored in several
layers; in medseg a voxel then holds an atom for each combination that occurs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medseg.atomic import Outputs
from medseg.boxes import Box
from medseg.gate import Gate
from medseg.geometry import Geometry
from medseg.io import nrrd
from medseg.io.text import exact
from medseg.io.voxels import MAX_LABEL, whole
from medseg.plan import Code, Label
from medseg.strides import slabs, slowest_first
from medseg.volume import LabelMap, Volume, disjoint, looked_up

Voxels = npt.NDArray[np.unsignedinteger[Any]]

_CONTEXT = "Segmentation category and type - 3D Slicer General Anatomy list"
_ANATOMIC = "Anatomic codes - DICOM master list"
_HINT = "save the segmentation again in 3D Slicer"
_CATEGORY = Code(value="123037004", meaning="Anatomical Structure")
_TISSUE = Code(value="85756007", meaning="Tissue")  # true of every label, and what 3D Slicer calls one without a code
_ENDS = str.maketrans("^~|", "   ")  # what ends a text of a code, a code, a tag


def write_segments(labels: LabelMap, path: Path, outputs: Outputs) -> None:
    """Write a label map as `.seg.nrrd`: one segment for each label, in layers where they overlap."""
    layers = disjoint(labels.labels, lambda label: label.atoms) or [()]
    boxes = _boxes(labels.array)
    extents = [[boxes[atom] for label in members for atom in label.atoms if atom in boxes] for members in layers]
    keys = {
        "Segmentation_ContainedRepresentationNames": "Binary labelmap|",
        "Segmentation_ConversionParameters": f"Reference image geometry|{_reference(labels.geometry)}|the scan's grid&",
        "Segmentation_MasterRepresentation": "Binary labelmap",
        "Segmentation_ReferenceImageExtentOffset": "0 0 0",
    }
    for number, label in enumerate(labels.labels):
        layer = next(index for index, members in enumerate(layers) if label in members)
        keys |= _keys(number, label, layer, extents[layer])
    nrrd.write_nrrd(Volume(_stacked(labels, layers), labels.geometry), path, outputs, keys=keys)


def _boxes(array: Voxels) -> dict[int, Box]:
    """Return the box around each value that occurs, found in the order of the memory: several times faster."""
    order = slowest_first(array)
    found = ndimage.find_objects(array.transpose(order))
    return {
        value: tuple(box[order.index(axis)] for axis in range(3)) for value, box in enumerate(found, start=1) if box
    }


def _stacked(labels: LabelMap, layers: Sequence[tuple[Label, ...]]) -> Voxels:
    """Return the value of each voxel's label in each layer: (layers, I, J, K)."""
    tables = [
        np.array([0, *(label.value for label in members)], labels.array.dtype)[
            labels.place_table([label.atoms for label in members])
        ]
        for members in layers
    ]
    if len(layers) == 1 and (tables[0] == np.arange(len(tables[0]))).all():
        return labels.array[None]
    stacked: Voxels = np.empty((len(layers), *labels.geometry.shape), labels.array.dtype, order="F")
    for part in slabs(labels.array):
        for layer, table in zip(stacked, tables, strict=True):
            layer[part] = looked_up(table, labels.array[part])
    return stacked


def read_segments(path: Path) -> LabelMap:
    """Return the label map of a `.seg.nrrd` file, or of any NRRD file of labels.

    Raises
    ------
    ScanError
        If the file is damaged, or its voxels are not labels.
    """
    image = nrrd.load(path)
    gate = Gate(path)
    layers = whole(image.array, gate)
    found = _segments(image.keys, gate)
    if not found:
        gate.choose_volume(None, len(layers))
        return LabelMap(layers[0], image.geometry, (), image.source)
    if any(layer >= len(layers) for _, layer in found):
        gate.refuse("HEADER", "names a layer that it does not hold", _HINT)
    if len(layers) == 1:
        return LabelMap(layers[0], image.geometry, tuple(label for label, _ in found), image.source)
    rows, array = _combinations(layers, gate)
    labels = tuple(
        label.model_copy(update={"atoms": tuple(int(n) for n in np.flatnonzero(rows[:, layer] == label.value))})
        for label, layer in found
    )
    return LabelMap(array, image.geometry, labels, image.source)


def _combinations(layers: Voxels, gate: Gate) -> tuple[Voxels, Voxels]:
    """Return the distinct tuples of layer values (atom n is row n, row 0 background) and an atom per voxel."""
    rows = np.zeros((1, 0), layers.dtype)
    atoms = np.zeros(layers.shape[1:], np.uint16)
    for layer in layers:
        keys = atoms.astype(np.int64) * (MAX_LABEL + 1) + layer
        kept, inverse = np.unique(np.append(0, keys), return_inverse=True)  # background is there in any case
        if len(kept) > MAX_LABEL + 1:
            gate.refuse("NOT_LABELS", f"holds more than {MAX_LABEL} combinations of segments", _HINT)
        before, value = np.divmod(kept, MAX_LABEL + 1)
        rows = np.concatenate([rows[before], value[:, None].astype(layers.dtype)], axis=1)
        atoms = inverse[1:].reshape(layer.shape).astype(np.uint16)
    return rows, atoms


def _keys(number: int, label: Label, layer: int, boxes: Sequence[Box]) -> dict[str, str]:
    """Return the keys of a segment whose layer fills some boxes.

    The extent is that of the layer, as 3D Slicer writes it: before 5.7 it cuts a whole layer to the extent of its
    first segment. A label without codes gets no tag: 3D Slicer takes an entry without a type for damaged, and calls
    what has none tissue.
    """
    name = f"Segment{number}_"
    tags = {name + "Tags": f"TerminologyEntry:{_terminology(label)}|"} if label.codes else {}
    return {
        name + "ID": f"Segment_{label.value}",
        name + "Name": label.name,
        name + "NameAutoGenerated": "0",
        name + "Color": " ".join(f"{part / 255:.6g}" for part in label.rgb),
        name + "ColorAutoGenerated": "0",
        name + "Extent": " ".join(map(str, _extent(boxes))),
        name + "LabelValue": str(label.value),
        name + "Layer": str(layer),
    } | tags


def _extent(boxes: Sequence[Box]) -> list[int]:
    """Return first and last voxel along each axis of what lies in some boxes."""
    axes = list(zip(*boxes, strict=True)) or [(slice(0, 0),)] * 3
    return [end for spans in axes for end in (min(span.start for span in spans), max(span.stop for span in spans) - 1)]


def _reference(geometry: Geometry) -> str:
    """Return affine and extent of the whole grid: without it 3D Slicer saves no more than what its segments fill."""
    ends = [end for size in geometry.shape for end in ("0", str(size - 1))]
    return "".join(f"{text};" for text in [*exact(geometry.affine.ravel()), *ends])


def _terminology(label: Label) -> str:
    category = _CATEGORY if label.code else _TISSUE
    parts = [_triple(category), _triple(label.code or _TISSUE), _triple(label.modifier)]
    return "~".join([_CONTEXT, *parts, _ANATOMIC, "^^", "^^"])


def _triple(code: Code | None) -> str:
    """Return scheme, value and meaning, without the characters that end them."""
    texts = (code.scheme, code.value, code.meaning) if code else ("", "", "")
    return "^".join(text.translate(_ENDS) for text in texts)


def _segments(keys: dict[str, str], gate: Gate) -> list[tuple[Label, int]]:
    numbers = sorted(int(m[1]) for key in keys if (m := re.fullmatch(r"Segment(\d{1,6})_LabelValue", key)))
    found: list[tuple[Label, int]] = []
    for number in numbers:
        get = {
            part: keys.get(f"Segment{number}_{part}", "") for part in ("LabelValue", "Layer", "Name", "Color", "Tags")
        }
        value, layer = (_small(get[part]) for part in ("LabelValue", "Layer"))
        if not value or layer is None:
            gate.refuse("HEADER", f"gives segment {number} no valid label value or layer", _HINT)
        code, modifier = _codes(get["Tags"])
        name = get["Name"] or f"segment {number}"
        if any(name == label.name for label, _ in found):
            gate.refuse("HEADER", f"gives the name {name!r} to two segments", "rename one in 3D Slicer")
        label = Label(value=value, name=name, color=_color(get["Color"]), code=code, modifier=modifier)
        found.append((label, layer))
    return found


def _small(text: str) -> int | None:
    """Return a label value or layer; 0 where the key is missing, None where it is no such number."""
    if not re.fullmatch(r"[0-9]{0,5}", text):
        return None
    number = int(text or 0)
    return number if number <= MAX_LABEL else None


def _color(text: str) -> tuple[int, int, int] | None:
    """Return a colour of three fractions; None, a colour of medseg's choice, where there is none."""
    try:
        parts = [float(part) for part in text.split()]
    except ValueError:
        return None
    if len(parts) != 3 or not all(0 <= part <= 1 for part in parts):
        return None
    red, green, blue = (round(part * 255) for part in parts)
    return red, green, blue


def _codes(tags: str) -> tuple[Code | None, Code | None]:
    entry = re.search(r"TerminologyEntry:([^|]*)", tags)
    parts = entry[1].split("~") if entry else []
    triples = [part.split("^") for part in parts[2:4]]
    codes = [Code(scheme=t[0], value=t[1], meaning=t[2]) if len(t) == 3 and t[1] else None for t in triples]
    return (codes[0], codes[1]) if len(codes) == 2 else (None, None)
