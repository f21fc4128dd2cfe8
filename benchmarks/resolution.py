"""How good can scores of stride 32, 16 or 8 be? The reference itself, drawn with that few numbers.

    python benchmarks/resolution.py --data DIR

For the first six held-out cases of each study, free scores at the stride are fitted to the reference through the same
linear interpolation that ends an FCN, by gradient descent on the Dice loss. Their mean Dice is about what FCN-32s could
reach if it knew every answer, and what the skips of 16s and 8s add; a descent finds no strict bound. DIR as for
`pipelines/compare_architectures.py`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from monai.losses import DiceLoss
from torch.nn import functional

from medseg import Plan
from medseg.metrics import dice
from medseg.networks.blocks import cut
from medseg.networks.upsampling import Linear
from medseg.training import STUDIES, prepare_sample

STEPS, CASES = 150, 6


def best_dice(target: np.ndarray, stride: int) -> list[float]:
    """Return the Dice of each label that scores of a stride can reach on one case (1, I, J, K) or (1, I, J, 1)."""
    wanted = torch.from_numpy(target[..., 0] if target.shape[-1] == 1 else target)[None].float()
    size = wanted.shape[2:]
    labels = int(wanted.max()) + 1
    shares = functional.one_hot(wanted[0, 0].long()).movedim(-1, 0)[None].float()
    cells = functional.interpolate(shares, [-(-n // stride) for n in size], mode="area")
    scores = (cells + 0.01).log().requires_grad_()  # begins with the share of each label in a cell
    enlarge = Linear((stride,) * len(size))
    loss_of = DiceLoss(softmax=True, to_onehot_y=True, include_background=False)
    optimizer = torch.optim.Adam([scores], lr=0.3)
    for _ in range(STEPS):
        optimizer.zero_grad()
        answer = cut(enlarge(scores), wanted)
        loss_of(answer, wanted).backward()
        optimizer.step()
    found = answer.argmax(dim=1).numpy()
    return [dice(found == label, wanted[0].numpy() == label) for label in range(1, labels)]


def main() -> None:
    """Print the mean Dice for each data set and stride."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=STUDIES, default=list(STUDIES), metavar="DATASET")
    options = parser.parse_args()
    for name in options.only:
        study = STUDIES[name]
        plan = Plan.parse({**study.plan, "network": {"architecture": "fcn32s"}})
        _, held_out = study.split(options.data / name)
        targets = [prepare_sample(case, plan).target for case in held_out[:CASES]]
        if name == "isbi2012":
            targets = [1 - target for target in targets]  # the membrane, as the study scores it
        for stride in (32, 16, 8):
            reached = np.mean([best_dice(target, stride) for target in targets], axis=0)
            print(f"{name}, stride {stride}: {', '.join(f'{value:.3f}' for value in reached)}", flush=True)


if __name__ == "__main__":
    main()
