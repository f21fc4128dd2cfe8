"""Image planes into volumes: planes that belong on one grid, at one moment, and no others.

Planes of one volume share series, frame of reference, orientation, matrix, spacing, kind of image, echo and stack.
Where every position occurs equally often, something else changed between the passes: time, diffusion weight, ...
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from medseg.dicom.frames import axes_of
from medseg.dicom.planes import Plane

SAME_ORIENTATION = 1e-3  # largest difference of direction cosines within a volume
SAME_POSITION = 1e-3  # mm along the normal
SAME_SPACING = 1e-4  # mm between pixels
_PATIENT = 0x00100020
_ALWAYS_APART = ("temporal position", "b-value")


def split(planes: Iterable[Plane]) -> list[list[Plane]]:
    """Return the planes of each volume, whatever its moment: series by series."""
    groups: dict[Hashable, list[list[Plane]]] = defaultdict(list)
    for plane in planes:
        alike = groups[_key(plane)]
        group = next((group for group in alike if _alike(group[0], plane)), None)
        if group is None:
            alike.append([plane])
        else:
            group.append(plane)
    return [group for alike in groups.values() for group in alike]


def moments(planes: Sequence[Plane]) -> list[list[Plane]]:
    """Return the planes of one volume, or of each of several that were taken at the same positions.

    They are told apart by the first element that divides them so that each position occurs once in each part: a
    temporal position, diffusion weight, trigger time, acquisition, or time; else by instance numbers, where those
    run through one pass after the other. Planes that nothing divides stay together.
    """
    if not all(plane.position and _has_axes(plane) for plane in planes):
        return [list(planes)]
    places = _places(planes)
    counts = Counter(places)
    passes = min(counts.values())
    if max(counts.values()) == 1:
        return _apart(planes)
    if passes == 1 or len(set(counts.values())) > 1 or len(counts) == 1:
        return [list(planes)]
    names = dict.fromkeys(name for plane in planes for name, _ in plane.moments)
    for name in names:
        values = [_sortable(dict(plane.moments).get(name, "")) for plane in planes]
        parts = _parted(planes, places, values)
        if len(parts) == passes:
            return parts
    return _by_instance(planes, places, passes) or [list(planes)]


def _apart(planes: Sequence[Plane]) -> list[list[Plane]]:
    """Return planes at different positions by temporal position and diffusion weight: those never share a volume."""
    values = [tuple(_sortable(dict(plane.moments).get(name, "")) for name in _ALWAYS_APART) for plane in planes]
    order = sorted(range(len(planes)), key=lambda index: values[index])
    return [[planes[index] for index in group] for _, group in groupby(order, key=lambda index: values[index])]


def _has_axes(plane: Plane) -> bool:
    """Return whether the orientation of a plane spans one."""
    if not plane.orientation:
        return False
    a, b, c, d, e, f = plane.orientation
    return math.hypot(b * f - c * e, c * d - a * f, a * e - b * d) > 0.1  # numpy takes as long as reading the header


def _by_instance(planes: Sequence[Plane], places: Sequence[int], passes: int) -> list[list[Plane]]:
    order = sorted(range(len(planes)), key=lambda index: planes[index].instance)
    if len({plane.instance for plane in planes}) < len(planes):
        return []
    each = len(planes) // passes
    values = [0] * len(planes)
    for rank, index in enumerate(order):
        values[index] = rank // each
    parts = _parted(planes, places, values)
    return parts if len(parts) == passes else []


def _parted(planes: Sequence[Plane], places: Sequence[int], values: Sequence[Any]) -> list[list[Plane]]:
    """Return the planes by value, or nothing where a part lacks a position or has one twice."""
    order = sorted(range(len(planes)), key=lambda index: values[index])
    parts = [list(group) for _, group in groupby(order, key=lambda index: values[index])]
    every = sorted(set(places))
    if any(sorted(places[index] for index in part) != every for part in parts):
        return []
    return [[planes[index] for index in part] for part in parts]


def _places(planes: Sequence[Plane]) -> list[int]:
    """Return for each plane which position along the normal it has, counted from the first."""
    along = np.array([plane.position for plane in planes]) @ normal_of(planes[0])
    order = np.argsort(along)
    ranks = np.concatenate([[0], np.cumsum(np.diff(along[order]) > SAME_POSITION)])
    places = np.empty(len(planes), int)
    places[order] = ranks
    return [int(place) for place in places]


def normal_of(plane: Plane) -> np.ndarray:
    """Return the unit normal of a plane with a valid orientation: (3,), LPS+."""
    return np.cross(*axes_of(plane.orientation))


def _key(plane: Plane) -> Hashable:
    elements = plane.elements
    samples = elements.short(0x00280002, 1)
    kind = (elements.text(0x00080016), plane.image_type, samples, elements.short(0x00280100), plane.placeless)
    series = plane.series if plane.series[1] else (*plane.series, plane.part.path.parent)
    alone = plane.number or plane.placeless or plane.radiograph
    multi = plane.frame().sop_instance or plane.part if alone else ""
    return (series, elements.values.get(_PATIENT, b""), plane.size, kind, plane.echo, plane.stack, multi)


def _alike(one: Plane, other: Plane) -> bool:
    """Return whether two planes are parallel and have one spacing, but for rounding."""
    pairs = ((one.orientation, other.orientation, SAME_ORIENTATION), (one.spacing, other.spacing, SAME_SPACING))
    for own, others, allowed in pairs:
        if not own or not others:
            if own != others:
                return False
        elif np.abs(np.subtract(own, others)).max() > allowed:
            return False
    return True


def _sortable(value: str) -> tuple[float, str]:
    try:
        return float(value.split(maxsplit=1)[0]), value
    except (ValueError, IndexError):
        return 0.0, value
