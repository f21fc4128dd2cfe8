"""Dice, HD95, ASSD and surface Dice of label maps: medseg and five peers side by side in one run.

    python benchmarks/metrics.py [--cases 256:1 256:14 ...] [--seconds 60] [--rounds 3]

Needs the peers: `pip install -c constraints-peers.txt -e '.[peers]'`. Every measurement is a fresh process with one
thread that reports CPU seconds and growth of peak memory. A peer works label by label until --seconds have passed;
the rest is extrapolated from the labels done, and marked with ~. A case is SIZE:LABELS; 256 is 256 x 256 x 256 voxels,
512 is 512 x 512 x 300, of 0.8 x 0.8 x 3 mm, with ellipsoids, the prediction shifted by (1, 2, -1) voxels. What each
tool finds for label 1 stands beside its time: where numbers differ, so do definitions (docs/metrics.md).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable

import numpy as np
from peers import PEERS, TOLERANCE, Array, Peer, Scores

SHAPES = {"64": (64, 64, 64), "256": (256, 256, 256), "512": (512, 512, 300)}
SPACING = (0.8, 0.8, 3.0)
SHIFT = (1, 2, -1)
CASES = ["256:1", "256:14", "256:104", "512:1", "512:14", "512:104"]
SCORES = ("dice", "hd95", "assd", "nsd")
Tool = Callable[
    [Array, Array, int, float], tuple[int, Scores]
]  # masks, labels, seconds: labels done, scores of label 1


def main() -> None:
    """Measure every tool on every case, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=CASES, metavar="SIZE:LABELS", help="256:14 ...")
    parser.add_argument("--seconds", type=float, default=60, help="after which a peer takes up no further label")
    parser.add_argument("--rounds", type=int, default=3, help="medians of so many runs")
    parser.add_argument("--one", nargs=2, metavar=("TOOL", "CASE"), help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.one:
        print(json.dumps(measure(*words.one, words.seconds)))
        return
    for case in words.cases:
        found = {tool: [child(tool, case, words.seconds) for _ in range(words.rounds)] for tool in TOOLS}
        print_case(case, found)


def child(tool: str, case: str, seconds: float) -> dict:
    """Return one measurement in a process of its own."""
    command = [sys.executable, __file__, "--one", tool, case, "--seconds", str(seconds)]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    done = subprocess.run(command, env={**os.environ, **threads}, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(tool: str, case: str, seconds: float) -> dict:
    """Return CPU seconds for all labels, how many were done, MB of memory, and the scores of label 1."""
    warnings.simplefilter("ignore")
    size, count = case.split(":")
    reference = ellipsoids(SHAPES[size], int(count))
    prediction = np.roll(reference, SHIFT, (0, 1, 2))
    run = TOOLS[tool]
    tiny = ellipsoids((24, 24, 24), 1)
    run(tiny, tiny, 1, 1e9)  # imports and caches are not what is measured
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak starts from here
    before, start = peak(), time.process_time()
    done, scores = run(prediction, reference, int(count), seconds)
    used = (time.process_time() - start) * int(count) / done
    return {"seconds": used, "done": done, "memory": peak() - before, "scores": scores}


def ellipsoids(shape: tuple[int, int, int], count: int) -> np.ndarray:
    """Return a label map with one ellipsoid in each cell of a grid, none touching another."""
    per_axis = int(np.ceil(count ** (1 / 3)))
    cell = np.array(shape) / per_axis
    rng, labels = np.random.default_rng(0), np.zeros(shape, np.uint8, order="F")
    for label, place in enumerate(np.ndindex(per_axis, per_axis, per_axis), start=1):
        if label <= count:
            radii = cell * 0.42 * rng.uniform(0.7, 1, 3)
            centre = (np.array(place) + 0.5) * cell
            box = tuple(slice(int(c - r), int(c + r) + 2) for c, r in zip(centre, radii, strict=True))
            axes = np.ogrid[box]
            inside = sum(((x - c) / r) ** 2 for x, c, r in zip(axes, centre, radii, strict=True)) < 1
            labels[box][inside] = label
    return labels


def peak() -> float:
    """Return the peak of resident memory in MB."""
    with open("/proc/self/status") as file:
        lines = dict(line.split(":", 1) for line in file)
    return int(lines["VmHWM"].split()[0]) / 1024


def medseg(prediction: Array, reference: Array, count: int, _: float, surface: str = "voxels") -> tuple[int, Scores]:
    """Score all labels in one pass."""
    from medseg.metrics import label_surface_distances, overlaps

    dice = [found.dice for found in overlaps(prediction, reference, count + 1)[1:]]
    found = label_surface_distances(prediction, reference, SPACING, surface=surface)
    scores = [
        {"dice": dice[label - 1], "hd95": d.hausdorff(95), "assd": d.average(), "nsd": d.dice(TOLERANCE)}
        for label, d in found.items()
    ]
    return count, scores[0]


def medseg_elements(prediction: Array, reference: Array, count: int, seconds: float) -> tuple[int, Scores]:
    """Do the same with surfaces as elements between voxels."""
    return medseg(prediction, reference, count, seconds, surface="elements")


def label_by_label(peer: Peer) -> Tool:
    """Return a tool that scores one label after the other, until its time is over."""

    def run(prediction: Array, reference: Array, count: int, seconds: float) -> tuple[int, Scores]:
        first, start = {}, time.process_time()
        for label in range(1, count + 1):
            found = peer(prediction == label, reference == label, SPACING, SCORES)
            first = first or found
            if time.process_time() - start > seconds:
                break
        return label, first

    return run


def panoptica(prediction: Array, reference: Array, count: int, seconds: float) -> tuple[int, Scores]:
    """Score all labels at once, as many as are thought to fit into the time."""

    def run(labels: int) -> Scores:
        maps = [np.where(part <= labels, part, 0).astype(np.uint8) for part in (prediction, reference)]
        return PEERS["panoptica"](*maps, SPACING, SCORES)

    start = time.process_time()
    first = run(1)
    labels = min(count, int(seconds / (time.process_time() - start)))
    if labels > 1:
        run(labels)
        return labels + 1, first  # the one before is paid for, too
    return 1, first


TOOLS: dict[str, Tool] = {
    "medseg": medseg,
    "medseg, elements": medseg_elements,
    **{name: label_by_label(peer) for name, peer in PEERS.items()},
    "panoptica": panoptica,
}


def print_case(case: str, found: dict[str, list[dict]]) -> None:
    """Print the table of one case."""
    size, count = case.split(":")
    print(f"\n{' x '.join(map(str, SHAPES[size]))} voxels, {count} labels")
    print(f"| {'':<26}| CPU s | ratio to medseg | memory MB | Dice | HD95 mm | ASSD mm | NSD at {TOLERANCE:g} mm |")
    print("|---|---|---|---|---|---|---|---|")
    base = statistics.median(run["seconds"] for run in found["medseg"])
    for tool, runs in found.items():
        seconds = statistics.median(run["seconds"] for run in runs)
        memory = statistics.median(run["memory"] for run in runs)
        about = "~" if runs[0]["done"] < int(count) else ""
        scores = " | ".join(f"{runs[0]['scores'].get(name, float('nan')):.4f}" for name in SCORES)
        print(
            f"| {tool:<26}| {about}{seconds:.2f} | {about}{seconds / base:.1f} | {memory:.0f} | "
            f"{scores.replace('nan', '')} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
