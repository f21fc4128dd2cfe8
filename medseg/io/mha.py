"""MetaImage in one file (`.mha`), the format of ITK (itk.org/Wiki/ITK/MetaIO/Documentation).

medseg reads header and voxels itself: SimpleITK returns damaged voxels without a word (docs/decisions/0003).
"""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from medseg.atomic import Outputs
from medseg.gate import HINT_EXPORT, Gate
from medseg.geometry import Geometry
from medseg.io.stream import Stream, zlib_compress
from medseg.io.text import LPS, declared_sizes, exact, numbers
from medseg.io.voxels import in_file_order, read_voxels, scaled, storable
from medseg.volume import LabelMap, Source, Volume

_NAMES = {
    "int8": "MET_CHAR",
    "uint8": "MET_UCHAR",
    "int16": "MET_SHORT",
    "uint16": "MET_USHORT",
    "int32": "MET_INT",
    "uint32": "MET_UINT",
    "int64": "MET_LONG_LONG",
    "uint64": "MET_ULONG_LONG",
    "float32": "MET_FLOAT",
    "float64": "MET_DOUBLE",
}
_DTYPES = {name: np.dtype(dtype) for dtype, name in _NAMES.items()} | {
    "MET_LONG": np.dtype(np.int32),
    "MET_ULONG": np.dtype(np.uint32),
}
_MAX_HEADER = 1 << 20


def read_mha(path: Path, *, volume: int | None = None) -> Volume:
    """Return the scan of a MetaImage file: (1, I, J, K).

    Parameters
    ----------
    path : Path
        `.mha` with the voxels in the same file.
    volume : int, optional
        Which volume of a 4D file, counted from 0. Needed when there are several.

    Raises
    ------
    ScanError
        If the file is damaged, impossible, or not a scan. Oddities become `source.warnings`.
    """
    gate = Gate(path)
    with open(path, "rb") as file:
        fields = _header(file, gate)
        sizes = _sizes(fields, gate)
        geometry = _geometry(fields, sizes, gate)
        index = gate.choose_volume(volume, sizes[3])
        stream = Stream(file, gate, compression="zlib" if _is_true(fields, "CompressedData") else "")
        stored = read_voxels(stream, sizes, _dtype(fields, gate))[..., index]
        stream.finish()
    slope, intercept = (
        float(numbers(fields.get(name, default).split(), 1, name, gate)[0])
        for name, default in (("ElementToIntensityFunctionSlope", "1"), ("ElementToIntensityFunctionOffset", "0"))
    )
    array = scaled(stored, slope, intercept, gate)
    return Volume(array[None], geometry, Source(path, "mha", tuple(gate.warnings)))


def write_mha(image: Volume | LabelMap, path: Path, outputs: Outputs) -> None:
    """Write a scan or a label map, compressed; several channels become a fourth axis."""
    array: npt.NDArray[Any] = image.array if image.array.ndim == 3 else np.moveaxis(image.array, 0, 3)
    array = array[..., 0] if array.ndim == 4 and array.shape[3] == 1 else array
    geometry = image.geometry
    direction: npt.NDArray[np.float64] = geometry.direction * LPS[:, None]
    origin, spacing = np.array(geometry.origin) * LPS, np.array(geometry.spacing)
    if array.ndim == 4:
        direction = np.pad(direction, (0, 1))
        direction[3, 3] = 1
        origin, spacing = np.append(origin, 0), np.append(spacing, 1)
    body = list(zlib_compress(in_file_order(array)))  # its length stands before it
    lines = [
        "ObjectType = Image",
        f"NDims = {array.ndim}",
        "BinaryData = True",
        "BinaryDataByteOrderMSB = False",
        "CompressedData = True",
        f"CompressedDataSize = {sum(map(len, body))}",
        f"TransformMatrix = {_written(direction.T.ravel())}",
        f"Offset = {_written(origin)}",
        f"ElementSpacing = {_written(spacing)}",
        f"DimSize = {' '.join(map(str, array.shape))}",
        f"ElementType = {_NAMES[storable(array.dtype).name]}",
        "ElementDataFile = LOCAL",
    ]
    outputs.write(path, chain([("\n".join(lines) + "\n").encode()], body))


def _header(file: BinaryIO, gate: Gate) -> dict[str, str]:
    fields: dict[str, str] = {}
    while "ElementDataFile" not in fields:
        line = file.readline(_MAX_HEADER)
        if not line or file.tell() > _MAX_HEADER:
            gate.refuse("TRUNCATED", "ends within its header", "copy it again from the source")
        name, found, value = line.decode("utf-8", "replace").partition("=")
        if not found:
            gate.refuse("HEADER", f"has the meaningless header line {name.strip()[:60]!r}", HINT_EXPORT)
        fields[name.strip()] = value.strip()
    if fields["ElementDataFile"] != "LOCAL":
        gate.refuse("DETACHED", "keeps its voxels in another file", "save it as one .mha file")
    if not _is_true(fields, "BinaryData", default="True"):
        gate.refuse("ENCODING", "stores its voxels as text", "save it in binary form")
    if fields.get("ElementNumberOfChannels", "1") != "1":
        gate.refuse("DATATYPE", "holds vectors or colours, not intensities", "extract one component as a 3D file")
    if fields.get("HeaderSize", "0") not in ("0", "-1"):
        gate.refuse("ENCODING", "skips bytes before its voxels", "save it again without HeaderSize")
    return fields


def _is_true(fields: dict[str, str], *names: str, default: str = "False") -> bool:
    return any(fields.get(name, default).lower() in ("true", "1") for name in names)


def _dtype(fields: dict[str, str], gate: Gate) -> np.dtype[Any]:
    name = fields.get("ElementType", "")
    if name not in _DTYPES:
        gate.refuse("DATATYPE", f"holds voxels of type {name!r}, not intensities", "export real-valued intensities")
    big = _is_true(fields, "BinaryDataByteOrderMSB", "ElementByteOrderMSB")
    return _DTYPES[name].newbyteorder(">" if big else "<")


def _sizes(fields: dict[str, str], gate: Gate) -> tuple[int, int, int, int]:
    i, j, *more = declared_sizes(fields.get("DimSize", ""), fields.get("NDims", ""), gate)
    k, n = (*more, 1, 1)[:2]
    return i, j, k, n


def _geometry(fields: dict[str, str], sizes: tuple[int, int, int, int], gate: Gate) -> Geometry:
    axes = len(fields["DimSize"].split())
    spacing = _first(fields, ("ElementSpacing", "ElementSize"), axes, "the spacing", np.ones(axes), gate)
    matrix = _first(
        fields,
        ("TransformMatrix", "Orientation", "Rotation"),
        axes * axes,
        "the orientation",
        np.eye(axes).ravel(),
        gate,
    )
    offset = _first(fields, ("Offset", "Position", "Origin"), axes, "the position", np.zeros(axes), gate)
    if (spacing == 0).any() or (spacing < 0).any():
        gate.refuse("SPACING", f"has the spacing {_written(spacing)}", "repair the header, or " + HINT_EXPORT)
    used = min(axes, 3)
    affine = np.eye(4)
    affine[:used, :used] = (matrix.reshape(axes, axes).T * spacing)[:used, :used]
    affine[:used, 3] = offset[:used]
    affine[:3] *= LPS[:, None]
    return gate.geometry(affine, sizes[:3])


def _first(
    fields: dict[str, str], names: tuple[str, ...], count: int, what: str, default: npt.NDArray[np.float64], gate: Gate
) -> npt.NDArray[np.float64]:
    for name in names:
        if name in fields:
            return numbers(fields[name].split(), count, name, gate)
    gate.warn(f"the header does not give {what}; the format's default is used")
    return default


def _written(values: npt.ArrayLike) -> str:
    return " ".join(exact(values))
