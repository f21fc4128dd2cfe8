"""How far a job has come: a stage by name, and the fraction of it that is done."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[str, float], None]


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
