"""What one run still has to do: a list that may be long, in a file that only this process sees.

Of a PACS it holds identifiers. So it lies in the private folder of the run, and without a name where the system can
do that.
"""

from __future__ import annotations

import json
import os
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from medseg.archive.selection import Planned
from medseg.archive.task import Task
from medseg.errors import OutputError


@dataclass(frozen=True)
class Entry:
    """An item to do: its key, the task without its files, and the series of the index that has them."""

    number: int
    key: str
    model: str
    task: Task
    series: int


class Todo:
    """Items in the order in which they are done, those of one model together.

    Parameters
    ----------
    folder : Path
        For the file.

    Raises
    ------
    OutputError
        If it cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._path, self._count = folder / f".medseg-{secrets.token_hex(8)}.part", 0
        with self._told():
            self._db = sqlite3.connect(self._path, isolation_level=None)
            self._path.chmod(0o600)
            self._db.execute("PRAGMA journal_mode = OFF")
            self._db.execute("PRAGMA synchronous = OFF")
            self._db.execute("CREATE TABLE entry (number INTEGER PRIMARY KEY, model TEXT, data TEXT)")
            self._db.execute("CREATE INDEX by_model ON entry (model, number)")
            self._db.execute("BEGIN")
            if os.name != "nt":  # Windows keeps the name of an open file
                self._path.unlink()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise OutputError(
                f"{self._path.parent}: the list of what is to do cannot be used: {error}",
                hint="free space; nothing that is done is lost",
            ) from error

    def add(self, planned: Planned) -> None:
        """Put an item at the end."""
        data = [planned.item.key, planned.item.model, asdict(planned.task), planned.series]
        with self._told():
            self._db.execute("INSERT INTO entry (model, data) VALUES (?, ?)", (planned.task.sha256, json.dumps(data)))
        self._count += 1

    def next(self) -> Entry | None:
        """Take the next item from the list."""
        with self._told():
            row = self._db.execute("SELECT number, data FROM entry ORDER BY model, number LIMIT 1").fetchone()
            if row is None:
                return None
            self._db.execute("DELETE FROM entry WHERE number = ?", (row[0],))
        self._count -= 1
        key, model, task, series = json.loads(row[1])
        return Entry(row[0], key, model, Task(**task), series)

    def __len__(self) -> int:
        return self._count

    def close(self) -> None:
        """Forget the list."""
        self._db.close()
        self._path.unlink(missing_ok=True)
