"""A program of its own in which models run, so that a scan that kills or hangs it costs one process, not the run.

`medseg.archive.post` starts it. It reads lines of JSON from standard input, first the settings and then a task in each,
and answers with lines of JSON on standard output: ready or broken, each stage as it begins, what became of each task.
It ends when standard input does, whatever it is doing: then nobody waits for its answers.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any, TextIO

from medseg.archive.task import DEPTH, Settings, Task
from medseg.dicom.privacy import withheld
from medseg.errors import explain


class _Answers:
    """Lines to the process that gave the tasks."""

    def __init__(self, file: TextIO) -> None:
        self._file, self._lock = file, Lock()

    def __call__(self, event: str, **data: Any) -> None:
        with self._lock:
            print(json.dumps({"event": event, **data}), file=self._file, flush=True)


def main() -> None:
    """Answer tasks until standard input ends."""
    _die_with_parent()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # who gave the tasks says when to stop
    answers = _Answers(os.fdopen(os.dup(1), "w", encoding="utf-8"))
    os.dup2(2, 1)  # what a library prints must not mix with the answers
    first = sys.stdin.readline()
    with withheld():
        try:
            from medseg.archive.station import Station  # torch takes a second to import

            station = Station(Settings(**json.loads(first)))
            answers("ready", gpus=_gpus(station.settings))
        except Exception as error:  # noqa: BLE001 - the other process tells the user
            code, problem, hint = explain(error)
            answers("broken", code=code, problem=problem, hint=hint)
            return
        with ThreadPoolExecutor(DEPTH) as pool:
            for line in sys.stdin:
                pool.submit(_do, station, Task(**json.loads(line)), answers)
            os._exit(0)


def _die_with_parent() -> None:
    """On Linux, let the system end this process with the one that started it, even when foreign code holds Python."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _gpus(settings: Settings) -> int:
    """Return how many GPUs there are for further workers, where the user named no device."""
    if settings.device != "auto" or not Path("/proc/driver/nvidia/gpus").exists():
        return 0
    import torch

    return torch.cuda.device_count()


def _do(station: Any, task: Task, answers: _Answers) -> None:
    outcome = station.do(task, lambda stage: answers("stage", place=task.place, stage=stage))
    answers("outcome", place=task.place, outcome=outcome.plain())


if __name__ == "__main__":
    main()
