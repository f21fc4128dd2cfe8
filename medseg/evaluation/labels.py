"""Which labels of two files are compared with one another: by name, by number, or as the user says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from medseg.errors import UsageError
from medseg.plan import Label
from medseg.volume import LabelMap, disjoint

Table = dict[str, Label]


@dataclass(frozen=True)
class Wanted:
    """A label that the user asked for: a name, and the numbers that make it up where the user gave them."""

    name: str
    numbers: tuple[int, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Wanted:
        """Return what `NAME`, `NUMBER`, `NAME=NUMBER` or `NAME=NUMBER+NUMBER` asks for.

        Raises
        ------
        UsageError
            If it is none of these.
        """
        name, _, numbers = (part.strip() for part in text.partition("="))
        numbers = numbers or (name if name.isdecimal() else "")
        parts = [part.strip() for part in numbers.split("+")] if numbers else []
        if not name or ("=" in text and not parts) or any(not part.isdecimal() for part in parts):
            raise UsageError(f"label {text!r}", hint="give a name, a number, NAME=NUMBER or NAME=NUMBER+NUMBER")
        values = tuple(int(part) for part in parts)
        if any(not 1 <= value <= 65535 for value in values):
            raise UsageError(f"label {text!r}", hint="numbers go from 1 to 65535; 0 is background")
        return cls(name, values)


@dataclass(frozen=True)
class Matched:
    """One label: its number and name, and the atoms that make it up in either file (none where it is not known)."""

    value: int
    name: str
    prediction: tuple[int, ...]
    reference: tuple[int, ...]


def match_labels(prediction: LabelMap, reference: LabelMap, wanted: Sequence[Wanted] = ()) -> list[Matched]:
    """Return the labels to compare: those that are `wanted`, or all.

    Files that both have names are compared by name; else by number, a file without names borrowing the other's.
    A number means the label of that number where a file has a table, and else the voxels of that value.

    Raises
    ------
    UsageError
        If a wanted name is in neither file or comes twice, a number stands for several labels, both files have names
        and none in common, or the labels of the one that has names overlap.
    """
    tables = _table(prediction, reference), _table(reference, prediction)
    if wanted:
        chosen = [_find(each, (prediction, reference), tables) for each in wanted]
        if twice := [name for name, count in Counter(label.name for label in chosen).items() if count > 1]:
            raise UsageError(f"--labels asks for {twice[0]!r} more than once", hint="give each label a name of its own")
        return chosen
    if prediction.labels and reference.labels and not {*tables[0]} & {*tables[1]}:
        raise UsageError(
            f"the prediction has the labels {', '.join(tables[0])}, the reference {', '.join(tables[1])}",
            hint="say which is which with --labels NAME=NUMBER,...",
        )
    named = prediction.labels or reference.labels
    if not (prediction.labels and reference.labels) and any(label.atoms != (label.value,) for label in named):
        raise UsageError(
            f"the labels {', '.join(label.name for label in named)} overlap, and the other file has numbers only",
            hint="say which numbers make up which with --labels NAME=NUMBER+NUMBER,...",
        )
    found = [_match(name, tables) for name in {**tables[1], **tables[0]}]
    return sorted(found, key=lambda label: (label.value, label.name))


def groups(labels: Sequence[Matched]) -> list[tuple[Matched, ...]]:
    """Return labels in groups that overlap neither in the prediction nor in the reference."""
    return disjoint(labels, lambda label: {*label.prediction, *(-atom for atom in label.reference)})


def _table(own: LabelMap, other: LabelMap) -> Table:
    """Return the labels of a file by name: its own, or those of the other by number and the rest as numbers."""
    if own.labels:
        return {label.name: label for label in own.labels}
    names = {label.value: label.name for label in other.labels}
    for number in own.values():
        names.setdefault(number, str(number) if str(number) not in names.values() else f"number {number}")
    return {name: Label(value=number, name=name) for number, name in names.items()}


def _match(name: str, tables: tuple[Table, Table]) -> Matched:
    predicted, true = (table.get(name) for table in tables)
    value = (true or predicted or Label(value=1, name=name)).value
    return Matched(value, name, predicted.atoms if predicted else (), true.atoms if true else ())


def _find(wanted: Wanted, files: tuple[LabelMap, LabelMap], tables: tuple[Table, Table]) -> Matched:
    if not wanted.numbers:
        if all(wanted.name not in table for table in tables):
            known = ", ".join({**tables[1], **tables[0]}) or "none"
            raise UsageError(f"no label named {wanted.name!r}", hint=f"the files have: {known}; or NAME=NUMBER")
        return _match(wanted.name, tables)
    name = wanted.name
    if name.isdecimal():
        name = next((label.name for table in tables for label in table.values() if label.value == int(name)), name)
    predicted, true = (_atoms(labels, wanted.numbers) for labels in files)
    return Matched(wanted.numbers[0], name, predicted, true)


def _atoms(labels: LabelMap, numbers: Sequence[int]) -> tuple[int, ...]:
    """Return the atoms that numbers stand for in a file."""
    if not labels.labels:
        return tuple(numbers)
    found: list[int] = []
    for number in numbers:
        owners = [label for label in labels.labels if label.value == number]
        if len(owners) > 1:
            names = " and ".join(label.name for label in owners)
            raise UsageError(f"the number {number} stands for {names}", hint="ask for labels by name")
        found += [atom for label in owners for atom in label.atoms]
    return tuple(dict.fromkeys(found))
