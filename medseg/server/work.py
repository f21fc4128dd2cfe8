"""What computes: threads that take jobs from the desk; while one scan is computed, the next is read."""

from __future__ import annotations

import io
import logging
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Lock, Thread
from typing import Any

import numpy as np

from medseg.atomic import Outputs
from medseg.bundle import Bundle
from medseg.errors import ScanError, UsageError, explain
from medseg.gate import Gate, limited, readable
from medseg.io import read
from medseg.progress import PREDICTING, overall, timed
from medseg.report.delivery import Answered, answer, hand_over
from medseg.report.job import DICOM_FORMATS, FORMATS, plan_targets
from medseg.report.job import Job as Delivery
from medseg.report.viewing import keep_planes
from medseg.server.desk import CANCELLED, DONE, FAILED, Cancelled, Desk, Job
from medseg.server.settings import Limits
from medseg.server.shelf import Shelf
from medseg.server.spool import remove
from medseg.volume import LabelMap, Volume, stack_channels

_THREADS = 2
_ENTRY = 1024  # bytes in the directory of an archive for each file
_PATIENCE = 0.2  # seconds between two looks whether a job that waits for the device is still wanted
_log = logging.getLogger("medseg.server")


class Crew:
    """Threads that do jobs until the desk is closed.

    Parameters
    ----------
    desk : Desk
        Where jobs wait.
    shelf : Shelf
        The models.
    limits : Limits
        Of scans.
    """

    def __init__(self, desk: Desk, shelf: Shelf, limits: Limits) -> None:
        self._desk, self._shelf, self._limits = desk, shelf, limits
        self._device = Lock()
        self._threads = [Thread(target=self._serve, name=f"job-{n}", daemon=True) for n in range(_THREADS)]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def join(self, seconds: float) -> None:
        """Wait for the jobs that run to stop."""
        for thread in self._threads:
            thread.join(seconds)

    def _serve(self) -> None:
        while job := self._desk.next():
            try:
                self._do(job)
                state = DONE
            except Cancelled:
                state = CANCELLED
            except Exception as error:  # noqa: BLE001 - whatever one scan brings about, the next ones still get done
                state, job.error = FAILED, told(error, job)
            finally:
                job.order.drop_files()
            if state != DONE:
                job.results.clear()
                remove(job.folder)
            self._desk.end(job, state)
            _log.info("job %s: %s%s", job.name[:8], state, f" {job.error['code']}" if job.error else "")

    def _do(self, job: Job) -> None:
        def progress(stage: str, done: float) -> None:
            job.tell(stage, max(job.fraction, overall(PREDICTING, stage, done)))

        order, seconds = job.order, dict[str, float]()
        card = self._shelf.card(order.model)
        with timed("read", seconds, progress):
            scan = self._read(order.files, order.choice, card)
        work = _delivery(job, scan)
        with self._computing(job):
            predictor = self._shelf.predictor(order.model)
            case = answer(work, scan, predictor, seconds=seconds, progress=progress)
        if file := predictor.bundle.file:  # where models lie here is nobody's business elsewhere
            case.report["notes"] = [note.replace(str(file), file.name) for note in case.report["notes"]]
        if order.numbered:
            case = replace(case, prediction=replace(case.prediction, labels=numbered(case.prediction.labels)))
        with Outputs() as outputs:
            hand_over(case, outputs, progress=progress)
        if order.planes:
            keep_planes(scan, case.prediction.labels, job.folder)
        job.report = case.report
        job.results = _results(case)
        job.tell("done", 1.0)

    def _read(self, files: dict[str, Path], choice: dict[str, Any], card: Bundle) -> Volume:
        channels = card.plan.channels
        given = list(files.values()) if len(channels) == 1 else [files[channel.name] for channel in channels]
        for path in given:
            check_archive(path, self._limits)
        with limited(self._limits.voxels, self._limits.ratio):
            return stack_channels([read(path, **choice) for path in given])

    @contextmanager
    def _computing(self, job: Job) -> Iterator[None]:
        while not self._device.acquire(timeout=_PATIENCE):
            job.tell(job.stage, job.fraction)
        try:
            yield
        finally:
            self._device.release()


def check_archive(path: Path, limits: Limits) -> None:
    """Refuse a zip archive, before anything in it is unpacked, that holds too many files or too much.

    Raises
    ------
    ScanError
        ARCHIVE, RATIO or TOO_LARGE.
    """
    if not path.is_file() or not zipfile.is_zipfile(path):
        return
    gate = Gate(path)
    try:
        with _Sparing(path, limits.files * _ENTRY) as file, zipfile.ZipFile(file) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError):
        gate.refuse("ARCHIVE", "is a damaged zip archive, or holds too many files", "pack it again")
    size, packed = sum(member.file_size for member in members), path.stat().st_size
    if len(members) > limits.files:
        gate.refuse("ARCHIVE", f"holds {len(members)} files", f"give an archive of at most {limits.files}")
    if size > limits.voxels:
        gate.refuse("TOO_LARGE", f"holds {readable(size)}", f"at most {readable(limits.voxels)} are taken here")
    if size > packed * limits.ratio:
        gate.refuse("RATIO", f"says that it holds {size / packed:.0f} times its size", "give the scan unpacked")


class _Sparing(io.FileIO):
    """A file of which only so much is read at a time: the directory of an archive says itself how large it is."""

    def __init__(self, path: Path, most: int) -> None:
        super().__init__(path)
        self._most = most

    def read(self, size: int | None = -1, /) -> bytes:
        """Read."""
        if size is not None and size > self._most:
            raise zipfile.BadZipFile
        return super().read(size) or b""


def told(error: Exception, job: Job) -> dict[str, str]:
    """Return code, problem and hint of an error, without any path and any text of the scan in its words."""
    code, problem, hint = explain(error)
    for path in sorted(job.order.files.values(), key=lambda path: -len(str(path))):
        for text in (f"{path}: ", str(path), str(path.parent)):
            problem = problem.replace(text, "" if text.endswith(": ") else "the scan")
            hint = hint.replace(text, "the scan")
    if not isinstance(error, ScanError | UsageError):
        frames = _frames(error)
        _log.warning("job %s: %s at %s", job.name[:8], type(error).__name__, frames)
    return {"code": code, "problem": problem, "hint": hint}


def _frames(error: Exception) -> str:
    """Return where an error was raised, without its text, which may quote the scan."""
    places, trace = [], error.__traceback__
    while trace:
        places.append(f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}")
        trace = trace.tb_next
    return " > ".join(places[-4:])


def _delivery(job: Job, scan: Volume) -> Delivery:
    from_dicom = scan.source is not None and scan.source.stack is not None
    formats = [kind for kind in job.order.formats if from_dicom or kind in FORMATS]
    if not formats:
        raise UsageError(
            "a NIfTI, NRRD or MetaImage scan cannot have DICOM results", hint="ask for format=nifti or seg.nrrd"
        )
    optional = tuple(DICOM_FORMATS) if set(formats) & set(FORMATS) else ()
    picture = job.order.planes or len(formats) > 1  # one result by itself goes without: to draw takes long
    targets = plan_targets("segmentation", job.folder, formats, picture=picture)
    return Delivery((Path("scan"),), targets, optional=optional, name="scan")


def numbered(labels: LabelMap) -> LabelMap:
    """Return the labels counted from 1 in their order; where labels overlap, the last one is seen.

    >>> import numpy as np
    >>> from medseg.geometry import Geometry
    >>> from medseg.plan import Label
    >>> grid = Geometry(np.eye(4), (4, 1, 1))
    >>> two = (Label(value=7, name="a"), Label(value=3, name="b"))
    >>> numbered(LabelMap(np.array([0, 3, 7, 3]).reshape(4, 1, 1), grid, two)).array.ravel().tolist()
    [0, 2, 1, 2]
    """
    table = [
        label.model_copy(update={"value": number, "atoms": (number,)}) for number, label in enumerate(labels.labels, 1)
    ]
    atoms = [label.atoms for label in labels.labels]
    if len({atom for each in atoms for atom in each}) == sum(map(len, atoms)):
        return LabelMap(labels.places(atoms), labels.geometry, tuple(table), labels.source)
    array = np.zeros(labels.array.shape, np.min_scalar_type(len(table)))
    for label, new in zip(labels.labels, table, strict=True):
        array[labels.mask(label.name)] = new.value
    return LabelMap(array, labels.geometry, tuple(table), labels.source)


def _results(case: Answered) -> dict[str, Path]:
    return {kind: case.job.targets[kind] for kind in case.report["outputs"]}
