"""What a run leaves for people: a table of all results, and a page to look at them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from medseg.archive.ledger import DONE, FAILED, OLD, PASSED, Item, Ledger
from medseg.archive.selection import RESULTS
from medseg.atomic import Outputs
from medseg.report.cohort import Result, results_csv
from medseg.report.cohort_page import cohort_page


def write_summary(output: Path, ledgers: Iterable[Ledger], suffix: str = "") -> list[Path]:
    """Write `results.csv` and `index.html` from what ledgers hold; return the two files.

    Raises
    ------
    OutputError
        If they cannot be written.
    """
    some = list(ledgers)
    table, page = output / f"results{suffix}.csv", output / f"index{suffix}.html"
    passed = sum((Counter(ledger.passed()) for ledger in some), Counter[str]())
    counts = ", ".join(f"{count} {code}" for code, count in passed.items())
    notes = [f"Not meant to be segmented: {counts}"] if counts else []
    with Outputs() as outputs:
        outputs.write(table, results_csv(results(some)))
        outputs.write(page, [cohort_page(results(some), title=f"Results in {output.name}", notes=notes)])
    return [table, page]


def results(ledgers: Iterable[Ledger]) -> Iterator[Result]:
    """Yield every item of the ledgers as a table and a page show it; what was passed over or is old is left out."""
    for ledger in ledgers:
        for item in ledger.items():
            if item.state not in {PASSED, OLD}:
                yield _result(item)


def _result(item: Item) -> Result:
    patient, study, series, _ = item.place.split("/")
    found = item.result or {}
    files = {kind: entry[0] for kind, entry in found.get("files", {}).items()}
    return Result(
        patient=patient,
        study=study,
        series=series,
        model=item.model,
        state=item.state if item.state in {DONE, FAILED} else "waiting",
        verdict=found.get("verdict", ""),
        reasons=tuple(found.get("reasons", ())),
        code=item.code,
        problem=item.problem,
        volumes=found.get("volumes_ml", {}),
        seconds=round(sum((item.seconds or {}).values()), 3),
        folder=f"{RESULTS}/{item.place}" if item.state == DONE else "",
        picture=files.get("picture", ""),
        thumbnail=files.get("thumbnail", ""),
    )
