"""NIfTI-1 and NIfTI-2 in one file (`.nii`, `.nii.gz`): read to the last checksum, written the same way twice.

Voxels go from the stream straight into one array, in the order of the file; integers stay integers.
"""

from __future__ import annotations

from io import BufferedReader
from itertools import chain
from math import prod
from pathlib import Path
from typing import Any

import numpy.typing as npt

from medseg.atomic import Outputs
from medseg.gate import Gate
from medseg.geometry import Geometry
from medseg.io import nifti_header
from medseg.io.stream import GZIP_MAGIC, Stream, compress
from medseg.io.voxels import in_file_order, read_voxels, scaled, storable
from medseg.volume import LabelMap, Source, Volume


def read_nifti(path: Path, *, volume: int | None = None) -> Volume:
    """Return the scan of a NIfTI file: (1, I, J, K), intensities scaled as the header says.

    Parameters
    ----------
    path : Path
        `.nii` or `.nii.gz`; the content decides.
    volume : int, optional
        Which volume of a 4D file, counted from 0. Needed when there are several.

    Raises
    ------
    ScanError
        If the file is damaged, impossible, or not a scan. Oddities become `source.warnings`.
    """
    gate = Gate(path)
    with open(path, "rb") as file:
        stream, header = _begun(file, gate)
        index = gate.choose_volume(volume, header.volumes)
        one = prod(header.geometry.shape) * header.dtype.itemsize
        skip = header.offset - len(header.raw) + index * one
        stored = read_voxels(stream, header.geometry.shape, header.dtype, skip=skip)
        stream.skip((header.volumes - 1 - index) * one)
        stream.finish()
    array = scaled(stored, header.slope, header.intercept, gate)
    return Volume(array[None], header.geometry, Source(path, "nifti", tuple(gate.warnings), header.raw))


def read_header(path: Path) -> nifti_header.NiftiHeader:
    """Return the checked header of a NIfTI file, without its voxels.

    Raises
    ------
    ScanError
        For everything that is impossible.
    """
    with open(path, "rb") as file:
        return _begun(file, Gate(path))[1]


def _begun(file: BufferedReader, gate: Gate) -> tuple[Stream, nifti_header.NiftiHeader]:
    """Return the stream of a file behind its header, and the header."""
    stream = Stream(file, gate, compression="gzip" if file.peek(2)[:2] == GZIP_MAGIC else "")
    first = stream.read(nifti_header.NIFTI1_BYTES)
    if nifti_header.is_version_2(first):
        first += stream.read(nifti_header.NIFTI2_BYTES - len(first))
    return stream, nifti_header.parse(first, gate)


def write_nifti(image: Volume | LabelMap, path: Path, outputs: Outputs) -> None:
    """Write a scan or a label map; gzip when the name ends in `.gz`.

    A label map has intent 1002 and slope 1. Either carries the coordinate codes and matrices of the NIfTI
    scan on whose grid it lies.
    """
    label = isinstance(image, LabelMap)
    channels: npt.NDArray[Any] = image.array[None] if label else image.array
    header = nifti_header.build(
        image.geometry,
        storable(channels.dtype),
        len(channels),
        source=_spatial_header(image.source, image.geometry),
        label=label,
    )
    chunks = chain([header], *(in_file_order(channel) for channel in channels))
    outputs.write(path, compress(chunks) if path.name.lower().endswith(".gz") else chunks)


def _spatial_header(source: Source | None, geometry: Geometry) -> bytes:
    if source is None or not source.header:
        return b""
    of_scan = nifti_header.parse(source.header, Gate(source.path)).geometry
    return source.header if of_scan.same_as(geometry, tolerance=0.0) else b""
