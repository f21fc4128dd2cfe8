"""Prepared cases on disk, memory-mapped: made once, checked by checksum, made again where they are damaged."""

from __future__ import annotations

import hashlib
import io
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg.atomic import Outputs
from medseg.bundle import canonical_json
from medseg.errors import OutputError
from medseg.plan import Plan
from medseg.qc import Measures, measure
from medseg.training.data import Legend, prepare_case
from medseg.training.dataset import Case, File
from medseg.training.patches import Sample
from medseg.training.stored import Stored

_FORM = 1  # of what is stored; a change makes every case anew
_CHUNK = 1 << 22


@dataclass(frozen=True, eq=False)
class Cached:
    """A case that lies on disk: what the loop learns from, and its measures for the quality check."""

    sample: Sample
    measures: Measures


class Cache:
    """Prepared cases in a folder, by the content of their files and the plan that prepared them.

    Parameters
    ----------
    folder : Path
        Where they lie; it exists.
    plan : Plan
        Prepares them.
    legend : Legend
        Of their references.
    """

    def __init__(self, folder: Path, plan: Plan, legend: Legend) -> None:
        self.folder = folder
        self.plan = plan
        self.legend = legend
        grid = {"orientation", "spacing", "crop", "channels", "labels"}
        kept = json.loads(canonical_json(plan))
        rule = [_FORM, {name: kept[name] for name in sorted(grid)}, asdict(legend, dict_factory=_plain)]
        self._rule = json.dumps(rule, sort_keys=True, default=str)

    def get(self, case: Case) -> Cached:
        """Return a case from the folder; prepare it first where it is not there, or damaged.

        Raises
        ------
        MedsegError
            As `prepare_case`, or if the folder cannot be written.
        """
        stem = self._stem(case)
        found = self._read(stem)
        if found is None:
            self._write(stem, case)
            found = self._read(stem)
        if found is None:
            raise OutputError(f"{self.folder}: prepared cases cannot be read back", hint="check the disk")
        return found

    def _stem(self, case: Case) -> str:
        digest = hashlib.sha256(self._rule.encode())
        for file in (*case.images, case.reference):
            digest.update(json.dumps(identity(file)).encode())
        return digest.hexdigest()[:24]

    def _write(self, stem: str, case: Case) -> None:
        made = prepare_case(case, self.plan, self.legend)
        sample = made.sample
        points = [np.insert(at, 0, number, axis=1) for number, at in sample.points.items()]
        arrays: dict[str, npt.NDArray[Any]] = {
            "image": np.asarray(sample.image, np.float16),
            "target": np.asarray(sample.target),
            "points": np.concatenate([np.zeros((0, 4), np.int32), *points]).astype(np.int32),
        }
        record: dict[str, Any] = {"measures": asdict(measure(made.prepared, made.reference, self.plan))}
        with Outputs() as outputs:
            for name, array in arrays.items():
                chunks = list(_npy(array))
                outputs.write(self._path(stem, name), chunks)
                record[name] = _checksum(chunks)
            outputs.write(self.folder / f"{stem}.json", [json.dumps(record, sort_keys=True).encode()])

    def _read(self, stem: str) -> Cached | None:
        try:
            record = json.loads((self.folder / f"{stem}.json").read_bytes())
            for name in ("image", "target", "points"):
                with open(self._path(stem, name), "rb") as file:
                    if _checksum(iter(lambda: file.read(_CHUNK), b"")) != record[name]:
                        return None
            image, target, points = (Stored.of(self._path(stem, name)) for name in ("image", "target", "points"))
            measures = Measures(**_tuples(record["measures"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None  # not there, or not whole: it is made anew
        listed = points[...]
        at = {int(number): listed[listed[:, 0] == number, 1:] for number in np.unique(listed[:, 0])}
        return Cached(Sample(image, target, points=at), measures)

    def _path(self, stem: str, name: str) -> Path:
        return self.folder / f"{stem}.{name}.npy"


def identity(file: File) -> list[Any]:
    """Return what tells that a file is the one that was prepared; of a folder, its newest and largest members."""
    if file.path.is_dir():
        members = sorted(path.stat() for path in file.path.rglob("*") if path.is_file())
        parts = [len(members), sum(m.st_size for m in members), max((m.st_mtime_ns for m in members), default=0)]
    else:
        status = file.path.stat()
        parts = [status.st_size, status.st_mtime_ns]
    return [str(file.path.resolve()), file.volume, *parts]


def _npy(array: npt.NDArray[Any]) -> Iterator[bytes | memoryview]:
    head = io.BytesIO()
    array = np.ascontiguousarray(array)
    np.lib.format.write_array_header_2_0(head, np.lib.format.header_data_from_array_1_0(array))
    yield head.getvalue()
    if array.size:
        yield array.data.cast("B")


def _checksum(chunks: Any) -> int:
    checksum = 0
    for chunk in chunks:
        checksum = zlib.crc32(chunk, checksum)
    return checksum


def _plain(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: sorted(value.items()) if isinstance(value, Mapping) else value for name, value in pairs}


def _tuples(measures: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in measures.items()}
