"""SQLite files that a kill cannot damage, and that several processes may open at once."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medseg.errors import OutputError

_PATIENCE = 60.0  # seconds to wait for other processes


def connect(path: Path, schema: str, version: int, *, hint: str) -> sqlite3.Connection:
    """Return a database with its tables, which are made where there are none.

    Parameters
    ----------
    path : Path
        The file; its folder exists.
    schema : str
        The statements that make the tables.
    version : int
        Of the tables.
    hint : str
        What to do where there are those of another version.

    Raises
    ------
    OutputError
        If the tables are those of another version.
    sqlite3.Error
        If the file cannot be used.
    """
    until = time.monotonic() + _PATIENCE
    while True:
        database = sqlite3.connect(path, timeout=_PATIENCE, isolation_level=None)
        try:
            found = _prepared(database, schema, version)
        except sqlite3.Error as error:
            database.close()
            # of those who make it at the same time, SQLite turns away all but one without waiting
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
            time.sleep(0.05)
            continue
        if found != version:
            database.close()
            raise OutputError(f"{path}: was written by another version of medseg", hint=hint)
        return database


def _prepared(database: sqlite3.Connection, schema: str, version: int) -> int:
    """Make the tables where there are none; return the version of those that are there."""
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = NORMAL")
    if found := database.execute("PRAGMA user_version").fetchone()[0]:
        return int(found)
    database.executescript(f"BEGIN IMMEDIATE; {schema} PRAGMA user_version = {version}; COMMIT;")
    return version


@contextmanager
def together(database: sqlite3.Connection, begin: str = "BEGIN IMMEDIATE") -> Iterator[None]:
    """Make all that happens in the block one change, or none."""
    database.execute(begin)
    try:
        yield
    except BaseException:
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise
    database.execute("COMMIT")
