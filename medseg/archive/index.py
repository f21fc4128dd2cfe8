"""The index of an archive: which volumes there are, found once and kept up to date in a SQLite file.

A file is looked into when its path, size or time of change is new; a series is judged again when one of its files
changed. The index holds paths and identifiers, so it lies in the user's cache folder, not among the results.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from medseg.archive.database import connect, together
from medseg.archive.identity import Identity, of_dicom, of_file, of_ruin
from medseg.archive.judging import UNREADABLE, Verdict, judge, judge_file, pack, unpack
from medseg.archive.naming import fingerprint
from medseg.archive.rules import Series
from medseg.archive.walk import DAMAGED, DICOM, LOST, SCAN, File, Look, folders, looks_of
from medseg.dicom.elements import Elements
from medseg.dicom.parts import Part
from medseg.errors import OutputError
from medseg.locks import locked

_FORMAT = 1
_THREADS = 8  # they wait for disks and networks
_MANY = 10_000  # files of a folder whose headers are kept in memory until they are judged
_OFTEN = 2.0  # seconds between two commits
_SCHEMA = """
CREATE TABLE IF NOT EXISTS folder (id INTEGER PRIMARY KEY, path BLOB UNIQUE NOT NULL, scan INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS file (
    id INTEGER PRIMARY KEY, folder INTEGER NOT NULL, name BLOB NOT NULL, member TEXT NOT NULL, size INTEGER NOT NULL,
    changed INTEGER NOT NULL, kind TEXT NOT NULL, series INTEGER, bytes INTEGER NOT NULL, head TEXT, problem TEXT,
    UNIQUE (folder, name, member));
CREATE INDEX IF NOT EXISTS file_series ON file (series);
CREATE TABLE IF NOT EXISTS series (
    id INTEGER PRIMARY KEY AUTOINCREMENT, identity BLOB UNIQUE NOT NULL, kind TEXT NOT NULL, patient BLOB NOT NULL,
    study BLOB NOT NULL, name BLOB NOT NULL, modality TEXT NOT NULL, description TEXT NOT NULL,
    judged INTEGER NOT NULL DEFAULT 0);
CREATE INDEX IF NOT EXISTS series_open ON series (id) WHERE NOT judged;
CREATE TABLE IF NOT EXISTS volume (
    series INTEGER NOT NULL, number INTEGER NOT NULL, slices INTEGER, spacing TEXT, moments INTEGER NOT NULL,
    aside TEXT NOT NULL, code TEXT NOT NULL, problem TEXT NOT NULL, hint TEXT NOT NULL, repairable INTEGER NOT NULL,
    fingerprint TEXT NOT NULL, warnings TEXT NOT NULL, PRIMARY KEY (series, number));
"""


@dataclass(frozen=True)
class Volume:
    """One volume of an archive: a row of a series, or a file.

    Parameters
    ----------
    series_id : int
        Of the index.
    kind : str
        `walk.DICOM`, `walk.SCAN`, or `walk.DAMAGED` for what cannot even be told apart.
    patient, study, name : str
        Identifiers: of DICOM PatientID, study UID and series UID; of files what their path says.
    about : Series
        For the rules.
    verdict : Verdict
        Of the geometry gate, from headers alone.
    """

    series_id: int
    kind: str
    patient: str
    study: str
    name: str
    about: Series
    verdict: Verdict


class Index:
    """The index of one archive, open. Use `opened`."""

    def __init__(self, path: Path, base: Path) -> None:
        self.path, self.base = path, base
        self._db = connect(path, _SCHEMA, _FORMAT, hint="remove it; it is made again")

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def refresh(self, roots: list[Path], without: Path, progress: Callable[[int], None]) -> int:
        """Look at all that is new or changed; return how many files were looked into.

        Parameters
        ----------
        roots : list of Path
            What the archive consists of.
        without : Path
            A folder that is none of it.
        progress : callable
            Called with the number of files seen so far.
        """
        scan = time.time_ns()
        seen = looked = 0
        with locked(self.path.with_suffix(".lock"), wait=True), ThreadPoolExecutor(_THREADS) as pool:
            committed = time.monotonic()
            with together(self._db, "BEGIN"):
                for folder, files, lost in folders(roots, without):
                    files += [(name, 0, 0) for name in lost]
                    looked += self._folder(folder, files, scan, pool)
                    seen += len(files)
                    progress(seen)
                    if time.monotonic() - committed > _OFTEN:  # whole folders alone
                        self._db.execute("COMMIT")
                        self._db.execute("BEGIN")
                        committed = time.monotonic()
                self._forget(scan)
                self._judge()
        return looked

    def _folder(self, folder: Path, files: list[File], scan: int, pool: ThreadPoolExecutor) -> int:
        """Bring one folder up to date; return how many of its files were looked into."""
        number = self._db.execute(
            "INSERT INTO folder (path, scan) VALUES (?, ?) ON CONFLICT (path) DO UPDATE SET scan = excluded.scan"
            " RETURNING id",
            (os.fsencode(folder), scan),
        ).fetchone()[0]
        known = {
            os.fsdecode(name): (size, changed)
            for name, size, changed in self._db.execute(
                "SELECT DISTINCT name, size, changed FROM file WHERE folder = ?", (number,)
            )
        }
        new = [file for file in files if known.get(file[0]) != file[1:]]
        gone = list(known.keys() - {name for name, _, _ in files})
        self._remove(number, [name for name, _, _ in new if name in known] + gone)
        heads: dict[Part, Elements] = {}  # of series that are judged with their folder, before the next one
        here: dict[int | None, bool] = {}  # for each series, whether it is one of them
        ruin = False
        for file, looks in looks_of(folder, new, pool):
            for one in looks:
                series = self._series(folder, file[0], one)
                if series not in here:
                    here[series] = len(new) <= _MANY and not self._lies_elsewhere(series, number)
                if one.elements and here[series]:
                    heads[Part(folder / file[0], one.member)] = one.elements
                self._add(number, series, file, one, wait=not here[series])
                ruin |= one.kind in {DAMAGED, LOST}
        if ruin:
            self._reopen_folder(number)
        for series, now in here.items():
            if series is not None and now:
                self._judge_series(series, heads)
        return len(new)

    def _series(self, folder: Path, name: str, one: Look) -> int | None:
        """Return the series that a file belongs to, if any; it is to be judged."""
        if one.kind == DICOM and one.elements:
            return self._open(of_dicom(one.elements, folder))
        return self._open(of_file(folder / name, self.base)) if one.kind == SCAN else None

    def _lies_elsewhere(self, series: int | None, folder: int) -> bool:
        """Return whether other folders have files of a series: then it is judged when all are known."""
        other = "SELECT 1 FROM file WHERE series = ? AND folder != ? LIMIT 1"
        return series is None or self._db.execute(other, (series, folder)).fetchone() is not None

    def _add(self, folder: int, series: int | None, file: File, one: Look, *, wait: bool) -> None:
        name, size, changed = file
        if one.passing:
            changed = -1  # it is looked at again
        self._db.execute(
            "INSERT OR REPLACE INTO file (folder, name, member, size, changed, kind, series, bytes, head, problem)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                folder,
                os.fsencode(name),
                one.member,
                size,
                changed,
                one.kind,
                series,
                one.size or size,
                pack(one.elements) if one.elements and wait else None,
                json.dumps([one.code, one.problem]) if one.code else None,
            ),
        )

    def _open(self, one: Identity) -> int:
        """Return the number of a series that is to be judged."""
        return int(
            self._db.execute(
                "INSERT INTO series (identity, kind, patient, study, name, modality, description)"
                " VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (identity) DO UPDATE SET judged = 0,"
                " modality = excluded.modality, description = excluded.description RETURNING id",
                (one.identity, one.kind, one.patient, one.study, one.name, one.modality, one.description),
            ).fetchone()[0]
        )

    def _remove(self, folder: int, names: list[str]) -> None:
        """Forget files of a folder; their series are judged again."""
        for name in names:
            key = (folder, os.fsencode(name))
            rows = self._db.execute("SELECT series, kind FROM file WHERE folder = ? AND name = ?", key).fetchall()
            for series, kind in rows:
                self._db.execute("UPDATE series SET judged = 0 WHERE id = ?", (series,))
                if kind in {DAMAGED, LOST}:
                    self._reopen_folder(folder)
            self._db.execute("DELETE FROM file WHERE folder = ? AND name = ?", key)

    def _reopen_folder(self, folder: int) -> None:
        self._db.execute(
            "UPDATE series SET judged = 0 WHERE id IN (SELECT DISTINCT series FROM file WHERE folder = ?)", (folder,)
        )

    def _forget(self, scan: int) -> None:
        """Forget folders that were not met."""
        for (number,) in self._db.execute("SELECT id FROM folder WHERE scan != ?", (scan,)).fetchall():
            names = self._db.execute("SELECT DISTINCT name FROM file WHERE folder = ?", (number,)).fetchall()
            self._remove(number, [os.fsdecode(name) for (name,) in names])
            self._db.execute("DELETE FROM folder WHERE id = ?", (number,))

    def _judge(self) -> None:
        """Judge every series that changed, and the folders in which nothing but damage lies."""
        for (number,) in self._db.execute("SELECT id FROM series WHERE NOT judged").fetchall():
            self._judge_series(number, {})
        self._judge_ruins()

    def _judge_series(self, number: int, heads: dict[Part, Elements]) -> None:
        """Judge one series; headers that are neither given nor in the index are read again."""
        self._db.execute("DELETE FROM volume WHERE series = ?", (number,))
        files = self._files(number)
        if not files:
            self._db.execute("DELETE FROM series WHERE id = ?", (number,))
            return
        (kind,) = self._db.execute("SELECT kind FROM series WHERE id = ?", (number,)).fetchone()
        if kind == DICOM:
            found = [(part, size, unpack(head) if head else heads.get(part)) for part, size, head in files]
            verdicts = judge(found, *self._beside(number))
        else:
            verdicts = [judge_file(files[0][0].path)]
        self._store(number, verdicts)
        self._db.execute("UPDATE file SET head = NULL WHERE series = ? AND head IS NOT NULL", (number,))
        again = any(verdict.code == UNREADABLE for verdict in verdicts)
        self._db.execute("UPDATE series SET judged = ? WHERE id = ?", (not again, number))

    def _beside(self, series: int) -> tuple[tuple[str, str] | None, int]:
        """Return code and problem of a damaged file that must belong to a series, and how many files may be missing."""
        rows = self._db.execute(
            "SELECT folder, problem FROM file WHERE kind IN (?, ?)"
            " AND folder IN (SELECT DISTINCT folder FROM file WHERE series = ?)",
            (DAMAGED, LOST, series),
        ).fetchall()
        for folder, problem in rows:
            only = "SELECT COUNT(DISTINCT series) FROM file WHERE folder = ? AND series IS NOT NULL"
            if problem and self._db.execute(only, (folder,)).fetchone()[0] == 1:
                code, text = json.loads(problem)
                return (code, text), len(rows)
        return None, len(rows)

    def _judge_ruins(self) -> None:
        """Give folders in which files are damaged or lost, and nothing else is a scan, a volume that says so."""
        self._db.execute("DELETE FROM volume WHERE series IN (SELECT id FROM series WHERE kind = ?)", (DAMAGED,))
        self._db.execute("DELETE FROM series WHERE kind = ?", (DAMAGED,))
        ruins = self._db.execute(
            "SELECT folder.path, COUNT(*), MAX(problem), SUM(bytes) FROM file JOIN folder ON folder.id = file.folder"
            " GROUP BY file.folder HAVING SUM(file.kind IN (?, ?)) > 0 AND COUNT(file.series) = 0",
            (DAMAGED, LOST),
        ).fetchall()
        for path, count, problem, size in ruins:
            number = self._open(of_ruin(Path(os.fsdecode(path)), self.base))
            code, text = json.loads(problem) if problem else ("FILES_LOST", "its files are empty or cannot be read")
            hint = "copy it again from its source"
            mark = fingerprint([os.fsdecode(path), str(count), str(size)])
            self._store(number, [Verdict(1, code=code, problem=text, hint=hint, fingerprint=mark)])
            self._db.execute("UPDATE series SET judged = 1 WHERE id = ?", (number,))

    def _store(self, series: int, verdicts: list[Verdict]) -> None:
        self._db.executemany(
            "INSERT INTO volume VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (
                    series,
                    one.number,
                    one.slices,
                    json.dumps(one.spacing_mm),
                    one.moments,
                    one.aside,
                    one.code,
                    one.problem,
                    one.hint,
                    one.repairable,
                    one.fingerprint,
                    json.dumps(one.warnings),
                )
                for one in verdicts
            ],
        )

    def _files(self, series: int) -> list[tuple[Part, int, str | None]]:
        rows = self._db.execute(
            "SELECT folder.path, file.name, file.member, file.bytes, file.head FROM file"
            " JOIN folder ON folder.id = file.folder WHERE file.series = ?",
            (series,),
        )
        found = [
            (Part(Path(os.fsdecode(folder)) / os.fsdecode(name), member), size, head)
            for folder, name, member, size, head in rows
        ]
        return sorted(found, key=lambda item: (str(item[0].path), item[0].member))

    def parts(self, series: int) -> list[Part]:
        """Return the files of a series."""
        return [part for part, _, _ in self._files(series)]

    def volumes(self) -> Iterator[Volume]:
        """Yield every volume, study by study."""
        rows = self._db.execute(
            "SELECT series.id, kind, patient, study, name, modality, description, volume.* FROM series"
            " JOIN volume ON volume.series = series.id ORDER BY patient, study, name, number"
        )
        for number, kind, patient, study, name, modality, text, _, *rest in rows:
            row, slices, spacing, moments, aside, code, problem, hint, repairable, mark, warnings = rest
            spacing = json.loads(spacing)
            path = os.fsdecode(name) if kind == SCAN else ""
            yield Volume(
                number,
                kind,
                os.fsdecode(patient),
                os.fsdecode(study),
                os.fsdecode(name),
                Series(modality, text, path, slices, tuple(spacing) if spacing else None),
                Verdict(
                    row,
                    slices,
                    spacing,
                    moments,
                    aside,
                    code,
                    problem,
                    hint,
                    repairable=bool(repairable),
                    fingerprint=mark,
                    warnings=json.loads(warnings),
                ),
            )


def index_file(archive: Path) -> Path:
    """Return where the index of an archive lies when the user names no place."""
    digest = hashlib.sha256(os.fsencode(os.path.realpath(archive))).hexdigest()
    return platformdirs.user_cache_path("medseg") / "archives" / f"{digest[:20]}.sqlite"


@contextmanager
def opened(path: Path, base: Path) -> Iterator[Index]:
    """Yield an index, made where there is none, for its user alone.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        index = Index(path, base)
    except (OSError, sqlite3.Error) as error:
        raise _unusable(path, error) from error
    try:
        yield index
    except sqlite3.Error as error:
        raise _unusable(path, error) from error
    finally:
        index.close()


def _unusable(path: Path, error: Exception) -> OutputError:
    return OutputError(f"{path}: the index cannot be used: {error}", hint="free space, or name another --index")
