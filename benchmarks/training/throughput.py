"""Samples per second of a whole training step (forward, loss, backward, update): medseg's network against its peers'.

    python benchmarks/training/throughput.py --nnunet VENV [--model BUNDLE] [--threads 2] [--rounds 3] [--steps 5]

Batch 2, patch 40 x 56 x 40, one channel, three classes, random numbers, CPU. Each measurement is a fresh process, the
networks take turns, and the median over steps and rounds counts. nnU-Net's is its PlainConvUNet with the widths of its
plan for the hippocampus, its loss with deep supervision, SGD and clipping; MONAI's are DynUNet of the same widths and
the UNet of its tutorials (one stage less: the patch can be halved three times only), with DiceCELoss and AdamW.
medseg's network is that of the bundle --model, or the one planned for the hippocampus. What a step does for accuracy is
another question: `run.py` asks it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

BATCH, PATCH, CLASSES = 2, (40, 56, 40), 3
WIDTHS = (32, 64, 128, 256)  # of nnU-Net's plan for the hippocampus
OWN = {"widths": [32, 64, 128], "stem_stride": 2}
WARM_UP = 2  # steps
Step = Callable[[Any, Any], None]


def main() -> None:
    """Measure every network in turn, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nnunet", type=Path, metavar="VENV", help="environment that holds nnunetv2")
    parser.add_argument("--model", type=Path, metavar="BUNDLE", help="whose network stands for medseg")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--one", choices=NETWORKS, help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.one:
        print(json.dumps(measure(words)))
        return
    names = [name for name in NETWORKS if words.nnunet or "nnU-Net" not in name]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for _ in range(words.rounds):
        for name in names:
            found[name].append(child(name, words))
    print_table(found, words)


def child(name: str, words: argparse.Namespace) -> dict[str, Any]:
    """Return one measurement, of a process of its own."""
    own = words.nnunet.absolute() / "bin" / "python" if "nnU-Net" in name else sys.executable
    options = ["--one", name, "--threads", words.threads, "--steps", words.steps]
    options += ["--model", words.model] if words.model else []
    limits = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(words.threads))
    command = [str(part) for part in (own, __file__, *options)]
    done = subprocess.run(command, env={**os.environ, **limits}, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def measure(words: argparse.Namespace) -> dict[str, Any]:
    """Return samples per second, and the millions of parameters."""
    import torch

    torch.set_num_threads(words.threads)
    torch.manual_seed(0)
    step, parameters = NETWORKS[words.one](words.model)
    image = torch.randn(BATCH, 1, *PATCH)
    target = torch.randint(CLASSES, (BATCH, 1, *PATCH)).float()
    seconds = []
    for _ in range(WARM_UP + words.steps):
        start = time.perf_counter()
        step(image, target)
        seconds.append(time.perf_counter() - start)
    return {
        "samples_per_second": BATCH / statistics.median(seconds[WARM_UP:]),
        "parameters": sum(weight.numel() for weight in parameters) / 1e6,
        "torch": torch.__version__,
    }


def medseg(model: Path | None) -> tuple[Step, list[Any]]:
    """Return a step of medseg's training, and the parameters of its network."""
    import torch

    from medseg.bundle import Bundle
    from medseg.networks import build
    from medseg.training.losses import dice_cross_entropy

    network = Bundle.load(model).plan.network if model else None
    name, options = (network.architecture, network.options) if network else ("unet_residual", OWN)
    net = build(name, axes=3, in_channels=1, out_channels=CLASSES, **options)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)

    def loss(answer: Any, target: Any) -> Any:
        answers = answer if isinstance(answer, list) else [answer]
        resized = [torch.nn.functional.interpolate(target, part.shape[2:]) for part in answers]
        return sum(
            0.5**n * dice_cross_entropy(a, t.long()) for n, (a, t) in enumerate(zip(answers, resized, strict=True))
        )

    return stepping(net, optimizer, loss, clip=12.0), list(net.parameters())


def nnunet(_: Path | None) -> tuple[Step, list[Any]]:
    """Return a step of nnU-Net's training, and the parameters of its network."""
    import torch
    from dynamic_network_architectures.architectures.unet import PlainConvUNet
    from dynamic_network_architectures.initialization.weight_init import InitWeights_He
    from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
    from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
    from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

    net = PlainConvUNet(
        1, len(WIDTHS), WIDTHS, torch.nn.Conv3d, 3, (1, 2, 2, 2), 2, CLASSES, 2,
        conv_bias=True, norm_op=torch.nn.InstanceNorm3d, norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=torch.nn.LeakyReLU, nonlin_kwargs={"inplace": True}, deep_supervision=True,
    )  # fmt: skip
    net.apply(InitWeights_He(1e-2))
    single = DC_and_CE_loss(
        {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": False},
        {}, weight_ce=1, weight_dice=1, dice_class=MemoryEfficientSoftDiceLoss,
    )  # fmt: skip
    wrapped = DeepSupervisionWrapper(single, [2 / 3, 1 / 3, 0.0])  # the coarsest output has no weight in nnU-Net
    optimizer = torch.optim.SGD(net.parameters(), 1e-2, weight_decay=3e-5, momentum=0.99, nesterov=True)

    def loss(answers: Any, target: Any) -> Any:
        resized = [torch.nn.functional.interpolate(target, part.shape[2:]) for part in answers]
        return wrapped(answers, resized)

    return stepping(net, optimizer, loss, clip=12.0), list(net.parameters())


def monai_dynunet(_: Path | None) -> tuple[Step, list[Any]]:
    """Return a step with MONAI's DynUNet, and its parameters."""
    from monai.networks.nets import DynUNet

    return monai(DynUNet(3, 1, CLASSES, [3, 3, 3, 3], [1, 2, 2, 2], [2, 2, 2], filters=WIDTHS))


def monai_unet(_: Path | None) -> tuple[Step, list[Any]]:
    """Return a step with the UNet of MONAI's tutorials, and its parameters."""
    from monai.networks.nets import UNet

    return monai(UNet(3, 1, CLASSES, channels=(16, 32, 64, 128), strides=(2, 2, 2), num_res_units=2, norm="instance"))


def monai(net: Any) -> tuple[Step, list[Any]]:
    """Return a step with one of MONAI's networks, and its parameters."""
    import torch
    from monai.losses import DiceCELoss

    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)
    return stepping(net, optimizer, DiceCELoss(to_onehot_y=True, softmax=True)), list(net.parameters())


def stepping(net: Any, optimizer: Any, loss: Callable[[Any, Any], Any], *, clip: float | None = None) -> Step:
    """Return a function that does one step of training."""
    import torch

    def step(image: Any, target: Any) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss(net(image), target).backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(net.parameters(), clip)
        optimizer.step()

    net.train()
    return step


NETWORKS: dict[str, Callable[[Path | None], tuple[Step, list[Any]]]] = {
    "medseg": medseg,
    "nnU-Net PlainConvUNet": nnunet,
    "MONAI DynUNet": monai_dynunet,
    "MONAI UNet": monai_unet,
}


def print_table(found: dict[str, list[dict[str, Any]]], words: argparse.Namespace) -> None:
    """Print samples per second, how many times as many medseg does, and the parameters."""
    speeds = {name: [run["samples_per_second"] for run in runs] for name, runs in found.items()}
    own = statistics.median(speeds["medseg"])
    size = " x ".join(map(str, PATCH))
    print(f"batch {BATCH}, patch {size}, {words.threads} threads, torch {found['medseg'][0]['torch']}")
    print("| network | samples/s (lowest to highest) | medseg's is so many times as fast | million parameters |")
    print("|---|---|---|---|")
    for name, runs in found.items():
        speed, least, most = statistics.median(speeds[name]), min(speeds[name]), max(speeds[name])
        ratio, millions = own / speed, runs[0]["parameters"]
        print(f"| {name} | {speed:.2f} ({least:.2f} to {most:.2f}) | {ratio:.2f} | {millions:.2f} |")


if __name__ == "__main__":
    main()
