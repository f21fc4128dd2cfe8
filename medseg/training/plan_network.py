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
from medseg.training.machine import Machine
from medseg.training.plan_choice import ASKED, Choice, Wishes, times
from medseg.training.plan_grid import Grid
from medseg.training.plan_memory import Memory, gigabytes, memory

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
    """

    width: int
    widest: int
    halvings: int
    voxels: int
    batch: int
    stem: bool = False
    supervised: bool = False


# On two cores a step of two 40 x 56 x 40 patches takes 0.13 s with a stem of stride 2 and widths 32, 64, 128, and
# 0.45 s without and widths 16, 32, 64, 128, which is as many weights. The patch of a GPU is that of nnU-Net's L.
EFFORTS = {
    ("cpu", 2): Effort(width=16, widest=128, halvings=5, voxels=256**2, batch=2),
    ("cpu", 3): Effort(width=32, widest=256, halvings=4, voxels=80**3, batch=2, stem=True),
    ("gpu", 2): Effort(width=32, widest=512, halvings=7, voxels=1024**2, batch=9, supervised=True),
    ("gpu", 3): Effort(width=32, widest=320, halvings=5, voxels=160 * 192 * 160, batch=9, supervised=True),
}


@dataclass(frozen=True)
class Fit:
    """A network with its patch and batch, and the memory that training takes."""

    patch: Three
    network: Network
    batch: int
    memory: Memory
