"""What it brings to keep the memory of a network's layers between calls (`medseg/inference/heap.py`).

    python benchmarks/heap.py [MODEL ...] [--threads 2] [--windows 6]

Asks each model (a name or file; the shipped one when left out) about windows of noise, in torch on the CPU: in
processes of their own, with and without, twice each. Prints the median seconds of a window after the first, seconds of
the system in all, and peak memory.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from contextlib import nullcontext
from statistics import median


def main() -> None:
    """Print a line for each model and process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["hippocampus-t1"])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--windows", type=int, default=6)
    parser.add_argument("--one", choices=["kept", "given back"], help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.one:
        print(json.dumps(measure(words.models[0], words.one, words.threads, words.windows)))
        return
    for model in words.models:
        for how in ("given back", "kept", "given back", "kept"):
            command = [sys.executable, __file__, model, "--one", how]
            command += ["--threads", str(words.threads), "--windows", str(words.windows)]
            seconds, system, peak = json.loads(subprocess.check_output(command))
            print(f"{model}, {how}: {seconds:.3f} s a window, {system:.2f} s of the system, {peak:.0f} MB at most")


def measure(model: str, how: str, threads: int, windows: int) -> tuple[float, float, float]:
    """Return median seconds of a window, seconds of the system, and the most MB that were held."""
    import resource

    import numpy as np

    import medseg
    from medseg import zoo
    from medseg.inference.backends import How, torch_any
    from medseg.inference.backends.choice import open_backend
    from medseg.kernels import Host

    if how == "given back":
        torch_any.kept = nullcontext  # type: ignore[assignment]
    bundle = medseg.Bundle.load(zoo.find(model))
    backend, _ = open_backend(bundle, How(device="cpu", backend="torch", threads=threads), Host(threads))
    window = np.random.default_rng(0).normal(size=(1, len(bundle.plan.channels), *bundle.plan.patch))
    seconds = []
    for _ in range(windows):
        start = time.perf_counter()
        backend(window.astype(np.float32))
        seconds.append(time.perf_counter() - start)
    used = resource.getrusage(resource.RUSAGE_SELF)
    return median(seconds[1:]), used.ru_stime, used.ru_maxrss / 1024


if __name__ == "__main__":
    main()
