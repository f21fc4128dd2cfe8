"""What a server spares over the command: small scans through `medseg predict`, and through `medseg serve`.

    python benchmarks/server.py [--model NAME|FILE] [--scan FILE] [--scans 6] [--requests 400]

Ways: the command once for each scan; the command once for all of them; requests to a server, one after the other; and
of eight clients at once. A request sends the scan and takes the label map. Then how memory, open files and threads of
the server went meanwhile. Without --model it is `tiny_bundle.py`, so that all but the network is measured.
"""

from __future__ import annotations

import argparse
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx

HERE = Path(__file__).parent
SAMPLE = HERE.parent / "sample_data" / "t1_hippocampus.nii.gz"
MEDSEG = [sys.executable, "-m", "medseg"]
CLIENTS = 8


def main() -> None:
    """Measure each way, and print a table."""
    words = parsed()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = words.model or str(tiny(folder / "tiny.safetensors"))
        print("| way | seconds a scan | scans a minute |\n|---|---|---|")
        show("the command for each", by_command(words, model, folder, each=True))
        show("the command for all", by_command(words, model, folder, each=False))
        with serving(model, folder) as (url, process):
            content = words.scan.read_bytes()
            first, *others = requests(url, content, words.scans)
            before = held(process)
            show("a server, the first request", first)
            show("a server, one client", statistics.median(others))
            start = time.perf_counter()
            with ThreadPoolExecutor(CLIENTS) as pool:
                many = list(pool.map(lambda _: requests(url, content, words.requests // CLIENTS), range(CLIENTS)))
            taken = [seconds for each in many for seconds in each]
            show(f"a server, {CLIENTS} clients", (time.perf_counter() - start) / len(taken))
            taken.sort()
            print(f"\nlatency with {CLIENTS} clients: median {statistics.median(taken):.2f} s, "
                  f"95 of 100 within {taken[len(taken) * 95 // 100]:.2f} s, longest {taken[-1]:.2f} s")  # fmt: skip
            time.sleep(6)  # connections that nobody uses are closed after five
            after = held(process)
        for name, first, last in zip(("MB of memory", "open files", "threads"), before, after, strict=True):
            print(f"{name}: {first:.0f} after {words.scans} scans, {last:.0f} after {words.scans + len(taken)}")


def parsed() -> argparse.Namespace:
    """Return what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--scan", type=Path, default=SAMPLE)
    parser.add_argument("--scans", type=int, default=6, help="for the command and for one client")
    parser.add_argument("--requests", type=int, default=400, help="of eight clients")
    return parser.parse_args()


def show(way: str, seconds: float) -> None:
    """Print a line of the table."""
    print(f"| {way} | {seconds:.3f} | {60 / seconds:.0f} |", flush=True)


def tiny(path: Path) -> Path:
    """Write a model that costs next to nothing."""
    subprocess.run([sys.executable, HERE / "tiny_bundle.py", path, "--patch", "32", "--zscore"], check=True)
    return path


def by_command(words: argparse.Namespace, model: str, folder: Path, *, each: bool) -> float:
    """Return the seconds that a scan takes by the command, without a picture, as a request draws none."""
    given = folder / "scans"
    given.mkdir(exist_ok=True)
    scans = [Path(shutil.copy(words.scan, given / f"{number}.nii.gz")) for number in range(words.scans)]
    command = [*MEDSEG, "predict", "-m", model, "--device", "cpu", "--no-picture", "-o", folder / "out"]
    start = time.perf_counter()
    for wanted in [[scan] for scan in scans] if each else [scans]:
        subprocess.run([*command, *wanted], check=True, capture_output=True)
    seconds = (time.perf_counter() - start) / len(scans)
    shutil.rmtree(folder / "out")
    return seconds


@contextmanager
def serving(model: str, folder: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Give the address of a server, and its process."""
    command = [*MEDSEG, "serve", "-m", model, "--device", "cpu", "--port", "0", "--spool", folder / "spool"]
    with (
        open(folder / "log", "w", encoding="utf-8") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        try:
            yield re.search(r"(http://\S+)/", process.stdout.readline())[1], process
        finally:
            process.terminate()


def requests(url: str, content: bytes, count: int) -> list[float]:
    """Return the seconds that each of so many requests took."""
    taken = []
    with httpx.Client(base_url=url, timeout=600) as client:
        for _ in range(count):
            start = time.perf_counter()
            client.post("/predict", files={"file": ("scan.nii.gz", content)}).raise_for_status()
            taken.append(time.perf_counter() - start)
    return taken


def held(process: subprocess.Popen[str]) -> tuple[float, int, int]:
    """Return megabytes, open files and threads of a process; nothing but zeros where there is no /proc."""
    place = Path("/proc", str(process.pid))
    if not place.is_dir():
        return 0, 0, 0
    status = dict(line.split(":", 1) for line in (place / "status").read_text().splitlines())
    return int(status["VmRSS"].split()[0]) / 1024, len(list((place / "fd").iterdir())), int(status["Threads"])


if __name__ == "__main__":
    main()
