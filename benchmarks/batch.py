"""Scans in an hour: `medseg batch`, `medseg predict` in a loop and over a folder, and nnU-Net's folder prediction.

    python benchmarks/batch.py --data HIPPOCAMPUS [--count 40] [--nnunet VENV] [--backend torch] [--device cpu]

The shipped hippocampus model, five members, over scans of the Medical Segmentation Decathlon; everything from the start
of the program to the last file on the disk. medseg writes label map and report (no picture, as nnU-Net draws none),
flushed to the disk and read back; with --pictures also those. nnU-Net gets the same networks, windows and steps, no
mirroring; its way of preparing and exporting in processes of their own is as it is (`inference/by_nnunet.py`).
VENV as for `benchmarks/inference.py`.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from medseg.zoo import find

MODEL = "hippocampus-t1"


def main() -> None:
    """Measure each way, and print a table."""
    words = parsed()
    scans = sorted((words.data / "imagesTr").glob("hippocampus_*.nii.gz"))[: words.count]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        given = folder / "scans"
        given.mkdir()
        for scan in scans:
            shutil.copy(scan, given / scan.name.replace(".nii.gz", "_0000.nii.gz"))
        ways = ways_of(words, given, folder)
        found = {name: measured(way, folder / name) for name, way in ways.items()}
    best = found["medseg batch"]
    print(f"{len(scans)} scans, {words.threads} threads, {words.device}, backend {words.backend}")
    print("| way | seconds | scans an hour | times medseg batch |\n|---|---|---|---|")
    for name, (seconds, count) in found.items():
        print(f"| {name} | {seconds:.0f} | {count / seconds * 3600:.0f} | {seconds / best[0]:.1f} |")
        if count != len(scans):
            print(f"{name}: {count} label maps instead of {len(scans)}", file=sys.stderr)


def parsed() -> argparse.Namespace:
    """Return what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the Decathlon's hippocampus task")
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--nnunet", type=Path, help="virtual environment with nnU-Net")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--backend", default="torch")
    parser.add_argument("--device", default="cpu", help="of medseg and of nnU-Net: cpu or cuda")
    parser.add_argument("--pictures", action="store_true")
    return parser.parse_args()


def ways_of(words: argparse.Namespace, given: Path, folder: Path) -> dict[str, Callable[[Path], object]]:
    """Return what is measured, by name: each is called with the folder for its results."""
    medseg = [sys.executable, "-m", "medseg"]
    how = [
        "--threads",
        str(words.threads),
        "--backend",
        words.backend,
        "--device",
        words.device,
        "--progress",
        "none",
        "--overlap",
        "0.5",
    ]
    how += [] if words.pictures else ["--no-picture"]
    own = ["--index", str(folder / "index.sqlite"), "--key-file", str(folder / "key")]
    scans = sorted(given.iterdir())

    def loop(output: Path) -> None:
        for scan in scans:
            called([*medseg, "predict", str(scan), "-o", str(output), *how])

    ways: dict[str, Callable[[Path], object]] = {
        "medseg batch": lambda output: called(
            [*medseg, "batch", str(given), "-o", str(output), "-m", MODEL, *how, *own]
        ),
        "medseg predict FOLDER": lambda output: called([*medseg, "predict", str(given), "-o", str(output), *how]),
        "a loop over medseg predict": loop,
    }
    if words.nnunet:
        script = Path(__file__).parent / "inference" / "nnunet_folder.py"
        start = [str(words.nnunet / "bin" / "python"), str(script), str(find(MODEL)), str(given)]
        ways["nnU-Net, folder"] = lambda output: called(
            [
                *start,
                str(output),
                "--threads",
                str(words.threads),
                "--workers",
                str(words.threads),
                "--device",
                words.device,
            ]
        )
    return ways


def called(command: list[str]) -> None:
    """Run a program; what it prints is shown where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")


def measured(way: Callable[[Path], object], output: Path) -> tuple[float, int]:
    """Return the seconds that a way took, and how many label maps there are then."""
    output.mkdir()
    start = time.perf_counter()
    way(output)
    return time.perf_counter() - start, sum(1 for _ in output.rglob("*.nii.gz"))


if __name__ == "__main__":
    main()
