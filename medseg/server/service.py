"""All that the routes share: settings, models, jobs, and the folder for what is kept for a while."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from starlette.requests import Request

from medseg.report.job import DICOM_FORMATS, FORMATS
from medseg.server.answers import Rejected
from medseg.server.desk import Desk, Full, Job, Order
from medseg.server.intake import Sent, receive
from medseg.server.settings import Settings
from medseg.server.shelf import Shelf
from medseg.server.spool import new_folder, remove
from medseg.server.work import Crew

_LOOK = 0.05  # seconds between two looks at a job
_TIDY = 2.0


class Service:
    """A server without its routes.

    Parameters
    ----------
    settings : Settings
        What it may do.
    folder : Path
        For what is kept for a while.

    Raises
    ------
    BundleError, UsageError
        If a model is none.
    """

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings = settings
        self.uploads, self.results = folder / "uploads", folder / "results"
        for each in (self.uploads, self.results):
            each.mkdir(mode=0o700)
        self.shelf = Shelf(settings.models, settings.predictor, held=settings.limits.models)
        self.desk = Desk(settings.limits)
        self.crew = Crew(self.desk, self.shelf, settings.limits)
        self.tidied: list[Callable[[], None]] = [self.desk.tidy]

    async def receive(self, request: Request) -> Sent:
        """Take in the body of a request."""
        return await receive(request, self.uploads, self.settings.limits)

    def model(self, name: str) -> str:
        """Return the name of a model; that of the first one for ''.

        Raises
        ------
        Rejected
            If there is none of this name.
        """
        name = name or self.shelf.names[0]
        if name not in self.shelf.names:
            raise Rejected(404, "MODEL", "there is no such model", "see GET /models")
        return name

    def files_for(self, sent: Sent, model: str) -> dict[str, Path]:
        """Return the files of a scan, by channel of the model.

        Raises
        ------
        Rejected
            If they are not those that the model needs; they are removed then.
        """
        names = [channel.name for channel in self.shelf.card(model).plan.channels]
        if len(names) == 1 and len(sent.files) == 1:
            return {names[0]: next(iter(sent.files.values()))}
        if len(names) > 1 and set(sent.files) == set(names):
            return dict(sent.files)
        self.drop(sent)
        raise _not_one(len(sent.files)) if len(names) == 1 else _not_all(names)

    def only_file(self, sent: Sent) -> Path:
        """Return the one file that came.

        Raises
        ------
        Rejected
            If there is none or another one; they are removed then.
        """
        if len(sent.files) != 1:
            self.drop(sent)
            raise _not_one(len(sent.files))
        return next(iter(sent.files.values()))

    def one_channel(self, model: str, path: Path) -> dict[str, Path]:
        """Return a file as the scan of a model of one channel.

        Raises
        ------
        Rejected
            If the model has several.
        """
        names = [channel.name for channel in self.shelf.card(model).plan.channels]
        if len(names) > 1:
            raise _not_all(names)
        return {names[0]: path}

    @staticmethod
    def drop(sent: Sent) -> None:
        """Remove what came with a request."""
        remove(sent.folder)

    def submit(self, order: Order, client: str) -> Job:
        """Let a scan wait for its turn.

        Raises
        ------
        Rejected
            If too many wait.
        """
        folder = new_folder(self.results)
        job = Job(folder.name, client, order, folder)
        try:
            self.desk.submit(job)
        except Full:
            remove(folder)
            order.drop_files()
            raise Rejected(
                429, "BUSY", "too many scans wait", "try again later", headers={"retry-after": "5"}
            ) from None
        return job

    async def finish(self, job: Job, request: Request) -> bool:
        """Wait until a job has ended; return whether the client is still there, or else cancel it.

        Raises
        ------
        Rejected
            If the server ends first.
        """
        while not job.ended:
            if self.desk.closed:
                raise Rejected(
                    503, "ENDING", "the server ends", "send the scan again later", headers={"retry-after": "60"}
                )
            if await request.is_disconnected():
                self.desk.forget(job)
                return False
            await asyncio.sleep(_LOOK)
        return True

    async def tidy(self) -> None:
        """Forget what was kept for long enough, again and again."""
        while True:
            await asyncio.sleep(_TIDY)
            for each in self.tidied:
                await asyncio.to_thread(each)


def _not_one(count: int) -> Rejected:
    return Rejected(400, "FILES", f"{count} scans were sent", "send one, as the part 'file'")


def _not_all(names: Sequence[str]) -> Rejected:
    return Rejected(400, "FILES", "the model has several channels", f"send the parts: {', '.join(names)}")


def parse_formats(text: str) -> tuple[tuple[str, ...], bool]:
    """Return formats of results from 'nifti,seg.nrrd,json', or nifti, and whether 'json' is among them.

    Raises
    ------
    Rejected
        If one is unknown.
    """
    asked = dict.fromkeys(filter(None, text.split(",")))
    formats, known = tuple(each for each in asked if each != "json"), FORMATS | DICOM_FORMATS
    if any(each not in known for each in formats):
        raise Rejected(400, "FORMAT", "there is no such format", f"choose from: {', '.join([*known, 'json'])}")
    return formats or ("nifti",), "json" in asked
