"""Segment a cohort with one model: a label map for each scan, and one table of volumes for statistics.

    python pipelines/segment_cohort.py SCANS -o OUT
    python pipelines/segment_cohort.py cohort.csv -o OUT --model liver.safetensors --device cuda

SCANS is a folder with scans in files, or a folder of DICOM for each series; names that end in _seg are taken for
results. cohort.csv has a column `scan` (paths from where the file lies), `name` if you like, and any others (age, sex,
group), which go into the table as they are. Writes OUT/<name>.nii.gz, .png and .json, and OUT/volumes.csv: a row for
each scan and label, with the verdict of the quality check. A scan that cannot be used is one line, and one row with a
code. Killed, the same command goes on; a scan is done again when its .json is removed or the model is another.

Exit code: 0 all done, 1 some scans not, 2 nothing. `medseg batch` does more: archives, workers. For research use only.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
from pathlib import Path
from typing import Any

from medseg import MedsegError, Predictor, zoo
from medseg.atomic import check_writable, write_atomic
from medseg.dicom.parts import holds_dicom
from medseg.errors import OutputError, UsageError, explain
from medseg.io import scans_in, stem_of
from medseg.report.delivery import deliver
from medseg.report.job import Job, check_distinct, plan_targets
from medseg.report.record import size_line

FOUND = ("label", "volume_ml", "expected_dice", "verdict", "reasons", "error")
Row = dict[str, Any]


def main() -> int:
    """Segment, and say in one line what stands in the way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", type=Path, help="a folder, or a CSV file with a column `scan`")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for results")
    parser.add_argument("--model", default=zoo.DEFAULT, help="by name (`medseg models list`) or file")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps")
    try:
        return segment(parser.parse_args())
    except MedsegError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def segment(options: argparse.Namespace) -> int:
    """Segment all scans that are not done yet, write the table of all, and return the exit code."""
    rows = listed(options.scans)
    check_writable(options.output)
    jobs = [Job((Path(row["scan"]),), plan_targets(row["name"], options.output, ["nifti"])) for row in rows]
    check_distinct(jobs)
    predictor = Predictor.load(options.model, device=options.device)
    table: list[Row] = []
    failed = 0
    for number, (row, job) in enumerate(zip(rows, jobs, strict=True), start=1):
        head = f"{number}/{len(rows)} {row['name']}"
        try:
            report = finished(job, predictor.bundle.sha256) or deliver(job, predictor)
        except OutputError:
            raise  # the next one would meet a full disk too
        except Exception as error:  # noqa: BLE001 - whatever is wrong with one scan, the next ones still get done
            failed += 1
            code, problem, hint = explain(error)
            print(f"{head}: error: {problem}; {hint}", file=sys.stderr, flush=True)
            table.append({**row, "error": code})
            continue
        print(f"{head}: {report['qc']['verdict']}, {', '.join(map(size_line, report['labels']))}", flush=True)
        reasons = ";".join(reason["code"] for reason in report["qc"]["reasons"])
        for label in report["labels"]:
            found = {"label": label["name"], "volume_ml": label["volume_ml"], "expected_dice": label["expected_dice"]}
            table.append({**row, **found, "verdict": report["qc"]["verdict"], "reasons": reasons})
    columns = [column for column in rows[0] if column != "scan"]  # a path says more than a table should
    write_table(options.output / "volumes.csv", table, [*columns, *FOUND])
    print(f"{len(rows) - failed} of {len(rows)} scans segmented; table: {options.output / 'volumes.csv'}")
    return int(failed > 0)


def listed(scans: Path) -> list[Row]:
    """Return a row for each scan, with its path, its name, and what else the CSV file says of it."""
    if scans.is_dir():
        folders = [path for path in sorted(scans.iterdir()) if path.is_dir() and holds_dicom(path)]
        found = [path for path in scans_in(scans) if not stem_of(path).endswith("_seg")]
        rows: list[Row] = [{"scan": str(path), "name": stem_of(path)} for path in [*found, *folders]]
    else:
        try:
            rows = [*csv.DictReader(io.StringIO(scans.read_text("utf-8-sig"), newline=""))]
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise UsageError(f"{scans}: cannot be read as a list ({error})", hint="give a folder or a CSV") from None
        for line, row in enumerate(rows, start=2):
            if not row.get("scan") or None in row or None in row.values():
                raise UsageError(f"{scans}: line {line} has no scan, or not the cells of line 1", hint="mend the file")
            row["scan"] = str(scans.parent / row["scan"])
            row["name"] = row.get("name") or stem_of(Path(row["scan"]))
    if not rows:
        raise UsageError(f"{scans}: names no scan", hint="give a folder of scans, or a CSV with a column `scan`")
    if any(Path(row["name"]).name != row["name"] for row in rows):
        raise UsageError(f"{scans}: a name in it cannot name a file", hint="use letters and digits")
    if taken := {*rows[0]} & {*FOUND}:
        raise UsageError(f"{scans}: has a column {min(taken)!r}, as the table will", hint="rename it")
    return rows


def finished(job: Job, model: str) -> Row | None:
    """Return the report of an earlier run where it is whole, of the same model, and none of its files is missing."""
    try:
        report: Row = json.loads(job.targets["report"].read_bytes())
        same = report["model"]["sha256"] == model and report["scan"]["path"] == job.shown
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return report if same and all(path.exists() for path in job.targets.values()) else None


def write_table(path: Path, rows: list[Row], columns: list[str]) -> None:
    """Write a CSV file, whole or not at all."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(path, [text.getvalue().encode()])


if __name__ == "__main__":
    sys.exit(main())
