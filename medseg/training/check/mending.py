"""Writing a mended data set: references laid on the grids of their scans, and a list of all sound cases."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from medseg.atomic import Outputs, check_writable
from medseg.errors import OutputError
from medseg.io import save
from medseg.training.alignment import laid
from medseg.training.check import Checked
from medseg.training.dataset import Case


def check_empty(folder: Path) -> None:
    """Create a folder, or see that it is empty: nothing in it is ever replaced.

    Raises
    ------
    OutputError
        If something is in it, or it cannot be made.
    """
    check_writable(folder)
    if any(folder.iterdir()):
        raise OutputError(f"{folder}: is not empty", hint="give a new folder for what is mended")


def mend(checked: Checked, folder: Path) -> list[Path]:
    """Return the label maps that were mended, and the `dataset.json` that lists all sound cases, as written.

    Parameters
    ----------
    checked : Checked
        Of a check that was asked to fix: what it warned of as GRID_ROUNDING is written anew.
    folder : Path
        Where to; it exists and is empty.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    off = {finding.case for finding in checked.findings if finding.code == "GRID_ROUNDING"}
    cases, mended = [], []
    with Outputs() as outputs:
        for case in checked.dataset.cases:
            label = case.reference.path.absolute()
            if case.name in off:
                label = folder.absolute() / f"{case.name}_label.nii.gz"
                _write(case, label, outputs)
                mended.append(label)
            cases.append(_entry(case, label))
        listing = folder / "dataset.json"
        outputs.write(listing, [json.dumps({**_declared(checked), "training": cases}, indent=1).encode()])
    return [*mended, listing]


def _write(case: Case, path: Path, outputs: Outputs) -> None:
    scan = case.scan()
    reference = laid(case.labels(), scan.geometry, fix=True)
    save(replace(reference, labels=(), source=scan.source), path, outputs)


def _entry(case: Case, label: Path) -> dict[str, Any]:
    images = list(dict.fromkeys(str(file.path.absolute()) for file in case.images))  # one file may hold all channels
    group = {"group": case.group} if case.group else {}
    return {"case": case.name, "image": images, "label": str(label), **group}


def _declared(checked: Checked) -> dict[str, Any]:
    dataset = checked.dataset
    labels = {label.name: label.value if label.atoms == (label.value,) else [*label.atoms] for label in dataset.labels}
    said: dict[str, Any] = {"channels": [*dataset.channels], "labels": labels}
    if any(isinstance(atoms, list) for atoms in labels.values()):
        said["regions_class_order"] = [label.value for label in dataset.labels]
    return said if dataset.ignore is None else {**said, "ignore": dataset.ignore}
