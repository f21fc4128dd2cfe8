"""What the tests of the server share: `medseg serve` in a process of its own, with folders of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from conftest import random_bundle, smooth_scan

import medseg

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("python_multipart")

_START = 120  # seconds, on a busy machine


@dataclass
class Server:
    """One that runs.

    Parameters
    ----------
    url : str
        Without a slash at its end.
    folder : Path
        Holds `scan.nii.gz`, the log, and the folders that the user would have.
    process : Popen
        Of the command.
    """

    url: str
    folder: Path
    process: subprocess.Popen[bytes]
    port: int = field(init=False)

    def __post_init__(self) -> None:
        self.port = int(self.url.rpartition(":")[2])

    @property
    def scan(self) -> Path:
        """A scan that the model takes."""
        return self.folder / "scan.nii.gz"

    def log(self) -> str:
        """Return what it said on stderr so far."""
        return (self.folder / "log").read_text()

    def spool(self) -> list[Path]:
        """Return everything that it keeps on the disk."""
        walked = os.walk(self.folder / "XDG_CACHE_HOME")  # unlike rglob, it goes on where a folder vanishes meanwhile
        return [Path(place, name) for place, _, names in walked for name in names]

    def stop(self, how: int = signal.SIGTERM) -> int:
        """Let it end; return its exit code."""
        self.process.send_signal(how)
        return self.process.wait(60)


@contextmanager
def served(folder: Path, *options: object, model: Path | None = None, site: str = "") -> Iterator[Server]:
    """Give a server with a tiny model, as long as the block lasts.

    Parameters
    ----------
    folder : Path
        For all files.
    *options
        Of `medseg serve`.
    model : Path, optional
        Another model.
    site : str
        A program that its process runs first.
    """
    places = {name: folder / name for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME")}
    for place in (*places.values(), folder / "site"):
        place.mkdir(parents=True, exist_ok=True)
    if model is None:
        model = folder / "tiny.safetensors"
        random_bundle().save(model)
        medseg.write(smooth_scan((16, 16, 16)), folder / "scan.nii.gz")
    (folder / "site" / "sitecustomize.py").write_text(site)
    environment = {**os.environ, **{name: str(place) for name, place in places.items()}, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(folder / "site"), os.environ.get("PYTHONPATH", "")])
    words = [sys.executable, "-m", "medseg", "serve", "-m", model, "--port", 0, "--device", "cpu", *options]
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen([*map(str, words)], stdout=subprocess.PIPE, stderr=log, env=environment, cwd=folder)
    try:
        yield Server(_address(process, folder), folder, process)
    finally:
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def _address(process: subprocess.Popen[bytes], folder: Path) -> str:
    until = time.monotonic() + _START
    os.set_blocking(process.stdout.fileno(), False)
    said = b""
    while not (found := re.search(rb"answers at (https?://\S+)/", said)):
        assert process.poll() is None, (folder / "log").read_text()
        assert time.monotonic() < until, (folder / "log").read_text()
        said += process.stdout.read() or b""
        time.sleep(0.02)
    return found[1].decode()
