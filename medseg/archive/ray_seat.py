"""What runs on a node of a Ray cluster: a station, in an actor that `medseg.archive.ray_posts` makes and watches."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from queue import Queue
from threading import Semaphore
from typing import Any

from medseg import __version__
from medseg.archive.task import DEPTH, Outcome, Settings, Task
from medseg.dicom.privacy import withheld
from medseg.errors import explain


class Seat:
    """An actor: a station on a node, and what is known of it.

    Parameters
    ----------
    settings : dict
        The fields of `Settings`.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        nothing = os.open(os.devnull, os.O_WRONLY)
        for handle in (1, 2):  # Ray keeps in files what libraries print, and that may name patients
            os.dup2(nothing, handle)
        self._open = ExitStack()
        self._open.enter_context(withheld())
        self._pool = ThreadPoolExecutor(DEPTH)
        self._broken: tuple[str, str, str] | None = None
        try:
            from medseg.archive.station import Station  # torch takes a second to import

            self._station = Station(Settings(**settings))
        except Exception as error:  # noqa: BLE001 - the other process tells the user
            self._broken = explain(error)

    def do(self, task: dict[str, Any]) -> Iterator[str | dict[str, Any]]:
        """Do a task, as plain data; yield the name of each stage before it begins, and at last the outcome."""
        told: Queue[str | Future[Outcome]] = Queue()
        heard = Semaphore(0)

        def tell(stage: str) -> None:
            told.put(stage)
            heard.acquire()

        work = self._pool.submit(self._station.do, Task(**task), tell)
        work.add_done_callback(told.put)
        while isinstance(said := told.get(), str):
            yield said
            heard.release()  # Ray has it: should foreign code now hold Python, or end it, the other process knows where
        yield said.result().plain()

    def state(self) -> dict[str, Any]:
        """Return the bytes of memory held, medseg's version, and why it cannot work, if so."""
        try:
            pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
        except OSError:
            return {"held": 0, "version": __version__, "broken": self._broken}
        return {"held": pages * os.sysconf("SC_PAGE_SIZE"), "version": __version__, "broken": self._broken}
