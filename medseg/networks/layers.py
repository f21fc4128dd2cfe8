"""PyTorch's layers by the number of spatial axes."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

Layer = Callable[..., nn.Module]
CONV: dict[int, Layer] = {2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED: dict[int, Layer] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
MAX_POOL: dict[int, Layer] = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
BATCH_NORM: dict[int, Layer] = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
INSTANCE_NORM: dict[int, Layer] = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
