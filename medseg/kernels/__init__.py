"""The loops over voxels that take an answer of the network to a label map, and where they run."""

from medseg.kernels.host import Host
from medseg.kernels.place import Place
from medseg.kernels.plain import CERTAIN, Taps

__all__ = ["CERTAIN", "Host", "Place", "Taps"]
