"""The NIfTI-1 and NIfTI-2 header: what it says, what of it can be believed, and how a new one is made.

Both versions are described as numpy record types with the same field names (nifti.nimh.nih.gov, nifti1.h and
nifti2.h), so that everything after the first four bytes is written once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medseg.gate import HINT_COPY, HINT_EXPORT, Gate
from medseg.geometry import Geometry

_NIFTI1 = np.dtype(
    [
        ("sizeof_hdr", "<i4"),
        ("unused1", "S35"),
        ("dim_info", "u1"),
        ("dim", "<i2", 8),
        ("intent_p", "<f4", 3),
        ("intent_code", "<i2"),
        ("datatype", "<i2"),
        ("bitpix", "<i2"),
        ("slice_start", "<i2"),
        ("pixdim", "<f4", 8),
        ("vox_offset", "<f4"),
        ("scl_slope", "<f4"),
        ("scl_inter", "<f4"),
        ("slice_end", "<i2"),
        ("slice_code", "u1"),
        ("xyzt_units", "u1"),
        ("cal_max", "<f4"),
        ("cal_min", "<f4"),
        ("slice_duration", "<f4"),
        ("toffset", "<f4"),
        ("unused2", "S8"),
        ("descrip", "S80"),
        ("aux_file", "S24"),
        ("qform_code", "<i2"),
        ("sform_code", "<i2"),
        ("quatern", "<f4", 3),
        ("qoffset", "<f4", 3),
        ("srow", "<f4", (3, 4)),
        ("intent_name", "S16"),
        ("magic", "S4"),
    ]
)
_NIFTI2 = np.dtype(
    [
        ("sizeof_hdr", "<i4"),
        ("magic", "S8"),
        ("datatype", "<i2"),
        ("bitpix", "<i2"),
        ("dim", "<i8", 8),
        ("intent_p", "<f8", 3),
        ("pixdim", "<f8", 8),
        ("vox_offset", "<i8"),
        ("scl_slope", "<f8"),
        ("scl_inter", "<f8"),
        ("cal_max", "<f8"),
        ("cal_min", "<f8"),
        ("slice_duration", "<f8"),
        ("toffset", "<f8"),
        ("slice_start", "<i8"),
        ("slice_end", "<i8"),
        ("descrip", "S80"),
        ("aux_file", "S24"),
        ("qform_code", "<i4"),
        ("sform_code", "<i4"),
        ("quatern", "<f8", 3),
        ("qoffset", "<f8", 3),
        ("srow", "<f8", (3, 4)),
        ("slice_code", "<i4"),
        ("xyzt_units", "<i4"),
        ("intent_code", "<i4"),
        ("intent_name", "S16"),
        ("dim_info", "u1"),
        ("unused", "S15"),
    ]
)
_MAGIC = {348: (b"n+1", b"ni1"), 540: (b"n+2", b"ni2")}  # one file, header apart
_DTYPES = {
    2: np.uint8, 4: np.int16, 8: np.int32, 16: np.float32, 64: np.float64,
    256: np.int8, 512: np.uint16, 768: np.uint32, 1024: np.int64, 1280: np.uint64,
}  # fmt: skip
_CODES = {np.dtype(dtype): code for code, dtype in _DTYPES.items()}
_UNSUPPORTED = {
    1: "1-bit voxels", 32: "complex numbers", 128: "RGB colours", 1536: "128-bit floats",
    1792: "complex numbers", 2048: "complex numbers", 2304: "RGBA colours",
}  # fmt: skip
_TO_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # xyzt_units: unknown means mm
_UNIT_NAMES = {1: "metres", 3: "micrometres"}
_FORMS = range(6)  # codes that the standard gives a meaning
INTENT_LABEL = 1002
NIFTI1_BYTES = _NIFTI1.itemsize
NIFTI2_BYTES = _NIFTI2.itemsize


@dataclass(frozen=True)
class NiftiHeader:
    """What a header says, checked: enough to find and scale the voxels and place them in space."""

    raw: bytes
    geometry: Geometry
    dtype: np.dtype[np.generic]  # as stored, byte order included
    volumes: int
    offset: int
    slope: float
    intercept: float


def is_version_2(first: bytes) -> bool:
    """Return whether a header that begins like this is one of NIfTI-2, in either byte order."""
    return NIFTI2_BYTES in (int.from_bytes(first[:4], "little"), int.from_bytes(first[:4], "big"))


def parse(first: bytes, gate: Gate) -> NiftiHeader:
    """Return the checked header from the first bytes of a (decompressed) file.

    Raises
    ------
    ScanError
        For everything that is impossible; oddities become warnings of the gate.
    """
    record, swapped = _record(first, gate)
    shape, volumes = _shape(record, gate)
    with np.errstate(invalid="ignore"):  # a signalling NaN is answered by the checks below
        affine = _affine(record, shape, gate)
        slope, intercept = _scaling(record, gate)
    dtype = _dtype(record, gate).newbyteorder(">" if swapped else "<")
    offset = _offset(record, gate)
    return NiftiHeader(record.tobytes(), gate.geometry(affine, shape), dtype, volumes, offset, slope, intercept)


def build(
    geometry: Geometry, dtype: np.dtype[np.generic], volumes: int, *, source: bytes = b"", label: bool = False
) -> bytes:
    """Return a header, with the empty extension flag behind it, for voxels on `geometry`.

    `source` is the raw header of the scan that lies on the same grid, if it was a NIfTI file: its codes,
    matrices, spacing and unit are repeated to the bit, so that any tool shows scan and labels in one place.
    """
    large = max(geometry.shape) > 32767
    record = np.zeros((), _NIFTI2 if large else _NIFTI1)
    size = record.dtype.itemsize
    record["sizeof_hdr"] = size
    record["magic"] = b"n+2\0\r\n\x1a\n" if large else b"n+1"
    record["dim"] = (4 if volumes > 1 else 3, *geometry.shape, volumes, 1, 1, 1)
    record["datatype"] = _CODES[dtype]
    record["bitpix"] = dtype.itemsize * 8
    record["vox_offset"] = size + 4
    record["scl_slope"] = 1
    record["intent_code"] = INTENT_LABEL if label else 0
    record["descrip"] = b"medseg"
    record["pixdim"][4:] = 1
    if source:
        of_scan = np.frombuffer(source, _NIFTI1 if len(source) == NIFTI1_BYTES else _NIFTI2)[0]
        record["pixdim"][:4] = of_scan["pixdim"][:4]
        for name in ("xyzt_units", "qform_code", "sform_code", "quatern", "qoffset", "srow"):
            record[name] = of_scan[name]
    elif geometry.physical:
        _set_forms(record, geometry)
    else:
        record["pixdim"][:4] = 1
    return record.tobytes() + b"\0\0\0\0"


def _record(first: bytes, gate: Gate) -> tuple[np.void, bool]:
    if len(first) < NIFTI1_BYTES:
        gate.refuse("TRUNCATED", f"ends after {len(first)} bytes, within its header", HINT_COPY)
    sizes = {int.from_bytes(first[:4], order): order == "big" for order in ("little", "big")}
    size = next((size for size in sizes if size in _MAGIC), 0)
    if not size:
        gate.refuse("NOT_NIFTI", "is no NIfTI file: its header has no valid size", HINT_EXPORT)
    layout, swapped = (_NIFTI1 if size == NIFTI1_BYTES else _NIFTI2), sizes[size]
    if len(first) < layout.itemsize:
        gate.refuse("TRUNCATED", f"ends after {len(first)} bytes, within its header", HINT_COPY)
    record = np.frombuffer(first[:size], layout.newbyteorder() if swapped else layout).astype(layout)[0]
    single, detached = _MAGIC[size]
    magic = bytes(record["magic"])[:3]
    if magic == detached:
        gate.refuse("DETACHED", "keeps its voxels in another file (.hdr/.img)", "convert it to one .nii.gz file")
    if magic != single:
        gate.refuse("NOT_NIFTI", f"has the magic {magic!r} of no NIfTI version (ANALYZE?)", HINT_EXPORT)
    return record, swapped


def _shape(record: np.void, gate: Gate) -> tuple[tuple[int, int, int], int]:
    axes, *sizes = (int(n) for n in record["dim"])
    if not 1 <= axes <= 7:
        gate.refuse("SHAPE", f"declares {axes} axes", HINT_EXPORT)
    sizes = sizes[:axes] + [1] * (7 - axes)
    if min(sizes) < 1:
        gate.refuse("SHAPE", f"declares the impossible shape {tuple(sizes[:axes])}", HINT_EXPORT)
    if max(sizes[4:]) > 1:
        gate.refuse(
            "SHAPE",
            f"has {axes} axes {tuple(sizes[:axes])}: vectors or tensors, not intensities",
            "extract one component as a 3D file",
        )
    return (sizes[0], sizes[1], sizes[2]), sizes[3]


def _dtype(record: np.void, gate: Gate) -> np.dtype[np.generic]:
    code, bits = int(record["datatype"]), int(record["bitpix"])
    if code in _UNSUPPORTED:
        gate.refuse("DATATYPE", f"holds {_UNSUPPORTED[code]}, not intensities", "export real-valued intensities")
    if code not in _DTYPES:
        gate.refuse("DATATYPE", f"has the unknown datatype {code}", HINT_EXPORT)
    dtype = np.dtype(_DTYPES[code])
    if bits != dtype.itemsize * 8:
        gate.refuse(
            "DATATYPE", f"says {bits} bits per voxel, but its datatype {dtype} has {dtype.itemsize * 8}", HINT_COPY
        )
    return dtype


def _offset(record: np.void, gate: Gate) -> int:
    offset, least = float(record["vox_offset"]), int(record["sizeof_hdr"])
    if not least <= offset < 2**40 or offset != int(offset):
        gate.refuse("OFFSET", f"says that its voxels begin at byte {offset:g}", HINT_EXPORT)
    return int(offset)


def _scaling(record: np.void, gate: Gate) -> tuple[float, float]:
    slope, intercept = float(record["scl_slope"]), float(record["scl_inter"])
    if slope == 0 or np.isnan(slope):  # the standard's way to say: not scaled
        return 1.0, 0.0
    if not (np.isfinite(slope) and np.isfinite(intercept)):
        gate.refuse("SCALING", f"scales its voxels by {slope:g} and {intercept:g}", HINT_EXPORT)
    return slope, intercept


def _affine(record: np.void, shape: tuple[int, int, int], gate: Gate) -> npt.NDArray[np.float64]:
    spacing = _spacing(record, shape, gate)
    sform = int(record["sform_code"])
    qform = int(record["qform_code"])
    for name, code in (("sform", sform), ("qform", qform)):
        if code not in _FORMS:
            gate.warn(f"{name}_code {code} has no meaning in the standard; it is taken as present")
    by_sform = _sform(record, shape, spacing, gate) if sform else None
    by_qform = _qform(record, spacing, gate) if qform else None
    if by_sform is not None:
        _compare(by_sform, spacing, by_qform, shape, gate)
    affine = by_sform if by_sform is not None else by_qform
    if affine is None:
        gate.warn(
            "neither qform nor sform says how the scan lies in the patient; i, j, k are taken as right, front, up"
        )
        affine = np.diag([*spacing, 1.0])
    unit = int(record["xyzt_units"]) & 7
    if unit not in _TO_MM:
        gate.warn(f"spatial unit code {unit} is unknown; millimetres are assumed")
    factor = _TO_MM.get(unit, 1.0)
    if factor != 1:
        gate.warn(f"the header counts in {_UNIT_NAMES[unit]}; converted to mm")
        affine[:3] *= factor
    return affine


def _spacing(record: np.void, shape: tuple[int, int, int], gate: Gate) -> list[float]:
    spacing = []
    for axis, voxels, value in zip("ijk", shape, record["pixdim"][1:4].tolist(), strict=True):
        if not np.isfinite(value) or (value == 0 and voxels > 1):
            gate.refuse(
                "SPACING", f"spacing (pixdim) along {axis} is {value:g}", "repair the header, or " + HINT_EXPORT
            )
        if value == 0:
            gate.warn(f"spacing (pixdim) along {axis}, an axis of one voxel, is 0; 1 is assumed")
        if value < 0:
            gate.warn(f"spacing (pixdim) along {axis} is {value:g}; its absolute value is used")
        spacing.append(abs(value) or 1.0)
    return spacing


def _sform(record: np.void, shape: tuple[int, int, int], spacing: list[float], gate: Gate) -> npt.NDArray[np.float64]:
    affine = np.eye(4)
    affine[:3] = record["srow"]
    if not np.isfinite(affine).all():
        gate.refuse("AFFINE", "the sform holds NaN or Infinity", "repair the header, or " + HINT_EXPORT)
    for axis in range(3):
        if shape[axis] == 1 and not affine[:3, axis].any():
            others = affine[:3, [(axis + 1) % 3, (axis + 2) % 3]].T
            normal = np.cross(*others)
            affine[:3, axis] = normal / (np.linalg.norm(normal) or 1) * spacing[axis]
            gate.warn(f"the sform gives no direction to axis {'ijk'[axis]} of one voxel; the normal is used")
    return affine


def _qform(record: np.void, spacing: list[float], gate: Gate) -> npt.NDArray[np.float64]:
    b, c, d = (float(value) for value in record["quatern"])
    offset = record["qoffset"].astype(np.float64)
    norm = b * b + c * c + d * d
    if not (np.isfinite(offset).all() and np.isfinite(norm)):
        gate.refuse("AFFINE", "the qform holds NaN or Infinity", "repair the header, or " + HINT_EXPORT)
    if norm > 1 + 1e-4:
        gate.refuse(
            "AFFINE", f"the qform's quaternion has length {norm**0.5:.4g} > 1", "repair the header, or " + HINT_EXPORT
        )
    b, c, d = (value / max(1.0, norm**0.5) for value in (b, c, d))
    a = max(0.0, 1 - min(norm, 1.0)) ** 0.5
    rotation = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    qfac = -1.0 if record["pixdim"][0] < 0 else 1.0
    affine = np.eye(4)
    affine[:3, :3] = rotation * [spacing[0], spacing[1], spacing[2] * qfac]
    affine[:3, 3] = offset
    return affine


def _compare(
    sform: npt.NDArray[np.float64],
    spacing: list[float],
    qform: npt.NDArray[np.float64] | None,
    shape: tuple[int, int, int],
    gate: Gate,
) -> None:
    lengths = np.linalg.norm(sform[:3, :3], axis=0)
    if qform is None:
        if (np.abs(lengths - spacing) > 0.01 * lengths).any():
            said = " x ".join(f"{mm:.4g}" for mm in spacing)
            used = " x ".join(f"{mm:.4g}" for mm in lengths)
            gate.warn(f"pixdim says spacing {said}, the sform {used}; the sform is used")
        return
    corners = np.stack(np.meshgrid(*((0, n - 1) for n in shape), [1], indexing="ij"), axis=-1).reshape(-1, 4)
    apart = float(np.linalg.norm(corners @ (sform - qform).T, axis=1).max())
    if np.linalg.det(sform[:3, :3]) * np.linalg.det(qform[:3, :3]) < 0:
        gate.warn("sform and qform disagree on which side is left; the sform is used")
    elif apart > 0.1 * lengths.max():
        gate.warn(f"sform and qform place the voxels up to {apart:.3g} apart; the sform is used")


def _set_forms(record: npt.NDArray[np.void], geometry: Geometry) -> None:
    record["xyzt_units"] = 2  # mm
    record["pixdim"][:4] = (1, *geometry.spacing)
    record["sform_code"] = 1
    record["srow"] = geometry.affine[:3]
    if geometry.shear > 0.01:  # a qform holds rotations only
        return
    rotation = geometry.direction
    if np.linalg.det(rotation) < 0:
        record["pixdim"][0] = -1
        rotation = rotation * [1, 1, -1]
    record["qform_code"] = 1
    record["quatern"] = _quaternion(rotation)
    record["qoffset"] = geometry.origin


def _quaternion(rotation: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return b, c, d of the unit quaternion (a >= 0) of a rotation: a dominant eigenvector (Bar-Itzhack 2000)."""
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = rotation
    k = np.array(
        [
            [xx + yy + zz, zy - yz, xz - zx, yx - xy],
            [zy - yz, xx - yy - zz, xy + yx, xz + zx],
            [xz - zx, xy + yx, yy - xx - zz, yz + zy],
            [yx - xy, xz + zx, yz + zy, zz - xx - yy],
        ]
    )
    vector = np.linalg.eigh(k)[1][:, -1]
    unit: npt.NDArray[np.float64] = vector[1:] * (1.0 if vector[0] >= 0 else -1.0)
    return unit
