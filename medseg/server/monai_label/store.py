"""Where scans and labels lie that clients speak of: uploads for a while, and a folder of scans where one was given."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from medseg.atomic import Outputs, check_writable
from medseg.errors import MedsegError, ShapeMismatch
from medseg.gate import limited
from medseg.io import read, read_labels, save, scans_in, stem_of
from medseg.server.answers import Rejected
from medseg.server.settings import Limits
from medseg.server.spool import remove

FINAL = "final"  # the tag of labels that a person approved
_TAG = re.compile(r"[A-Za-z0-9_-]{1,40}")


@dataclass(eq=False)
class Session:
    """A scan that was sent once, to be used several times."""

    name: str
    path: Path
    users: int = 0
    asked: float = field(default_factory=time.monotonic)


class Sessions:
    """Scans by a name: one that nobody can guess, or one that the client gave.

    Parameters
    ----------
    limits : Limits
        How many, and for how long.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._all: dict[str, Session] = {}
        self._lock = Lock()

    def add(self, name: str, path: Path) -> Session:
        """Keep a scan; one of the same name goes."""
        session = Session(name, path)
        with self._lock:
            before = self._all.pop(name, None)
            self._all[name] = session
        if before and not before.users:
            remove(before.path.parent)
        self.tidy()
        return session

    def find(self, name: str) -> Session | None:
        """Return a session, if it is still there."""
        with self._lock:
            session = self._all.get(name)
            if session:
                session.asked = time.monotonic()
            return session

    def drop(self, name: str) -> bool:
        """Forget a session; return whether there was one."""
        with self._lock:
            session = self._all.pop(name, None)
        if session and not session.users:
            remove(session.path.parent)
        return session is not None

    def use(self, session: Session, step: int) -> None:
        """Count the jobs that need it: 1 for one that begins, -1 for one that ended."""
        with self._lock:
            session.users += step
            session.asked = time.monotonic()
            gone = self._all.get(session.name) is not session
        if gone and not session.users:
            remove(session.path.parent)

    def tidy(self) -> None:
        """Forget what nobody asked for in a while, and the oldest of too many."""
        now = time.monotonic()
        with self._lock:
            idle = sorted((each for each in self._all.values() if not each.users), key=lambda each: each.asked)
            excess = len(self._all) - self._limits.kept
        for number, session in enumerate(idle):
            if number < excess or now - session.asked > self._limits.keep:
                self.drop(session.name)


class Datastore:
    """A folder of scans, and in it the folder `labels` with what people drew: `labels/<tag>/<scan>.nii.gz`.

    Parameters
    ----------
    folder : Path
        Its scans are those directly in it.
    limits : Limits
        Of what is read.
    """

    def __init__(self, folder: Path, limits: Limits) -> None:
        self._folder, self._limits = folder, limits

    def scans(self) -> dict[str, Path]:
        """Return the files of all scans by name."""
        return {stem_of(path): path for path in scans_in(self._folder)}

    def scan(self, name: str) -> Path:
        """Return the file of a scan.

        Raises
        ------
        Rejected
            If there is none of this name.
        """
        found = self.scans().get(name)
        if found is None:
            raise Rejected(404, "IMAGE", "there is no such scan", "see GET /datastore/?output=all")
        return found

    def labels(self) -> dict[str, dict[str, Path]]:
        """Return the label files of all scans: by scan, then by tag."""
        found: dict[str, dict[str, Path]] = {name: {} for name in self.scans()}
        for path in sorted((self._folder / "labels").glob("*/*.nii.gz")):
            if (scan := stem_of(path)) in found:
                found[scan][path.parent.name] = path
        return found

    def first_without_label(self) -> tuple[str, Path] | None:
        """Return the first scan of which nobody approved a label map."""
        tags = self.labels()
        return next(((name, path) for name, path in self.scans().items() if FINAL not in tags[name]), None)

    def save(self, scan: str, tag: str, file: Path, about: dict[str, Any]) -> Path:
        """Keep a label map that a client sent, if it lies on the grid of its scan.

        Raises
        ------
        Rejected
            If the tag is none, or the file is no label map of this scan.
        """
        if not _TAG.fullmatch(tag):
            raise Rejected(400, "TAG", "the tag is none", "use letters, digits, - and _")
        with limited(self._limits.voxels, self._limits.ratio):
            try:
                labels, grid = read_labels(file), read(self.scan(scan)).geometry
                if not labels.geometry.same_as(grid, tolerance=0.01):
                    raise ShapeMismatch("the labels do not lie on the grid of the scan", hint="resample them first")
            except MedsegError as error:
                problem = error.problem.replace(f"{file}: ", "the labels: ")
                raise Rejected(422, "LABELS", problem, error.hint) from None
        folder = self._folder / "labels" / tag
        check_writable(folder)
        path = folder / f"{scan}.nii.gz"
        with Outputs() as outputs:
            save(labels, path, outputs)
            outputs.write(folder / f"{scan}.json", [json.dumps(about).encode()])
        return path

    def about(self, label: Path) -> dict[str, Any]:
        """Return what the client said when it sent a label map."""
        beside = label.with_name(f"{stem_of(label)}.json")
        try:
            said = json.loads(beside.read_text("utf-8")) if beside.is_file() else {}
        except ValueError:
            return {}
        return said if isinstance(said, dict) else {}
