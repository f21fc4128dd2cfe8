"""Largest piece and holes of many labels: medseg in one pass, and a loop over labels with scipy.

    python benchmarks/postprocess.py [--labels 14] [--rounds 5]

256 x 256 x 256 voxels with hollow ellipsoids and specks everywhere; CPU seconds in one process, medians. The
answers must be equal.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
from metrics import ellipsoids
from scipy import ndimage

from medseg import Geometry, LabelMap
from medseg.plan import Label
from medseg.postprocess import fill_holes, keep_largest

SHAPE = (256, 256, 256)
Array = np.ndarray


def main() -> None:
    """Print a line for each of both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=int, default=14)
    parser.add_argument("--rounds", type=int, default=5)
    words = parser.parse_args()
    array = ellipsoids(SHAPE, words.labels)
    for value in range(1, words.labels + 1):
        array[ndimage.binary_erosion(array == value, iterations=8)] = 0
    specks = np.random.default_rng(0).random(SHAPE) < 0.0005
    array[specks] = np.random.default_rng(1).integers(1, words.labels + 1, SHAPE)[specks]
    table = tuple(Label(value=value, name=str(value)) for value in range(1, words.labels + 1))
    labels, names = LabelMap(array, Geometry(np.eye(4), SHAPE), table), [label.name for label in table]
    for title, ours, theirs in (
        ("largest piece", lambda: keep_largest(labels, names)[0].array, lambda: largest_by_scipy(array, words.labels)),
        ("holes", lambda: fill_holes(labels, names).array, lambda: holes_by_scipy(array, words.labels)),
    ):
        if not np.array_equal(ours(), theirs()):
            raise SystemExit(f"{title}: the answers differ")
        seconds = [statistics.median(timed(work) for _ in range(words.rounds)) for work in (ours, theirs)]
        print(f"{title}: medseg {seconds[0]:.2f} s, scipy {seconds[1]:.2f} s, ratio {seconds[1] / seconds[0]:.0f}")


def timed(work: Callable[[], Array]) -> float:
    """Return the CPU seconds of a call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def largest_by_scipy(array: Array, count: int) -> Array:
    """Return the largest piece of each label, one label after the other."""
    found = np.zeros_like(array)
    for value in range(1, count + 1):
        pieces, _ = ndimage.label(array == value, np.ones((3, 3, 3)))
        found[pieces == 1 + np.bincount(pieces.ravel())[1:].argmax()] = value
    return found


def holes_by_scipy(array: Array, count: int) -> Array:
    """Return the labels with their holes filled, one label after the other."""
    found = array.copy()
    for value in range(1, count + 1):
        found[ndimage.binary_fill_holes(array == value) & (found == 0)] = value
    return found


if __name__ == "__main__":
    main()
