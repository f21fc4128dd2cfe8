"""What an archive of a million studies costs `medseg batch`, besides computing: measured on this computer, and printed.

    python benchmarks/scale.py [--files 20000] [--items 100000] [--scans 200] [--folder PLACE]

- index: an archive of small CT slices, 100 to a series, listed the first and the second time;
- run: all that the process which writes the ledger does for `--items` items whose computing costs nothing: planning,
  claims, ledger, audit log, table and page, and how much memory that takes; then the same order again;
- ray: `--scans` tiny scans by one worker process and by one Ray actor, where Ray is installed.

Each part runs in a process of its own; `--folder` should lie on a disk, not in memory.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np

import medseg
from medseg.archive import Order, Rule, Rules, Settings, Tally, Watcher, batch, run
from medseg.archive.index import Index, opened
from medseg.archive.post import Event, Inbox
from medseg.archive.task import DONE, Outcome, Task

SLICES = 100  # of a series
BITS = {"nifti": "seg.nii.gz", "dicom-seg": "seg.dcm", "report": "seg.json", "picture": "seg.png"}


def main() -> None:
    """Run each part in a process of its own, and print what it found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--scans", type=int, default=200)
    parser.add_argument("--folder", type=Path, help="where the files are made; in the system's temporary folder else")
    parser.add_argument("--part", nargs=3, metavar=("NAME", "COUNT", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        name, count, folder = options.part
        parts = {"index": measure_index, "run": measure_run, "local": measure_scans, "ray": measure_scans}
        print(json.dumps(parts[name](int(count), Path(folder), name)))
        return
    parts = {"index": options.files, "run": options.items, "local": options.scans, "ray": options.scans}
    if importlib.util.find_spec("ray") is None:
        del parts["ray"]
    for name, count in parts.items():
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            words = [sys.executable, __file__, "--part", name, str(count), folder]
            found = json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE).stdout)
        for what, value in found.items():
            print(f"{name:6} {what:42} {value:12,.4g}", flush=True)


def measure_index(count: int, folder: Path, _: str) -> dict[str, float]:
    """Return what listing an archive of small slices costs."""
    archive = folder / "archive"
    written = write_slices(archive, count)
    os.sync()
    seconds = []
    path = folder / "index" / "index.sqlite"
    with opened(path, archive) as index:
        before = peak()
        for _ in range(2):
            start = time.perf_counter()
            index.refresh([archive], folder / "out", lambda _: None)
            seconds.append(time.perf_counter() - start)
        held = peak() - before
        start = time.perf_counter()
        files = sum(len(index.parts(volume.series_id)) for volume in index.volumes())
        listing = time.perf_counter() - start
    if files != count:
        sys.exit(f"the index has {files} files of {count}")
    return {
        "files": count,
        "bytes of a file": written / count,
        "files/s, first time": count / seconds[0],
        "files/s, nothing new": count / seconds[1],
        "bytes of the index for a file": path.stat().st_size / count,
        "memory, MB": held / 1e6,
        "files/s, names of a series looked up": count / listing,
    }


def write_slices(archive: Path, count: int) -> int:
    """Write slices in folders of one series each, and return how many bytes; one is made, the others are its copies."""
    from dicom import header

    dataset, file = header(0, size=8), BytesIO()
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "2.25.2" + "0" * 20, "2.25.3" + "0" * 20
    dataset.PatientID, dataset.SOPInstanceUID = "P0000000", "2.25.1" + "0" * 20
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.ImagePositionPatient = ["-200", "-200", "0000000000"]
    dataset.PixelData = bytes(128)
    dataset.save_as(file, enforce_file_format=True)
    template, written = file.getvalue(), 0
    for number in range(0, count, SLICES):
        series, text = archive / f"{number // 10_000:04d}" / f"{number:08d}", template
        series.mkdir(parents=True)
        for old, new in (("2.25.2", number), ("2.25.3", number)):
            text = text.replace((old + "0" * 20).encode(), f"{old}{new:020d}".encode())
        text = text.replace(b"P0000000", b"P%07d" % number)
        for k in range(min(SLICES, count - number)):
            own = text.replace(b"2.25.1" + b"0" * 20, b"2.25.1%020d" % (number + k))
            written += (series / f"{k:04d}").write_bytes(own.replace(b"\\0000000000", b"\\%010d" % (2 * k)))
    return written


class Free:
    """A post at whose place nothing is computed: the outcome of a task is there as soon as it is given."""

    def __init__(self, inbox: Inbox) -> None:
        self.name, self.life, self._inbox = "free", 0, inbox

    def start(self) -> None:
        """Begin."""
        self.life += 1
        self._say("ready", gpus=0)

    def give(self, task: Task) -> None:
        """Say what would have been done: with the stages, and the facts of five files of which one is there."""
        for stage in ("read", "", "compute", "", "write", ""):
            self._say("stage", place=task.place, stage=stage)
        folder = Path(task.folder)
        folder.mkdir(parents=True)
        path = folder / "seg.json"
        path.write_bytes(b"{}")
        status = path.stat()
        facts = {kind: ["seg.json", status.st_size, status.st_mtime_ns, "0" * 64] for kind in (*BITS, "thumbnail")}
        result = {
            "verdict": "ok", "reasons": [], "volumes_ml": {"liver": 1500.123456, "spleen": 200.123456}, "warnings": 0,
            "device": "torch, float16, NVIDIA", "stored": [], "files": facts,
        }  # fmt: skip
        seconds = {"read": 1.234, "compute": 12.345, "write": 0.123}
        self._say("outcome", place=task.place, outcome=Outcome(DONE, seconds=seconds, result=result).plain())

    def held(self) -> int:
        """Return nothing."""
        return 0

    def stop(self) -> None:
        """End."""

    def _say(self, kind: str, **data: object) -> None:
        self._inbox.put(Event(self, self.life, kind, data))


class Clock(Watcher):
    """Notes when a run had planned, and when it had worked."""

    def __init__(self) -> None:
        self.began = self.planned = self.worked = time.perf_counter()

    def begin(self, tally: Tally) -> None:  # noqa: ARG002 - the form of a watcher
        """All items are known."""
        self.planned = time.perf_counter()

    def step(self, tally: Tally) -> None:  # noqa: ARG002 - likewise
        """Something went on."""
        self.worked = time.perf_counter()


def measure_run(count: int, folder: Path, _: str) -> dict[str, float]:
    """Return what everything but computing costs for so many items."""
    batch.local_posts = lambda settings, inbox, *rest, **more: [Free(inbox)]  # noqa: ARG005 - of this process alone
    archive, output = folder / "archive", folder / "out"
    archive.mkdir()
    pretend(folder / "index.sqlite", archive, count)
    order = replace(order_of(folder), settings=Settings(device="cpu"))
    before, clock = peak(), Clock()
    tally = run(order, clock)
    end, held = time.perf_counter(), peak() - before
    again, start = Clock(), time.perf_counter()
    run(order, again)
    if tally.done != count:
        sys.exit(f"{tally.done} items of {count} were done")
    sizes = {name: (output / name).stat().st_size for name in ("results.csv", "index.html", "audit.jsonl")}
    return {
        "items": count,
        "planned, items/s": count / (clock.planned - clock.began),
        "given out and entered, items/s": count / (clock.worked - clock.planned),
        "table and page, s": end - clock.worked,
        "the same order again, s": time.perf_counter() - start,
        "memory for all items, MB": held / 1e6,
        "memory of the program itself, MB": before / 1e6,
        "bytes of the ledger for an item": (output / ".medseg" / "ledger.sqlite").stat().st_size / count,
        "bytes of the audit log for an item": sizes["audit.jsonl"] / count,
        "bytes of results.csv for an item": sizes["results.csv"] / count,
        "index.html, MB": sizes["index.html"] / 1e6,
    }


def order_of(folder: Path) -> Order:
    """Return an order with a tiny model."""
    model = folder / "tiny.safetensors"
    subprocess.run([sys.executable, Path(__file__).parent / "tiny_bundle.py", model, "--patch", "16"], check=True)
    rules = Rules(rule=(Rule(model=str(model)),))
    return Order(
        folder / "out", rules, archive=folder / "archive", index=folder / "index.sqlite", key_file=folder / "key"
    )


def pretend(path: Path, archive: Path, count: int) -> None:
    """Fill an index with series that were found and judged."""
    index = Index(path, archive)
    with index._db as db:  # noqa: SLF001 - there is no other way to have a large archive without its files
        db.execute("BEGIN")
        for number in range(count):
            names = (b"P%07d" % (number // 2), b"2.25.2%020d" % number, b"2.25.3%020d" % number)
            db.execute(
                "INSERT INTO series (id, identity, kind, patient, study, name, modality, description, judged)"
                " VALUES (?, ?, 'dicom', ?, ?, ?, 'CT', 'thorax', 1)",
                (number + 1, b"\0".join(names), *names),
            )
            db.execute(
                "INSERT INTO volume VALUES (?, 1, 300, '[0.7, 0.7, 1.0]', 1, '', '', '', '', 0, ?, '[]')",
                (number + 1, f"{number:064d}"),
            )
    index.close()


def measure_scans(count: int, folder: Path, engine: str) -> dict[str, float]:
    """Return how many tiny scans one worker does in a second, once it is there, and how long it takes to be there."""
    (folder / "archive").mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        grid = medseg.Geometry(np.eye(4), (16, 16, 16))
        volume = medseg.Volume(rng.normal(size=(1, 16, 16, 16)).astype(np.float32), grid)
        medseg.write(volume, folder / "archive" / f"{number}.nii.gz")
    settings = Settings(device="cpu", threads=1, picture=False)
    order = replace(order_of(folder), settings=settings, ray="" if engine == "ray" else None)
    clock, seconds = Clock(), []
    clock.step = lambda tally: seconds.append((tally.new, time.perf_counter()))
    run(order, clock)
    new = [(done, moment) for done, moment in seconds if done]
    speed = (new[-1][0] - new[0][0]) / (new[-1][1] - new[0][1])
    return {"until the first scan was done, s": new[0][1] - clock.planned, "scans/s after that": speed}


def peak() -> float:
    """Return the most memory that this process has held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1024 if sys.platform == "linux" else 1)


if __name__ == "__main__":
    main()
