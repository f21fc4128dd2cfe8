"""The Dice of held-back cases while a network learns: over fixed patches, so that it costs next to nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from medseg.plan import Plan
from medseg.training.losses import region_table
from medseg.training.patches import IGNORE, Sample, centred

_PATCHES = 24  # at most


class HeldBack:
    """Patches in the middle of what is labelled in held-back cases, one or more of each.

    The whole cases are scored when the training is over; this follows how it goes.

    Parameters
    ----------
    samples : sequence of Sample
        Cases on the plan's grid; may be empty.
    plan : Plan
        Says patch and labels.
    """

    def __init__(self, samples: Sequence[Sample], plan: Plan) -> None:
        self.plan = plan
        self.samples = [sample for sample in samples if sample.points][:_PATCHES]
        table = region_table(plan)
        self.members = torch.eye(len(plan.atoms) + 1)[1:] if table is None else table

    @torch.inference_mode()
    def dice(self, network: nn.Module, device: torch.device) -> Mapping[str, float]:
        """Return the Dice of each label over all patches together, nan where none has it; empty without cases."""
        if not self.samples:
            return {}
        network.eval()
        counts = np.zeros((3, len(self.plan.labels)))
        for sample in self.samples:
            image, target = centred(sample, self.plan.patch, self.plan.axes)
            answer: Tensor = network(torch.from_numpy(image)[None].float().to(device))
            counts += self._counts(answer[0].argmax(dim=0).cpu(), torch.from_numpy(target[0]))
        both, found, true = counts
        with np.errstate(invalid="ignore"):
            values = 2 * both / (found + true)
        return {label.name: float(value) for label, value in zip(self.plan.labels, values, strict=True)}

    def _counts(self, found: Tensor, true: Tensor) -> npt.NDArray[np.float64]:
        """Return voxels of each label in both, in the answer, and in the reference: (3, N)."""
        drawn = true != IGNORE
        atoms = len(self.plan.atoms) + 1
        joint = torch.bincount(found[drawn] * atoms + true[drawn].long(), minlength=atoms**2).reshape(atoms, atoms)
        pairs = self.members.double() @ joint.double()
        both = (pairs * self.members).sum(dim=1)
        return torch.stack([both, pairs.sum(dim=1), self.members.double() @ joint.sum(dim=0).double()]).numpy()
