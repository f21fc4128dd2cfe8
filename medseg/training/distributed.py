"""Several devices that share each batch, through lightning-fabric: the only file that imports it.

Imported only when more than one device is asked for: its import takes twice as long as that of torch.
"""

from __future__ import annotations

import logging
import os
import warnings
from datetime import timedelta

import torch
from torch import Tensor, nn

from medseg.errors import DeviceError, UsageError

_PATIENCE = timedelta(days=7)  # of processes that wait while the first one prepares cases or scores


class Together:
    """One of several processes that train one network; the others run the same command.

    Parameters
    ----------
    kind : 'cpu' or 'cuda'
        Of the devices.
    count : int
        Devices on each machine.
    nodes : int
        Machines; the command is started on each by `torchrun` or Slurm.

    Raises
    ------
    UsageError
        If lightning-fabric is not installed.
    DeviceError
        If the devices are not there.
    """

    def __init__(self, kind: str, count: int, nodes: int) -> None:
        try:
            from lightning_fabric import Fabric
            from lightning_fabric.strategies.ddp import DDPStrategy
        except ImportError as error:
            raise UsageError(
                "several devices need lightning-fabric", hint="install it by: pip install medseg[distributed]"
            ) from error
        if kind == "cuda" and torch.cuda.device_count() < count:
            raise DeviceError(
                f"--devices {count}: this machine has {torch.cuda.device_count()} cards", hint="give fewer --devices"
            )
        logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
        backend = "nccl" if kind == "cuda" else "gloo"
        strategy = DDPStrategy(process_group_backend=backend, timeout=_PATIENCE)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # advice on settings that medseg makes by itself
            self._fabric = Fabric(accelerator=kind, devices=count, num_nodes=nodes, strategy=strategy)
            self._fabric.launch()
        if kind == "cpu":
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // count))
        self.rank: int = self._fabric.global_rank
        self.count: int = self._fabric.world_size
        self.device: torch.device = self._fabric.device

    def wrap(self, network: nn.Module) -> nn.Module:
        """Return a network whose gradients are means over all processes."""
        wrapped: nn.Module = self._fabric.setup_module(network)
        return wrapped

    def backward(self, loss: Tensor) -> None:
        """Compute the gradients, and their means."""
        self._fabric.backward(loss)

    def agree(self, value: float) -> float:
        """Return the value of the first process."""
        return float(self._fabric.broadcast(value))

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean over all processes."""
        return torch.as_tensor(self._fabric.all_reduce(values, reduce_op="mean"))

    def wait(self) -> None:
        """Wait until all processes are here."""
        self._fabric.barrier()
