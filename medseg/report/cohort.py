"""What came of an archive run, scan by scan, and its table `results.csv`."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

_HEAD = (
    *("patient", "study", "series", "model", "state", "verdict", "reasons", "code", "problem"),
    *("label", "volume_ml", "seconds", "folder"),
)
_FORMULA = ("=", "+", "-", "@", "\t")  # a cell that begins so is run by spreadsheets
_CHUNK = 1 << 16  # characters


@dataclass(frozen=True)
class Result:
    """What came of one scan and one model.

    Parameters
    ----------
    patient, study, series : str
        Hashed names, or plain ones where the user chose to keep them.
    model : str
        Name and version.
    state : str
        'done', 'failed' or 'waiting' (which includes what is being worked on).
    verdict : str
        Of a done one: 'ok', 'check' or 'refuse'.
    reasons : tuple of str
        Codes of the quality check of a done one, each once.
    code, problem : str
        Why a failed one failed: a stable word, and a sentence.
    volumes : mapping of str to float or None
        mL of each label; None for a scan without physical size.
    seconds : float
        It took.
    folder : str
        Of its files, relative to the page, with "/" between names.
    picture, thumbnail : str
        Names of files in that folder, or "".
    """

    patient: str
    study: str
    series: str
    model: str
    state: str
    verdict: str = ""
    reasons: tuple[str, ...] = ()
    code: str = ""
    problem: str = ""
    volumes: Mapping[str, float | None] = field(default_factory=dict)
    seconds: float = 0.0
    folder: str = ""
    picture: str = ""
    thumbnail: str = ""


def results_csv(results: Iterable[Result]) -> Iterator[bytes]:
    """Yield `results.csv` piece by piece: UTF-8, a row for each result and label, one for a result without labels.

    A cell that a spreadsheet would take for a formula begins with an apostrophe.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_HEAD)
    for result in results:
        writer.writerows(_rows(result))
        if text.tell() >= _CHUNK:
            yield text.getvalue().encode("utf-8", "backslashreplace")
            text.seek(0)
            text.truncate()
    yield text.getvalue().encode("utf-8", "backslashreplace")


def _rows(result: Result) -> Iterator[list[str]]:
    front = [result.patient, result.study, result.series, result.model, result.state, result.verdict]
    front = [_cell(text) for text in (*front, ";".join(result.reasons), result.code, result.problem)]
    back = [_number(result.seconds), _cell(result.folder)]
    for label, volume in (result.volumes or {"": None}).items():
        yield [*front, _cell(label), _number(volume), *back]


def _cell(text: str) -> str:
    text = text.replace("\r", " ")  # which the csv module leaves unquoted
    return f"'{text}" if text.startswith(_FORMULA) else text


def _number(value: float | None) -> str:
    """Return nine digits; nothing for what is not known."""
    return f"{value:.9g}" if value is not None and math.isfinite(value) else ""
