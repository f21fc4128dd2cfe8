"""The loops over voxels in steps of whole arrays: for numpy arrays, and for torch tensors on any device.

Only what both understand is done to them. Each function has a compiled twin in `compiled.py` that rounds in the same
places, so that both give the same bits. Planes are (L, B, C): logits of background and each label over two axes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = Any  # numpy.ndarray or torch.Tensor
Taps = tuple[Array, Array, Array]  # lower (N,), upper (N,) and fraction (N,), as in `medseg.resampling.Taps`

CERTAIN = 20.0  # logit of background, against 0 of all labels, where no window looked
_AT_ONCE = 1 << 17  # values gathered at a time: few enough for the processor's cache
_ON_DEVICE = 1 << 22  # likewise: enough to keep a graphics card busy


def blend(slab: Array, counts: Array, answer: Array, weights: Array, first: int) -> None:
    """Add the weighted answer to one window to a ring of planes.

    Parameters
    ----------
    slab : (D, L, B, C) array of float32
        Sums of weighted logits, of the rows and columns of the window; is changed.
    counts : (D, B, C) array of float32
        Sums of weights there; is changed.
    answer : (P, L, B, C) array of float32
        Logits of at most D planes.
    weights : (P, B, C) array of float32
        How much each voxel of the window counts.
    first : int
        Where in the ring the first plane of the window lies, [0, D).
    """
    ahead = min(len(answer), len(slab) - first)
    for at, part in ((slice(first, first + ahead), slice(ahead)), (slice(len(answer) - ahead), slice(ahead, None))):
        slab[at] += answer[part] * weights[part, None]
        counts[at] += weights[part]


def settle(plane: Array, counts: Array, labels: Array, channels: int) -> None:
    """Turn the sums of a plane into means, and find the largest channel of each voxel, the first of equals.

    Parameters
    ----------
    plane : (M, B, C) array of float32
        Sums of weighted logits; is changed. What no window looked at becomes certain background.
    counts : (B, C) array of float32
        Sums of weights.
    labels : (B, C) array of an unsigned integer type
        Is written.
    channels : int
        Background and labels; what else a plane has takes no part in the choice.
    """
    unseen = counts == 0
    plane /= counts + unseen
    plane[0][unseen] = CERTAIN
    _choose(plane[:channels], labels)


def between(
    planes: tuple[Array, Array],
    labels: tuple[Array, Array],
    fraction: float,
    rows: Taps,
    columns: Taps,
    out: Array,
) -> None:
    """Write the largest channel at the points of a plane that lies between two settled ones.

    Each channel is interpolated linearly from plane to plane, then along the rows, then along the columns. Where all
    eight neighbours have one largest channel it is the largest between them too, and nothing is computed.

    Parameters
    ----------
    planes : two (L, B, C) arrays of float32
        Below and above.
    labels : two (B, C) arrays of an unsigned integer type
        Their largest channels.
    fraction : float
        Where between them, [0, 1).
    rows, columns : lower, upper, fraction
        Taps of the points along B and C.
    out : (rows, columns) array of the type of `labels`
        Is written.
    """
    (up, down, along), (left, right, across) = rows, columns
    first = labels[0][up]
    same = (first == labels[0][down]) & (first == labels[1][up]) & (first == labels[1][down])
    out[:] = first[:, left]
    mixed = ~(same[:, left] & same[:, right]) | (out != first[:, right])
    width = planes[0].shape[2]
    corners = [(row[:, None] * width + column)[mixed] for row in (up, down) for column in (left, right)]
    along, across = (along[:, None] + 0 * across)[mixed], (0 * along[:, None] + across)[mixed]
    flat = [plane.reshape(len(plane), -1) for plane in planes]
    found = out[mixed]
    step = max(1, (_AT_ONCE if isinstance(found, np.ndarray) else _ON_DEVICE) // len(flat[0]))
    for start in range(0, len(found), step):
        part = slice(start, start + step)
        above, above_right, below, below_right = (
            _mix(flat[0][:, corner[part]], flat[1][:, corner[part]], fraction) for corner in corners
        )
        left_side, right_side = _mix(above, below, along[part]), _mix(above_right, below_right, along[part])
        _choose(_mix(left_side, right_side, across[part]), found[part])
    out[mixed] = found


def plane_between(planes: tuple[Array, Array], fraction: float, rows: Taps, columns: Taps) -> Array:
    """Return all channels (L, rows, columns) at the points of a plane that lies between two, as `between` has them."""
    (up, down, along), (left, right, across) = rows, columns
    plane = _mix(planes[0], planes[1], fraction)
    plane = _mix(plane[:, up], plane[:, down], along[:, None])
    return _mix(plane[:, :, left], plane[:, :, right], across)


def _mix(a: Array, b: Array, fraction: Array | float) -> Array:
    return a + (b - a) * fraction


def _choose(values: Array, labels: Array) -> None:
    """Write the first of the largest channels."""
    if not isinstance(values, np.ndarray):
        labels[:] = values.argmax(0)
        return
    best = values[0].copy()  # channel by channel: numpy's argmax along the first axis takes several times as long
    labels[:] = 0
    for number, channel in enumerate(values[1:], start=1):
        larger = channel > best
        np.maximum(best, channel, out=best)
        np.maximum(labels, larger * labels.dtype.type(number), out=labels)
