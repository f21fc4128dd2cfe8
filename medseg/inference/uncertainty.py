"""How sure the network is: read off the planes of logits as they are closed, without a second pass.

Two maps come of it, both in nats: the entropy of the probabilities of a voxel (0.69 where two labels are as likely),
and how much members and mirrored views disagree. And for each label its soft Dice: the Dice that its mask would have on
average if the probabilities were right and voxels independent, 2 * sum of p in the mask / (voxels of it + sum of p).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from medseg.geometry import Geometry
from medseg.inference.windows import Strip, Windows
from medseg.kernels import CERTAIN, Place
from medseg.kernels.plain import Array, plane_between
from medseg.plan import Plan
from medseg.prepare import Prepared
from medseg.restore import Placement, Settled, softmax

_FAR = 12.0  # logits over temperature: a label that far behind another has a probability below 0.00001

Floats = npt.NDArray[np.floating[Any]]
Matrix = npt.NDArray[np.float64]


class Watch(Protocol):
    """Who looks at the planes of a pass as they are closed.

    Parameters
    ----------
    maps : int
        How many maps of float32 it keeps on the plan's grid.
    """

    maps: int

    def begin(self, prepared: Prepared, windows: Windows, place: Place) -> None:
        """Forget what was seen: a pass begins, perhaps the same once more."""

    def __call__(self, strip: Strip, first: int, planes: Sequence[Settled]) -> None:
        """Look at settled planes, of which the first has number `first`."""


class Doubt:
    """Watches a pass and keeps how sure the network is.

    Parameters
    ----------
    plan : Plan
        Of the model.
    temperature : float
        Logits are divided by it before the softmax.
    maps : sequence of str
        Which to keep too, at 4 bytes for each voxel of the plan's grid: 'uncertainty' (the entropy), and 'disagreement'
        if the network says that as its last channel.
    """

    def __init__(self, plan: Plan, temperature: float = 1.0, *, maps: Sequence[str] = ()) -> None:
        self.maps = len(maps)
        self._plan, self._temperature, self._wanted = plan, temperature, maps
        self._channels = len(plan.atoms) + 1

    def begin(self, prepared: Prepared, windows: Windows, place: Place) -> None:
        """Forget what was seen: a pass begins, perhaps the same once more."""
        self._grid, self._place = prepared.geometry, place
        self._joint = np.zeros((self._channels, self._channels))
        self._maps = {name: np.zeros(windows.shape, np.float32) for name in self._wanted}
        self._views = {name: values.transpose(windows.axes) for name, values in self._maps.items()}

    def __call__(self, strip: Strip, first: int, planes: Sequence[Settled]) -> None:
        """Look at settled planes, of which the first has number `first`."""
        rows = fresh_rows(strip)
        start = rows.start - strip.rows[0]
        found: dict[int, Matrix] = {}

        def look(number: int) -> None:
            plane, labels = planes[number - first]
            found[number], entropy = self._seen(plane[: self._channels, start:], labels[start:])
            for name, view in self._views.items():
                view[number, rows] = entropy if name == "uncertainty" else self._place.get(plane[-1, start:])

        self._place.each(look, range(first, first + len(planes)))
        for number in sorted(found):
            self._joint += found[number]

    def soft_dice(self) -> dict[str, float]:
        """Return the soft Dice of each label that was found."""
        return soft_dice(self._joint, self._plan)

    def on_scan(self, onto: Geometry) -> dict[str, npt.NDArray[np.float32]]:
        """Return the maps (1, I, J, K) on a scan's grid, interpolated linearly; 0 outside the field of view."""
        placement = Placement.of(self._grid, onto)
        return {name: _laid(values, placement)[None] for name, values in self._maps.items()}

    def _seen(self, logits: Array, labels: Array) -> tuple[Matrix, npt.NDArray[np.float32]]:
        """Return how many voxels of each label are likely to be of each label, and the entropy of each voxel."""
        open_yet = unclear(lead(logits), self._temperature)
        near, winners = self._place.get(open_yet), self._place.get(labels)
        shares = softmax(self._place.get(logits[:, open_yet]), self._temperature)
        entropy = np.zeros(near.shape, np.float32)
        if self._views:
            entropy[near] = -(shares * np.log(shares.clip(1e-30))).sum(axis=0)
        return joint(winners[near], shares, winners[~near]), entropy


def fresh_rows(strip: Strip) -> slice:
    """Return the rows of a strip that the strip before did not have."""
    start, stop = strip.rows
    return slice(start + 1 if start else 0, stop)


def lead(logits: Array) -> Array:
    """Return by how much the best channel of each voxel leads: (B, C) from logits (L, B, C), both of one place."""
    best, second = logits[0] + 0, logits[0] - inf
    for row in logits[1:]:
        second = second.clip(row.clip(max=best))
        best = best.clip(row)
    return best - second


def unclear(ahead: Array, temperature: float) -> Array:
    """Return where a lead leaves room for doubt; not where no window looked, which is CERTAIN at any temperature."""
    return (ahead < _FAR * temperature) & (ahead != CERTAIN)


def joint(won: npt.NDArray[Any], shares: Floats, sure: npt.NDArray[Any]) -> Matrix:
    """Return how many voxels of each channel (rows) are expected to be of each channel (columns): (L, L).

    Parameters
    ----------
    won : (N,) array of int
        Channels of some voxels.
    shares : (L, N) array
        Their probabilities.
    sure : (M,) array of int
        Channels of voxels beyond doubt.
    """
    count = len(shares)
    found: Matrix = np.stack([np.bincount(won, share, count) for share in shares], axis=1).astype(np.float64)
    found[np.diag_indices(count)] += np.bincount(sure, minlength=count)
    return found


def soft_dice(expected: Matrix, plan: Plan) -> dict[str, float]:
    """Return the soft Dice of each label that was found, from `joint`; the probabilities of a label's atoms add up."""
    places = {atom: channel for channel, atom in enumerate(plan.atoms, start=1)}
    found = {}
    for label in plan.labels:
        own = [places[atom] for atom in label.atoms]
        voxels, likely = expected[own].sum(), expected[:, own].sum()
        if voxels:
            found[label.name] = float(2 * expected[np.ix_(own, own)].sum() / (voxels + likely))
    return found


def _laid(values: npt.NDArray[np.float32], placement: Placement) -> npt.NDArray[np.float32]:
    """Return values of a grid on the scan's, plane by plane."""
    found = np.zeros(placement.shape, np.float32, order="F")
    planes, *others = placement.taps
    rows, columns = ((taps.lower, taps.upper, taps.fraction) for taps in others)
    pairs = zip(planes.lower, planes.upper, planes.fraction, strict=True)
    for into, (below, above, fraction) in zip(placement.covered(found), pairs, strict=True):
        into[...] = plane_between((values[below, None], values[above, None]), fraction, rows, columns)[0]
    return found
