"""Reading DICOM: a series of CT slices against SimpleITK and pydicom, and headers of many files against pydicom.

    python benchmarks/dicom.py [--slices 300] [--headers 10000] [--rounds 3]

Makes its own files in a temporary folder: CT-like slices of 512 x 512, stored plainly and compressed (by `gdcmconv`
of python-gdcm where that is installed). Each measurement is the wall and processor time of a fresh process, child
processes included; the median of the rounds counts. Prints ratios; all readers must return the same voxels.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from scipy import ndimage

SYNTAXES = {"plain": None, "RLE": "--rle", "JPEG lossless": "--jpeg", "JPEG-LS": "--jpegls", "JPEG 2000": "--j2k"}
READERS = ("medseg", "SimpleITK", "pydicom")


def main() -> None:
    """Make the files, measure each reader in processes of its own, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--headers", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", nargs=2, metavar=("READER", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(*options.measure)))
        return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_series(root / "plain", options.slices)
        for name, option in SYNTAXES.items():
            if option is None or compress(root / "plain", root / name, option):
                compare(name, root / name, options.rounds)
        make_headers(root / "headers", options.headers)
        compare("headers", root / "headers", options.rounds, readers=("medseg headers", "pydicom headers"))


def make_series(folder: Path, slices: int) -> None:
    """Write CT-like slices: smooth anatomy and noise, 12 bits, a private block as scanners have, shuffled names."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    anatomy = ndimage.gaussian_filter(rng.normal(size=(512, 512)), 12)
    anatomy = anatomy / np.abs(anatomy).max() * 900 + 1000
    for k, number in enumerate(rng.permutation(slices)):
        dataset = header(k)
        plane = np.clip(anatomy + rng.normal(scale=12, size=anatomy.shape) + k, 0, 4095)
        dataset.PixelData = plane.astype("<u2").tobytes()
        dataset.save_as(folder / f"{number:05d}.dcm", enforce_file_format=True)


def make_headers(folder: Path, count: int) -> None:
    """Write files of tiny slices with the header of a scanner: forty private elements before the image."""
    folder.mkdir()
    for k in range(count):
        dataset = header(k, size=8)
        dataset.PixelData = bytes(128)
        dataset.save_as(folder / f"{k:05d}", enforce_file_format=True)


def header(k: int, size: int = 512):  # noqa: ANN201 - a pydicom Dataset
    """Return the header of slice k."""
    from pydicom import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, f"2.25.1{k:06d}"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = "2.25.2", "2.25.3", "2.25.4"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.Modality, dataset.PatientName, dataset.PatientID = "CT", "Bench^Mark", "1"
    dataset.InstanceNumber, dataset.SliceThickness = k + 1, "2"
    dataset.ImagePositionPatient = [-200, -200, 2 * k]
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.PixelSpacing = [0.78, 0.78]
    dataset.Rows = dataset.Columns = size
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.RescaleIntercept, dataset.RescaleSlope = "-1024", "1"
    block = dataset.private_block(0x0019, "MEDSEG BENCH", create=True)
    for element in range(40):
        block.add_new(element, "LO", f"private value {element}")
    return dataset


def compress(source: Path, target: Path, option: str) -> bool:
    """Return whether every slice could be written in another transfer syntax."""
    program = shutil.which("gdcmconv", path=str(Path(sys.executable).parent)) or shutil.which("gdcmconv")
    if not program:
        print(f"{target.name}: skipped, as there is no gdcmconv (pip install python-gdcm)")
        return False
    target.mkdir()
    for path in source.iterdir():
        subprocess.run([program, option, path, target / path.name], check=True)
    return True


def compare(name: str, folder: Path, rounds: int, *, readers: tuple[str, ...] = READERS) -> None:
    """Print the medians of some readers, and how many times as long as medseg each takes."""
    found: dict[str, list[dict[str, float]]] = {reader: [] for reader in readers}
    for _ in range(rounds):
        for reader in readers:
            words = [sys.executable, __file__, "--measure", reader, folder]
            found[reader].append(json.loads(subprocess.run(words, capture_output=True, check=True).stdout))
    sums = {run["sum"] for runs in found.values() for run in runs}
    if len(sums) > 1:
        sys.exit(f"{name}: the readers return different voxels: {sums}")
    medians = {
        reader: {key: statistics.median(run[key] for run in runs) for key in ("wall", "cpu", "peak")}
        for reader, runs in found.items()
    }
    own = medians[readers[0]]
    for reader, median in medians.items():
        print(
            f"{name:14} {reader:16} wall {median['wall']:7.2f} s ({median['wall'] / own['wall']:5.1f})"
            f"  cpu {median['cpu']:7.2f} s ({median['cpu'] / own['cpu']:5.1f})  peak +{median['peak'] / 1e3:6.0f} MB",
            flush=True,
        )


def measure(reader: str, folder: str) -> dict[str, float]:
    """Return wall and processor seconds, growth of memory in kB, and a checksum of what was read."""
    read = {
        "medseg": read_medseg, "SimpleITK": read_simpleitk, "pydicom": read_pydicom,
        "medseg headers": scan_medseg, "pydicom headers": scan_pydicom,
    }[reader]  # fmt: skip
    read(folder, warm=True)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, cpu = time.perf_counter(), seconds()
    total = read(folder)
    wall, cpu = time.perf_counter() - start, seconds() - cpu
    return {
        "wall": wall, "cpu": cpu, "sum": total,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before,
    }  # fmt: skip


def seconds() -> float:
    """Return the processor time of this process and its finished children."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def read_medseg(folder: str, *, warm: bool = False) -> float:
    """Read by medseg."""
    from medseg.dicom.series import read_series

    return 0.0 if warm else float(read_series(Path(folder)).array.sum(dtype=np.int64))


def read_simpleitk(folder: str, *, warm: bool = False) -> float:
    """Read by SimpleITK's reader of series (GDCM)."""
    import SimpleITK

    if warm:
        return 0.0
    names = SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(folder)
    return float(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(names)).sum(dtype=np.int64))


def read_pydicom(folder: str, *, warm: bool = False) -> float:
    """Read by pydicom in a loop, sorted by position, rescaled."""
    from pydicom import dcmread

    if warm:
        return 0.0
    datasets = sorted((dcmread(path) for path in Path(folder).iterdir()), key=lambda d: d.ImagePositionPatient[2])
    planes = np.stack([d.pixel_array.astype(np.int16) + np.int16(d.RescaleIntercept) for d in datasets])
    return float(planes.sum(dtype=np.int64))


def scan_medseg(folder: str, *, warm: bool = False) -> float:
    """Read the headers by medseg, with all that follows: splitting and the geometry check."""
    from medseg.dicom.series import survey

    return 0.0 if warm else float(sum(len(p.planes) for row in survey(Path(folder)).rows for p in row.placements))


def scan_pydicom(folder: str, *, warm: bool = False) -> float:
    """Read the headers by pydicom in a loop."""
    from pydicom import dcmread

    if warm:
        return 0.0
    found = [dcmread(path, stop_before_pixels=True) for path in Path(folder).iterdir()]
    return float(len({dataset.SOPInstanceUID for dataset in found}))


if __name__ == "__main__":
    main()
