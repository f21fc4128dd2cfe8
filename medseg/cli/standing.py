"""What `medseg status` prints."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from medseg.archive import audit
from medseg.archive.ledger import RUNNING
from medseg.archive.report import Report, all_ledgers, failures, paths_of
from medseg.cli.batching import in_time


def status_lines(report: Report) -> Iterator[str]:
    """Yield how far an archive is."""
    yield f"{report.done} done, {report.failed} failed, {report.left} left"
    if report.verdicts:
        yield "  quality check: " + ", ".join(f"{count} {verdict}" for verdict, count in report.verdicts.items())
    if report.eta_seconds is not None:
        yield f"  {report.per_hour:.0f} an hour in the last ten minutes; {in_time(report.eta_seconds)} to go"
    if report.seconds:
        yield "  seconds for each: " + ", ".join(f"{stage} {mean:.2g}" for stage, mean in report.seconds.items())
    if report.reasons:
        yield "failed:"
    for code, count, text in report.reasons:
        yield f"  {count} {code}: {text}"
    if report.old:
        yield f"{report.old} done earlier, and no longer in the archive or no longer meant"
    if report.not_meant or report.passed:
        counts = dict(report.not_meant)
        if report.passed:
            counts["not what the rule means, as was seen when they were read"] = report.passed
        yield "not meant to be segmented: " + ", ".join(f"{count} {why}" for why, count in counts.items())


def failed_lines(output: Path, code: str, *, paths: bool, key_file: Path | None) -> Iterator[str]:
    """Yield a line for each scan that failed."""
    where = paths_of(output, key_file) if paths else {}
    for item in failures(output, code):
        series = item.place.rpartition("/")[0]
        yield f"{where.get(series, series)}: {item.code}: {item.problem}; {item.hint}"


def audit_lines(output: Path) -> tuple[list[str], bool]:
    """Return a line for each audit log of an output folder, and whether all are whole."""
    lines, sound = [], True
    with all_ledgers(output) as ledgers:
        for ledger in ledgers:
            path = output / f"audit{ledger.path.stem.removeprefix('ledger')}.jsonl"
            running = bool(ledger.counts().get(RUNNING))
            count, fault = audit.compare(path, ledger.audit_lines, running=running)
            sound = sound and not fault
            lines.append(f"{path.name}: {fault or f'{count} lines, unbroken'}")
    return lines, sound
