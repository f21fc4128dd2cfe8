"""Scans and label maps, from files and into files: NIfTI, NRRD, MetaImage, pictures, and DICOM handed over.

The format is told by the content when reading and by the suffix when writing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from medseg.atomic import Outputs
from medseg.errors import OutputError, UsageError
from medseg.gate import Gate
from medseg.geometry import Geometry
from medseg.io.sniff import PICTURES, SUFFIXES, scans_in, sniff, stem_of, suffix_of
from medseg.io.voxels import whole
from medseg.volume import LabelMap, Volume

__all__ = [
    "PICTURES",
    "SUFFIXES",
    "count_pages",
    "read",
    "read_labels",
    "save",
    "scans_in",
    "sniff",
    "stem_of",
    "suffix_of",
    "write",
]


def read(
    path: str | os.PathLike[str],
    *,
    volume: int | None = None,
    series: str | None = None,
    repair: bool = False,
    suv: bool = False,
) -> Volume:
    """Return the scan in a file or DICOM folder: intensities (C, I, J, K) and geometry, in RAS+ mm.

    Parameters
    ----------
    path : path
        NIfTI-1 or -2 (`.nii`, `.nii.gz`), NRRD, MetaImage (`.mha`), PNG, JPEG, TIFF or GIF; a DICOM file, or a
        folder or zip archive of them; told by content.
    volume : int, optional
        Which volume (or page) of a file or series that holds several, counted from 0.
    series : str, optional
        Which DICOM series, where there are several: its row in `medseg info`, UID, or description.
    repair : bool
        Interpolate over missing and unevenly spaced DICOM slices instead of refusing them.
    suv : bool
        DICOM PET as standardised uptake values by body weight, instead of Bq/mL.

    Raises
    ------
    ScanError
        If the file is damaged, impossible, or no scan; `code` names the reason. What is odd but can be
        read is said in `source.warnings`.
    UsageError
        If something is asked of another format that only DICOM has.

    Examples
    --------
    >>> scan = read("sample_data/t1_hippocampus.nii.gz")
    >>> scan.array.shape, scan.geometry.orientation
    ((1, 40, 56, 40), 'RAS')
    """
    path = Path(path)
    with _answered(path):
        kind = sniff(path)
        if kind == "dicom":
            from medseg.dicom.series import read_series

            return read_series(path, series=series, volume=volume, repair=repair, suv=suv)
        if series is not None or repair or suv:
            raise UsageError(f"{path}: is no DICOM", hint="leave out series, repair and suv")
        return _read_as(kind, path, volume)


def read_labels(
    path: str | os.PathLike[str], *, volume: int | None = None, grid: Geometry | None = None, resample: bool = False
) -> LabelMap:
    """Return the label map in a file: integers (I, J, K), with names and colours where the format has them.

    Parameters
    ----------
    path : path
        NIfTI-1 or -2, NRRD, `.seg.nrrd`, MetaImage, PNG, TIFF or GIF; a DICOM segmentation (SEG) or structure set
        (RTSTRUCT), or a folder or zip archive with one; told by content.
    volume : int, optional
        Which volume (or page) of a file that holds several, counted from 0; of a `.seg.nrrd` one layer, without names.
    grid : Geometry, optional
        On which a SEG or RTSTRUCT is laid; where it is left out, that of the series it refers to, if that lies in the
        same folder or archive.
    resample : bool
        Whether the nearest voxel of a SEG may be taken where its frames do not lie on `grid`.

    Raises
    ------
    ScanError
        If the file is damaged, its voxels are not whole numbers from 0 to 65535, or a SEG or RTSTRUCT cannot be laid
        onto a grid.
    """
    path = Path(path)
    with _answered(path):
        kind = sniff(path)
        if kind == "dicom":
            from medseg.dicom.labels import read_dicom_labels

            return read_dicom_labels(path, grid=grid, resample=resample)
        if kind == "nrrd" and volume is None:
            from medseg.io.segments import read_segments

            return read_segments(path)
        if kind in PICTURES:
            from medseg.io.raster import read_raster

            scan = read_raster(path, volume=volume, indices=True)
        else:
            scan = _read_as(kind, path, volume)
        if len(scan.array) > 1:
            Gate(path).refuse("NOT_LABELS", "holds colours, not labels", "give a picture with one value per pixel")
        return LabelMap(whole(scan.array[0], Gate(path)), scan.geometry, (), scan.source)


def count_pages(path: str | os.PathLike[str]) -> int:
    """Return how many pages a picture file has: 1, or more for a TIFF or GIF of several.

    Raises
    ------
    ScanError
        If the file is damaged, or no picture.
    """
    path = Path(path)
    with _answered(path):
        if sniff(path) not in PICTURES:
            Gate(path).refuse("NOT_A_PICTURE", "has no pages", "give a TIFF or GIF")
        from medseg.io.raster import pages

        return pages(path)


def write(image: Volume | LabelMap, path: str | os.PathLike[str]) -> None:
    """Write a scan or a label map in the format of the suffix: whole and flushed to the disk, or not at all.

    Parameters
    ----------
    image : Volume or LabelMap
        A label map is stored in the smallest unsigned type that holds it.
    path : path
        `.nii.gz`, `.nii`, `.nrrd`, `.seg.nrrd` (label maps only), `.mha`; for one slice also `.png` or `.tiff`.

    Raises
    ------
    OutputError
        If the suffix is unknown, the format cannot hold the image, or the disk does not take it.
    """
    with Outputs() as outputs:
        save(image, Path(path), outputs)


def save(image: Volume | LabelMap, path: Path, outputs: Outputs) -> None:
    """Write as `write` does, into a set of files that becomes visible as one."""
    suffix = suffix_of(path)
    if isinstance(image, LabelMap):
        image = replace(image, array=image.array.astype(smallest_type(image), copy=False))
    match SUFFIXES.get(suffix):
        case "nifti":
            from medseg.io.nifti import write_nifti

            write_nifti(image, path, outputs)
        case "nrrd" if suffix == ".seg.nrrd" and isinstance(image, LabelMap):
            from medseg.io.segments import write_segments

            write_segments(image, path, outputs)
        case "nrrd" if suffix != ".seg.nrrd":
            from medseg.io.nrrd import write_nrrd

            write_nrrd(image, path, outputs)
        case "mha":
            from medseg.io.mha import write_mha

            write_mha(image, path, outputs)
        case "png" | "tiff" | "gif" | "jpeg":
            from medseg.io.raster import write_raster

            write_raster(image, path, outputs)
        case _:
            what = "a label map" if isinstance(image, LabelMap) else "a scan"
            raise OutputError(
                f"{path}: medseg cannot write {what} under this name", hint=f"choose a suffix of {', '.join(SUFFIXES)}"
            )


def smallest_type(labels: LabelMap) -> np.dtype[np.unsignedinteger[Any]]:
    """Return the smallest unsigned type that holds every atom of the table and of the voxels."""
    atoms = max((atom for label in labels.labels for atom in label.atoms), default=0)
    return np.min_scalar_type(max(atoms, int(labels.array.max())))


def _read_as(kind: str, path: Path, volume: int | None) -> Volume:
    match kind:
        case "nifti":
            from medseg.io.nifti import read_nifti as reader
        case "nrrd":
            from medseg.io.nrrd import read_nrrd as reader
        case "mha":
            from medseg.io.mha import read_mha as reader
        case _:
            from medseg.io.raster import read_raster as reader
    return reader(path, volume=volume)


@contextmanager
def _answered(path: Path) -> Iterator[None]:
    try:
        yield
    except MemoryError:
        Gate(path).refuse("MEMORY", "does not fit into memory", "close other programs, or crop the scan")
    except OSError as error:
        Gate(path).refuse("UNREADABLE", f"cannot be read: {error.strerror}", "check disk, network and permissions")
