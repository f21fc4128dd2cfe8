"""`medseg batch` from Python: an archive or a PACS in, results, ledger, audit log, table and page out."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from queue import Queue

from medseg.archive import audit
from medseg.archive.events import Events
from medseg.archive.foreman import Foreman, Limits
from medseg.archive.index import Index, index_file, opened
from medseg.archive.ledger import DONE, FAILED, PASSED, Item, Ledger, ledgers_in
from medseg.archive.naming import Names, own_names
from medseg.archive.owner import own
from medseg.archive.post import Event, Inbox, Post, Process
from medseg.archive.rules import Rules
from medseg.archive.runner import Desk, Runner, Tally
from medseg.archive.selection import Model, Planned, Selection, Shard
from medseg.archive.summary import write_summary
from medseg.archive.task import Outcome, Settings, Task
from medseg.archive.todo import Todo
from medseg.archive.walk import roots_of
from medseg.atomic import check_writable, digest_of, sweep
from medseg.bundle import Bundle
from medseg.dicom.pacs import Query, connect
from medseg.errors import MedsegError, OutputError, UsageError
from medseg.report.job import DICOM_FORMATS, plan_targets
from medseg.zoo import find

_STATE = ".medseg"
_STALE = 3600.0  # seconds after which nobody writes at a file any more
_BATCH = 1000  # items that are entered in one change


@dataclass(frozen=True)
class Order:
    """What a batch run is to do.

    Parameters
    ----------
    output : Path
        Folder for all that it writes.
    rules : Rules
        Which series, and which model; see `read_rules`.
    archive : Path, optional
        A folder, a zip archive, a list of paths, or a scan.
    pacs : str
        Address of a PACS, instead of an archive.
    query : Query
        What is asked of it.
    store : str
        Address of a PACS at which DICOM results are stored.
    settings : Settings
        How is computed; and the tokens of PACS by DICOMweb.
    limits : Limits
        Of one scan.
    workers : int
        Processes that compute, on each device.
    shard : Shard
        Which part of the archive, where several computers share it.
    index : Path, optional
        Where the index lies; in the user's cache when left out.
    key_file : Path, optional
        Of the key by which identifiers are hashed; in the user's configuration when left out.
    keep_names : bool
        Call patients, studies and series as they are called, instead of by hashes.
    verify : bool
        Compare the sha256 of all that is done, not only of files whose size or time changed.
    ray : str, optional
        Compute by Ray: the address of its cluster, 'auto' for the one of this computer, or '' to start one here.
    debug : bool
        Show what workers print, which may name patients.
    """

    output: Path
    rules: Rules
    archive: Path | None = None
    pacs: str = ""
    query: Query = field(default_factory=Query)
    store: str = ""
    settings: Settings = field(default_factory=Settings)
    limits: Limits = field(default_factory=Limits)
    workers: int = 1
    shard: Shard = field(default_factory=Shard)
    index: Path | None = None
    key_file: Path | None = None
    keep_names: bool = False
    verify: bool = False
    ray: str | None = None
    debug: bool = False


class Watcher:
    """Is told how far a run is, and shows nothing."""

    def listed(self, files: int) -> None:
        """So many files of the archive were looked at."""

    def begin(self, tally: Tally) -> None:
        """All items are known."""

    def step(self, tally: Tally) -> None:
        """Something went on."""


def run(order: Order, watcher: Watcher | None = None) -> Tally:
    """Segment an archive; what is done already is left as it is.

    Raises
    ------
    UsageError
        If the order contradicts itself or the models.
    OutputError
        If nothing can be written; all that was done before is kept, and the same order goes on from there.
    """
    watcher = watcher or Watcher()
    output = order.output.absolute()
    models = _models(order.rules)  # a wrong one is told before the archive is listed
    _check(order, output)
    names = own_names(order.key_file, keep=order.keep_names)
    with ExitStack() as stack:
        ledger = Ledger(output / _STATE / f"ledger{order.shard.suffix}.sqlite", own())
        stack.callback(ledger.close)
        _check_same(ledger, names, order.shard)
        ledger.put_back_own()
        index = stack.enter_context(_listed(order, output, watcher)) if order.archive else None
        if index is not None:
            ledger.remember(index=str(index.path))  # not the archive: its name may be a patient's
        todo = Todo(output / _STATE)
        stack.callback(todo.close)
        log = output / f"audit{order.shard.suffix}.jsonl"
        desk = Desk(ledger, todo, index, log, Events(names, order.rules, order.settings, order.shard))
        chosen = Selection(order.rules, models, names, settings=order.settings, output=output, shard=order.shard)
        tally = _plan(order, desk, chosen)
        watcher.begin(tally)
        try:
            _work(order, desk, tally, watcher)
        except MedsegError:
            with suppress(OutputError):  # the fault that is told of may be a full disk
                write_summary(output, [ledger], order.shard.suffix)
            raise
        write_summary(output, [ledger], order.shard.suffix)
    return tally


def _check(order: Order, output: Path) -> None:
    """Refuse, before anything is done, what cannot end well."""
    if order.archive and Path(os.path.realpath(order.archive)).is_relative_to(os.path.realpath(output)):
        raise UsageError(f"{output}: results cannot go where the archive lies", hint="choose another folder with -o")
    if order.archive:
        roots_of(order.archive)
    for rule in order.rules.rule:
        plan_targets("seg", output, rule.formats)  # an unknown format is told now
        if order.store and rule.formats and not {*rule.formats} & DICOM_FORMATS.keys():
            raise UsageError("there would be no DICOM result to store", hint="choose --format dicom-seg too")
    if order.ray is not None:
        from medseg.archive.ray_posts import check_installed

        check_installed()
    if order.store:
        connect(order.store, token=order.settings.store_token)  # asks nothing, and refuses what is no address
    for folder in (output, output / _STATE):
        check_writable(folder)
        sweep(folder, older=_STALE)
    (output / _STATE).chmod(0o700)


@contextmanager
def _listed(order: Order, output: Path, watcher: Watcher) -> Iterator[Index]:
    """Yield the index of the archive, up to date."""
    archive = order.archive or Path()
    base, roots = roots_of(archive)
    with opened(order.index or index_file(archive), base) as index:
        index.refresh(roots, output, watcher.listed)
        yield index


def _work(order: Order, desk: Desk, tally: Tally, watcher: Watcher) -> None:
    """Do what is to be done, and tell the audit log of it, however it ends."""
    ledger, event = desk.ledger, desk.events
    try:
        if len(desk.todo):
            ledger.note(event.of_run("run begins", todo=len(desk.todo)))
            with _foreman(order) as foreman:
                Runner(desk, foreman, tally, watcher.step, tries=order.limits.tries).run()
            ledger.note(event.of_run("run ends", done=tally.done, failed=tally.failed, left=tally.left))
    except MedsegError:
        with suppress(OutputError):  # the fault that is told of may be a full disk; the next run copies the rest
            audit.copy(ledger.audit_lines, desk.log)
        raise
    finally:
        with suppress(OSError):  # of a PACS; not there, or another run has something in it
            (order.output / _STATE / "spool").rmdir()
    audit.copy(ledger.audit_lines, desk.log)


@contextmanager
def _foreman(order: Order) -> Iterator[Foreman]:
    """Yield who does the work, on this computer or by Ray; no post outlives the block."""
    inbox: Inbox = Queue[Event]()
    with ExitStack() as stack:
        if order.ray is not None:
            from medseg.archive.ray_posts import posts

            some = stack.enter_context(posts(order.ray, order.settings, inbox, workers=order.workers))
            foreman = Foreman(some, inbox, order.limits)
        else:
            hire = partial(local_posts, order.settings, inbox, order.workers, loud=order.debug)
            foreman = Foreman([*hire()], inbox, order.limits, lambda gpus: hire(gpus=gpus))
        stack.callback(foreman.stop)
        yield foreman


def local_posts(settings: Settings, inbox: Inbox, workers: int, *, loud: bool = False, gpus: int = 0) -> Iterator[Post]:
    """Yield the posts on this computer: `workers` for each device, which share its cores.

    With `gpus`, those on all GPUs but the first, which is where `auto` leads.
    """
    devices = [f"cuda:{number}" for number in range(1, gpus)] if gpus else settings.device.split(",")
    count = workers * len(devices)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = settings.threads or (max(1, cores // count) if count > 1 else None)
    for number in range(count):
        device = devices[number % len(devices)]
        name = f"worker {number + 1}" + (f" on {device}" if gpus else "")
        yield Process(name, replace(settings, device=device, threads=threads), inbox, loud=loud)


def _models(rules: Rules) -> dict[str, Model]:
    """Return the models of the rules, by the words that name them."""
    found = {}
    for word in dict.fromkeys(rule.model for rule in rules.rule if not rule.skip):
        file = find(word)
        bundle = Bundle.load(file)
        if len(bundle.plan.channels) > 1:
            raise UsageError(
                f"{word}: the model needs {len(bundle.plan.channels)} channels, and a series of an archive is one",
                hint="use `medseg predict --channel`, or a model of one channel",
            )
        found[word] = Model(file.absolute(), bundle.card.name, bundle.card.version, bundle.sha256)
    return found


def _origin(order: Order) -> str:
    """Return which archive items come from."""
    words = os.path.realpath(order.archive) if order.archive else order.pacs
    return hashlib.sha256(os.fsencode(words)).hexdigest()[:16]


def _check_same(ledger: Ledger, names: Names, shard: Shard) -> None:
    """Refuse to call what is there by other names, and to part it in another way."""
    parts = {
        path.stem.rpartition("-of-")[2] if "-of-" in path.stem else "1" for path in ledgers_in(ledger.path.parents[1])
    }
    if parts != {str(shard.count)}:
        raise UsageError(
            f"{ledger.path.parents[1]}: was begun in other parts",
            hint="use the same N of --shard I/N, or another folder",
        )
    before = ledger.fact("names")
    if before and before != names.mark:
        raise UsageError(
            f"{ledger.path.parent.parent}: its results are named in another way, or with another key",
            hint="use the same key and --keep-names as before, or another folder",
        )
    ledger.remember(names=names.mark)


def _planned(order: Order, chosen: Selection, index: Index | None) -> Iterator[Planned]:
    if index is not None:
        yield from chosen.of_volumes(index.volumes())
        return
    spool = str(order.output.absolute() / _STATE / "spool")
    task = Task("", "", "", "", "pacs", pacs=order.pacs, store=order.store, spool=spool)
    yield from chosen.of_remotes(connect(order.pacs, token=order.settings.token).find(order.query), task)


def _plan(order: Order, desk: Desk, chosen: Selection) -> Tally:
    """Enter all items, put on the list what is to be done, and count the rest."""
    ledger, index, began = desk.ledger, desk.index, time.time()
    tally, some = Tally(), _planned(order, chosen, index)
    while batch := [*islice(some, _BATCH)]:
        _enter(order, batch, desk, tally)
    if index is not None:
        ledger.leave_out(began, _origin(order))
    ledger.pass_over(dict(chosen.passed))
    return tally


def _enter(order: Order, planned: list[Planned], desk: Desk, tally: Tally) -> None:
    ledger = desk.ledger
    ledger.enter((one.item for one in planned), _origin(order))
    for one in planned:
        item = ledger.get(one.item.place) or one.item
        tally.total += 1
        if item.key != one.item.key:  # another run is at work on it, with other settings
            desk.todo.add(one)
            continue
        if item.state == DONE and not _sound(Path(one.task.folder), item, verify=order.verify):
            ledger.forget(item.place)
            item = one.item
        if one.fault is not None and item.state not in {DONE, FAILED, PASSED}:
            if ledger.claim(item.place, one.item.key):
                _fail(one, one.fault, desk)
            tally.failed += 1
        elif item.state in {DONE, FAILED, PASSED}:
            tally.done += item.state == DONE
            tally.failed += item.state == FAILED
            tally.passed += item.state == PASSED
        else:
            desk.todo.add(one)


def _fail(planned: Planned, fault: Outcome, desk: Desk) -> None:
    shutil.rmtree(planned.task.folder, ignore_errors=True)  # what the same volume gave when it was sound
    item = planned.item
    done = Item(item.place, item.key, item.model, FAILED, 1, fault.code, fault.problem, fault.hint, {}, time.time())
    desk.ledger.finish(done, desk.events.of_item(planned.task, fault))


def _sound(folder: Path, item: Item, *, verify: bool) -> bool:
    """Return whether the files of an item that is done are those that were written."""
    for name, size, changed, digest in (item.result or {}).get("files", {}).values():
        path = folder / name
        try:
            status = path.stat()
            same = (status.st_size, status.st_mtime_ns) == (size, changed)
            if (verify or not same) and digest_of(path) != digest:
                return False
        except OSError:
            return False
    return True
