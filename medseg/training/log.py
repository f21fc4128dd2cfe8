"""The log of a training run: one CSV for each member, a row for each step, that a killed run can take up again.

A row is written in one piece as soon as it is known, so that a run that is killed loses no row that was appended;
at most the last line is torn, and reading leaves it out. Numbers have nine digits, as many as tell any two of 32 bits
apart. What does not depend on the clock stands first, so that a run that was resumed has the same columns there, byte
for byte, as one that was never interrupted; `seconds` and `idle` come last.
"""

from __future__ import annotations

import csv
import errno
import io
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from medseg.atomic import write_atomic
from medseg.errors import OutputError, UsageError

_FIRST = ("step", "epoch", "rate", "loss", "dice")
_LAST = ("seconds", "idle")
_APPEND = os.O_WRONLY | os.O_APPEND | getattr(os, "O_BINARY", 0)  # the last for Windows
_HINT = "remove it to begin a new log, or name the log of a training"


@dataclass(frozen=True)
class Row:
    """One step of a training; nan is an empty cell.

    Parameters
    ----------
    step : int
        Updates of the weights so far, from 1; it never falls from one row to the next.
    epoch : float
        Passes over the cases so far.
    rate : float
        Learning rate.
    loss : float
        Of the step.
    dice : float
        Mean over the labels in the validation cases; nan where no validation took place.
    labels : mapping of str to float
        Dice of each label by name; a label that is left out is nan.
    seconds : float
        Of training so far.
    idle : float
        Share of the time in which the device waited for data, 0 to 1; nan where nobody measured it.
    """

    step: int
    epoch: float
    rate: float
    loss: float
    dice: float = math.nan
    labels: Mapping[str, float] = field(default_factory=dict)
    seconds: float = math.nan
    idle: float = math.nan


class Log:
    """A log that is being written; close it, or use it in a `with` block.

    Parameters
    ----------
    path : Path
        Of the CSV; a file that is there already is replaced.
    labels : sequence of str
        Names of the labels that get a column of Dice.
    rows : sequence of Row
        With what the log begins.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """

    def __init__(self, path: Path, labels: Sequence[str], rows: Sequence[Row] = ()) -> None:
        self.path = path
        self.labels = tuple(labels)
        write_atomic(path, [_line(_header(self.labels)), *(_line(_cells(row, self.labels)) for row in rows)])
        try:
            self._handle = os.open(path, _APPEND)
        except OSError as error:
            raise _unwritable(path, error) from error

    @classmethod
    def resume(cls, path: Path, step: int) -> Self:
        """Return the log of a run that goes on after `step`: rows after it and a torn line are dropped at once.

        Raises
        ------
        UsageError
            If the file is no log, or damaged; it is left as it is.
        OutputError
            If it cannot be written.
        """
        labels, rows = _parsed(path)
        return cls(path, labels, [row for row in rows if row.step <= step])

    def append(self, row: Row) -> None:
        """Write a row at the end of the file, in one piece.

        Raises
        ------
        OutputError
            If it cannot be written, as on a full disk.
        """
        line = _line(_cells(row, self.labels))
        try:
            written = os.write(self._handle, line)
        except OSError as error:
            raise _unwritable(self.path, error) from error
        if written < len(line):
            raise _unwritable(self.path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))

    def close(self) -> None:
        """Close the file; nothing can be appended any more."""
        os.close(self._handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_log(path: Path) -> list[Row]:
    """Return the rows of a log, without a torn last line; the log may be growing meanwhile.

    Raises
    ------
    UsageError
        If the file is missing, no log, or damaged; with the line.
    """
    return _parsed(path)[1]


def _parsed(path: Path) -> tuple[tuple[str, ...], list[Row]]:
    """Return the labels and rows of a log."""
    try:
        content = path.read_bytes()
        text = content[: content.rfind(b"\n") + 1].decode()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}", hint=_HINT) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: is no log of a training, or damaged", hint=_HINT) from error
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        labels = _labels(next(reader, []))
        rows = list(_rows(reader, labels))
    except (ValueError, csv.Error) as error:
        raise UsageError(
            f"{path}: line {reader.line_num} is of no log of a training, or damaged: {error}", hint=_HINT
        ) from error
    return labels, rows


def _header(labels: Sequence[str]) -> list[str]:
    return [*_FIRST, *(f"dice {name}" for name in labels), *_LAST]


def _labels(header: Sequence[str]) -> tuple[str, ...]:
    names = tuple(column.removeprefix("dice ") for column in header[len(_FIRST) : -len(_LAST)])
    if list(header) != _header(names):
        raise ValueError(f"the columns are {', '.join(header) or 'none'}")
    return names


def _cells(row: Row, labels: Sequence[str]) -> list[str]:
    dice = [row.dice, *(row.labels.get(name, math.nan) for name in labels)]
    values = [row.epoch, row.rate, row.loss, *dice, row.seconds, row.idle]
    return [str(row.step), *("" if math.isnan(value) else f"{value:.9g}" for value in values)]


def _rows(lines: Iterable[Sequence[str]], labels: Sequence[str]) -> Iterator[Row]:
    last = 0
    for cells in lines:
        row = _row(cells, labels)
        if row.step < last:
            raise ValueError(f"step {row.step} comes after step {last}")
        last = row.step
        yield row


def _row(cells: Sequence[str], labels: Sequence[str]) -> Row:
    width = len(_FIRST) + len(labels) + len(_LAST)
    if len(cells) != width:
        raise ValueError(f"{len(cells)} cells for {width} columns")
    epoch, rate, loss, dice, *single, seconds, idle = (float(cell or math.nan) for cell in cells[1:])
    return Row(int(cells[0]), epoch, rate, loss, dice, dict(zip(labels, single, strict=True)), seconds, idle)


def _line(cells: Sequence[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode()


def _unwritable(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{path}: cannot be written: {error.strerror}", hint="free space, or choose another place with -o"
    )
