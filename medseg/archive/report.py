"""What became of an archive, read from the ledgers of an output folder: of one run, or of all its shards."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from medseg.archive.index import Index, opened
from medseg.archive.ledger import DONE, FAILED, OLD, PASSED, RUNNING, WAITING, Item, Ledger, ledgers_in
from medseg.archive.naming import Names, own_names
from medseg.archive.owner import own
from medseg.archive.summary import write_summary
from medseg.errors import UsageError

_RECENT = 600.0  # seconds over which the speed is taken


@dataclass(frozen=True)
class Report:
    """How far an archive is.

    Parameters
    ----------
    done, failed, running, waiting, passed, old : int
        Items in each state.
    verdicts : dict
        Of those that are done.
    reasons : list of (code, count, sentence)
        Of those that failed, most frequent first.
    not_meant : dict
        Volumes that no rule means, by reason.
    per_hour : float
        Finished in the last ten minutes.
    eta_seconds : float, optional
        Until the end at that speed.
    seconds : dict
        Mean of each stage.
    """

    done: int
    failed: int
    running: int
    waiting: int
    passed: int
    old: int
    verdicts: dict[str, int]
    reasons: list[tuple[str, int, str]]
    not_meant: dict[str, int]
    per_hour: float
    eta_seconds: float | None
    seconds: dict[str, float]

    @property
    def left(self) -> int:
        """Items that are neither done nor failed."""
        return self.running + self.waiting

    def as_json(self) -> str:
        """Return it as JSON."""
        return json.dumps(asdict(self), indent=2)


@contextmanager
def all_ledgers(output: Path) -> Iterator[list[Ledger]]:
    """Yield the ledgers of an output folder, open.

    Raises
    ------
    UsageError
        If there is none.
    """
    some = [Ledger(path, own(), look=True) for path in ledgers_in(output)]
    try:
        yield some
    finally:
        for ledger in some:
            ledger.close()


def read_report(output: Path) -> Report:
    """Return how far the archive of an output folder is."""
    counts, verdicts, not_meant, seconds = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    reasons: dict[str, tuple[int, str]] = {}
    recent: list[float] = []
    with all_ledgers(output) as ledgers:
        for ledger in ledgers:
            counts.update(ledger.counts())
            not_meant.update(ledger.passed())
            recent += ledger.finished_since(time.time() - _RECENT)
            for code, count, text in ledger.reasons():
                reasons[code] = (reasons.get(code, (0, text))[0] + count, text)
            for item in ledger.items(DONE):
                verdicts[(item.result or {}).get("verdict", "")] += 1
                seconds.update(item.seconds or {})
    span = time.time() - min(recent) if recent else 0.0
    speed = len(recent) / max(span, 1.0)
    left = counts[RUNNING] + counts[WAITING]
    return Report(
        counts[DONE],
        counts[FAILED],
        counts[RUNNING],
        counts[WAITING],
        counts[PASSED],
        counts[OLD],
        dict(verdicts),
        [(code, *entry) for code, entry in sorted(reasons.items(), key=lambda reason: -reason[1][0])],
        dict(not_meant),
        round(speed * 3600, 1),
        round(left / speed, 1) if speed and left else None,
        {stage: round(total / counts[DONE], 3) for stage, total in seconds.items()} if counts[DONE] else {},
    )


def failures(output: Path, code: str = "") -> Iterator[Item]:
    """Yield the items that failed, all or those with one code."""
    with all_ledgers(output) as ledgers:
        for ledger in ledgers:
            yield from (item for item in ledger.items(FAILED) if code in {"", item.code})


def retry(output: Path, codes: Sequence[str] | None) -> int:
    """Let items that failed be tried again, all or those with one of the codes; return how many."""
    with all_ledgers(output) as ledgers:
        return sum(ledger.retry(codes) for ledger in ledgers)


def write_pages(output: Path) -> list[Path]:
    """Write table and page of all ledgers of an output folder."""
    with all_ledgers(output) as ledgers:
        return write_summary(output, ledgers)


def paths_of(output: Path, key_file: Path | None = None) -> dict[str, str]:
    """Return where the series of an output folder lie, by patient/study/series; they may name patients.

    Raises
    ------
    UsageError
        If the index or the key is not there.
    """
    found: dict[str, str] = {}
    with all_ledgers(output) as ledgers:
        keep = any(ledger.fact("names").startswith("kept") for ledger in ledgers)
        places = {ledger.fact("index") for ledger in ledgers}
    names = own_names(key_file, keep=keep, make=False)
    for place in places:
        if not place or not Path(place).exists():
            raise UsageError(
                "there is no index that says where scans lie", hint="run `medseg batch` again, or ask the PACS"
            )
        with opened(Path(place), Path()) as index:  # its volumes are only looked at
            found |= _paths_in(index, names)
    return found


def _paths_in(index: Index, names: Names) -> dict[str, str]:
    found = {}
    for volume in index.volumes():
        kinds = (("patient", volume.patient), ("study", volume.study), ("series", volume.name))
        parts = index.parts(volume.series_id)
        row = f"-{volume.verdict.number}" if volume.verdict.number > 1 else ""
        place = "/".join(names.of(kind, name) for kind, name in kinds) + row
        found[place] = str(parts[0].path) if parts else volume.name
    return found
