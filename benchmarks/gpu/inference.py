"""The tables of `benchmarks/inference.py` on a CUDA card, and the share of the time in which the card computes.

    python benchmarks/gpu/inference.py --case a b c --data HIPPOCAMPUS --output FOLDER [--nnunet VENV]

Needs the folder `benchmarks`, medseg and a build of torch for CUDA. MONAI and nnU-Net take part where they are
installed (nnU-Net here, or in VENV), and are left out with a line where not. All compute in half precision: medseg by
its own choice, the others under autocast. The share is the mean of what `nvidia-smi` says ten times a second between
the scan in memory and the label map. Options are those of `benchmarks/inference.py`; `--device cpu` tries it out.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import inference

if __name__ == "__main__":
    inference.main(device="cuda")
