"""The loops over voxels that take an answer of the network to a label map, and where they run.

`plain` has the loops in steps of whole arrays, for numpy and torch; `compiled` has them for numpy, compiled; `host`
chooses between the two. `device` is the one file that imports torch.
"""

from medseg.kernels.host import Host, compile_now
from medseg.kernels.place import Place
from medseg.kernels.plain import CERTAIN, Taps

__all__ = ["CERTAIN", "Host", "Place", "Taps", "compile_now"]
