"""Which labels of two files are compared with one another: by name, by number, or as the user says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from medseg.errors import UsageError
from medseg.plan import Label
from medseg.volume import LabelMap, disjoint


@dataclass(frozen=True)
class Wanted:
    """A label that the user asked for: a name, and the atoms that make it up where the user named them."""

    name: str
    atoms: tuple[int, ...] = ()

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
        atoms = tuple(int(part) for part in parts)
        if any(not 1 <= atom <= 65535 for atom in atoms):
            raise UsageError(f"label {text!r}", hint="numbers go from 1 to 65535; 0 is background")
        return cls(name, atoms)


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

    Raises
    ------
    UsageError
        If a wanted name is in neither file, or both files have names and none in common.
    """
    tables = [_table(own, other) for own, other in ((prediction, reference), (reference, prediction))]
    if wanted:
        return [_find(each, tables) for each in wanted]
    if prediction.labels and reference.labels and not {*tables[0]} & {*tables[1]}:
        raise UsageError(
            f"the prediction has the labels {', '.join(tables[0])}, the reference {', '.join(tables[1])}",
            hint="say which is which with --labels NAME=NUMBER,...",
        )
    found = [_match(name, tables) for name in {**tables[1], **tables[0]}]
    return sorted(found, key=lambda label: (label.value, label.name))


def groups(labels: Sequence[Matched]) -> list[tuple[Matched, ...]]:
    """Return labels in groups that overlap neither in the prediction nor in the reference."""
    return disjoint(labels, lambda label: {*label.prediction, *(-atom for atom in label.reference)})


def _table(own: LabelMap, other: LabelMap) -> dict[str, Label]:
    """Return the labels of a file by name: its own, or those of the other and the rest by number."""
    labels = list(own.labels)
    if not labels:
        known = {atom for label in other.labels for atom in label.atoms}
        labels = [*other.labels, *(Label(value=value, name=str(value)) for value in own.values() if value not in known)]
    return {label.name: label for label in labels}


def _match(name: str, tables: Sequence[dict[str, Label]]) -> Matched:
    predicted, true = (table.get(name) for table in tables)
    value = (true or predicted or Label(value=1, name=name)).value
    return Matched(value, name, predicted.atoms if predicted else (), true.atoms if true else ())


def _find(wanted: Wanted, tables: Sequence[dict[str, Label]]) -> Matched:
    if not wanted.atoms:
        if all(wanted.name not in table for table in tables):
            known = ", ".join({**tables[1], **tables[0]}) or "none"
            raise UsageError(f"no label named {wanted.name!r}", hint=f"the files have: {known}; or NAME=NUMBER")
        return _match(wanted.name, tables)
    names = [label.name for table in tables for label in table.values() if label.atoms == wanted.atoms]
    name = wanted.name if not wanted.name.isdecimal() else next(iter(names), wanted.name)
    return Matched(wanted.atoms[0], name, wanted.atoms, wanted.atoms)
