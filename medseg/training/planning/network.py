"""The network, its patch and its batch: as large as memory and time allow, shaped after the scans.

The rules for depth, strides and kernels follow nnU-Net's (Isensee et al. 2021, supplement).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil, floor, log2, prod

import numpy as np
from pydantic import JsonValue

from medseg.errors import PlanError, UsageError
from medseg.geometry import tuple_of_three
from medseg.plan import Network, Plan
from medseg.training.planning.choice import Wishes, times
from medseg.training.planning.grid import Grid
from medseg.training.planning.machine import Machine
from medseg.training.planning.memory import Memory, amount, memory

Three = tuple[int, int, int]
_UNETS = {"unet", "unet_residual", "unet_attention"}  # take the options that are planned here
_COARSEST = 4  # voxels that the coarsest features keep along an axis, at least
_ISOTROPIC = 2  # an axis more than this much coarser waits: stride 1 and kernel 1
_STEM_VOXELS = 32**3  # of a patch, at least, for a network that works on a coarser grid
_LEAST = 16  # voxels to which an axis of the patch is cut, and half of that to which it is filled up
_GRAIN = 16  # sizes are multiples of the stride, and of no more than this
_USUAL = 95  # percentile of the cases that a patch covers, if it may
_SHARE = 0.05  # of all voxels: more in a batch, and few steps see a data set too often


@dataclass(frozen=True)
class Effort:
    """How much a kind of device may spend on a network.

    Parameters
    ----------
    width, widest : int
        Channels of the first stage; they double from stage to stage up to the widest.
    halvings : int
        Strides of 2 along an axis, at most.
    voxels : int
        Of a patch, at most: what a step takes in time.
    batch : int
        Patches in a step, at most.
    stem : bool
        Whether the first stride comes before the first stage.
    supervised : bool
        Whether coarser stages answer too in training.
    residual : bool
        Whether blocks have shortcuts.
    """

    width: int
    widest: int
    halvings: int
    voxels: int
    batch: int
    stem: bool = False
    supervised: bool = False
    residual: bool = False


# On two cores a step of two 40 x 56 x 40 patches takes 0.13 s with a stem of stride 2 and widths 32, 64, 128, and
# 0.45 s without and widths 16, 32, 64, 128, which is as many weights.
EFFORTS = {
    ("cpu", 2): Effort(width=16, widest=128, halvings=5, voxels=256**2, batch=2),
    ("cpu", 3): Effort(width=32, widest=256, halvings=4, voxels=80**3, batch=2, stem=True),
    ("gpu", 2): Effort(width=32, widest=512, halvings=7, voxels=1024**2, batch=9, supervised=True, residual=True),
    ("gpu", 3): Effort(
        width=32, widest=320, halvings=5, voxels=160 * 192 * 160, batch=9, supervised=True, residual=True
    ),
}


@dataclass(frozen=True)
class Fit:
    """A network with its patch and batch, the memory that training takes, and what kept the patch from being larger."""

    patch: Three
    network: Network
    batch: int
    memory: Memory
    limit: str


def fit_network(draft: Plan, grid: Grid, wishes: Wishes, machine: Machine) -> Fit:
    """Return the network with the largest patch that time and memory allow.

    A patch begins with the whole of a usual case; its longest axis in mm is cut until it fits.

    Parameters
    ----------
    draft : Plan
        Final but for patch and network.
    grid : Grid
        Of that plan.
    wishes : Wishes
        A patch, batch or network that is asked for is taken as it is.
    machine : Machine
        Its memory must hold two patches, or the batch that is asked for.

    Raises
    ------
    UsageError
        If memory cannot hold the patch that was asked for or even the smallest one, or the network does not take it.
    """
    effort = effort_of(machine, grid.axes)
    batch = wishes.batch or 2
    patches = [_asked(wishes.patch, grid.axes)] if wishes.patch else list(_patches(grid))
    room = prod(patches[0]) if wishes.patch else effort.voxels
    for patch in patches:
        if prod(patch) > room and patch != patches[-1]:
            continue
        network = _network(patch, grid, effort, wishes)
        need = _memory(draft, patch, network, wishes)
        if need.of(batch) <= machine.memory:
            limit = "" if patch == patches[0] else "memory" if room < effort.voxels else "time"
            return Fit(patch, network, wishes.batch or _batch(patch, need, grid, machine), need, limit)
        share = (machine.memory - need.fixed) / (batch * need.patch)
        room = int(prod(patch) * max(share, 0.25))  # a smaller network has fewer weights too
    raise UsageError(
        f"{'--patch' if wishes.patch else 'the smallest patch'} {times(patch)}: training {batch} of them takes "
        f"{amount(need.of(batch))}, {machine.name} has {amount(machine.memory)} for it",
        hint="give a smaller --patch or --batch, or more --memory",
    )


def effort_of(machine: Machine, axes: int) -> Effort:
    """Return how much this kind of machine may spend."""
    return EFFORTS["cpu" if machine.kind == "cpu" else "gpu", axes]


def _asked(patch: tuple[int, ...], axes: int) -> Three:
    if len(patch) == axes:
        return tuple_of_three((*patch, 1)[:3])
    if axes == 2 and len(patch) == 3 and patch[2] == 1:
        return tuple_of_three(patch)
    raise UsageError(f"--patch {times(patch)}: {len(patch)} sizes for {axes} axes", hint=f"give {axes}, or --axes")


def _patches(grid: Grid) -> Iterator[Three]:
    """Yield patches from the whole of a usual case down, the longest axis in mm cut first."""
    usual = np.percentile(grid.shapes, _USUAL, axis=0)
    size = [_whole(float(n), typical) for n, typical in zip(usual, grid.typical, strict=True)]
    size[:2] = [max(n, _LEAST // 2) for n in size[:2]]
    size[2] = size[2] if grid.axes == 3 else 1
    yield tuple_of_three(size)
    while longest := [axis for axis in range(3) if size[axis] > _LEAST]:
        axis = max(longest, key=lambda axis: (size[axis] * grid.spacing[axis], axis))
        size[axis] -= _grain(size[axis])
        yield tuple_of_three(size)


def _whole(usual: float, typical: int) -> int:
    """Return a multiple of the stride near a usual size, which covers a typical one."""
    nearest = floor(usual / _grain(usual) + 0.5) * _grain(usual)
    return max(nearest, ceil(typical / _grain(typical)) * _grain(typical))


def _grain(size: float) -> int:
    """Return the stride that an axis of that size gets.

    >>> [_grain(size) for size in (5, 20, 36, 150)]
    [1, 4, 8, 16]
    """
    return min(_GRAIN, 2 ** floor(log2(size / _COARSEST))) if size >= _COARSEST else 1


def _network(patch: Three, grid: Grid, effort: Effort, wishes: Wishes) -> Network:
    name = wishes.network or "unet"
    if name not in _UNETS:
        return Network(architecture=name)
    strides, kernels = stages(patch[: grid.axes], grid.spacing[: grid.axes], most=effort.halvings)
    options: dict[str, JsonValue] = {}
    if effort.stem and prod(patch) >= _STEM_VOXELS and len(strides) > 1:
        options["stem_stride"] = _short(strides[0])
        strides, kernels = strides[1:], kernels[1:]
    options["widths"] = _widths(len(kernels), effort, wishes)
    if any(step != 2 for stride in strides for step in stride):
        options["strides"] = [_short(stride) for stride in strides]
    if any(size != 3 for kernel in kernels for size in kernel):
        options["kernels"] = [_short(kernel) for kernel in kernels]
    options |= {"residual": True} if name == "unet" and effort.residual else {}
    options |= {"deep_supervision": True} if effort.supervised else {}
    return Network(architecture=name, options=options)


def _widths(count: int, effort: Effort, wishes: Wishes) -> list[JsonValue]:
    if wishes.widths is None:
        return [min(effort.width << stage, effort.widest) for stage in range(count)]
    if len(wishes.widths) != count:
        raise UsageError(
            f"--widths {times(wishes.widths)}: the network has {count} stages", hint="give a width for each"
        )
    return list(wishes.widths)


def stages(
    patch: Sequence[int], spacing: Sequence[float], *, most: int
) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Return the stride into each further stage, and the kernel of each stage, per axis.

    An axis is halved while at least 4 voxels remain; one more than twice as coarse as another that is halved waits
    until it no longer is, and gets kernel 1 as long as it is more than twice as coarse as any. The kernels of the
    coarsest stage are 3.

    Parameters
    ----------
    patch : sequence of int
        Voxels per axis.
    spacing : sequence of float
        mm per axis.
    most : int
        Halvings, at most.

    Examples
    --------
    >>> stages((64, 64, 16), (0.6, 0.6, 2.0), most=5)
    ([(2, 2, 1), (2, 2, 2), (2, 2, 2), (2, 2, 1)], [(3, 3, 1), (3, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3)])
    """
    size, mm = list(patch), list(spacing)
    strides: list[tuple[int, ...]] = []
    kernels = [tuple(1 if a > _ISOTROPIC * min(mm) else 3 for a in mm)]
    while len(strides) < most:
        finest = min((a for a, n in zip(mm, size, strict=True) if n >= 2 * _COARSEST), default=0.0)
        stride = tuple(
            2 if n >= 2 * _COARSEST and a <= _ISOTROPIC * finest else 1 for a, n in zip(mm, size, strict=True)
        )
        if max(stride) == 1:
            break
        size = [ceil(n / step) for n, step in zip(size, stride, strict=True)]
        mm = [a * step for a, step in zip(mm, stride, strict=True)]
        strides.append(stride)
        wide = [a <= _ISOTROPIC * min(mm) for a in mm]
        kernels.append(tuple(3 if now else before for now, before in zip(wide, kernels[-1], strict=True)))
    alone = (1,) * len(size)
    threes = (3,) * len(size)
    return (strides, [*kernels[:-1], threes]) if strides else ([alone], [kernels[0], threes])


def _short(numbers: tuple[int, ...]) -> JsonValue:
    """Return one number where it stands for all axes."""
    return numbers[0] if len({*numbers}) == 1 else list(numbers)


def _memory(draft: Plan, patch: Three, network: Network, wishes: Wishes) -> Memory:
    try:
        return memory(draft.model_copy(update={"patch": patch, "network": network}))
    except PlanError as error:
        option = f"--network {wishes.network}" if wishes.network else f"--patch {times(patch)}"
        raise UsageError(f"{option}: {error.problem}", hint=error.hint) from error


def _batch(patch: Three, need: Memory, grid: Grid, machine: Machine) -> int:
    """Return how many patches a step takes: those that fit, no more than the effort, and few of all voxels."""
    fitting = (machine.memory - need.fixed) // need.patch
    few = int(_SHARE * grid.voxels / prod(patch))
    return max(2, min(fitting, few, effort_of(machine, grid.axes).batch))
