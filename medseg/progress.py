"""How far a job has come: a stage by name, and the fraction of it that is done."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

Progress = Callable[[str, float], None]
Stages = Mapping[str, float]  # the usual share of each in the time of a scan

PREDICTING = {
    "read": 0.05,
    "locate": 0.1,
    "prepare": 0.05,
    "network": 0.68,
    "clean": 0.02,
    "check": 0.02,
    "write": 0.03,
    "picture": 0.03,
    "dicom": 0.02,
}


def silent(stage: str, done: float) -> None:
    """Say nothing."""


@contextmanager
def timed(stage: str, seconds: dict[str, float], progress: Progress) -> Iterator[None]:
    """Note in `seconds` how long a stage took, and say when it begins and ends."""
    progress(stage, 0.0)
    start = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - start
    progress(stage, 1.0)


def overall(stages: Stages, stage: str, done: float) -> float:
    """Return the fraction of all stages that is done, from that of one of them.

    >>> overall({"read": 0.25, "network": 0.75}, "network", 0.5)
    0.625
    """
    before = 0.0
    for name, share in stages.items():
        if name == stage:
            return before + share * done
        before += share
    return before
