"""A model as one `.safetensors` file: weights, plan, card and fingerprint. Data, never code.

The header of the file holds one metadata key, `medseg`, with canonical JSON (sorted keys, no white space), so
that the same model is the same bytes. Tensors are named `<member>.<parameter>`: a bundle holds one network or
an ensemble. The sha256 of the file names the model.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy
from pydantic import Field

from medseg.atomic import write_atomic
from medseg.errors import BundleError, PlanError
from medseg.plan import Calibration, Fingerprint, Plan, Record

FORMAT = 1
MAX_BYTES = 4 << 30
_DTYPES = ("F32", "F16")
_LOCATOR = "locate"  # stands where tensors of members have their number
_HINT_COPY = "copy or download the model again, and compare its sha256"

Weights = Mapping[str, npt.NDArray[np.floating[Any]]]


class LabelScore(Record):
    """How well one label was found in cases that a member had not seen: a mean and its 95 % interval.

    Parameters
    ----------
    label : str
        Name of the label.
    metric : 'dice', 'hd95_mm' or 'hd95_px'
        What is averaged; a missed label counts as the worst there is.
    n, missed : int
        Cases with the label in reference or prediction; of those, cases in which it was missed or made up.
    mean, low, high : float, optional
        None where it is undefined.
    """

    label: str
    metric: str
    n: int
    missed: int
    mean: float | None
    low: float | None
    high: float | None


class WorstCase(Record):
    """A case in which a label was found badly."""

    case: str
    label: str
    dice: float


class Validation(Record):
    """Scores in cases that were held back from the member that was asked.

    Parameters
    ----------
    how : str
        In words: which cases were held back, by whom they were predicted.
    cases : int
        How many.
    scores : tuple of LabelScore
        For each label and metric.
    worst : tuple of WorstCase
        The worst ones, first the worst.
    """

    how: str
    cases: Annotated[int, Field(ge=1)]
    scores: tuple[LabelScore, ...]
    worst: tuple[WorstCase, ...] = ()


class Card(Record):
    """What a person must know about a model before using it."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
    version: str
    summary: str
    intended_use: str
    training_data: str
    licence: str
    attribution: str
    scores: dict[str, float] = Field(default_factory=dict)
    validation: Validation | None = None
    limits: tuple[str, ...] = ()


class Header(Record):
    """What stands beside the weights."""

    format: int
    members: Annotated[int, Field(ge=1, le=64)]
    card: Card
    plan: Plan
    fingerprint: Fingerprint | None = None
    calibration: Calibration | None = None


@dataclass(frozen=True, eq=False)
class Bundle:
    """A model: one network or an ensemble, with all that is needed to use it.

    Parameters
    ----------
    header : Header
        Card, plan, fingerprint and calibration.
    members : tuple of mappings
        For each network, its parameters by name, as float32 or float16 arrays.
    sha256 : str
        Of the file, in hexadecimal; empty for a bundle that was not loaded from one.
    locator : mapping or None
        Parameters of the network of `plan.locate`, where the plan has that stage.
    file : Path or None
        From which it was loaded.
    """

    header: Header
    members: tuple[Weights, ...]
    sha256: str = ""
    locator: Weights | None = None
    file: Path | None = None

    @classmethod
    def of(
        cls,
        members: Sequence[Weights],
        *,
        plan: Plan,
        card: Card,
        fingerprint: Fingerprint | None = None,
        calibration: Calibration | None = None,
        locator: Weights | None = None,
    ) -> Bundle:
        """Return a new model from the weights of its networks and what a user must know of it."""
        header = Header(
            format=FORMAT,
            members=len(members),
            card=card,
            plan=plan,
            fingerprint=fingerprint,
            calibration=calibration,
        )
        return cls(header, tuple(members), locator=locator)

    def stage_that_locates(self) -> Bundle | None:
        """Return the first stage as a model of its own, where there is one."""
        if self.plan.locate is None or self.locator is None:
            return None
        header = Header(format=FORMAT, members=1, card=self.card, plan=self.plan.locate.plan)
        return Bundle(header, (self.locator,), self.sha256 and f"{self.sha256}-locate", file=self.file)

    @property
    def plan(self) -> Plan:
        """What turns a scan into network input and logits into labels."""
        return self.header.plan

    @property
    def card(self) -> Card:
        """What a person must know before using the model."""
        return self.header.card

    @property
    def fingerprint(self) -> Fingerprint | None:
        """What the training cases looked like."""
        return self.header.fingerprint

    @property
    def calibration(self) -> Calibration | None:
        """What makes its probabilities honest."""
        return self.header.calibration

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Bundle:
        """Return the model in a file; no code in it can run.

        Raises
        ------
        BundleError
            If the file is missing, damaged, a pickle or zip in disguise, of another format version, has unknown
            keys, or holds weights that are not finite.
        """
        path = Path(path)
        data = _read(path)
        header = _header(data, path)
        try:
            tensors = safetensors.numpy.load(data)
        except safetensors.SafetensorError as error:
            raise BundleError(f"{path}: is damaged ({error})", hint=_HINT_COPY) from error
        members = _split(tensors, header.members, path)
        located = header.plan.locate is not None
        if bool(members[-1]) != located:
            what = "lacks" if located else "holds, unasked for,"
            raise BundleError(f"{path}: {what} the weights of a stage that locates", hint=_HINT_COPY)
        return cls(header, members[:-1], hashlib.sha256(data).hexdigest(), members[-1] or None, path)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model to a file, whole or not at all; the same model gives the same bytes."""
        named: list[tuple[int | str, Weights]] = [*enumerate(self.members), (_LOCATOR, self.locator or {})]
        tensors = {
            f"{number}.{name}": np.ascontiguousarray(array)
            for number, member in named
            for name, array in member.items()
        }
        write_atomic(Path(path), [safetensors.numpy.save(tensors, {"medseg": canonical_json(self.header)})])


def canonical_json(record: Record) -> str:
    """Return a record as JSON with sorted keys and no white space."""
    return json.dumps(record.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), allow_nan=False)


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise BundleError(f"{path}: is larger than any medseg model", hint="give a .safetensors file of medseg")
        data = path.read_bytes()
    except FileNotFoundError:
        raise BundleError(f"{path}: does not exist", hint="see `medseg models list` for the models by name") from None
    except OSError as error:
        raise BundleError(f"{path}: cannot be read: {error.strerror}", hint="check path and permissions") from error
    return data


def _header(data: bytes, path: Path) -> Header:
    length = int.from_bytes(data[:8], "little")
    if data[8:9] != b"{" and (data[:2] == b"PK" or data[:1] == b"\x80"):
        kind = "zip archive" if data[:2] == b"PK" else "pickle"
        raise BundleError(f"{path}: is a {kind}, which could run code", hint="medseg loads only its .safetensors files")
    if data[8:9] != b"{" or not 2 <= length <= len(data) - 8:
        raise BundleError(f"{path}: is truncated, or no .safetensors file", hint=_HINT_COPY)
    try:
        table = json.loads(data[8 : 8 + length])
        metadata = table.pop("__metadata__", {})
        if set(metadata) != {"medseg"}:
            raise BundleError(
                f"{path}: is no medseg model (metadata keys: {', '.join(sorted(metadata)) or 'none'})",
                hint="give a file written by medseg; other weights need to be imported first",
            )
        content = json.loads(metadata["medseg"])
        dtypes = {entry["dtype"] for entry in table.values()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise BundleError(f"{path}: has a damaged header ({type(error).__name__})", hint=_HINT_COPY) from error
    version = content.get("format") if isinstance(content, dict) else None
    if version != FORMAT:
        raise BundleError(
            f"{path}: has format version {version!r}, this medseg reads version {FORMAT}",
            hint="use a matching version of medseg, or a newer file of the model",
        )
    if not dtypes <= set(_DTYPES):
        raise BundleError(f"{path}: holds weights of type {', '.join(sorted(dtypes))}", hint="save float32 or float16")
    try:
        return Header.parse(content)
    except PlanError as error:
        raise BundleError(f"{path}: {error.problem}", hint=error.hint) from None


def _split(tensors: Weights, count: int, path: Path) -> tuple[Weights, ...]:
    """Return the weights of each member, and then those of the stage that locates, which may be none."""
    names = {str(number): number for number in range(count)} | {_LOCATOR: count}
    members: list[dict[str, npt.NDArray[np.floating[Any]]]] = [{} for _ in names]
    for key, array in tensors.items():
        number, _, name = key.partition(".")
        if number not in names or not name:
            raise BundleError(f"{path}: holds the unknown tensor {key!r}", hint=_HINT_COPY)
        if not np.isfinite(array).all():
            raise BundleError(f"{path}: {key} holds NaN or Infinity", hint=_HINT_COPY)
        members[names[number]][name] = array
    if not all(members[:count]):
        raise BundleError(f"{path}: lacks the weights of a member", hint=_HINT_COPY)
    return tuple(members)
