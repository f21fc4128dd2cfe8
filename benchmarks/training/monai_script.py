"""A plain MONAI training script, as its tutorials teach it, for so many minutes; then the held-out cases.

    python monai_script.py FOLD.json --minutes 15 --threads 2 --output FOLDER

FOLD.json is written by `run.py`. The minutes begin with the first step, when all cases are in MONAI's cache.
"""

from __future__ import annotations

import argparse
import json
import math
import time
import warnings
from importlib.metadata import version
from pathlib import Path

import torch
from monai.data import CacheDataset, DataLoader, Dataset, decollate_batch
from monai.inferers import sliding_window_inference
from monai.losses import DiceCELoss
from monai.networks.nets import UNet
from monai.transforms import (
    AsDiscreted,
    Compose,
    EnsureChannelFirstd,
    EnsureTyped,
    Invertd,
    LoadImaged,
    NormalizeIntensityd,
    Orientationd,
    RandAffined,
    RandCropByPosNegLabeld,
    RandFlipd,
    RandScaleIntensityd,
    RandShiftIntensityd,
    SaveImaged,
    Spacingd,
    SpatialPadd,
)
from monai.utils import set_determinism

PATCH = (32, 48, 32)  # nearly a whole case (35 x 50 x 35), and what four halvings divide
BATCH, CROPS = 2, 2  # cases in a step, patches of each
RATE = 1e-3
SPACING = (1.0, 1.0, 1.0)  # mm


def main() -> None:
    """Train, predict, and write what was done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fold", type=Path, help="JSON of cases")
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--output", type=Path, required=True, help="folder for labels/ and record.json")
    words = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(words.threads)
    set_determinism(0)
    fold = json.loads(words.fold.read_text())
    start = time.perf_counter()
    cached = CacheDataset(fold["train"], training_transforms(), num_workers=0, progress=False)
    loader = DataLoader(cached, batch_size=BATCH, shuffle=True, drop_last=True, num_workers=0)
    network = new_network(len(fold["labels"]) + 1)
    before = time.perf_counter() - start
    steps, seconds = train(network, loader, words.minutes)
    start = time.perf_counter()
    predict(network, fold["val"], words.output / "labels")
    record = {
        "steps": steps,
        "batch": BATCH * CROPS,
        "patch": PATCH,
        "training_seconds": seconds,
        "start_seconds": before,
        "prediction_seconds": time.perf_counter() - start,
        "parameters": sum(weight.numel() for weight in network.parameters()),
        "versions": {package: version(package) for package in ("monai", "torch", "numpy")},
    }
    (words.output / "record.json").write_text(json.dumps(record, indent=1) + "\n")


def loading_transforms(keys: list[str]) -> list:
    """Return what brings a scan, and its label map where there is one, onto the grid of the network."""
    modes = ["bilinear", "nearest"][: len(keys)]
    return [
        LoadImaged(keys),
        EnsureChannelFirstd(keys),
        Orientationd(keys, axcodes="RAS", labels=None),
        Spacingd(keys, pixdim=SPACING, mode=modes),
        NormalizeIntensityd("image", nonzero=True, channel_wise=True),
        EnsureTyped(keys),
    ]


def training_transforms() -> Compose:
    """Return loading and augmentation; the cache keeps what comes before the first random transform."""
    keys = ["image", "label"]
    return Compose(
        [
            *loading_transforms(keys),
            SpatialPadd(keys, PATCH),
            RandCropByPosNegLabeld(keys, label_key="label", spatial_size=PATCH, pos=1, neg=1, num_samples=CROPS),
            RandFlipd(keys, prob=0.5, spatial_axis=0),
            RandAffined(
                keys,
                prob=0.5,
                rotate_range=(0.25, 0.25, 0.25),
                scale_range=(0.15, 0.15, 0.15),
                mode=("bilinear", "nearest"),
                padding_mode="border",
            ),
            RandScaleIntensityd("image", factors=0.1, prob=0.5),
            RandShiftIntensityd("image", offsets=0.1, prob=0.5),
        ]
    )


def new_network(classes: int) -> UNet:
    """Return the U-Net of MONAI's 3D tutorials."""
    return UNet(
        spatial_dims=3,
        in_channels=1,
        out_channels=classes,
        channels=(16, 32, 64, 128, 256),
        strides=(2, 2, 2, 2),
        num_res_units=2,
        norm="instance",
    )


def train(network: UNet, loader: DataLoader, minutes: float) -> tuple[int, float]:
    """Train until the minutes are over; return the steps and the seconds."""
    loss_function = DiceCELoss(to_onehot_y=True, softmax=True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=1e-5)
    network.train()
    steps, seconds, start = 0, 0.0, time.perf_counter()
    while True:
        for batch in loader:
            for group in optimizer.param_groups:  # cosine annealing over the minutes
                group["lr"] = RATE * (1 + math.cos(math.pi * min(1.0, seconds / (60 * minutes)))) / 2
            optimizer.zero_grad()
            loss = loss_function(network(batch["image"]), batch["label"])
            loss.backward()
            optimizer.step()
            steps, seconds = steps + 1, time.perf_counter() - start
            if seconds >= 60 * minutes:
                return steps, seconds
        print(f"step {steps}  loss {loss.item():.3f}  {seconds:.0f} s", flush=True)


def predict(network: UNet, cases: list[dict[str, str]], folder: Path) -> None:
    """Write the label maps of cases on the grids of their scans."""
    loading = Compose(loading_transforms(["image"]))
    finishing = Compose(
        [
            Invertd("pred", transform=loading, orig_keys="image", nearest_interp=False, to_tensor=True),
            AsDiscreted("pred", argmax=True),
            SaveImaged("pred", output_dir=folder, output_postfix="", separate_folder=False, print_log=False),
        ]
    )
    scans = Dataset([{"image": case["image"]} for case in cases], loading)
    network.eval()
    with torch.no_grad():
        for batch in DataLoader(scans, batch_size=1, num_workers=0):
            batch["pred"] = sliding_window_inference(
                batch["image"], PATCH, sw_batch_size=4, predictor=network, overlap=0.5, mode="gaussian"
            )
            for case in decollate_batch(batch):
                finishing(case)


if __name__ == "__main__":
    main()
