"""The loops of `plain.py` over numpy arrays, compiled by numba: the same bits, several times as fast.

Importing this file compiles the loops, or loads them from the user's cache folder; `host.py` does so beside other
work. Products and sums are rounded one by one, as numpy rounds them. Values are finite: the engine refuses others.
No loop starts threads; each lets those of its caller run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba.extending import intrinsic

from medseg.kernels import plain
from medseg.kernels.host import FOLDER
from medseg.kernels.plain import CERTAIN, Array, Taps

Pair = tuple[Array, Array]
_CONFIG: Any = numba.config
types: Any = numba.types
_OPTIONS: Any = {"nogil": True, "error_model": "numpy"}  # Python's own model looks at each divisor and is slow
_GAP = 16  # columns, one line of the processor's cache: stretches of a row that are closer are computed as one


def _array(kind: Any, axes: int, *, changed: bool = True) -> Any:
    return types.Array(kind, axes, "A", readonly=not changed)


def _both(kind: Any) -> Any:
    return types.UniTuple(kind, 2)


_SUMS, _COUNTS = _array(types.float32, 4), _array(types.float32, 3)
_ANSWER, _WEIGHTS = _array(types.float32, 4, changed=False), _array(types.float32, 3, changed=False)
_PLANE, _PLANE_COUNTS = _array(types.float32, 3), _array(types.float32, 2, changed=False)
_PLANES = _both(_array(types.float32, 3, changed=False))
_TAPS = types.Tuple((*_both(types.Array(types.uint32, 1, "C")), types.Array(types.float32, 1, "C", readonly=True)))
_LABELS = (types.uint8, types.uint16)
_FLOAT, _LABEL_TYPES = np.dtype(np.float32), (np.uint8, np.uint16)


def _compiled(*signatures: tuple[Any, ...]) -> Callable[[Callable[..., Any]], Any]:
    """Return a decorator that compiles a loop for some types of arguments, or loads it from the cache."""

    def decorate(function: Callable[..., Any]) -> Any:
        before, _CONFIG.CACHE_DIR = _CONFIG.CACHE_DIR, str(FOLDER)
        try:
            loop = numba.njit(cache=_writable(), **_OPTIONS)(function)
        finally:
            _CONFIG.CACHE_DIR = before  # whoever else uses numba keeps a folder of their own
        for signature in signatures:
            loop.compile(signature)
        loop.disable_compile()  # no further types: a call never waits
        return loop

    return decorate


def _writable() -> bool:
    try:
        FOLDER.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return True


def _part(function: Callable[..., Any]) -> Any:
    """Compile a step of the loops below, wherever they take it."""
    return numba.njit(**_OPTIONS)(function)


def _as_packed(_: Any, row: Any) -> Any:
    """Tell the compiler that the values of a row lie side by side, so that it takes several at a time."""

    def same(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        context.nrt.incref(builder, signature.return_type, values[0])
        return values[0]

    return row.copy(layout="C")(row), same


_packed: Any = intrinsic(_as_packed)


@_part
def _add(total: Array, values: Array, weights: Array) -> None:
    for c in range(len(total)):
        total[c] += values[c] * weights[c]


@_part
def _choose(values: Array, channel: int, best: Array, label: Array) -> None:
    number = np.int32(channel)
    for c in range(len(values)):
        larger = values[c] > best[c]
        best[c] = values[c] if larger else best[c]
        label[c] = number if larger else label[c]


@_part
def _add_turned(slab: Array, answer: Array, weights: Array, first: int, turned: Array) -> None:
    """Add one channel of an answer whose values do not lie side by side along its rows."""
    planes, rows, columns = answer.shape
    for b in range(rows):
        for c in range(columns):
            for p in range(planes):
                turned[p, c] = answer[p, b, c]
        for p in range(planes):
            _add(_packed(slab[(first + p) % len(slab), b]), turned[p], _packed(weights[p, b]))


@_compiled((_SUMS, _COUNTS, _ANSWER, _WEIGHTS, types.int64))
def _blend(slab: Array, counts: Array, answer: Array, weights: Array, first: int) -> None:
    planes, channels, rows, columns = answer.shape
    ones = np.ones(columns, np.float32)
    for p in range(planes):
        for b in range(rows):
            _add(_packed(counts[(first + p) % len(slab), b]), _packed(weights[p, b]), ones)
    if answer.strides[3] == answer.itemsize:
        for p in range(planes):
            for m in range(channels):
                for b in range(rows):
                    _add(_packed(slab[(first + p) % len(slab), m, b]), _packed(answer[p, m, b]), _packed(weights[p, b]))
    else:
        turned = np.empty((planes, columns), np.float32)
        for m in range(channels):
            _add_turned(slab[:, m], answer[:, m], weights, first, turned)


@_compiled(*((_PLANE, _PLANE_COUNTS, _array(kind, 2), types.int64) for kind in _LABELS))
def _settle(plane: Array, counts: Array, labels: Array, channels: int) -> None:
    all_channels, rows, columns = plane.shape
    divisor, best = np.empty(columns, np.float32), np.empty(columns, np.float32)
    label = np.empty(columns, np.int32)
    for b in range(rows):
        count, out = _packed(counts[b]), _packed(labels[b])
        seen = 0
        for c in range(columns):
            seen += count[c] != 0
            divisor[c] = count[c] if count[c] != 0 else np.float32(1)
        best[:] = -np.inf
        label[:] = 0
        for m in range(all_channels if seen else 1):
            row = _packed(plane[m, b])
            for c in range(columns):
                row[c] /= divisor[c]
            if m == 0 and seen < columns:
                for c in range(columns):
                    row[c] = row[c] if count[c] != 0 else np.float32(CERTAIN)
            if m < channels:
                _choose(row, m, best, label)
        for c in range(columns):
            out[c] = label[c]


@_part
def _agree(first: Array, second: Array, third: Array, fourth: Array, agreed: Array) -> None:
    """Write the label that two rows of two planes have in common, or -1."""
    first, second, third, fourth = _packed(first), _packed(second), _packed(third), _packed(fourth)
    for c in range(len(agreed)):
        same = (first[c] == second[c]) & (first[c] == third[c]) & (first[c] == fourth[c])
        agreed[c] = np.int32(first[c]) if same else np.int32(-1)


@_part
def _disputed(agreed: Array, left: Array, right: Array, found: Array, mixed: Array) -> int:
    """Write the label of each point whose neighbours agree, list the others, and return how many those are."""
    count = 0
    for i in range(len(found)):
        label = agreed[left[i]]
        if label >= 0 and label == agreed[right[i]]:
            found[i] = label
        else:
            mixed[count] = i
            count += 1
    return count


@_part
def _stretches(near: Array, far: Array, spans: Array) -> int:
    """Write from which column to which one values are needed, and return how many stretches that makes."""
    count = 0
    start, stop = np.int64(near[0]), np.int64(far[0]) + 1
    for i in range(len(near)):
        a, b = np.int64(near[i]), np.int64(far[i]) + 1
        if start <= a <= stop + _GAP:
            stop = max(stop, b)
        else:
            spans[count, 0], spans[count, 1] = start, stop
            count += 1
            start, stop = a, b
    spans[count, 0], spans[count, 1] = start, stop
    return count + 1


@_part
def _mix_rows(above: Pair, below: Pair, fractions: tuple[float, float], values: Array, span: Array) -> None:
    """Write what lies between two rows of two planes, from column to column."""
    first, second = above
    third, fourth = below
    fraction, along = fractions
    for c in range(span[0], span[1]):
        upper = first[c] + (second[c] - first[c]) * fraction
        lower = third[c] + (fourth[c] - third[c]) * fraction
        values[c] = upper + (lower - upper) * along


@_part
def _pick(values: Array, near: Array, far: Array, first: Array, second: Array) -> None:
    for i in range(len(near)):
        first[i] = values[near[i]]
        second[i] = values[far[i]]


@_part
def _choose_between(first: Array, second: Array, across: Array, channel: int, best: Array, label: Array) -> None:
    number = np.int32(channel)
    for i in range(len(across)):
        value = first[i] + (second[i] - first[i]) * across[i]
        larger = value > best[i]
        best[i] = value if larger else best[i]
        label[i] = number if larger else label[i]


@_compiled(
    *(
        (_PLANES, _both(_array(kind, 2, changed=False)), types.float32, _TAPS, _TAPS, _array(kind, 2))
        for kind in _LABELS
    )
)
def _between(planes: Pair, labels: Pair, fraction: float, rows: Taps, columns: Taps, out: Array) -> None:
    lower, upper = planes
    (up, down, along), (left, right, across) = rows, columns
    width = out.shape[1]
    agreed, values = np.empty(lower.shape[2], np.int32), np.empty(lower.shape[2], np.float32)
    found, label = np.empty(width, out.dtype), np.empty(width, np.int32)
    mixed, near, far = np.empty(width, np.uint32), np.empty(width, np.uint32), np.empty(width, np.uint32)
    share, best = np.empty(width, np.float32), np.empty(width, np.float32)
    first, second = np.empty(width, np.float32), np.empty(width, np.float32)
    spans, count, stretches = np.empty((width, 2), np.uint64), 0, 0
    for r in range(len(out)):
        u, d = up[r], down[r]
        if r == 0 or u != up[r - 1] or d != down[r - 1]:
            _agree(labels[0][u], labels[1][u], labels[0][d], labels[1][d], agreed)
            count = _disputed(agreed, left, right, found, mixed)
            for i in range(count):
                near[i], far[i], share[i] = left[mixed[i]], right[mixed[i]], across[mixed[i]]
            stretches = _stretches(near[:count], far[:count], spans) if count else 0
        best[:count] = -np.inf
        label[:count] = 0
        for m in range(len(lower) if count else 0):
            above, below = (_packed(lower[m, u]), _packed(upper[m, u])), (_packed(lower[m, d]), _packed(upper[m, d]))
            for s in range(stretches):
                _mix_rows(above, below, (fraction, along[r]), values, spans[s])
            _pick(values, near[:count], far[:count], first, second)
            _choose_between(first, second, share[:count], m, best, label)
        for i in range(count):
            found[mixed[i]] = label[i]
        for i in range(width):
            out[r, i] = found[i]


def _suit(kind: np.dtype[Any], *arrays: Array) -> bool:
    """Whether arrays have one type, and rows whose values lie side by side."""
    return all(array.dtype == kind and array.strides[-1] == array.itemsize for array in arrays)


# What a loop is not made for goes to its plain twin, which knows how to do it or says why not.


def blend(slab: Array, counts: Array, answer: Array, weights: Array, first: int) -> None:
    """See `medseg.kernels.plain.blend`."""
    depth, channels, *plane = slab.shape
    planes = len(answer)
    if (
        _suit(_FLOAT, slab, counts, weights)
        and answer.dtype == _FLOAT
        and answer.shape == (planes, channels, *plane)
        and counts.shape == (depth, *plane)
        and weights.shape == (planes, *plane)
        and 0 <= first < depth >= planes
    ):
        _blend(slab, counts, answer, weights, first)
    else:
        plain.blend(slab, counts, answer, weights, first)


def settle(plane: Array, counts: Array, labels: Array, channels: int) -> None:
    """See `medseg.kernels.plain.settle`."""
    if (
        _suit(_FLOAT, plane, counts)
        and labels.dtype in _LABEL_TYPES
        and _suit(labels.dtype, labels)
        and counts.shape == labels.shape == plane.shape[1:]
    ):
        _settle(plane, counts, labels, channels)
    else:
        plain.settle(plane, counts, labels, channels)


def between(
    planes: tuple[Array, Array],
    labels: tuple[Array, Array],
    fraction: float,
    rows: Taps,
    columns: Taps,
    out: Array,
) -> None:
    """See `medseg.kernels.plain.between`."""
    (lower, upper), (lower_labels, upper_labels) = planes, labels
    if (
        _suit(_FLOAT, *planes)
        and out.dtype in _LABEL_TYPES
        and _suit(out.dtype, *labels)
        and lower.shape == upper.shape
        and lower_labels.shape == upper_labels.shape == lower.shape[1:]
        and out.shape == (_points(rows, lower.shape[1]), _points(columns, lower.shape[2]))
    ):
        _between(planes, labels, fraction, _indexed(rows), _indexed(columns), out)
    else:
        plain.between(planes, labels, fraction, rows, columns, out)


def _points(taps: Taps, size: int) -> int:
    """Return how many points taps are for, -1 if they do not fit the axis."""
    lower, upper, fraction = taps
    inside = all(index.min(initial=0) >= 0 and index.max(initial=0) < size for index in (lower, upper))
    return len(fraction) if inside and len(lower) == len(upper) == len(fraction) and fraction.dtype == _FLOAT else -1


def _indexed(taps: Taps) -> Taps:
    lower, upper, fraction = taps
    return lower.astype(np.uint32), upper.astype(np.uint32), np.ascontiguousarray(fraction)
