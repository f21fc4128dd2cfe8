"""Take a medseg model apart and run it with MONAI's own parts: LoadImaged, Compose, SlidingWindowInferer.

    python pipelines/monai_pipeline.py SCAN.nii.gz -o labels.nii.gz [--model NAME|FILE]

The label map is that of `medseg predict`, before its largest pieces are chosen.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from monai.inferers import SlidingWindowInferer
from monai.transforms import Compose, LoadImaged

import medseg
from medseg import Bundle, LabelMap, zoo
from medseg.geometry import Geometry
from medseg.inference import load_network
from medseg.transforms import PrepareScand, RestoreLabelsd


def main() -> None:
    """Segment one scan and write its label map."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scan", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--model", default=zoo.DEFAULT)
    options = parser.parse_args()

    bundle = Bundle.load(zoo.find(options.model))
    plan = bundle.plan
    members = [load_network(bundle, number) for number in range(len(bundle.members))]
    before = Compose([LoadImaged("image", ensure_channel_first=True), PrepareScand("image", plan)])
    inferer = SlidingWindowInferer(plan.patch, overlap=plan.overlap, mode="gaussian")

    def network(windows: torch.Tensor) -> torch.Tensor:
        return torch.stack([member(windows) for member in members]).mean(dim=0)  # an ensemble answers as one

    after = Compose([RestoreLabelsd("logits", plan, scan_key="image")])

    data = before({"image": str(options.scan)})
    with torch.inference_mode():
        data["logits"] = inferer(data["image"][None], network)[0]
    labels = after(data)["logits"][0]
    geometry = Geometry(labels.affine.numpy(), tuple(labels.shape))
    medseg.write(LabelMap(labels.numpy(), geometry, plan.labels), options.output)
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
