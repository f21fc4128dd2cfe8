"""What the JSON file of a data set says of channels, labels, regions, and the value where nobody has drawn."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

from medseg.errors import UsageError
from medseg.plan import Label

_MOST = 65535  # that a label map holds
_HINT = 'write {"background": 0, "liver": 1}, {"0": "background", "1": "liver"}, or a region as {"whole": [1, 2]}'


@dataclass(frozen=True)
class Declared:
    """What a data set says of itself; as in `Dataset`."""

    channels: tuple[str, ...] = ()
    labels: tuple[Label, ...] = ()
    ignore: int | None = None


def read_declared(record: Mapping[str, Any], place: Path) -> Declared:
    """Return what an object of JSON says under `channel_names`, `modality` or `channels`, `labels` and `ignore`.

    Labels are named as the Decathlon does, {"1": "liver"}, or as nnU-Net does, {"liver": 1}; a list of values makes
    a region. The value of a region, by which it is known in results, is that of `regions_class_order` where it gives
    every label a value of its own; otherwise the first of its own voxel values that no label has, else the smallest
    free number. Labels come by value.

    Parameters
    ----------
    record : mapping
        Of plain data.
    place : Path
        The file, for messages.

    Raises
    ------
    UsageError
        If a value is no whole number from 1 to 65535, or two labels share a name or a value.
    """
    atoms = dict(_named(record.get("labels"), place))
    ignore = _ignored(record.get("ignore"), atoms, place)
    for name, values in atoms.items():
        if 0 in values:
            _refuse(place, f"label {name!r} has the value 0, which is background")
        if ignore in values:
            _refuse(place, f"label {name!r} has the value {ignore}, which is to be ignored")
    _check_apart(atoms, place)
    own = _values_of(atoms, record.get("regions_class_order"), ignore)
    labels = [Label(value=value, name=name, atoms=atoms[name]) for value, name in zip(own, atoms, strict=True)]
    return Declared(_channels(record, place), tuple(sorted(labels, key=lambda label: label.value)), ignore)


def _named(stated: Any, place: Path) -> Iterable[tuple[str, tuple[int, ...]]]:
    """Yield name and voxel values of every label but the background."""
    if stated is None:
        return
    if not isinstance(stated, dict):
        _refuse(place, f"labels are {str(stated)[:60]!r}")
    by_value = bool(stated) and all(isinstance(value, str) for value in stated.values())
    names: set[str] = set()
    for key, value in stated.items():
        name = value if by_value else key
        values = _values(name, _number(key) if by_value else value, place)
        if not name.strip():
            _refuse(place, f"the label of value {values[0]} has no name")
        if name in names:
            _refuse(place, f"two labels are named {name!r}")
        names.add(name)
        if not (name.lower() == "background" and values == (0,)):
            yield name, values


def _number(text: str) -> int | str:
    return int(text) if re.fullmatch(r"-?[0-9]{1,9}", text) else text


def _values(name: str, stated: Any, place: Path) -> tuple[int, ...]:
    values = stated if isinstance(stated, list) else [stated]
    if not values:
        _refuse(place, f"region {name!r} is of no value")
    for value in values:
        if not isinstance(value, int) or isinstance(value, bool):
            _refuse(place, f"label {name!r} has the value {str(value)[:60]!r}, which is no whole number")
        if not 0 <= value <= _MOST:
            _refuse(place, f"label {name!r} has the value {value}, outside 0 to {_MOST}")
    return tuple(dict.fromkeys(values))


def _ignored(stated: Any, atoms: dict[str, tuple[int, ...]], place: Path) -> int | None:
    """Return the value to be ignored, and take it from the labels; it is said beside them or among them."""
    found = set() if stated is None else {*_values("ignore", stated, place)}
    for name in [name for name in atoms if name.lower() == "ignore"]:
        found |= {*atoms.pop(name)}
    if len(found) > 1 or 0 in found:
        _refuse(place, f"to be ignored are {', '.join(map(str, sorted(found)))}; it can be one value above 0")
    return found.pop() if found else None


def _check_apart(atoms: Mapping[str, tuple[int, ...]], place: Path) -> None:
    known: dict[frozenset[int], str] = {}
    for name, values in atoms.items():
        other = known.setdefault(frozenset(values), name)
        if other != name:
            _refuse(place, f"labels {other!r} and {name!r} share the value {', '.join(map(str, sorted(values)))}")


def _values_of(atoms: Mapping[str, tuple[int, ...]], order: Any, ignore: int | None) -> list[int]:
    regions = any(len(values) > 1 for values in atoms.values())
    if regions and isinstance(order, list) and _gives_each_its_own(order, len(atoms), ignore):
        return [*order]
    taken = {ignore, *(values[0] for values in atoms.values() if len(values) == 1)}
    found = []
    for values in atoms.values():
        free = (value for value in chain(values, range(1, _MOST + 1)) if value not in taken)
        found.append(values[0] if len(values) == 1 else next(free))
        taken.add(found[-1])
    return found


def _gives_each_its_own(order: Sequence[Any], count: int, ignore: int | None) -> bool:
    whole = all(type(value) is int and 1 <= value <= _MOST and value != ignore for value in order)
    return whole and len({*order}) == len(order) == count


def _channels(record: Mapping[str, Any], place: Path) -> tuple[str, ...]:
    """Return the names of the channels; of one name for several, each with its number."""
    stated: Any = next((record[key] for key in ("channel_names", "modality", "channels") if record.get(key)), [])
    if isinstance(stated, dict):
        numbers = {_number(key): name for key, name in stated.items()}
        if {*numbers} != {*range(len(stated))}:
            _refuse_channels(place, f"channels are numbered {', '.join(stated)[:60]}")
        stated = [numbers[number] for number in range(len(stated))]
    if not isinstance(stated, list) or not all(isinstance(name, str) and name.strip() for name in stated):
        _refuse_channels(place, f"channels are named {str(stated)[:60]!r}")
    names = [f"{name}_{place}" if stated.count(name) > 1 else name for place, name in enumerate(stated)]
    if len({*names}) < len(names):
        _refuse_channels(place, f"two channels are named {next(name for name in names if names.count(name) > 1)!r}")
    return tuple(names)


def _refuse(place: Path, problem: str) -> NoReturn:
    raise UsageError(f"{place}: {problem}", hint=_HINT)


def _refuse_channels(place: Path, problem: str) -> NoReturn:
    raise UsageError(f"{place}: {problem}", hint='write them as {"0": "T1", "1": "FLAIR"}, or as a list of names')
