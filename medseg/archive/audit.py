"""The audit log: who segmented what with which model and what came of it, one line each, chained by hashes.

Each line holds the hash of the one before it, so that a line that is changed, left out or put in shows. Lines are
entered into the ledger in one step with what they tell of, and copied from there to a file that only grows.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from medseg.errors import OutputError
from medseg.locks import locked

_FIRST = "0" * 64
_TAIL = 1 << 20


def chained(number: int, before: str, event: dict[str, Any]) -> str:
    """Return the line of an event that follows the line `before`."""
    previous = json.loads(before)["hash"] if before else _FIRST
    data = {"number": number, **event, "previous": previous}
    return _text({**data, "hash": hashlib.sha256(_text(data).encode()).hexdigest()})


def check(path: Path) -> tuple[int, str]:
    """Return how many lines of a log hold together, and what is wrong with the next one; '' where nothing is."""
    previous, number = _FIRST, 0
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                data = json.loads(line)
                told = data.pop("hash")
            except (ValueError, KeyError, AttributeError):
                return number, f"line {number + 1} is no line of the log"
            if data.get("previous") != previous or data.get("number") != number + 1:
                return number, f"line {number + 1} does not follow the one before it"
            if hashlib.sha256(_text(data).encode()).hexdigest() != told:
                return number, f"line {number + 1} was changed"
            previous, number = told, number + 1
    return number, ""


def compare(path: Path, lines: Callable[[int], Iterable[tuple[int, str]]], *, running: bool) -> tuple[int, str]:
    """Return how many lines of a log hold together and are those of the ledger, and what is wrong; '' where nothing is.

    Parameters
    ----------
    path : Path
        The log.
    lines : callable
        Of the ledger: number and text of the lines after a number.
    running : bool
        Whether a run may just be copying the last ones.
    """
    if not path.exists():
        return 0, "" if not [*lines(0)] else "it is not there"
    count, fault = check(path)
    if running and fault:
        time.sleep(1.0)  # a line may have been half-written
        count, fault = check(path)
    if fault:
        return count, fault
    more = [*lines(max(0, count - 1))]
    with open(path, encoding="utf-8") as file:
        last = deque(file, 1)
    if count and (not more or more[0] != (count, last[0].rstrip("\n"))):
        return count, f"line {count} is not that of the ledger"
    missing = len(more) - bool(count)
    return count, f"the ledger has {missing} more lines" if missing and not running else ""


def copy(lines: Callable[[int], Iterable[tuple[int, str]]], path: Path) -> None:
    """Append those lines that a file does not have yet; one that was cut off by a kill is completed.

    Parameters
    ----------
    lines : callable
        Returns number and text of the lines after a number.
    path : Path
        The file.

    Raises
    ------
    OutputError
        If the file cannot be written, or is not the beginning of the log.
    """
    try:
        with locked(path, wait=True), open(path, "ab+") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL))
            whole, _, cut = file.read().rpartition(b"\n")
            last = whole.rpartition(b"\n")[2]
            there = json.loads(last)["number"] if last else 0
            for number, line in lines(max(0, there - 1)):
                text = line.encode() + b"\n"
                if number == there and text[:-1] != last:
                    raise _changed(path)
                if number > there:
                    if not text.startswith(cut):
                        raise _changed(path)
                    file.write(text[len(cut) :])
                    cut = b""
            file.flush()
            os.fsync(file.fileno())
    except (ValueError, KeyError) as error:
        raise _changed(path) from error
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"{path}: cannot be written: {error.strerror}", hint="free space, and run again") from error


def _changed(path: Path) -> OutputError:
    return OutputError(
        f"{path}: is not what medseg wrote", hint="keep it for those who must know, move it away, and run again"
    )


def _text(data: dict[str, Any]) -> str:
    return json.dumps(data, ensure_ascii=True, separators=(",", ":"))
