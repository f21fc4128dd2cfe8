"""Cases held against one another: what does not go together, what is there twice, and what is far from the rest."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from medseg.plan import Label
from medseg.training.check.inspection import Portrait, listed
from medseg.training.dataset import Case, Dataset, Finding

T = TypeVar("T", bound=Hashable)
Portraits = Mapping[str, Portrait]  # by the name of the case

_FAR = 3.0  # times the median spacing, or a third of it
_FEW = 5
_TINY = 10  # voxels: so small a label may be there twice by chance
_COLOURS = ("red", "green", "blue")


def odd_ones_out(portraits: Portraits, channels: Sequence[str]) -> list[Finding]:
    """Return the cases with other channels or dimensions than were said, or than most have."""
    if not portraits:
        return []
    found = []
    counts = {name: len(one.facts.whole) for name, one in portraits.items()}
    wanted = len(channels) or _most(counts.values())
    named = f" ({', '.join(channels)})" if channels else ""
    for name, count in counts.items():
        if count != wanted:
            detail = f"the image has {count} channels, not {wanted}{named}; give a file or colour for each"
            found.append(Finding("error", "CHANNELS", name, detail))
    flat = {name: one.flat for name, one in portraits.items()}
    physical = {name: one.facts.physical for name, one in portraits.items()}
    flat_usual, physical_usual = _most(flat.values()), _most(physical.values())
    for name, one in portraits.items():
        shape = " x ".join(map(str, one.facts.shape))
        if flat[name] != flat_usual:
            kind, other = ("one slice", "volumes") if one.flat else ("a volume", "slices")
            detail = f"is {kind} ({shape}), most cases are {other}; train them apart"
            found.append(Finding("error", "DIMENSIONS", name, detail))
        elif physical[name] != physical_usual:
            has, have = ("a size", "none") if physical[name] else ("no size", "one")
            detail = f"has {has} in mm, most cases have {have}; give all in one format"
            found.append(Finding("error", "PHYSICAL", name, detail))
    return found


def channel_names(portraits: Portraits) -> tuple[str, ...]:
    """Return names for channels that nobody has named."""
    first = next(iter(portraits.values()), None)
    if first is None:
        return ()
    count = len(first.facts.whole)
    if count == len(_COLOURS) and first.picture:
        return _COLOURS
    return tuple(f"channel {number}" for number in range(count)) if count > 1 else ("image",)


def named_labels(portraits: Portraits) -> tuple[Label, ...]:
    """Return the labels of a data set that names none: as most of its files name them, else by number; by value."""
    tables = [label for one in portraits.values() for label in one.named if one.counts.keys() & {*label.atoms}]
    votes = Counter((label.name, label.value, label.atoms) for label in tables)
    found: dict[int, Label] = {}
    for label in sorted(tables, key=lambda label: -votes[label.name, label.value, label.atoms]):
        if label.value not in found and label.name not in {other.name for other in found.values()}:
            found[label.value] = label
    known = {atom for label in found.values() for atom in label.atoms}
    for value in {value for one in portraits.values() for value in one.counts} - known:
        found[value] = Label(value=value, name=f"label {value}")
    return tuple(found[value] for value in sorted(found))


def other_tables(portraits: Portraits, labels: Sequence[Label], *, declared: bool) -> list[Finding]:
    """Return the cases whose files name their values otherwise than the data set does.

    Where the data set has `declared` its labels, another name for a value is no fault, but another value for a name.
    """
    values = {label.name: label.atoms for label in labels}
    names = {label.atoms: label.name for label in labels}
    found = []
    for name, one in portraits.items():
        for label in one.named:
            usual = ""
            if {*label.atoms} != {*values.get(label.name, label.atoms)}:
                usual = f"in the data set that is {_numbers(values[label.name])}"
            elif not declared and label.name not in values and label.atoms in names:
                usual = f"most files call it {names[label.atoms]!r}"
            if usual:
                detail = f"its file calls the value {_numbers(label.atoms)} {label.name!r}; {usual}; number all alike"
                found.append(Finding("error", "TABLE", name, detail))
                break
    return found


def label_extremes(portraits: Portraits, labels: Sequence[Label], present: set[int], dataset: Dataset) -> list[Finding]:
    """Return labels that no case has, and those that cover a whole image."""
    found = []
    if absent := [label for label in labels if present.isdisjoint(label.atoms)]:
        names = listed([f"{label.name} ({_numbers(label.atoms)})" for label in absent])
        found.append(Finding("error", "NEVER", dataset.name, f"no case has the label {names}; drop it, or add cases"))
    if portraits and not labels:
        found.append(Finding("error", "NEVER", dataset.name, "no case has any label"))
    for name, one in portraits.items():
        voxels = int(np.prod(one.facts.shape))
        covering = [label.name for label in labels if sum(one.counts.get(atom, 0) for atom in label.atoms) == voxels]
        if covering:
            found.append(
                Finding("warning", "FULL", name, f"the label {covering[0]} covers the entire image; is that so?")
            )
    return found


def shared_labels(portraits: Portraits) -> list[Finding]:
    """Return cases of different images with the very same label: one of them has another scan's."""
    found = []
    for names in _alike({name: one.label_digest for name, one in portraits.items() if one.foreground}):
        if len({portraits[name].image_digest for name in names}) == 1:
            continue
        if len(names) > max(2, len(portraits) / 2):
            detail = f"{len(names)} cases have the very same label, voxel for voxel; is that so?"
            found.append(Finding("warning", "OTHER_LABEL", names[0], detail))
            continue
        for name in names:
            others = listed([other for other in names if other != name])
            detail = f"its label is, voxel for voxel, that of {others}, whose image is another; find whose it is"
            tiny = portraits[name].foreground < _TINY
            found.append(Finding("warning" if tiny else "error", "OTHER_LABEL", name, detail))
    return found


def duplicates(cases: Sequence[Case], portraits: Portraits) -> tuple[list[Case], list[Finding]]:
    """Return the cases, those of one image in one group, and what was found twice."""
    found = []
    groups: dict[str, str] = {case.name: case.group for case in cases}
    for names in _alike({case.name: portraits[case.name].image_digest for case in cases}):
        together = {groups[name] for name in names} - {""}
        group = min(together, default=f"copies of {names[0]}")
        groups |= {name: group for name, own in groups.items() if own in together or name in names}
        first = names[0]
        for name in names[1:]:
            same = portraits[name].label_digest == portraits[first].label_digest
            labels = "so is the label" if same else "but the labels differ"
            detail = f"its image is, voxel for voxel, that of {first}, {labels}; they stay in one group"
            found.append(Finding("warning", "DUPLICATE", name, detail))
    return [replace(case, group=groups[case.name]) for case in cases], found


def far_spacings(portraits: Portraits) -> list[Finding]:
    """Return the cases whose spacing is more than three times the median, or less than a third."""
    found = []
    spacings = {name: np.array(one.facts.spacing) for name, one in portraits.items() if one.facts.physical}
    median = np.median([*spacings.values()], axis=0) if spacings else np.ones(3)
    for name, spacing in spacings.items():
        times = spacing / median
        if times.max() > _FAR or times.min() < 1 / _FAR:
            own, usual = (" x ".join(f"{mm:.3g}" for mm in those) for those in (spacing, median))
            detail = f"voxels of {own} mm, the median is {usual} mm (x, y, z); is the header right?"
            found.append(Finding("warning", "SPACING", name, detail))
    return found


def about_the_set(dataset: Dataset, cases: Sequence[Case]) -> list[Finding]:
    """Return what is odd about the number of sound cases and their groups."""
    found = []
    if len(cases) < _FEW:
        plural = "" if len(cases) == 1 else "s"
        detail = f"{len(cases)} sound case{plural}; a model learns little from so few, and its scores will be vague"
        found.append(Finding("warning", "FEW", dataset.name, detail))
    bare = [case.name for case in dataset.cases if not case.group]
    if bare and len(bare) < len(dataset.cases):
        detail = (
            f"{len(bare)} of {len(dataset.cases)} cases have no group ({listed(bare)}); each counts as one of its own"
        )
        found.append(Finding("warning", "GROUP", dataset.name, detail))
    return found


def header_oddities(portraits: Portraits) -> list[Finding]:
    """Return what the readers said of the files, each kind of sentence once."""
    kinds: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for name, one in portraits.items():
        for warning in one.warnings:
            kinds[re.sub(r"[-+]?\d[\d.e+-]*", "#", warning)].append((name, warning))
    found = []
    for said in kinds.values():
        name, warning = said[0]
        more = f" (and so in {len(said) - 1} more)" if len(said) > 1 else ""
        found.append(Finding("warning", "HEADER", name, warning + more))
    return found


def _alike(digests: Mapping[str, str]) -> list[list[str]]:
    """Return the names that share a digest, where there are several."""
    by_digest: dict[str, list[str]] = defaultdict(list)
    for name, digest in digests.items():
        by_digest[digest].append(name)
    return [names for names in by_digest.values() if len(names) > 1]


def _most(values: Iterable[T]) -> T:
    """Return the value that is there most often; of equally many the first."""
    return Counter(values).most_common(1)[0][0]


def _numbers(values: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(values)))
