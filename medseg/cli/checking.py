"""What a check found, as lines for the screen and as a record for programs."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from medseg.atomic import write_atomic
from medseg.training.check import Checked
from medseg.training.dataset import Finding

_SHOWN = 20  # lines of one code


def finding_lines(checked: Checked) -> list[str]:
    """Return a data set in a few lines, what is wrong with it, what is odd, and the sum of both."""
    return [*_summary(checked), *_table(checked.findings), _total(checked)]


def write_findings(path: Path, checked: Checked) -> None:
    """Write the data set in a few numbers, and all that was found, as JSON.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    dataset = checked.dataset
    record: dict[str, Any] = {
        "name": dataset.name,
        "sound": [case.name for case in dataset.cases],
        "channels": [*dataset.channels],
        "labels": {label.name: [*label.atoms] for label in dataset.labels},
        "ignore": dataset.ignore,
        "survey": checked.survey.as_record() if checked.survey.cases else None,
        "errors": _records(checked, "error"),
        "warnings": _records(checked, "warning"),
    }
    write_atomic(path, [json.dumps(record, indent=1, allow_nan=False).encode()])


def _records(checked: Checked, severity: str) -> list[dict[str, str]]:
    return [
        {"code": found.code, "case": found.case, "detail": found.detail}
        for found in checked.findings
        if found.severity == severity
    ]


def _summary(checked: Checked) -> Iterator[str]:
    dataset, survey = checked.dataset, checked.survey
    rows = {"data set": f"{dataset.name}, {_counted(len(dataset.cases), 'sound case')}"}
    if survey.cases:
        rows["channels"] = ", ".join(dataset.channels)
        ignored = f"; {dataset.ignore} is ignored" if dataset.ignore is not None else ""
        rows["labels"] = ", ".join(_presence(checked, label.name) for label in dataset.labels) + ignored
        rows["shape"] = _range(survey.shapes, str) + (" voxels" if survey.physical else " pixels")
        rows["spacing"] = f"{_range(survey.spacings, '{:.4g}'.format)} mm" if survey.physical else "none (pictures)"
    return (f"{name + ':':<10}{text}" for name, text in rows.items())


def _presence(checked: Checked, label: str) -> str:
    return f"{label} in {sum(case.volumes_ml[label] > 0 for case in checked.survey.cases)}"


def _range(values: np.ndarray[Any, Any], shown: Callable[[Any], str]) -> str:
    """Return the range along each axis, such as '31-42 x 40-58 x 24-45'."""
    ends = zip(values.min(axis=0).tolist(), values.max(axis=0).tolist(), strict=True)
    texts = [(shown(low), shown(high)) for low, high in ends]
    return " x ".join(low if low == high else f"{low}-{high}" for low, high in texts)


def _table(findings: tuple[Finding, ...]) -> Iterator[str]:
    """Yield a line for each finding: errors before warnings, those of one code together."""
    width = max((len(found.code) for found in findings), default=0)
    kinds: dict[tuple[str, str], list[Finding]] = defaultdict(list)
    for found in findings:
        kinds[found.severity, found.code].append(found)
    for (severity, code), those in sorted(kinds.items(), key=lambda item: item[0][0]):
        for found in those[:_SHOWN]:
            yield f"{severity:<7}  {code:<{width}}  {found.case}: {found.detail}"
        if len(those) > _SHOWN:
            yield f"{severity:<7}  {code:<{width}}  and {len(those) - _SHOWN} more"


def _total(checked: Checked) -> str:
    errors = sum(found.severity == "error" for found in checked.findings)
    warnings = len(checked.findings) - errors
    if not checked.findings:
        return f"sound: {_counted(len(checked.dataset.cases), 'case')}"
    counts = [_counted(count, what) for count, what in ((errors, "error"), (warnings, "warning")) if count]
    return ", ".join(counts)


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
