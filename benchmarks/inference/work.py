"""The scans and models of each case, made in a folder: smooth scans, networks with fixed random weights, organs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from math import ceil
from pathlib import Path

import numpy as np

import medseg
from medseg import zoo
from medseg.bundle import Card
from medseg.plan import Channel, Label, Network, Window

HERE = Path(__file__).parent
BONE = {"low": -1000.0, "high": 1000.0, "mean": 0.0, "deviation": 200.0}
ALL = {"low": -32768.0, "high": 32767.0, "mean": 0.0}
Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Asked:
    """Where files go, how much smaller sizes are, and where the hippocampus data lie, if anywhere."""

    folder: Path
    scale: float
    data: Path | None


@dataclass(frozen=True)
class Work:
    """What all methods get.

    Parameters
    ----------
    title : str
        What it is.
    bundle : Path
        The model.
    scans : list of Path
        In the order in which one process gets them.
    stub : bool
        Whether the network is a stub, whose time does not count.
    """

    title: str
    bundle: Path
    scans: list[Path] = field(default_factory=list)
    stub: bool = False


def hippocampus(asked: Asked) -> Work:
    """Return the shipped model and up to 20 scans of its kind."""
    if asked.data is None:
        sys.exit("error: case a needs --data FOLDER, the hippocampus folder of the Medical Segmentation Decathlon")
    scans = sorted((asked.data / "imagesTr").glob("*.nii.gz"))[: ceil(20 * asked.scale)]
    return Work(f"hippocampus-t1, {len(scans)} scans", zoo.find("hippocampus-t1"), scans)


def abdomen(asked: Asked) -> Work:
    """Return a network for 14 labels with random weights, and a CT on its own grid."""
    shape, patch = scaled((192, 192, 160), asked.scale, 1), scaled((96, 96, 96), max(asked.scale, 1 / 3), 16)
    plan = new_plan(14, patch, Network(architecture="unet", options={"widths": [16, 32, 64, 128, 160]}), BONE)
    bundle, scan = asked.folder / "model.safetensors", asked.folder / "scan.nii.gz"
    write_scan(scan, ct(shape)[0], (1.5, 1.5, 1.5))
    write_bundle(bundle, "random-14", plan, random_weights(plan, *ct(patch)))
    return Work(f"14 labels, CT of {by(shape)}, patch {by(patch)}", bundle, [scan])


def whole_body(asked: Asked) -> Work:
    """Return a stub for 105 labels (104 organs and background), and a CT with half its spacing."""
    shape, grid = scaled((512, 512, 300), asked.scale, 1), scaled((273, 273, 333), asked.scale, 1)
    patch = scaled((96, 96, 96), asked.scale, 8)
    plan = new_plan(105, patch, Network(architecture="stub"), {**ALL, "deviation": 1000.0})
    bundle, scan = asked.folder / "model.safetensors", asked.folder / "scan.nii.gz"
    write_scan(scan, whereabouts(shape), [1.5 * n / size for n, size in zip(grid, shape, strict=True)])
    centres, radii = organs(104)
    write_bundle(bundle, "stub-105", plan, {"size": np.array(grid, np.float32), "centres": centres, "radii": radii})
    return Work(
        f"105 labels, {by(grid)} at 1.5 mm back to {by(shape)}, patch {by(patch)}, stub", bundle, [scan], stub=True
    )


def huge(asked: Asked) -> Work:
    """Return a model of one convolution for 3 labels, and a scan of 1024^3 with two thirds of its spacing."""
    shape = scaled((1024, 1024, 1024), asked.scale, 1)
    bundle, scan = asked.folder / "tiny.safetensors", asked.folder / "scan.nii"
    program = [sys.executable, HERE.parent / "tiny_bundle.py", bundle, "--labels", "3", "--spacing", "0.75"]
    subprocess.run(program, check=True)
    write_scan(scan, whereabouts(shape, least=-1000, rise=660), (0.5, 0.5, 0.5))
    return Work(f"3 labels, one convolution at 0.75 mm, scan of {by(shape)} int16 at 0.5 mm", bundle, [scan])


CASES = {"a": hippocampus, "b": abdomen, "c": whole_body, "d": huge}


def scaled(shape: Shape, scale: float, multiple: int) -> Shape:
    """Return a smaller shape of the same proportions, of multiples of a number."""
    i, j, k = (max(1, round(size * scale / multiple)) * multiple for size in shape)
    return i, j, k


def by(shape: Shape) -> str:
    """Return a shape for people."""
    return " x ".join(map(str, shape))


def new_plan(labels: int, patch: Shape, network: Network, window: dict[str, float]) -> medseg.Plan:
    """Return a plan for scans on a grid of 1.5 mm, with background among the labels counted."""
    return medseg.Plan(
        axes=3,
        channels=(Channel(name="ct", intensity=Window(**window)),),
        labels=tuple(Label(value=value, name=f"organ {value}") for value in range(1, labels)),
        spacing=(1.5, 1.5, 1.5),
        patch=patch,
        overlap=0.5,
        network=network,
    )


def write_bundle(path: Path, name: str, plan: medseg.Plan, weights: dict[str, np.ndarray]) -> None:
    """Write a model."""
    about = dict.fromkeys(("summary", "intended_use", "training_data", "licence", "attribution"), "a benchmark")
    medseg.Bundle.of([weights], plan=plan, card=Card(name=name, version="1", **about)).save(path)


def write_scan(path: Path, values: np.ndarray, spacing: Sequence[float]) -> None:
    """Write a scan."""
    geometry = medseg.Geometry(np.diag([*spacing, 1.0]), values.shape)
    medseg.write(medseg.Volume(values[None], geometry), path)


def random_weights(plan: medseg.Plan, scan: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Return random weights of a fixed seed; the last layer is fitted, so that label maps look like anatomy."""
    import torch

    from medseg.inference import new_network

    torch.manual_seed(0)
    network = new_network(plan).eval()
    for weights in network.parameters():
        if weights.ndim == 5:  # mean kernels with a little texture: others would make labels of single voxels
            means = weights.data.mean((2, 3, 4), keepdim=True)
            weights.data = 3 * means + 0.2 * (weights.data - means)
    seen: list[torch.Tensor] = []
    network.head.register_forward_pre_hook(lambda _, given: seen.append(given[0][0]))
    with torch.inference_mode():
        network(torch.from_numpy(scan / np.float32(BONE["deviation"])).clamp(-5, 5)[None, None])
    features = seen[0].flatten(1).double()
    features = torch.cat([features, torch.ones_like(features[:1])])
    wanted = torch.nn.functional.one_hot(torch.from_numpy(labels.ravel()).long(), len(plan.labels) + 1).double()
    weighed = features * (wanted / wanted.sum(0)).sum(1)  # all labels count the same
    fitted = torch.linalg.solve(weighed @ features.T + 1e-6 * torch.eye(len(features)), weighed @ wanted).T * 10
    weights = {name: value.numpy() for name, value in network.state_dict().items()}
    weights["head.weight"] = fitted[:, :-1, None, None, None].float().numpy()
    weights["head.bias"] = fitted[:, -1].float().numpy()
    return weights


def ct(shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    """Return a body with organs in air, in HU, with a little noise, and what is where: both (I, J, K) int16."""
    u, v, w = axes(shape)
    labels = np.zeros(shape, np.int16, order="F")
    inside = ((u - 0.5) / 0.45) ** 2 + ((v - 0.5) / 0.38) ** 2 + 0 * w < 1
    for label, (centre, radii) in enumerate(zip(*organs(13, seed=1), strict=True), start=1):
        organ = sum(((x - c) / r) ** 2 for x, c, r in zip((u, v, w), centre, radii, strict=True)) < 1
        labels[organ & inside] = label
    density = np.array([20, *(-700 if label in {4, 6} else 40 + 70 * label for label in range(1, 14))], np.float32)
    values = np.where(inside, density[labels] + 10 * np.cos(9 * u) * np.cos(8 * v) * np.cos(7 * w), -1000)
    noise = np.random.default_rng(0).normal(scale=5, size=shape)
    return (values + noise).astype(np.int16, order="F"), labels


def whereabouts(shape: Shape, least: int = 1, rise: float = 10_000) -> np.ndarray:
    """Return a scan from whose windows the stub learns where they lie (see there), with noise: int16."""
    u, v, w = axes(shape)
    out = np.empty(shape, np.int16, order="F")
    rng = np.random.default_rng(0)
    for k in range(shape[2]):
        plane = rise * (u[..., 0] ** 2 + v[..., 0] ** 2 + w[0, 0, k] ** 2) + least
        out[..., k] = plane + rng.integers(0, 8, plane.shape)
    return out


def axes(shape: Shape) -> Iterator[np.ndarray]:
    """Return where the voxels of each axis lie, from 0 to 1, to be broadcast."""
    places = [(np.arange(size, dtype=np.float32) + 0.5) / size for size in shape]
    return iter(np.meshgrid(*places, indexing="ij", sparse=True))


def organs(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return centres and radii of ellipsoids, one in each cell of a grid: (count, 3) float32, from 0 to 1."""
    per_axis = ceil(count ** (1 / 3))
    rng = np.random.default_rng(seed)
    cells = rng.permutation(list(product(range(per_axis), repeat=3)))[:count]
    centres = (cells + 0.5 + rng.uniform(-0.15, 0.15, cells.shape)) / per_axis
    return centres.astype(np.float32), (rng.uniform(0.3, 0.55, cells.shape) / per_axis).astype(np.float32)
