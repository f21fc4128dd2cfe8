"""Follow volumes over time: patients with several scans, a table of changes, and a picture for each label.

    python pipelines/longitudinal_volumes.py visits.csv -o OUT --repeatability 5

visits.csv has the columns `patient`, `date` (2026-01-31), and `scan` (a file or a DICOM folder), or `labels` for label
maps that are there. Writes OUT/changes.csv, OUT/<label>.svg, and what it segments as OUT/<line of visits.csv>.seg.nrrd.
Changes are in percent of the first scan, yearly ones by a least-squares line. NOT KNOWN is how much the volumes of a
model differ when one person is scanned twice: no model of medseg has been measured for it. `beyond`: more than
--repeatability, the percentage that 95 % of repeated scans keep with your model and scanners. Without it, or with the
verdict check or refuse, a change may be noise. Research use only.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from datetime import date
from html import escape
from itertools import groupby
from pathlib import Path
from statistics import linear_regression
from typing import Any

from medseg import MedsegError, Predictor, read_labels, zoo
from medseg.atomic import check_writable, write_atomic
from medseg.errors import GeometryError, MemoryLimit, PlanError, ScanError, UsageError
from medseg.report.delivery import deliver
from medseg.report.job import Job, plan_targets

HEAD = ["patient", "date", "day", "line", "label", "volume_ml", "change_percent", "yearly_percent", "beyond", "verdict"]
Row = dict[str, Any]


def main() -> int:
    """Measure, compare, and say in one line what stands in the way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("visits", type=Path, help="CSV with the columns patient, date, and scan or labels")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for results")
    parser.add_argument("--model", default=zoo.DEFAULT, help="by name (`medseg models list`) or file")
    parser.add_argument("--repeatability", type=float, metavar="PERCENT", help="flag changes beyond it")
    options = parser.parse_args()
    try:
        return follow(options.visits, options.output, options.model, options.repeatability)
    except MedsegError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def follow(source: Path, output: Path, model: str, limit: float | None) -> int:
    """Measure all scans, write table and pictures, and return the exit code."""
    visits, measured = read_visits(source)
    check_writable(output)
    predictor = None if measured else Predictor.load(model)
    found: list[tuple[Row, dict[str, float]]] = []
    for visit in visits:
        try:
            found.append((visit, measure(visit, output, predictor)))
        except (ScanError, GeometryError, PlanError, UsageError, MemoryLimit) as error:
            print(f"error: line {visit['line']}: {error}", file=sys.stderr, flush=True)
    table: list[Row] = []
    for label in dict.fromkeys(name for _, volumes in found for name in volumes):
        rows = [{**visit, "label": label, "volume_ml": volumes.get(label, 0.0)} for visit, volumes in found]
        patients = [compare([*those], limit) for _, those in groupby(rows, key=lambda row: str(row["patient"]))]
        name = "".join(letter if letter.isalnum() else "_" for letter in label)
        write_atomic(output / f"{name}.svg", [picture(label, patients, limit or 0.0).encode()])
        table.extend(rows)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([HEAD, *([row.get(name) for name in HEAD] for row in table)])
    write_atomic(output / "changes.csv", [text.getvalue().encode()])
    print(f"{len(found)} of {len(visits)} scans used; table: {output / 'changes.csv'}")
    return int(len(found) < len(visits))


def read_visits(path: Path) -> tuple[list[Row], bool]:
    """Return the rows of the table by patient and day, and whether there are label maps already."""
    try:
        visits: list[Row] = [*csv.DictReader(path.read_text("utf-8-sig").splitlines())]
        for line, visit in enumerate(visits, start=2):
            visit |= {"line": line, "day": date.fromisoformat(visit["date"]).toordinal()}
            visit["file"] = path.parent / visit["labels" if "labels" in visit else "scan"]
        return sorted(visits, key=lambda visit: (visit["patient"], visit["day"])), "labels" in visits[0]
    except (OSError, ValueError, LookupError, TypeError, csv.Error):
        raise UsageError(f"{path}: is no table of visits", hint="give patient, date (2026-01-31) and scan") from None


def measure(visit: Row, output: Path, predictor: Predictor | None) -> dict[str, float]:
    """Return the volume of each label in mL; enter the verdict on it, where it was segmented here."""
    if predictor:
        job = Job((visit["file"],), plan_targets(str(visit["line"]), output, ["seg.nrrd"]))
        visit["verdict"] = deliver(job, predictor)["qc"]["verdict"]
    labels = read_labels(output / f"{visit['line']}.seg.nrrd" if predictor else visit["file"])
    if not labels.geometry.physical:
        raise UsageError(f"{visit['file']}: has no size in mm", hint="give a scan that has one")
    counts = labels.counts() or {f"label {value}": int((labels.array == value).sum()) for value in labels.values()}
    return {name: round(count * labels.geometry.voxel_volume / 1000, 6) for name, count in counts.items()}


def compare(rows: list[Row], limit: float | None) -> list[Row]:
    """Return the rows of one label of one patient with days, changes and slope, where these are defined."""
    first, days = rows[0]["volume_ml"], [row["day"] - rows[0]["day"] for row in rows]
    slope, start = linear_regression(days, [row["volume_ml"] for row in rows]) if days[-1] else (0.0, 0.0)
    for row, day in zip(rows, days, strict=True):
        change = round(100 * (row["volume_ml"] / first - 1), 3) if first else None
        beyond = None if change is None or limit is None else "yes" if abs(change) > limit else "no"
        yearly = round(36525 * slope / start, 3) if days[-1] and start > 0 else None
        row |= {"day": day, "change_percent": change, "yearly_percent": yearly, "beyond": beyond}
    return rows


def picture(label: str, patients: list[list[Row]], limit: float) -> str:
    """Return an SVG: changes in percent over days, a line for each patient; what the limit allows is grey."""
    end = max(1, *(own[-1]["day"] for own in patients))
    low, *_, high = sorted([limit + 1, -limit - 1, *(row["change_percent"] or 0.0 for own in patients for row in own)])
    drawn = f'<path fill="#ddd" d="M0 {limit}H{end}V{-limit}H0z"/>'
    for number, own in enumerate(patients):
        way = "L".join(f"{row['day']} {-row['change_percent']}" for row in own if row["change_percent"] is not None)
        pen = f'fill="none" stroke="hsl({number * 137 % 360}, 70%, 45%)" vector-effect="non-scaling-stroke"'
        drawn += f'<path {pen} stroke-width="2" d="M{way or "0 0"}"><title>{escape(own[0]["patient"])}</title></path>'
        drawn += f'<path {pen} stroke-width="8" stroke-linecap="round" d="M{(way or "0 0").replace("L", "h0M")}h0"/>'
    text = f'<text x="-70" y="45">{high:.0f} %</text><text x="-70" y="365">{low:.0f} %</text>'
    text += f'<text y="20">{escape(label)}: change since the first scan</text><text y="390">days: 0 to {end}</text>'
    box = f'y="40" width="800" height="320" viewBox="0 {-high} {end} {high - low}" preserveAspectRatio="none"'
    page = 'xmlns="http://www.w3.org/2000/svg" viewBox="-80 -10 900 420" font-family="sans-serif" font-size="15"'
    return f'<svg {page}>{text}<svg {box} overflow="visible">{drawn}</svg></svg>\n'


if __name__ == "__main__":
    sys.exit(main())
