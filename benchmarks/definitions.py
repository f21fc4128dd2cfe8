"""What medseg and its peers say of the same masks: where numbers differ, definitions do (docs/metrics.md).

    python benchmarks/definitions.py [--data DIR]

Needs the peers: `pip install -c constraints-peers.txt -e '.[peers]'`. DIR holds `hippocampus/` in the Decathlon's
form; its first 20 cases are segmented by the shipped model (which has seen them: this is about metrics, not about the
model).
"""

from __future__ import annotations

import argparse
import math
import warnings
from collections.abc import Collection
from functools import partial
from pathlib import Path

import numpy as np
from peers import PEERS, TOLERANCE, Array, Peer, Scores, Spacing

import medseg
from medseg.metrics import surface_distances

COLUMNS = ("hd", "hd95", "assd", "nsd")


def main() -> None:
    """Print a table for each set of masks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with hippocampus/")
    words = parser.parse_args()
    warnings.simplefilter("ignore")
    show(
        "A ball of radius 10 mm and its copy 1 mm further on, 1 x 1 x 1 mm",
        [(*balls((1.0, 1.0, 1.0)), (1.0, 1.0, 1.0))],
    )
    show("The same, 0.8 x 0.8 x 3 mm", [(*balls((0.8, 0.8, 3.0)), (0.8, 0.8, 3.0))])
    one, two = (ball[:, :, 20:21] for ball in balls((1.0, 1.0, 1.0)))
    show("The middle slice of the balls, as an array of one slice", [(one, two, (1.0, 1.0, 1.0))])
    thin, thick = (distance_to_centre((1.0, 1.0, 1.0)) < radius for radius in (9, 11))
    show("A ball of 9 mm within one of 11 mm (the volumes overlap wholly)", [(thin, thick, (1.0, 1.0, 1.0))])
    if words.data:
        show("Hippocampus, 20 cases, both labels, mean", list(hippocampus(words.data)))


def distance_to_centre(spacing: Spacing, shift: float = 0.0) -> Array:
    """Return the distance in mm of each voxel of a box of 40 mm from its middle, moved along the first axis."""
    axes = [np.arange(round(40 / mm) + 1) * mm - 20 for mm in spacing]
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    return np.sqrt((x - shift) ** 2 + y**2 + z**2)


def balls(spacing: Spacing) -> tuple[Array, Array]:
    """Return two balls of 10 mm, 1 mm apart."""
    return distance_to_centre(spacing, 1.0) < 10, distance_to_centre(spacing) < 10


def hippocampus(data: Path) -> list[tuple[Array, Array, Spacing]]:
    """Return prediction and reference of both labels of 20 cases."""
    predictor = medseg.Predictor.load("hippocampus-t1", device="cpu")
    found = []
    for path in sorted((data / "hippocampus" / "labelsTr").glob("*.nii.gz"))[:20]:
        reference = medseg.read_labels(path)
        predicted = predictor(medseg.read(data / "hippocampus" / "imagesTr" / path.name)).labels
        found += [(predicted.array == n, reference.array == n, reference.geometry.spacing) for n in (1, 2)]
    return found


def show(title: str, pairs: list[tuple[Array, Array, Spacing]]) -> None:
    """Print the mean scores of each tool over pairs of masks."""
    print(f"\n{title}\n| | HD mm | HD95 mm | ASSD mm | NSD at {TOLERANCE:g} mm |\n|---|---|---|---|---|")
    for name, tool in TOOLS.items():
        scores = [tool(*pair, COLUMNS) for pair in pairs]
        means = [float(np.mean([score.get(column, math.nan) for score in scores])) for column in COLUMNS]
        print(f"| {name} | {' | '.join('' if math.isnan(mean) else f'{mean:.3f}' for mean in means)} |")


def voxels(
    prediction: Array,
    reference: Array,
    spacing: Spacing,
    wanted: Collection[str],
    kind: str = "voxels",
) -> Scores:
    """Score by medseg."""
    found = surface_distances(prediction, reference, spacing, surface=kind)
    scores = (found.hausdorff(), found.hausdorff(95), found.average(), found.dice(TOLERANCE))
    return dict(zip(wanted, scores, strict=True))


TOOLS: dict[str, Peer] = {
    "medseg, voxels (default)": voxels,
    "medseg, elements": partial(voxels, kind="elements"),
    **PEERS,
}

if __name__ == "__main__":
    main()
