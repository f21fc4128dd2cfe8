"""What hostile requests bring: damaged forms, files that declare too much, archives that hold too much."""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
import zlib

import numpy as np

CANARY = "Canary^Patient"  # stands where a name of a patient would: it must turn up nowhere


def form(*parts: tuple[str, bytes], end: bool = True) -> bytes:
    """Return the body of a form with the boundary 'b': parts of (lines of its head, content)."""
    body = b"".join(
        b"--b\r\n" + lines.encode("utf-8", "surrogateescape") + b"\r\n\r\n" + data + b"\r\n" for lines, data in parts
    )
    return body + (b"--b--\r\n" if end else b"")


FORM = "Content-Type: multipart/form-data; boundary=b"


def part(data: bytes, filename: str = "scan.nii.gz", name: str = "file") -> tuple[str, bytes]:
    """Return a part with a file."""
    return f'Content-Disposition: form-data; name="{name}"; filename="{filename}"', data


def upload(data: bytes, filename: str = "scan.nii.gz", name: str = "file") -> bytes:
    """Return a form with one file."""
    return form(part(data, filename, name))


def nifti(shape: tuple[int, ...], voxels: bytes, *, kind: int = 2, bits: int = 8) -> bytes:
    """Return a NIfTI-1 file that declares a shape, whatever follows."""
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into(
        "<8h",
        header,
        40,
        len(shape),
        *[size - 65536 if size > 32767 else size for size in shape],
        *[1] * (7 - len(shape)),
    )
    struct.pack_into("<2h", header, 70, kind, bits)
    struct.pack_into("<8f", header, 76, 1, *[1.0] * 7)
    struct.pack_into("<f", header, 108, 352)
    struct.pack_into("<2h", header, 252, 0, 1)
    struct.pack_into("<12f", header, 280, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0)
    header[344:348] = b"n+1\0"
    return bytes(header) + voxels


def nifti2(shape: tuple[int, int, int]) -> bytes:
    """Return the header of a NIfTI-2 file that declares a shape."""
    header = bytearray(544)
    struct.pack_into("<i", header, 0, 540)
    header[4:12] = b"n+2\0\r\n\x1a\n"
    struct.pack_into("<2h", header, 12, 2, 8)
    struct.pack_into("<8q", header, 16, 3, *shape, 1, 1, 1, 1)
    struct.pack_into("<8d", header, 104, 1, *[1.0] * 7)
    struct.pack_into("<q", header, 168, 544)
    struct.pack_into("<2i", header, 344, 0, 1)
    struct.pack_into("<12d", header, 400, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0)
    return bytes(header)


def nrrd(sizes: str, voxels: bytes, *, encoding: str = "gzip", more: str = "") -> bytes:
    """Return an NRRD file that declares sizes, whatever follows."""
    return (
        f"NRRD0004\ntype: uint8\ndimension: 3\nsizes: {sizes}\nencoding: {encoding}\nspace: left-posterior-superior\n"
        f"space directions: (1,0,0) (0,1,0) (0,0,1)\nspace origin: (0,0,0)\n{more}\n"
    ).encode() + voxels


def packed(members: dict[str, bytes], *, stored: bool = False) -> bytes:
    """Return a zip archive."""
    buffer = io.BytesIO()
    kind = zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(buffer, "w", kind) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def linked(target: str) -> bytes:
    """Return a zip archive with a symbolic link."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        member = zipfile.ZipInfo("scan.dcm")
        member.create_system, member.external_attr = 3, 0o120777 << 16
        archive.writestr(member, target)
    return buffer.getvalue()


def directory_of(entries: int) -> bytes:
    """Return a zip archive of nothing but a directory: so many entries, all of them the same few bytes."""
    one = struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    count = min(entries, 0xFFFF)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, len(one) * entries, 0, 0)
    return one * entries + end


def overlapping() -> bytes:
    """Return a zip archive whose entries all share one stretch of the file, as a bomb does."""
    data = packed({"a": zlib.compress(bytes(1 << 20))}, stored=True)
    start = data.index(b"PK\1\2")
    end = data.index(b"PK\5\6")
    entry = data[start:end]
    entries = b"".join(entry[:46] + f"{number:01x}".encode() for number in range(16))
    tail = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 16, 16, len(entries), start, 0)
    return data[:start] + entries + tail


def encrypted() -> bytes:
    """Return a zip archive that says of its one file that it is encrypted."""
    data = bytearray(packed({"scan.dcm": bytes(400)}, stored=True))
    data[6] |= 1
    data[data.index(b"PK\1\2") + 8] |= 1
    return bytes(data)


def dicom(*, deflated: bool = False, body: bytes | None = None, **changes: object) -> bytes:
    """Return a DICOM slice of 8 x 8 pixels, with `changes` to its elements."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian if deflated else ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = CTImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = "1.2.3.4"
    data.PatientName, data.PatientID, data.Modality = CANARY, CANARY, "CT"
    data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = "1.2.3", "1.2.3.1", "1.2.3.2"
    data.SeriesDescription, data.SeriesNumber, data.InstanceNumber = CANARY, 1, 1
    data.Rows = data.Columns = 8
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
    data.PixelSpacing, data.SliceThickness = [1, 1], 1
    data.ImagePositionPatient, data.ImageOrientationPatient = [0, 0, 0], [1, 0, 0, 0, 1, 0]
    data.RescaleSlope, data.RescaleIntercept = 1, 0
    data.PixelData = np.arange(64, dtype=np.int16).tobytes()
    for name, value in changes.items():
        setattr(data, name, value)
    buffer = io.BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    if body is None:
        return buffer.getvalue()
    file = buffer.getvalue()
    length = struct.unpack_from("<I", file, 140)[0]
    return file[: 144 + length] + body


def deflated_zeros(size: int) -> bytes:
    """Return a raw deflate stream of one long private element of zeros."""
    engine = zlib.compressobj(9, zlib.DEFLATED, -15)
    start = struct.pack("<HH2sHI", 9, 16, b"OB", 0, size)
    return engine.compress(start + bytes(size)) + engine.flush()


def bomb(size: int) -> bytes:
    """Return so many zeros, packed by gzip."""
    return gzip.compress(bytes(size), 9)
