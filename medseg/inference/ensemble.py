"""All members of a bundle as one network: their mean over mirrored views, and how much they disagree."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor, nn

from medseg.bundle import Bundle
from medseg.errors import UsageError
from medseg.inference.network import load_network


class Ensemble(nn.Module):
    """Maps windows (B, C, I, J, K) to the mean logits (B, L, I, J, K) of several networks.

    Parameters
    ----------
    members : sequence of nn.Module
        Networks of two or three axes.
    axes : 2 or 3
        With 2, windows have one slice.
    mirror : sequence of int
        Axes (0 to 2) along which windows are mirrored too, alone and together: 2 ** len(mirror) views.
    disagreement : bool
        Add a last channel: the mean Kullback-Leibler divergence, in nats, of the views' probabilities from their mean
        (the mutual information of view and label; Gal et al. 2017).
    """

    def __init__(
        self, members: Sequence[nn.Module], *, axes: int, mirror: Sequence[int] = (), disagreement: bool = False
    ) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.axes = axes
        self.flips = [list(flip) for n in range(len(mirror) + 1) for flip in combinations(mirror, n)]
        self.disagreement = disagreement

    @classmethod
    def of(cls, bundle: Bundle, *, mirror: bool = False, disagreement: bool = False) -> Ensemble:
        """Return the network of a bundle.

        Raises
        ------
        BundleError
            If the weights do not fit.
        UsageError
            If mirrored views are asked for and the model was not trained for any, or there is nobody to disagree.
        """
        plan = bundle.plan
        if mirror and not plan.mirror:
            raise UsageError(
                f"{bundle.card.name} was not trained on mirrored scans, so it cannot answer to them",
                hint="leave out --mirror",
            )
        members = [load_network(bundle, number) for number in range(len(bundle.members))]
        if disagreement and not mirror and len(members) == 1:
            raise UsageError("one network and one view cannot disagree", hint="ask for the entropy alone")
        return cls(members, axes=plan.axes, mirror=plan.mirror if mirror else (), disagreement=disagreement).eval()

    def forward(self, windows: Tensor) -> Tensor:
        """Return the mean logits, and the disagreement where it is wanted."""
        answers = [self._answer(member, windows, flip) for flip in self.flips for member in self.members]
        mean = answers[0]
        for answer in answers[1:]:
            mean = mean + answer
        if len(answers) > 1:  # what a single member says is not copied
            mean = mean / len(answers)
        if not self.disagreement:
            return mean
        shares = [torch.softmax(answer, 1) for answer in answers]
        middle = torch.stack(shares).mean(0)
        apart = torch.stack([share * (share.clamp(min=1e-12) / middle.clamp(min=1e-12)).log() for share in shares])
        return torch.cat([mean, apart.sum(2).mean(0)[:, None]], 1)

    def _answer(self, member: nn.Module, windows: Tensor, flip: list[int]) -> Tensor:
        where = [2 + axis for axis in flip]
        seen = windows.flip(where) if flip else windows
        logits: Tensor = member(seen[..., 0])[..., None] if self.axes == 2 else member(seen)
        return logits.flip(where) if flip else logits
