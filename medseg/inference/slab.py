"""The planes of logits that windows can still touch: a ring, reused as the pass goes on."""

from __future__ import annotations

from math import isfinite

from medseg.errors import DeviceError
from medseg.kernels import Place
from medseg.kernels.plain import Array
from medseg.restore import Settled, label_type


class Slab:
    """Sums of weighted logits, and of weights, of the planes that are not closed yet.

    Parameters
    ----------
    place : Place
        Where they live.
    shape : four ints
        (planes, channels, rows, columns).
    labelled : int
        How many of the channels are background and labels; what follows takes no part in the choice of a label.
    """

    def __init__(self, place: Place, shape: tuple[int, int, int, int], labelled: int) -> None:
        depth, _, *plane = shape
        self.place, self.depth, self.labelled = place, depth, labelled
        self.sums = place.zeros(shape)
        self.counts = place.zeros((depth, *plane))
        self.labels = place.zeros((depth, *plane), label_type(labelled))
        self.base = 0  # planes before this one are closed

    def add(self, answer: Array, weights: Array, corner: tuple[int, int, int]) -> None:
        """Blend in the answer to a window.

        Parameters
        ----------
        answer : (P, M, B, C) array of `place`
            Logits, as much of them as lies in the slab.
        weights : (P, B, C) array of `place`
            How much each voxel counts.
        corner : three ints
            Plane, row and column of its first voxel.
        """
        plane, row, column = corner
        _, _, rows, columns = answer.shape
        along = slice(column, column + columns)

        def blend(part: slice) -> None:
            lines = slice(row + part.start, row + part.stop)
            own, counts = self.sums[:, :, lines, along], self.counts[:, lines, along]
            self.place.blend(own, counts, answer[:, :, part], weights[:, part], plane % self.depth)

        step = -(-rows // self.place.threads)
        self.place.each(blend, [slice(start, min(rows, start + step)) for start in range(0, rows, step)])

    def close(self, stop: int) -> list[Settled]:
        """Return the planes before plane `stop` that were not closed yet; they are good until `release`.

        Raises
        ------
        DeviceError
            If the network gave values that are not finite.
        """
        places = [number % self.depth for number in range(self.base, stop)]
        self.place.each(self._settle, places)
        self.base = max(self.base, stop)
        return [(self.sums[at], self.labels[at]) for at in places]

    def release(self, planes: list[Settled]) -> None:
        """Make room for later planes in the place of closed ones."""
        self.place.each(self._clear, [(self.base - back) % self.depth for back in range(1, len(planes) + 1)])

    def _clear(self, at: int) -> None:
        self.sums[at] = 0
        self.counts[at] = 0

    def _settle(self, at: int) -> None:
        self.place.settle(self.sums[at], self.counts[at], self.labels[at], self.labelled)
        if not isfinite(float(self.sums[at].sum())):
            raise DeviceError(
                "the network gives values that are not finite",
                hint="use --precision float32; if that is in use, the model does not fit the scan",
            )
