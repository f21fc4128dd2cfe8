"""A model that costs next to nothing, so that all but the network can be measured, on scans of any size.

    python benchmarks/tiny_bundle.py OUT.safetensors [--labels 3] [--patch 96] [--axes 3] [--spacing MM] [--zscore]

Its network is the least that a U-Net can be, one channel wide and one voxel deep. It gives each voxel the label of its
intensity: background, and a label for each further equal part of the range from -1000 to 1000 (with --zscore from one
deviation below to one above the mean). Windows, blending, resampling, cleaning and writing are real.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from medseg.bundle import Bundle, Card
from medseg.inference.network import new_network
from medseg.plan import Plan

CARD = Card(
    name="tiny",
    version="1",
    summary="The label of a voxel says in which part of a range its intensity lies.",
    intended_use="measuring medseg",
    training_data="none",
    licence="Apache-2.0",
    attribution="none",
)
WINDOW = {"kind": "window", "low": -1000, "high": 1000, "mean": 0, "deviation": 1000}
STRIDE = 8  # of the lower stage, which says nothing


def main() -> None:
    """Write the bundle."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--labels", type=int, default=3)
    parser.add_argument("--patch", type=int, default=96, help="voxels along each axis")
    parser.add_argument("--axes", type=int, choices=(2, 3), default=3)
    parser.add_argument("--spacing", type=float, metavar="MM", help="of the plan's grid; the scan's own if left out")
    parser.add_argument("--zscore", action="store_true", help="normalise by the scan's own percentiles")
    words = parser.parse_args()
    plan = tiny_plan(words.labels, words.patch, axes=words.axes, spacing=words.spacing, zscore=words.zscore)
    Bundle.of([tiny_weights(plan)], plan=plan, card=CARD).save(words.output)


def tiny_plan(labels: int, patch: int, *, axes: int = 3, spacing: float | None = None, zscore: bool = False) -> Plan:
    """Return the plan of a model with so many labels."""
    return Plan.parse(
        {
            "axes": axes,
            "channels": [{"name": "scan", "intensity": {"kind": "zscore"} if zscore else WINDOW}],
            "labels": [{"value": value, "name": f"part {value}"} for value in range(1, labels + 1)],
            "spacing": [spacing] * 3 if spacing else None,
            "patch": [patch, patch, patch if axes == 3 else 1],
            "network": {
                "architecture": "unet",
                "options": {"widths": [1, 1], "kernels": [1, 1], "strides": [STRIDE], "norm": "none"},
            },
        }
    )


def tiny_weights(plan: Plan) -> dict[str, np.ndarray]:
    """Return weights that pass the intensity on to a line for each label, the highest one in that label's part.

    Two leaky ReLUs of slope 0.01 with a factor of -10 before each are the identity.
    """
    found = {name: np.zeros_like(tensor.numpy()) for name, tensor in new_network(plan).state_dict().items()}
    for name in ("stem.conv1", "stem.conv2", "ups.0.block.conv2"):
        found[f"{name}.weight"][:] = -10
    found["ups.0.block.conv1.weight"][:, 1] = -10  # channel 0 comes from the lower stage
    ends = np.linspace(-1, 1, len(plan.labels) + 2)[1:-1]
    found["head.weight"][:] = np.arange(len(plan.labels) + 1).reshape(-1, *[1] * (plan.axes + 1))
    found["head.bias"][1:] = -np.cumsum(ends)
    return found


if __name__ == "__main__":
    main()
