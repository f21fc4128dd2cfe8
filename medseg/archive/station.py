"""Where tasks are done: a model is loaded once, and while one scan is computed the next is read and the last written.

Each task goes through three rooms, and in each room there is one at a time: call `Station.do` from three threads.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from threading import Lock

from medseg.archive.judging import reachable, read_file, read_only_scan, read_volume
from medseg.archive.rules import Rule, Series
from medseg.archive.task import AGAIN, DONE, FAILED, PASSED, STOP, Outcome, Settings, Task
from medseg.atomic import Outputs, check_writable, sweep
from medseg.bundle import Bundle
from medseg.dicom.pacs import Remote, connect
from medseg.dicom.parts import Part
from medseg.errors import BundleError, DeviceError, MemoryLimit, OutputError, PacsError, ScanError, UsageError, explain
from medseg.inference import Predictor
from medseg.report.delivery import Answered, answer, hand_over
from medseg.report.job import DICOM_FORMATS, Job, plan_targets
from medseg.volume import Volume

Tell = Callable[[str], None]

_PASSING = {"UNREADABLE", "MEMORY", "CHANGED"}  # codes of faults that may be gone at the next try
_DICOM_OF_FILES = "a NIfTI, NRRD or MetaImage scan cannot have DICOM results"


class _Passed(Exception):
    """A scan that the rule does not mean, as was seen when it was read."""


class _Unready(Exception):
    """A fault of the model or of the settings, which every scan would meet."""

    def __init__(self, why: Exception) -> None:
        self.why = why


class Station:
    """A place with a device, and the models that were asked for last.

    Parameters
    ----------
    settings : Settings
        How to compute.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._rooms = {name: Lock() for name in ("read", "compute", "write")}
        self._predictor: tuple[str, Predictor] | None = None

    def do(self, task: Task, tell: Tell) -> Outcome:
        """Do a task; `tell` is called with 'read', 'compute' and 'write' as each begins, and with '' when it ends."""
        seconds: dict[str, float] = {}
        spool = Path(task.spool) / sha256(task.place.encode()).hexdigest()[:20] if task.spool else None
        try:
            with self._room("read", seconds, tell):
                scan = self._read(task, spool)
            with self._room("compute", seconds, tell):
                job = self._job(task, scan)
                case = answer(job, scan, self._ready(task), seconds={"read": seconds["read"]})
            case.report["scan"]["warnings"] += task.warnings
            with self._room("write", seconds, tell):
                return Outcome(DONE, seconds=seconds, result=_write(task, case, self.settings.store_token))
        except _Unready as error:
            return replace(_told(error.why, task, seconds), state=STOP)
        except _Passed as reason:
            return Outcome(PASSED, "RULE", str(reason), "", seconds)
        except Exception as error:  # noqa: BLE001 - whatever one scan brings about, the next ones still get done
            return _told(error, task, seconds)
        finally:
            if spool:
                shutil.rmtree(spool, ignore_errors=True)

    @contextmanager
    def _room(self, name: str, seconds: dict[str, float], tell: Tell) -> Iterator[None]:
        with self._rooms[name]:
            tell(name)
            start = time.perf_counter()
            try:
                yield
            finally:
                seconds[name] = round(time.perf_counter() - start, 3)
                tell("")

    def _read(self, task: Task, spool: Path | None) -> Volume:
        choice = {"repair": self.settings.repair, "suv": self.settings.suv}
        match task.kind:
            case "scan":
                scan = read_file(Path(task.files[0][0]) if task.files else Path(), task.mark)
            case "pacs" if spool is not None:
                scan = read_only_scan(_fetched(task, spool, self.settings.token), **choice)
            case _:
                parts = [Part(Path(path), member) for path, member in task.files]
                scan = read_volume(reachable(parts), task.row, task.mark, **choice)
        if task.kind != "dicom":
            _check_rule(task, scan)
        return scan

    def _job(self, task: Task, scan: Volume) -> Job:
        from_dicom = scan.source is not None and scan.source.stack is not None
        formats = task.formats or (["nifti", "dicom-seg"] if from_dicom else ["nifti"])
        if not from_dicom:
            formats = [kind for kind in formats if kind not in DICOM_FORMATS]
        if not formats:
            raise UsageError(_DICOM_OF_FILES, hint="name a format of label maps too, such as --format nifti,dicom-seg")
        if task.store and "dicom-labelmap" in formats:
            formats = [*dict.fromkeys([*formats, "dicom-seg"])]  # for a PACS that does not take label maps
        picture = self.settings.picture
        targets = plan_targets("seg", Path(task.folder), formats, picture=picture, thumbnail=picture)
        optional = () if task.formats else ("dicom-seg",)
        return Job((Path(task.place),), targets, optional=optional, name=task.place)

    def _ready(self, task: Task) -> Predictor:
        try:
            return self._predictor_of(task)
        except Exception as error:
            raise _Unready(error) from error

    def _predictor_of(self, task: Task) -> Predictor:
        if self._predictor is None or self._predictor[0] != task.sha256:
            self._predictor = None  # what it holds goes before the next one comes
            bundle = Bundle.load(Path(task.model))
            if bundle.sha256 != task.sha256:
                raise BundleError(f"{bundle.card.name}: the file of the model was changed", hint="run again")
            own = self.settings
            self._predictor = (
                task.sha256,
                Predictor(
                    bundle,
                    device=own.device,
                    threads=own.threads,
                    backend=own.backend,
                    precision=own.precision,
                    overlap=own.overlap,
                    mirror=own.mirror,
                    memory=own.memory,
                ),
            )
        return self._predictor[1]


def _fetched(task: Task, spool: Path, token: str) -> list[Part]:
    """Fetch a series from a PACS into a folder of its own; all of it, as far as the PACS says how much that is."""
    shutil.rmtree(spool, ignore_errors=True)
    check_writable(spool)
    remote = Remote(**task.remote)
    connect(task.pacs, token=token).retrieve(remote, spool)
    return [Part(path) for path in sorted(spool.iterdir())]


def _check_rule(task: Task, scan: Volume) -> None:
    """Pass over a scan that is not what the rule means; its slices lie across the axis of the largest steps."""
    rule = Rule.model_validate({"slices": task.slices, "spacing_mm": task.spacing_mm})
    grid = scan.geometry
    order = sorted(range(3), key=lambda axis: grid.spacing[axis])
    spacing = (grid.spacing[order[0]], grid.spacing[order[1]], grid.spacing[order[2]])
    if said := rule.objection(Series("", "", slices=grid.shape[order[2]], spacing_mm=spacing)):
        raise _Passed(said)


def _write(task: Task, case: Answered, token: str) -> dict[str, object]:
    """Write all results of a task, store them where that is wanted, and return what the ledger keeps."""
    folder = Path(task.folder)
    check_writable(folder)
    sweep(folder)
    with Outputs() as outputs:
        hand_over(case, outputs)
    report, files = case.report, {}
    stored = _store(task, case, token) if task.store else []
    for kind in report["outputs"]:
        path = case.job.targets[kind]
        status = path.stat()
        files[kind] = [path.name, status.st_size, status.st_mtime_ns, outputs.digests[path]]
    for path in {*folder.glob("seg*")} - {case.job.targets[kind] for kind in files}:
        path.unlink()  # of other formats, and another answer
    return {
        "verdict": report["qc"]["verdict"],
        "reasons": sorted({reason["code"] for reason in report["qc"]["reasons"]}),
        "volumes_ml": {label["name"]: label["volume_ml"] for label in report["labels"]},
        "warnings": len(report["scan"]["warnings"]),
        "device": report["device"],
        "stored": stored,
        "files": files,
    }


def _store(task: Task, case: Answered, token: str) -> list[str]:
    """Send the DICOM results, and return their kinds; for a label map that the PACS does not take goes SEG in bits."""
    sent = {kind: case.job.targets[kind] for kind in DICOM_FORMATS if kind in case.report["outputs"]}
    instead = sent.pop("dicom-seg") if "dicom-labelmap" in sent and "dicom-seg" not in task.formats else None
    if not sent:
        raise UsageError("there is no DICOM result to store", hint="choose --format dicom-seg")
    pacs = connect(task.store, token=token)
    refused = set(pacs.store([*sent.values()]))
    if instead and refused == {sent["dicom-labelmap"]}:
        del sent["dicom-labelmap"]
        sent["dicom-seg"] = instead
        refused = set(pacs.store([instead]))
    if refused:
        raise UsageError("the PACS does not take objects of this kind", hint="choose another --format")
    return sorted(sent)


def _told(error: Exception, task: Task, seconds: dict[str, float]) -> Outcome:
    """Return the outcome of an error, without any path in its words."""
    code, problem, hint = explain(error)
    for path, _ in sorted(task.files, key=lambda file: -len(file[0])):
        names = [Path(path).name] if task.kind == "scan" else []  # of DICOM none is told, and a file may be called 1
        for text in (f"{path}: ", path, *names):
            problem = problem.replace(text, "" if text.endswith(": ") else "the scan")
            hint = hint.replace(text, "the scan")
    state = PASSED if code == "SEVERAL_VOLUMES" else FAILED  # as series of several volumes are, before they are read
    if isinstance(error, OutputError | BundleError | DeviceError):
        state = STOP
    elif isinstance(error, MemoryLimit | MemoryError | PacsError) or (
        isinstance(error, ScanError) and code in _PASSING
    ):
        state = AGAIN
    return Outcome(state, code, problem.removeprefix("series: "), hint, seconds)
