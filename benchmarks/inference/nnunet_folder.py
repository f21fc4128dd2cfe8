"""nnU-Net v2's folder prediction, `nnUNetPredictor.predict_from_files`, with the network of a bundle of medseg.

    VENV/bin/python benchmarks/inference/nnunet_folder.py BUNDLE INPUT OUTPUT --threads 2 --workers 2

Called by `benchmarks/batch.py`. INPUT holds files named `case_0000.nii.gz`. Its worker processes are its own.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from by_nnunet import Method


def main() -> None:
    """Predict a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("input", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    words = parser.parse_args()
    job = {"bundle": str(words.bundle), "threads": words.threads, "device": words.device, "overlap": 0.5}
    words.output.mkdir(parents=True, exist_ok=True)
    Method(job).folder(words.input, words.output, words.workers)


if __name__ == "__main__":
    main()
