"""DICOM series made for the tests: a body with an organ in it, as the datasets that a scanner would store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from medseg.dicom.frames import uid_of

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
OBLIQUE_AXES = tuple(np.linalg.qr([[1, 0.2, 0.1], [0.1, 1, 0.3], [0.3, 0.1, 1]])[0].T[:2].ravel().tolist())


def body(shape=(40, 32, 12)) -> np.ndarray:
    """Return (columns, rows, slices) of int16 in HU: air, an ellipsoid of water, and an organ off its centre."""
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    array = np.full(shape, -1000, np.int16)
    array[(grid**2).sum(axis=0) < 0.9] = 0
    array[organ(shape)] = 120
    array[:3, :2] += np.arange(shape[2], dtype=np.int16)  # each slice differs from all others
    return array


def organ(shape=(40, 32, 12)) -> np.ndarray:
    """Return where the organ of `body` is: (columns, rows, slices) of bool, without symmetry."""
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    centre, radii = np.array([-0.3, 0.2, 0.1]), np.array([0.35, 0.45, 0.6])
    return (((grid - centre.reshape(3, 1, 1, 1)) / radii.reshape(3, 1, 1, 1)) ** 2).sum(axis=0) < 1


def series(
    array: np.ndarray | None = None,
    *,
    spacing=(0.8, 0.9),
    step=2.5,
    orientation=AXIAL,
    origin=(-16.0, -14.4, 100.0),
    slant=(0.0, 0.0, 0.0),
    uid="1.2.826.0.1.3680043.8.498.1",
    **tags,
) -> list[Dataset]:
    """Return a CT series as datasets, one for each slice, in the order of positions along the normal.

    Parameters
    ----------
    array : (columns, rows, slices) array of int16, optional
        Intensities in HU; `body()` when left out.
    spacing : two floats
        mm between rows, between columns.
    step : float
        mm between slices, along the normal.
    orientation : six floats
        ImageOrientationPatient.
    origin : three floats
        ImagePositionPatient of the first slice, mm, LPS+.
    slant : three floats
        What each slice is moved further than the one before, in mm: a tilted gantry.
    uid : str
        From which the UIDs of study and series are made.
    tags
        Values of further elements, by keyword.
    """
    array = body() if array is None else array
    normal = np.cross(orientation[:3], orientation[3:])
    return [
        _slice(array[..., k], k, spacing, orientation, np.array(origin) + k * (step * normal + slant), uid, tags)
        for k in range(array.shape[2])
    ]


def store(datasets: list[Dataset], folder: Path, *, suffix: str = ".dcm", shuffled: bool = True) -> Path:
    """Write datasets as files whose names say nothing of their order, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    order = np.random.default_rng(0).permutation(len(datasets)) if shuffled else range(len(datasets))
    for number, dataset in zip(order, datasets, strict=True):
        dataset.save_as(folder / f"IM{number:04d}{suffix}", enforce_file_format=True)
    return folder


def _slice(plane, k, spacing, orientation, position, uid, tags) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = uid_of(uid, "instance", str(k))
    dataset.StudyDate = dataset.SeriesDate = dataset.ContentDate = dataset.AcquisitionDate = "20240131"
    dataset.StudyTime = dataset.SeriesTime = dataset.ContentTime = dataset.AcquisitionTime = "101112"
    dataset.AccessionNumber = "A1"
    dataset.Modality = "CT"
    dataset.Manufacturer = "phantom"
    dataset.ManufacturerModelName = "phantom"
    dataset.ReferringPhysicianName = ""
    dataset.SeriesDescription = "body"
    dataset.PatientName = "Doe^Jane"
    dataset.PatientID = "P1"
    dataset.PatientBirthDate = "19700102"
    dataset.PatientSex = "F"
    dataset.BodyPartExamined = "ABDOMEN"
    dataset.SliceThickness = "2.5"
    dataset.KVP = "120"
    dataset.PatientPosition = "HFS"
    dataset.StudyInstanceUID = uid_of(uid, "study")
    dataset.SeriesInstanceUID = uid_of(uid, "series")
    dataset.StudyID = "1"
    dataset.SeriesNumber = 3
    dataset.AcquisitionNumber = 1
    dataset.InstanceNumber = k + 1
    dataset.ImagePositionPatient = [f"{mm:.6f}" for mm in position]
    dataset.ImageOrientationPatient = [f"{part:.8g}" for part in orientation]
    dataset.FrameOfReferenceUID = uid_of(uid, "frame of reference")
    dataset.PositionReferenceIndicator = ""
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = plane.shape[::-1]
    dataset.PixelSpacing = list(spacing)
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.PixelRepresentation = 1
    dataset.RescaleIntercept, dataset.RescaleSlope = "-1024", "1"
    dataset.RescaleType = "HU"
    dataset.PixelData = np.ascontiguousarray(plane.T + 1024, "<i2").tobytes()
    for keyword, value in tags.items():
        setattr(dataset, keyword, value)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    return dataset


def stack_of(folder: Path):
    """Return the `Stack` of the single-frame files of one series in a folder, in the order of positions."""
    from pydicom import dcmread

    from medseg.dicom.frames import plane_affine
    from medseg.volume import Frame, Stack

    found = [(path, dcmread(path, stop_before_pixels=True)) for path in sorted(folder.iterdir())]
    orientation = np.array(found[0][1].ImageOrientationPatient, float)
    normal = np.cross(orientation[:3], orientation[3:])
    found.sort(key=lambda item: np.array(item[1].ImagePositionPatient, float) @ normal)
    frames = tuple(Frame(path, "", 0, str(d.SOPClassUID), str(d.SOPInstanceUID)) for path, d in found)
    affines = np.stack(
        [plane_affine(d.ImagePositionPatient, d.ImageOrientationPatient, d.PixelSpacing) for _, d in found]
    )
    return Stack(frames, affines, (int(found[0][1].Columns), int(found[0][1].Rows)))


def headers(stack) -> list[Dataset]:
    """Return the datasets of the objects that hold the frames of a stack, each once, in their order, without pixels."""
    from medseg.dicom.frames import header

    return [header(frame) for frame in {(frame.path, frame.member): frame for frame in stack.frames}.values()]
