"""NRRD in one file (`.nrrd`): the format of 3D Slicer (teem.sourceforge.net/nrrd/format.html).

medseg reads header and voxels itself: SimpleITK accepts a stream without its checksum (docs/decisions/0003).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from medseg.atomic import Outputs
from medseg.gate import HINT_EXPORT, Gate
from medseg.geometry import Geometry
from medseg.io.stream import Stream, compress
from medseg.io.text import LPS, declared_sizes, exact, numbers
from medseg.io.voxels import in_file_order, read_voxels, scaled, storable
from medseg.volume import LabelMap, Source, Volume

_NAMES = {  # the first name of each is the one written
    "int8": ("int8", "signed char", "int8_t"),
    "uint8": ("uint8", "uchar", "unsigned char", "uint8_t"),
    "int16": ("int16", "short", "short int", "signed short", "signed short int", "int16_t"),
    "uint16": ("uint16", "ushort", "unsigned short", "unsigned short int", "uint16_t"),
    "int32": ("int32", "int", "signed int", "int32_t"),
    "uint32": ("uint32", "uint", "unsigned int", "uint32_t"),
    "int64": ("int64", "longlong", "long long", "long long int", "signed long long", "int64_t"),
    "uint64": ("uint64", "ulonglong", "unsigned long long", "unsigned long long int", "uint64_t"),
    "float32": ("float",),
    "float64": ("double",),
}
_DTYPES = {name: np.dtype(dtype) for dtype, names in _NAMES.items() for name in names}
_TO_RAS = {
    "right-anterior-superior": (1, 1, 1),
    "ras": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1),
    "las": (-1, 1, 1),
    "left-posterior-superior": (-1, -1, 1),
    "lps": (-1, -1, 1),
}
_TO_MM = {"mm": 1.0, "millimeter": 1.0, "millimetre": 1.0, "": 1.0, "m": 1000.0, "cm": 10.0, "um": 0.001, "µm": 0.001}
_SERIAL_KINDS = ("list", "time", "???", "none", "")
_MAX_HEADER = 1 << 20


@dataclass(frozen=True)
class NrrdImage:
    """All that a file holds: voxels (N, I, J, K), N volumes or layers, with geometry, keys and source."""

    array: npt.NDArray[Any]
    geometry: Geometry
    keys: dict[str, str]
    source: Source


def read_nrrd(path: Path, *, volume: int | None = None) -> Volume:
    """Return the scan of an NRRD file: (1, I, J, K).

    Parameters
    ----------
    path : Path
        `.nrrd` with the voxels attached.
    volume : int, optional
        Which volume of a 4D file, counted from 0. Needed when there are several.

    Raises
    ------
    ScanError
        If the file is damaged, impossible, or not a scan. Oddities become `source.warnings`.
    """
    image = load(path)
    index = Gate(path).choose_volume(volume, len(image.array))
    return Volume(image.array[index : index + 1], image.geometry, image.source)


def load(path: Path) -> NrrdImage:
    """Return every volume (or layer) of an NRRD file, with its keys."""
    gate = Gate(path)
    with open(path, "rb") as file:
        fields, keys = _header(file, gate)
        dtype = _dtype(fields, gate)
        sizes = declared_sizes(fields.get("sizes", ""), fields.get("dimension", ""), gate)
        serial = _serial_axis(fields, sizes, gate)
        geometry = _geometry(fields, sizes, serial, gate)
        stream = Stream(file, gate, compression="" if fields["encoding"] == "raw" else "gzip")
        stored = scaled(read_voxels(stream, sizes, dtype), 1.0, 0.0, gate)
        stream.finish()
    array = stored[None] if serial is None else np.moveaxis(stored, serial, 0)
    array = array.reshape(len(array), *geometry.shape, order="F")  # a picture gets its third axis
    return NrrdImage(array, geometry, keys, Source(path, "nrrd", tuple(gate.warnings)))


def write_nrrd(
    image: Volume | LabelMap, path: Path, outputs: Outputs, *, keys: Mapping[str, str] | None = None
) -> None:
    """Write a scan or a label map, gzip-compressed, with `keys` in the header; several channels as a list axis."""
    array: npt.NDArray[Any] = image.array
    lists = array.ndim - 3
    if lists and len(array) == 1:
        array, lists = array[0], 0
    vectors = [_written(image.geometry.affine[:3, axis] * LPS) for axis in range(3)]
    lines = [
        "NRRD0004",
        f"type: {_NAMES[storable(array.dtype).name][0]}",
        f"dimension: {array.ndim}",
        "space: left-posterior-superior",
        f"sizes: {' '.join(map(str, array.shape))}",
        f"space directions: {' '.join(['none'] * lists + vectors)}",
        f"kinds: {' '.join(['list'] * lists + ['domain'] * 3)}",
        "endian: little",
        "encoding: gzip",
        f"space origin: {_written(np.array(image.geometry.origin) * LPS)}",
        *(f"{name}:={_escaped(value)}" for name, value in (keys or {}).items()),
    ]
    header = ("\n".join(lines) + "\n\n").encode()
    outputs.write(path, chain([header], compress(in_file_order(array))))


def _header(file: BinaryIO, gate: Gate) -> tuple[dict[str, str], dict[str, str]]:
    fields: dict[str, str] = {}
    keys: dict[str, str] = {}
    file.readline(_MAX_HEADER)  # the magic, seen by whoever called this reader
    while line := file.readline(_MAX_HEADER).decode("utf-8", "replace").rstrip("\r\n"):
        if file.tell() > _MAX_HEADER:
            gate.refuse("HEADER", "has a header of more than 1 MB", HINT_EXPORT)
        if line.startswith("#"):
            continue
        if ":=" in line:
            name, value = line.split(":=", 1)
            keys[name.strip()] = re.sub(r"\\(.)", lambda found: "\n" if found[1] == "n" else found[1], value).strip()
        elif ":" in line:
            name, value = line.split(":", 1)
            fields[name.strip().lower()] = value.strip()
        else:
            gate.refuse("HEADER", f"has the meaningless header line {line[:60]!r}", HINT_EXPORT)
    if "data file" in fields or "datafile" in fields:
        gate.refuse("DETACHED", "keeps its voxels in another file", "save it as one .nrrd file")
    fields["encoding"] = {"gz": "gzip"}.get(encoding := fields.get("encoding", "").lower(), encoding)
    if fields["encoding"] not in ("raw", "gzip"):
        gate.refuse("ENCODING", f"stores its voxels as {encoding or 'nothing'!r}", "save it with encoding gzip or raw")
    if any(fields.get(name, "0") != "0" for name in ("line skip", "lineskip", "byte skip", "byteskip")):
        gate.refuse("ENCODING", "skips bytes before its voxels", "save it again without line or byte skip")
    return fields, keys


def _dtype(fields: dict[str, str], gate: Gate) -> np.dtype[Any]:
    name = fields.get("type", "").lower()
    if name not in _DTYPES:
        gate.refuse("DATATYPE", f"holds voxels of type {name!r}, not intensities", "export real-valued intensities")
    endian = fields.get("endian", "little" if _DTYPES[name].itemsize == 1 else "").lower()
    if endian not in ("little", "big"):
        gate.refuse("HEADER", f"does not say its byte order (endian {endian!r})", HINT_EXPORT)
    return _DTYPES[name].newbyteorder("<" if endian == "little" else ">")


def _serial_axis(fields: dict[str, str], sizes: tuple[int, ...], gate: Gate) -> int | None:
    """Return the axis that counts volumes or layers, or None: the one with no direction in space."""
    kinds = fields.get("kinds", "").lower().split() or [""] * len(sizes)
    directions = _vectors(fields["space directions"]) if "space directions" in fields else ["()"] * len(sizes)
    if len(kinds) != len(sizes) or len(directions) != len(sizes):
        said = f"{len(kinds)} kinds and {len(directions)} directions for {len(sizes)} axes"
        gate.refuse("HEADER", f"describes {said}", HINT_EXPORT)
    serial = [axis for axis, text in enumerate(directions) if text == "none"]
    if not serial and len(sizes) == 4:
        serial = [axis for axis, kind in enumerate(kinds) if kind in ("list", "time")] or [3]
    if not serial:
        return None
    kind = kinds[serial[0]]
    if len(serial) > 1 or len(sizes) - len(serial) < 2:
        gate.refuse("SHAPE", f"has {len(sizes) - len(serial)} axes in space", "give a scan of two or three axes")
    if kind not in _SERIAL_KINDS:
        gate.refuse("DATATYPE", f"holds {kind} voxels, not intensities", "extract one component as a 3D file")
    return serial[0]


def _geometry(fields: dict[str, str], sizes: tuple[int, ...], serial: int | None, gate: Gate) -> Geometry:
    spatial = [axis for axis in range(len(sizes)) if axis != serial]
    affine = _affine(fields, spatial, gate) if "space directions" in fields else _unplaced(fields, spatial, gate)
    _apply_units(fields, affine, gate)
    shape = [sizes[axis] for axis in spatial] + [1] * (3 - len(spatial))
    return gate.geometry(affine, (shape[0], shape[1], shape[2]))


def _affine(fields: dict[str, str], spatial: list[int], gate: Gate) -> npt.NDArray[np.float64]:
    vectors = [_vectors(fields["space directions"])[axis] for axis in spatial]
    count = vectors[0].count(",") + 1
    if not len(spatial) <= count <= 3:
        gate.refuse("AFFINE", f"gives {len(spatial)} axes directions of {count} numbers", HINT_EXPORT)
    affine = np.eye(4)
    for column, vector in enumerate(vectors):
        affine[:count, column] = _vector(vector, count, "space directions", gate)
    if len(spatial) == 2:
        normal = np.cross(affine[:3, 0], affine[:3, 1])
        affine[:3, 2] = normal / (np.linalg.norm(normal) or 1)
    if "space origin" in fields:
        affine[:count, 3] = _vector(fields["space origin"], count, "space origin", gate)
    else:
        gate.warn("the header does not give the position; 0 is used")
    flips = _TO_RAS.get(fields.get("space", "").lower())
    if flips is None:
        gate.warn(f"the space {fields.get('space', '')!r} is not a patient's; its axes are taken as left, back, up")
    affine[:3] *= np.array(flips or LPS)[:, None]
    return affine


def _unplaced(fields: dict[str, str], spatial: list[int], gate: Gate) -> npt.NDArray[np.float64]:
    """Return the affine of a scan whose header gives spacings at most."""
    gate.warn("the header does not say how the scan lies in the patient; i, j, k are taken as left, back, up")
    words = fields.get("spacings", "").split()
    affine = np.eye(4)
    for column, axis in enumerate(spatial):
        if axis < len(words) and words[axis].lower() != "nan":
            affine[column, column] = numbers([words[axis]], 1, "spacings", gate)[0]
        else:
            gate.warn("the header gives no spacing to every axis; 1 mm is assumed")
    affine[:3] *= LPS[:, None]
    return affine


def _apply_units(fields: dict[str, str], affine: npt.NDArray[np.float64], gate: Gate) -> None:
    units = {unit.strip().lower() for unit in re.findall(r'"([^"]*)"', fields.get("space units", ""))}
    if len(units) > 1 or (units and not units <= _TO_MM.keys()):
        gate.refuse("SPACING", f"counts in {', '.join(sorted(units))}", "save it in millimetres")
    factor = _TO_MM[units.pop()] if units else 1.0
    if factor != 1:
        gate.warn(f"the header counts in units of {factor:g} mm; converted")
        affine[:3] *= factor


def _vectors(text: str) -> list[str]:
    return re.findall(r"none|\([^)]*\)", text)


def _vector(text: str, count: int, name: str, gate: Gate) -> npt.NDArray[np.float64]:
    return numbers(text.strip("() ").split(","), count, name, gate)


def _written(vector: npt.NDArray[np.float64]) -> str:
    return f"({','.join(exact(vector))})"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n")
