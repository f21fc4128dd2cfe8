"""The ledger of an output folder: what became of every item, in a SQLite file that a kill cannot damage.

An item is one volume and one model. Its key is a hash of inputs, model and parameters: what is done with the same key
is not done again. Several runs may share a ledger on one computer; an item belongs to the process that claimed it
until it is finished, or the process is dead.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg.archive.audit import chained
from medseg.archive.database import connect, together
from medseg.archive.owner import LEASE, gone
from medseg.errors import OutputError, UsageError

WAITING, RUNNING, DONE, FAILED, PASSED, OLD = "waiting", "running", "done", "failed", "passed", "old"
_FORMAT = 1
_ITEMS = "SELECT place, key, model, state, tries, code, problem, hint, seconds, finished, result FROM item"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS item (
    place TEXT PRIMARY KEY, key TEXT NOT NULL, model TEXT NOT NULL, state TEXT NOT NULL, entered REAL NOT NULL,
    origin TEXT NOT NULL,
    tries INTEGER NOT NULL DEFAULT 0, owner TEXT NOT NULL DEFAULT '', lease REAL NOT NULL DEFAULT 0,
    code TEXT NOT NULL DEFAULT '', problem TEXT NOT NULL DEFAULT '', hint TEXT NOT NULL DEFAULT '',
    seconds TEXT NOT NULL DEFAULT '{}', finished REAL NOT NULL DEFAULT 0,
    result TEXT NOT NULL DEFAULT '{}') WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS item_state ON item (state, code);
CREATE TABLE IF NOT EXISTS passed (code TEXT PRIMARY KEY, count INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS audit (number INTEGER PRIMARY KEY, line TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS fact (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""


@dataclass(frozen=True)
class Item:
    """What is to be done, or was.

    Parameters
    ----------
    place : str
        Folder of its results, below that of all results: patient/study/series/model.
    key : str
        Hash of inputs, model and parameters.
    model : str
        Name and version.
    state : str
        `WAITING`, `RUNNING`, `DONE`, `FAILED`, `PASSED` over as the rule did not mean it, or `OLD`: done, and no longer
        in the archive or meant.
    tries : int
        How often it was begun.
    code, problem, hint : str
        Why it failed.
    seconds : dict
        Of each stage.
    finished : float
        When, in seconds since 1970.
    result : dict
        Of what is done: verdict, labels, files with bytes, time and sha256.
    """

    place: str
    key: str
    model: str
    state: str = WAITING
    tries: int = 0
    code: str = ""
    problem: str = ""
    hint: str = ""
    seconds: dict[str, float] | None = None
    finished: float = 0.0
    result: dict[str, Any] | None = None


class Ledger:
    """The ledger of an output folder, open.

    Parameters
    ----------
    path : Path
        The file; its folder exists.
    owner : str
        Who asks.
    look : bool
        Only look, where the folder is not ours to write.

    Raises
    ------
    OutputError
        If it cannot be written, or is damaged.
    """

    def __init__(self, path: Path, owner: str, *, look: bool = False) -> None:
        self.path, self.owner = path, owner
        if look and not os.access(path.parent, os.W_OK):
            self._db = self._for_looking(path)
            return
        with self._told():
            self._db = connect(path, _SCHEMA, _FORMAT, hint="choose another folder")

    def _for_looking(self, path: Path) -> sqlite3.Connection:
        """Return the file of someone else, opened without a change to it."""
        still = "" if path.with_name(f"{path.name}-wal").exists() else "&immutable=1"
        with self._told():
            found = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro{still}", uri=True, isolation_level=None)
            found.execute("SELECT COUNT(*) FROM fact")
        return found

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise OutputError(
                f"{self.path}: the ledger cannot be used: {error}", hint="free space; nothing that is done is lost"
            ) from error

    @contextmanager
    def _together(self) -> Iterator[None]:
        """Make all that happens in the block one change."""
        with self._told(), together(self._db):
            yield

    def enter(self, items: Iterable[Item], origin: str) -> None:
        """Enter items that wait; one that is there with the same key, or that someone works on, stays as it is.

        Parameters
        ----------
        items : iterable of Item
            What an archive has.
        origin : str
            Which archive.
        """
        with self._together():
            for item in items:
                self._db.execute(
                    "INSERT INTO item (place, key, model, state, entered, origin) VALUES (?, ?, ?, ?, ?, ?)"
                    " ON CONFLICT (place) DO UPDATE SET entered = excluded.entered, origin = excluded.origin",
                    (item.place, item.key, item.model, WAITING, time.time(), origin),
                )
                if not self._busy(item.place):
                    self._db.execute(
                        "UPDATE item SET key = ?, model = ?, state = ?, tries = 0, owner = '', code = '', problem = '',"
                        " hint = '', result = '{}' WHERE place = ? AND key != ?",
                        (item.key, item.model, WAITING, item.place, item.key),
                    )
                    self._db.execute("UPDATE item SET state = ? WHERE place = ? AND state = ?", (DONE, item.place, OLD))

    def leave_out(self, before: float, origin: str) -> None:
        """Forget items of an archive that were last entered before a moment: they are gone, or no longer meant.

        What is done stays, as `OLD`. Nothing is left out while another process works: the items may be its own.
        """
        with self._together():
            owners = self._db.execute("SELECT DISTINCT owner FROM item WHERE state = ?", (RUNNING,)).fetchall()
            if any(owner != self.owner and not gone(owner) for (owner,) in owners):
                return
            self._db.execute(
                "UPDATE item SET state = ? WHERE entered < ? AND origin = ? AND state = ?", (OLD, before, origin, DONE)
            )
            self._db.execute(
                "DELETE FROM item WHERE entered < ? AND origin = ? AND state IN (?, ?, ?)",
                (before, origin, WAITING, FAILED, PASSED),
            )

    def put_back_own(self) -> None:
        """Let wait again what an earlier run of this process still held when it broke off."""
        with self._together():
            self._db.execute(
                "UPDATE item SET state = ?, owner = '' WHERE owner = ? AND state = ?", (WAITING, self.owner, RUNNING)
            )

    def _busy(self, place: str) -> bool:
        """Return whether another living process works on an item."""
        row = self._db.execute("SELECT state, owner, lease FROM item WHERE place = ?", (place,)).fetchone()
        if row is None or row[0] != RUNNING or row[1] == self.owner:
            return False
        return not gone(row[1]) and bool(row[2] >= time.time())

    def pass_over(self, counts: dict[str, int]) -> None:
        """Note how many volumes were not meant to be segmented, by reason."""
        with self._together():
            self._db.execute("DELETE FROM passed")
            self._db.executemany("INSERT INTO passed VALUES (?, ?)", sorted(counts.items()))

    def passed(self) -> dict[str, int]:
        """Return how many volumes were passed over, by reason."""
        with self._told():
            return dict(self._db.execute("SELECT code, count FROM passed ORDER BY count DESC"))

    def claim(self, place: str, key: str) -> int | None:
        """Take an item that waits, or whose owner is dead; return which try this is, or None if it is not to be had."""
        with self._together():
            row = self._db.execute(
                "SELECT state, tries, owner FROM item WHERE place = ? AND key = ?", (place, key)
            ).fetchone()
            if row is None or row[0] not in {WAITING, RUNNING} or self._busy(place):
                return None
            if row[0] == RUNNING and row[2] == self.owner:
                return None
            self._db.execute(
                "UPDATE item SET state = ?, owner = ?, lease = ?, tries = ? WHERE place = ?",
                (RUNNING, self.owner, time.time() + LEASE, row[1] + 1, place),
            )
            return int(row[1]) + 1

    def renew(self) -> None:
        """Say that this process is alive."""
        with self._together():
            self._db.execute(
                "UPDATE item SET lease = ? WHERE state = ? AND owner = ?", (time.time() + LEASE, RUNNING, self.owner)
            )

    def put_back(self, place: str, *, counted: bool) -> None:
        """Let an item wait again; `counted` keeps the try that was begun."""
        with self._together():
            self._db.execute(
                "UPDATE item SET state = ?, owner = '', tries = tries - ? WHERE place = ? AND owner = ?",
                (WAITING, int(not counted), place, self.owner),
            )

    def finish(self, item: Item, event: dict[str, Any]) -> None:
        """Enter what became of an item that this process holds, and the line of the audit log, in one."""
        with self._together():
            changed = self._db.execute(
                "UPDATE item SET state = ?, owner = '', code = ?, problem = ?, hint = ?, seconds = ?, finished = ?,"
                " result = ? WHERE place = ? AND owner = ? AND state = ?",
                (
                    item.state,
                    item.code,
                    item.problem,
                    item.hint,
                    json.dumps(item.seconds or {}),
                    item.finished,
                    json.dumps(item.result or {}, ensure_ascii=False),
                    item.place,
                    self.owner,
                    RUNNING,
                ),
            ).rowcount
            if changed:  # else another process found this one dead, and does it
                self._note(event)

    def note(self, event: dict[str, Any]) -> None:
        """Add a line to the audit log."""
        with self._together():
            self._note(event)

    def _note(self, event: dict[str, Any]) -> None:
        last = self._db.execute("SELECT number, line FROM audit ORDER BY number DESC LIMIT 1").fetchone()
        number, before = last or (0, "")
        self._db.execute("INSERT INTO audit VALUES (?, ?)", (number + 1, chained(number + 1, before, event)))

    def audit_lines(self, after: int = 0) -> Iterator[tuple[int, str]]:
        """Yield number and text of the lines of the audit log."""
        with self._told():
            yield from self._db.execute("SELECT number, line FROM audit WHERE number > ? ORDER BY number", (after,))

    def retry(self, codes: Iterable[str] | None) -> int:
        """Let items that failed wait again: those with one of the codes, or all; return how many."""
        with self._together():
            start = "UPDATE item SET state = 'waiting', tries = 0 WHERE state = 'failed'"
            if codes is None:
                return self._db.execute(start).rowcount
            return sum(self._db.execute(start + " AND code = ?", (code,)).rowcount for code in codes)

    def forget(self, place: str) -> None:
        """Let an item that is done wait again: its files are not as they were."""
        with self._together():
            self._db.execute(
                "UPDATE item SET state = ?, tries = 0 WHERE place = ? AND state = ?", (WAITING, place, DONE)
            )

    def get(self, place: str) -> Item | None:
        """Return an item by its place."""
        with self._told():
            row = self._db.execute(_ITEMS + " WHERE place = ?", (place,)).fetchone()
        return _item(row) if row else None

    def counts(self) -> dict[str, int]:
        """Return how many items there are in each state."""
        with self._told():
            return dict(self._db.execute("SELECT state, COUNT(*) FROM item GROUP BY state"))

    def reasons(self) -> list[tuple[str, int, str]]:
        """Return code, count and one example's sentence of what failed, most frequent first."""
        with self._told():
            return self._db.execute(
                "SELECT code, COUNT(*), MIN(problem) FROM item WHERE state = 'failed' GROUP BY code ORDER BY 2 DESC, 1"
            ).fetchall()

    def finished_since(self, moment: float) -> list[float]:
        """Return when items were finished, from a moment on, in order."""
        with self._told():
            rows = self._db.execute("SELECT finished FROM item WHERE finished >= ? ORDER BY finished", (moment,))
            return [row[0] for row in rows]

    def items(self, state: str = "") -> Iterator[Item]:
        """Yield all items, or those in a state, by place."""
        with self._told():
            for row in self._db.execute(_ITEMS + " WHERE ? IN ('', state) ORDER BY place", (state,)):
                yield _item(row)

    def remember(self, **facts: str) -> None:
        """Keep what a later command wants to know."""
        with self._together():
            self._db.executemany(
                "INSERT INTO fact VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value", facts.items()
            )

    def fact(self, name: str) -> str:
        """Return what was kept under a name; '' where nothing was."""
        with self._told():
            row = self._db.execute("SELECT value FROM fact WHERE name = ?", (name,)).fetchone()
        return str(row[0]) if row else ""


def _item(row: tuple[Any, ...]) -> Item:
    place, key, model, state, tries, code, problem, hint, seconds, finished, result = row
    seconds, result = json.loads(seconds), json.loads(result)
    return Item(place, key, model, state, tries, code, problem, hint, seconds, finished, result)


def ledgers_in(output: Path) -> list[Path]:
    """Return the ledgers of an output folder: one, or one for each shard.

    Raises
    ------
    UsageError
        If there is none.
    """
    try:
        found = sorted(path for path in (output / ".medseg").iterdir() if path.match("ledger*.sqlite"))
    except FileNotFoundError:
        found = []
    except OSError as error:
        raise UsageError(f"{output}: cannot be read: {error.strerror}", hint="ask who ran `medseg batch`") from None
    if not found:
        raise UsageError(f"{output}: holds no results of `medseg batch`", hint="give the folder that was named with -o")
    return found
