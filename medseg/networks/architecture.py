"""What all architectures share: what they take, and the answer to what they do not."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from medseg.errors import ShapeMismatch


class Architecture(nn.Module):
    """A network that maps (B, in_channels, *S) to logits (B, out_channels, *S), for every size S.

    Parameters
    ----------
    axes : 2 or 3
        Spatial axes.
    in_channels, out_channels : int
        Channels of the input; labels and background.
    stride : tuple of int
        Voxels of the input, per axis, for each voxel of the coarsest features.
    norm : str
        Of those features: instance norm, and in training batch norm, cannot take a single voxel.
    """

    def __init__(self, axes: int, in_channels: int, out_channels: int, *, stride: tuple[int, ...], norm: str) -> None:
        super().__init__()
        self.axes, self.in_channels, self.out_channels = axes, in_channels, out_channels
        self.stride = stride
        self._norm = norm

    @property
    def size_rule(self) -> str:
        """The sizes that it takes, in words."""
        return "any"

    @property
    def keeps_size(self) -> bool:
        """Whether the logits have the size of the input."""
        return True

    def encoder(self) -> list[nn.Module]:
        """Return the parts that turn a scan into features, from full resolution down."""
        parts = (getattr(self, name, None) for name in ("stem", "downs", "stages"))
        return [part for part in parts if isinstance(part, nn.Module)]

    def check(self, shape: Sequence[int]) -> None:
        """Refuse an input of a shape that the network cannot take.

        Raises
        ------
        ShapeMismatch
            With the shape that it takes.
        """
        size = tuple(shape[2:])
        if len(size) != self.axes or shape[1] != self.in_channels or min(size) < 1:
            wanted = ", ".join(["B", str(self.in_channels), *"IJK"[: self.axes]])
            raise ShapeMismatch(f"input of shape {tuple(shape)} for a {self.axes}D network", hint=f"give ({wanted})")
        alone = self._norm == "instance" or (self._norm == "batch" and self.training and shape[0] == 1)
        if alone and all(n <= step for n, step in zip(size, self.stride, strict=True)):
            raise ShapeMismatch(
                f"input of size {size} is one voxel at stride {self.stride}, too few for {self._norm} norm",
                hint=f"give an axis more voxels than {self.stride}, or choose norm 'group'",
            )
