"""What the tests of faults share: a small archive, the command in a process of its own, and what must hold after it.

No conftest.py: a second module of that name would hide the one that all tests import from.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from conftest import random_bundle, smooth_scan
from phantoms import body, series, store

import medseg
from medseg.archive import audit

# Each Python that the command starts runs this first: it tells who was started, and breaks workers as a test wants.
SITE = """
import os, sys
words = " ".join(sys.orig_argv)
if "medseg.archive.worker" in words:
    with open({starts!r}, "a") as file:
        file.write(str(os.getpid()) + chr(10))
    {patch}
"""
# A `_read` of the station that first does what the name of a scan's file says.
MISDEEDS = """
import signal, time
from pathlib import Path
import ctypes
import medseg.archive.station as station
import numpy as np
sound = station.Station._read
def read(self, task, spool):
    name = Path(task.files[0][0]).name
    time.sleep(float(os.environ.get("TRIAL_SLOW", 0)))
    if "hang" in name:
        time.sleep(600)
    if "deaf" in name:  # nothing else in the process gets on
        ctypes.PyDLL(None).sleep(600)
    if "die" in name:
        os.kill(os.getpid(), signal.SIGKILL)
    if "eat" in name:
        kept = []
        while sum(part.nbytes for part in kept) < 2.5e9:
            kept.append(np.ones(8_000_000))
        time.sleep(600)
    return sound(self, task, spool)
station.Station._read = read
"""


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str
    seconds: float


class Trial:
    """A folder with an archive, a model, an index and a key, and commands on them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.archive, self.out = folder, folder / "archive", folder / "out"
        self.model, self.index, self.key = folder / "tiny.safetensors", folder / "index.sqlite", folder / "names.key"
        self.starts = folder / "starts"
        self.mark = f"TRIAL={secrets.token_hex(8)}"
        self.env = {
            **os.environ,
            "XDG_CACHE_HOME": str(folder / "cache"),
            "XDG_CONFIG_HOME": str(folder / "config"),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(folder / "site"), os.environ.get("PYTHONPATH", "")]),
            "PYTHONWARNINGS": "",
            "TRIAL": self.mark.partition("=")[2],
        }
        (folder / "site").mkdir(parents=True, exist_ok=True)
        self.archive.mkdir(exist_ok=True)
        self.break_workers("")
        if not self.model.exists():
            random_bundle().save(self.model)

    def break_workers(self, patch: str = MISDEEDS) -> None:
        """Let workers run a program before their own."""
        indented = patch.strip().replace("\n", "\n    ") or "pass"
        text = SITE.format(starts=str(self.starts), patch=indented)
        (self.folder / "site" / "sitecustomize.py").write_text(text)

    def scans(self, count: int, *, dicom: int = 0) -> None:
        """Put scans into the archive: NIfTI, and small DICOM series."""
        for number in range(count - dicom):
            self.scan(f"s{number:02d}/scan.nii.gz", seed=number)
        for number in range(dicom):
            self.series(f"d{number:02d}", number)

    def scan(self, name: str, *, seed: int = 0) -> Path:
        """Put one NIfTI scan into the archive."""
        path = self.archive / name
        path.parent.mkdir(parents=True, exist_ok=True)
        medseg.write(smooth_scan((16, 16, 16), seed=seed), path)
        return path

    def series(self, name: str, number: int = 0, **tags) -> list[Path]:
        """Put one DICOM series into the archive."""
        noise = np.random.default_rng(number).integers(-200, 200, (16, 16, 16))
        array = (body((16, 16, 16)) + noise).astype(np.int16)
        tags = {"PatientID": f"P{number}", **tags}
        uid = tags.pop("uid", f"1.2.826.0.1.3680043.8.498.{number + 1}")
        folder = store(series(array, uid=uid, **tags), self.archive / name, shuffled=False)
        return sorted(folder.iterdir())

    def words(self, *more, out: Path | None = None, index: Path | None = None) -> list[str]:
        """Return the command."""
        words = ["batch", self.archive, "-o", out or self.out, "-m", self.model, "--progress", "none"]
        words += ["--index", index or self.index, "--key-file", self.key]
        return [sys.executable, "-m", "medseg", *map(str, [*words, *more])]

    def start(self, *more, env: dict[str, str] | None = None, **places) -> subprocess.Popen[str]:
        """Start `medseg batch`."""
        return subprocess.Popen(
            self.words(*more, **places),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder,
            env={**self.env, **(env or {})},
            start_new_session=True,
        )

    def run(self, *more, timeout: float = 900, **places) -> Ended:
        """Run `medseg batch` to its end."""
        start = time.monotonic()
        process = self.start(*more, **places)
        out, err = process.communicate(timeout=timeout)
        return Ended(process.returncode, out, err, time.monotonic() - start)

    def medseg(self, *words) -> Ended:
        """Run another command of medseg to its end."""
        done = subprocess.run(
            [sys.executable, "-m", "medseg", *map(str, words)],
            capture_output=True, text=True, cwd=self.folder, env=self.env, timeout=240, check=False,
        )  # fmt: skip
        return Ended(done.returncode, done.stdout, done.stderr, 0.0)

    def processes(self, what: str = "") -> list[int]:
        """Return the processes that the commands of this trial started and that live, whoever is their parent now."""
        found = []
        for folder in Path("/proc").iterdir():
            with suppress(OSError):
                if not folder.name.isdigit() or self.mark.encode() not in (folder / "environ").read_bytes():
                    continue
                if what.encode() in (folder / "cmdline").read_bytes():
                    found.append(int(folder.name))
        return found

    def workers(self) -> list[int]:
        """Return the worker processes that live."""
        return self.processes("medseg.archive.worker")

    def workers_started(self) -> int:
        """Return how many worker processes were ever started."""
        return len(self.starts.read_text().split()) if self.starts.exists() else 0

    def ledger(self, out: Path | None = None) -> dict[str, dict]:
        """Return the rows of the ledger by place."""
        with closing(sqlite3.connect((out or self.out) / ".medseg" / "ledger.sqlite", timeout=30)) as db:
            db.row_factory = sqlite3.Row
            return {row["place"]: dict(row) for row in db.execute("SELECT * FROM item")}

    def states(self, out: Path | None = None) -> Counter[str]:
        """Return how many items there are in each state; none while there is no ledger."""
        try:
            return Counter(row["state"] for row in self.ledger(out).values())
        except sqlite3.Error:
            return Counter()

    def wait_for(self, done: int, process: subprocess.Popen, out: Path | None = None) -> None:
        """Wait until so many items are done."""
        until = time.monotonic() + 240
        while self.states(out)["done"] < done:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < until
            time.sleep(0.02)

    def log(self, out: Path | None = None) -> list[dict]:
        """Return the lines of the audit log that tell of items; the chain is whole."""
        path = (out or self.out) / "audit.jsonl"
        count, fault = audit.check(path)
        assert not fault
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert len(lines) == count
        return [line for line in lines if line["event"] == "item"]

    def rows(self, out: Path | None = None) -> list[tuple[str, str]]:
        """Return place and state of the items that the table tells of."""
        import csv

        with open((out or self.out) / "results.csv", newline="") as file:
            found = {(f"{row['patient']}/{row['study']}/{row['series']}", row["state"]) for row in csv.DictReader(file)}
        return sorted(found)

    def check_complete(self, done: int, failed: int = 0, *, out: Path | None = None) -> None:
        """Check that every item is accounted for once, and nothing is left of what went wrong on the way."""
        out = out or self.out
        rows = self.ledger(out).values()
        assert Counter(row["state"] for row in rows) == Counter({"done": done, "failed": failed}), rows
        assert not [row["owner"] for row in rows if row["owner"]]
        told = Counter(line["item"] for line in self.log(out) if line["state"] == "done")
        assert told == Counter({row["place"]: 1 for row in rows if row["state"] == "done"})
        listed = self.rows(out)
        assert len(listed) == len({place for place, _ in listed}) == done + failed
        assert Counter(state for _, state in listed) == Counter({"done": done, "failed": failed})
        places = {str(path.parent.relative_to(out / "results")) for path in visible(out)}
        assert places == {row["place"] for row in rows if row["state"] == "done"}
        assert not [*(out / "results").rglob(".medseg-*.part")]
        assert not [*(out / ".medseg").rglob("spool/*")]

    def end(self) -> None:
        """Kill what is left."""
        for number in self.processes():
            with suppress(OSError):
                os.kill(number, signal.SIGKILL)


@contextmanager
def trial_in(folder: Path):
    """Yield a trial, and leave no process behind."""
    trial = Trial(folder)
    try:
        yield trial
    finally:
        trial.end()


def visible(out: Path) -> list[Path]:
    """Return the files of results that can be seen; what is hidden is nothing but a part of a file."""
    files = [path for path in (out / "results").rglob("*") if not path.is_dir()]
    hidden = [path for path in files if path.name.startswith(".")]
    assert not [path for path in hidden if not path.match(".medseg-*.part")]
    return sorted(set(files) - set(hidden))


def assert_same(path: Path, other: Path) -> None:
    """Check that a result equals another one: byte for byte, but for times."""
    assert other.exists(), path
    if path.suffix == ".json":
        one, two = (json.loads(file.read_text()) for file in (path, other))
        one["seconds"] = two["seconds"] = None
        assert one == two, path
    elif path.suffix == ".dcm":
        assert without_times(path) == without_times(other), path
    else:
        assert path.read_bytes() == other.read_bytes(), path


def without_times(path: Path) -> bytes:
    """Return a DICOM object without the elements that say when it was made."""
    from io import BytesIO

    from pydicom import dcmread

    dataset, file = dcmread(path), BytesIO()
    for keyword in ("ContentDate", "ContentTime", "InstanceCreationDate", "InstanceCreationTime"):
        if keyword in dataset:
            dataset[keyword].value = ""
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def assert_all_same(out: Path, clean: Path, seen: dict[Path, tuple[int, int]] | None = None) -> None:
    """Check that all results that can be seen are those of another run; `seen` spares those that were checked."""
    for path in visible(out):
        status = path.stat()
        stamp = (status.st_ino, status.st_mtime_ns)
        if seen is None or seen.get(path) != stamp:
            assert_same(path, clean / path.relative_to(out))
            if seen is not None:
                seen[path] = stamp


@contextmanager
def mounted(place: Path, options: str):
    """Mount a file system in memory, or skip the test where that is not permitted."""
    place.mkdir(parents=True, exist_ok=True)
    mount = shutil.which("mount")
    words = [mount or "mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
    if not mount or subprocess.run(words, capture_output=True, check=False).returncode:
        pytest.skip("this test mounts file systems, which is not permitted here")
    try:
        yield place
    finally:
        for _ in range(50):  # a process that was killed may hold it for a moment
            if not subprocess.run(["umount", str(place)], capture_output=True, check=False).returncode:
                break
            time.sleep(0.1)


def remount(place: Path, options: str) -> None:
    """Change a file system that is mounted."""
    subprocess.run(["mount", "-o", f"remount,{options}", str(place)], check=True)
