"""One method over the scans of one job, in a process of its own: `python one.py JOB.json` prints a line of JSON.

Runs in the environment of the method: that of medseg and MONAI, or that of nnU-Net. Started by `../inference.py`.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any, Self

BEGAN = time.perf_counter()
Record = dict[str, Any]


def main() -> None:
    """Read, predict and write each scan, and print what that took."""
    job = json.loads(Path(sys.argv[1]).read_text())
    if job["limit"]:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (job["limit"], job["limit"]))
    method = importlib.import_module(f"by_{job['tool']}").Method(job)
    ready, start = time.perf_counter() - BEGAN, memory("VmRSS")
    scans = [one(method, Path(path), Path(job["labels"]), margins=job["margins"]) for path in job["scans"]]
    record = {name: sum(scan[name] for scan in scans) for name in ("read", "predict", "network", "write")}
    peak = max(scan["peak"] for scan in scans)
    shares = [scan["busy"] for scan in scans if scan["busy"] is not None]
    print(
        json.dumps(
            {
                **record,
                "ready": ready,
                "peak": peak,
                "growth": peak - start,
                "windows": sum(scan["windows"] for scan in scans),
                "busy": fmean(shares) if shares else None,
                "card_peak": on_card(job["device"]),
                **method.about(),
            }
        )
    )


def one(method: Any, path: Path, labels: Path, *, margins: bool) -> Record:
    """Return the seconds of each stage of one scan, and the most memory that was held until its end."""
    times = [time.perf_counter()]
    scan = method.read(path)
    times.append(time.perf_counter())
    with Card(method.device) as card:
        found = method.predict(scan)
    times.append(time.perf_counter())
    method.write(found, labels / path.name)
    times.append(time.perf_counter())
    read, predict, write = (b - a for a, b in pairwise(times))
    record = {"read": read, "predict": predict, "write": write, "peak": memory("VmHWM"), "busy": card.busy}
    if margins:
        method.write_margins(labels / f"{path.name}.margin.npy")
    return record | method.counts()


def memory(kind: str) -> float:
    """Return the MB of memory that this process holds (VmRSS), or held at most (VmHWM)."""
    with open("/proc/self/status") as file:
        lines = dict(line.split(":", 1) for line in file)
    return int(lines[kind].split()[0]) / 1024


def on_card(device: str) -> float | None:
    """Return the most MB that torch held on a card."""
    if not device.startswith("cuda"):
        return None
    import torch

    return torch.cuda.max_memory_reserved(device) / 2**20


class Card:
    """Asks the driver ten times a second for which share of the time the card computes; `busy` is the mean."""

    def __init__(self, device: str) -> None:
        self.busy: float | None = None
        self._device = device

    def __enter__(self) -> Self:
        self._asked = None
        if self._device.startswith("cuda") and shutil.which("nvidia-smi"):
            card = os.environ.get("CUDA_VISIBLE_DEVICES") or self._device.partition(":")[2] or "0"
            query = ["nvidia-smi", f"--id={card}", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
            self._asked = subprocess.Popen([*query, "-lms", "100"], stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._asked:
            self._asked.terminate()
            answers = [line.strip() for line in self._asked.communicate()[0].splitlines()]
            shares = [float(answer) / 100 for answer in answers if answer.isdecimal()]
            self.busy = fmean(shares) if shares else None


if __name__ == "__main__":
    main()
