"""Read and write a CT and a label map as .nii.gz: medseg, nibabel and SimpleITK side by side in one run.

    python benchmarks/nifti.py [--slices 300] [--rounds 5]

Every measurement is a fresh process that reports its own CPU time, wall time and growth of peak memory; rounds are
interleaved, and the median of each figure is printed with its ratio to nibabel. The CT is a smooth body with noise,
512 x 512 x SLICES voxels of int16; the label map has 14 ellipsoids of uint8.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

SIDE = 512
READERS = {
    "medseg": "import medseg; a = medseg.read(path).array",
    "nibabel": "import nibabel; a = np.asarray(nibabel.load(path).dataobj)",
    "nibabel get_fdata": "import nibabel; a = nibabel.load(path).get_fdata()",
    "SimpleITK": "import SimpleITK as sitk; a = sitk.GetArrayFromImage(sitk.ReadImage(path))",
}
IMAGE = "medseg.LabelMap(a, g) if a.dtype == np.uint8 else medseg.Volume(a[None], g)"
WRITERS = {
    "medseg": (f"import medseg; g = medseg.Geometry(np.eye(4), a.shape); x = {IMAGE}", "medseg.write(x, out)"),
    "nibabel": ("import nibabel; x = nibabel.Nifti1Image(a, np.eye(4))", "nibabel.save(x, out)"),
    "SimpleITK": ("import SimpleITK as sitk; x = sitk.GetImageFromArray(a.T)", "sitk.WriteImage(x, out, True)"),
}
WARM = "import medseg.io.nifti, medseg.volume, nibabel, SimpleITK; "  # imports are not what is measured
MEASURE = """
import json, os, resource, sys, time
import numpy as np
path, out = sys.argv[1:]
{warm}
{setup}
def cpu():
    t = os.times()
    return t.user + t.system
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak starts from here
def peak():
    lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(lines["VmHWM"].split()[0])
before, wall, used = peak(), time.perf_counter(), cpu()
{action}
print(json.dumps([cpu() - used, time.perf_counter() - wall, (peak() - before) / 1024]))
"""


def main() -> None:
    """Make the files, measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name, array in (("CT int16", ct(options.slices)), ("label map uint8", label_map(options.slices))):
            raw, packed, out = (Path(folder) / part for part in ("a.npy", "a.nii.gz", "out.nii.gz"))
            np.save(raw, array)
            run(WRITERS["nibabel"][0], WRITERS["nibabel"][1], raw, packed)
            size = array.nbytes / 1e6
            print(f"\n{name}, {SIDE} x {SIDE} x {options.slices}: {size:.0f} MB in memory, {options.rounds} rounds")
            reads = {who: ("", code) for who, code in READERS.items()}
            table("read", reads, packed, out, options.rounds)
            table("write", WRITERS, raw, out, options.rounds)
            del array


def table(what: str, codes: dict[str, tuple[str, str]], path: Path, out: Path, rounds: int) -> None:
    """Measure every reader or writer in turn and print the medians."""
    found: dict[str, list[list[float]]] = {who: [] for who in codes}
    sizes = dict.fromkeys(codes, 0.0)
    for _ in range(rounds):
        for who, (setup, action) in codes.items():
            found[who].append(run(setup, action, path, out))
            sizes[who] = out.stat().st_size / 1e6 if what == "write" else 0.0
    medians = {who: [statistics.median(column) for column in zip(*rows, strict=True)] for who, rows in found.items()}
    base = medians["nibabel"]
    print(f"{what:<20}{'CPU s':>8}{'ratio':>8}{'wall s':>8}{'ratio':>8}{'peak +MB':>10}{'file MB':>9}")
    for who, (cpu, wall, memory) in medians.items():
        file = f"{sizes[who]:9.1f}" if sizes[who] else ""
        print(f"{who:<20}{cpu:8.2f}{base[0] / cpu:7.1f}x{wall:8.2f}{base[1] / wall:7.1f}x{memory:10.0f}{file}")


def run(setup: str, action: str, path: Path, out: Path) -> list[float]:
    """Return CPU seconds, wall seconds and the growth of peak memory in MB of one action in its own process."""
    if path.suffix == ".npy":
        setup = f"a = np.asfortranarray(np.load(path)); {setup}"
    code = MEASURE.format(warm=WARM, setup=setup, action=action)
    words = [sys.executable, "-c", code, str(path), str(out)]
    done = subprocess.run(words, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "2"})
    figures: list[float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def ct(slices: int) -> np.ndarray:
    """Return a body of water in air with a spine, in HU, with the noise of a scanner."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[-1:1:512j, -1:1:512j]
    body = (x / 0.8) ** 2 + (y / 0.6) ** 2 < 1
    spine = (x / 0.1) ** 2 + ((y - 0.35) / 0.1) ** 2 < 1
    plane = np.where(spine, 600, np.where(body, 40 + 30 * np.sin(8 * x) * np.cos(7 * y), -1000))
    noise = np.where(body, 12, 6)
    array = np.empty((SIDE, SIDE, slices), np.int16, order="F")
    for k in range(slices):
        array[..., k] = plane + rng.normal(size=plane.shape) * noise
    return array


def label_map(slices: int) -> np.ndarray:
    """Return 14 ellipsoids."""
    rng = np.random.default_rng(0)
    array = np.zeros((SIDE, SIDE, slices), np.uint8, order="F")
    i, j = np.mgrid[0:SIDE, 0:SIDE]
    for value in range(1, 15):
        centre, radii = rng.uniform(0.25, 0.75, 3) * array.shape, rng.uniform(0.05, 0.15, 3) * array.shape
        for k in range(slices):
            rest = 1 - ((k - centre[2]) / radii[2]) ** 2
            if rest > 0:
                inside = ((i - centre[0]) / radii[0]) ** 2 + ((j - centre[1]) / radii[1]) ** 2 < rest
                array[..., k][inside] = value
    return array


if __name__ == "__main__":
    main()
