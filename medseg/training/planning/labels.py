"""What a network has to tell apart, and whether its labels know left from right."""

from __future__ import annotations

import re

from medseg.errors import UsageError
from medseg.plan import Label
from medseg.training.planning.choice import Choice, counted

_MOST_ATOMS = 254  # targets are bytes: 0 is background, 255 where nobody has drawn
_SIDE = re.compile(
    "left|right|[lr]|[lr]t|[lr]h|sin|sinist(er|ra|ro|re)|dex|dext(er|ra|ro)|dest(ra|ro)|link(s|e|er|es)|rechts?|"
    "recht(e|er|es)|gauche|droite?|izquierd[ao]|derech[ao]|esquerd[ao]|direit[ao]"
)


def atom_table(labels: tuple[Label, ...]) -> dict[int, int]:
    """Return the plan's atom for each atom of the references.

    Atoms that lie in the same labels cannot be told apart by any of them: they become one, the smallest.

    >>> whole, core = Label(value=1, name="whole", atoms=(1, 2, 3)), Label(value=2, name="core", atoms=(2, 3))
    >>> atom_table((whole, core))
    {1: 1, 2: 2, 3: 2}
    """
    atoms = sorted({atom for label in labels for atom in label.atoms})
    members = {atom: tuple(atom in label.atoms for label in labels) for atom in atoms}
    smallest: dict[tuple[bool, ...], int] = {}
    return {atom: smallest.setdefault(members[atom], atom) for atom in atoms}


def plan_labels(labels: tuple[Label, ...]) -> tuple[tuple[Label, ...], Choice]:
    """Return the labels with the atoms that the network tells apart.

    Raises
    ------
    UsageError
        If there is no label, or more atoms than training can hold.
    """
    if not labels:
        raise UsageError("no label is known", hint="name the labels in dataset.json, or check the references")
    table = atom_table(labels)
    kept = len({*table.values()})
    if kept > _MOST_ATOMS:
        raise UsageError(
            f"the labels need {kept} classes, training takes {_MOST_ATOMS}", hint="give fewer labels at once"
        )
    merged = tuple(
        label.model_copy(update={"atoms": tuple(sorted({table[atom] for atom in label.atoms}))}) for label in labels
    )
    why = "one class for each label, and background"
    if kept < len(table):
        why = f"{len(table)} values in the references, some of which no label tells apart"
    elif kept != len(labels):
        why = "labels overlap: one class for each combination, and background"
    return merged, Choice("labels", f"{counted(len(labels), 'label')}, {kept + 1} classes", why)


def sided(labels: tuple[Label, ...]) -> tuple[str, ...]:
    """Return the names of the labels that name a side, in their name or in their code.

    >>> sided((Label(value=1, name="Kidney_L"), Label(value=2, name="cleft"), Label(value=3, name="vertebra L1")))
    ('Kidney_L',)
    """
    return tuple(
        label.name
        for label in labels
        if any(
            _SIDE.fullmatch(word)
            for text in (label.name, *(code.meaning for code in label.codes))
            for word in words(text)
        )
    )


def words(name: str) -> list[str]:
    """Return the words of a name in lower case; digits stay with the letters before them.

    >>> words("KidneyLeft_2 lung-R1")
    ['kidney', 'left', 'lung', 'r1']
    """
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return [word.lower() for word in re.findall(r"[^\W\d_]+\d*", apart)]
