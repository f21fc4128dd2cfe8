"""MONAI, as a careful user writes it.

The scan is read, turned and normalised by MONAI's transforms, and brought to the plan's grid by a trilinear
`F.interpolate` (the cheapest there is). Windows go through `sliding_window_inference`, Gaussian, one at a time (four on
CUDA, under autocast). The logits go back by a trilinear `F.interpolate`. "Whole" does so with all classes at once and
takes their arg-max, as one writes it first (`Invertd` does the same by `grid_sample`, which takes longer). The others
take one class after the other and a running arg-max: the same labels in less time, and the only way that fits into
memory with many labels. "Buffered" means one step along the first axis: of those tried, the fastest that takes little
more memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import monai
import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import sliding_window_inference
from monai.transforms import ClipIntensityPercentiles, LoadImage, NormalizeIntensity, Orientation, SaveImage
from network import Clock, Mean, read_bundle
from torch.nn.functional import interpolate


class Method:
    """MONAI's inferer."""

    def __init__(self, job: dict[str, Any]) -> None:
        torch.set_num_threads(job["threads"])
        self.device, self._overlap = job["device"], job["overlap"]
        self._cuda = self.device.startswith("cuda")
        self._plan, members = read_bundle(job["bundle"])
        self._clock = Clock()
        self._network = self._clock.watch(Mean(members).to(self.device).eval())
        self._load = LoadImage(image_only=True, ensure_channel_first=True)
        self._turn = Orientation(self._plan["orientation"])
        self._whole = job["variant"] == "whole"
        self._buffers = {"buffer_steps": 1, "buffer_dim": 0} if job["variant"] == "buffered" else {}

    def read(self, path: Path) -> MetaTensor:
        """Return a scan."""
        return self._load(path)

    @torch.inference_mode()
    def predict(self, scan: MetaTensor) -> MetaTensor:
        """Return its label map."""
        turned = self._turn(scan)
        self._turned, self._shape = turned, turned.shape[1:]
        given = self._normalised(self._resampled(turned))
        self._logits = self._slide(given)
        labels = self._labels()
        return self._back(labels)

    def _back(self, values: torch.Tensor) -> MetaTensor:
        """Return values (I, J, K) as the scan is stored."""
        turned = self._turned
        return self._turn.inverse(
            MetaTensor(values[None].cpu(), meta=turned.meta, applied_operations=turned.applied_operations)
        )

    def _resampled(self, scan: MetaTensor) -> MetaTensor:
        """Return a scan on the plan's grid, which covers the same box."""
        spacing = self._plan["spacing"] or scan.pixdim.tolist()
        wanted = [round(n * float(mm) / new) for n, mm, new in zip(scan.shape[1:], scan.pixdim, spacing, strict=True)]
        if wanted == [*scan.shape[1:]]:
            return scan
        tensor = interpolate(scan.as_tensor()[None], wanted, mode="trilinear", align_corners=False)
        return MetaTensor(tensor[0], meta=scan.meta)

    def _normalised(self, scan: MetaTensor) -> torch.Tensor:
        rule = self._plan["channels"][0]["intensity"]
        if rule["kind"] == "zscore":
            scan = NormalizeIntensity()(ClipIntensityPercentiles(*rule["clip_percentiles"])(scan))
        else:
            scan = NormalizeIntensity(rule["mean"], rule["deviation"])(scan.clamp(rule["low"], rule["high"]))
        return scan.as_tensor()[None].to(self.device)

    def _slide(self, given: torch.Tensor) -> torch.Tensor:
        """Return the logits (L, I, J, K); on the host where the card has no room for them."""
        options = {"overlap": self._overlap, "mode": "gaussian", "sw_device": self.device, **self._buffers}
        size, batch = self._plan["patch"], 4 if self._cuda else 1
        with torch.autocast("cuda", enabled=self._cuda):
            try:
                return sliding_window_inference(given, size, batch, self._network, device=self.device, **options)[0]
            except torch.cuda.OutOfMemoryError:
                torch.cuda.empty_cache()
                return sliding_window_inference(given.cpu(), size, batch, self._network, device="cpu", **options)[0]

    def _classes(self) -> Iterator[torch.Tensor]:
        """Yield the logits of one class after the other on the scan's grid."""
        for plane in self._logits:
            whole = plane.to(self.device, torch.float32)
            if whole.shape != self._shape:
                whole = interpolate(whole[None, None], self._shape, mode="trilinear", align_corners=False)[0, 0]
            yield whole

    def _labels(self) -> torch.Tensor:
        """Return the label map on the scan's grid."""
        if self._logits.shape[1:] == self._shape:
            return self._logits.argmax(0).to(torch.uint8)
        if self._whole:
            whole = interpolate(self._logits[None].float(), self._shape, mode="trilinear", align_corners=False)
            return whole[0].argmax(0).to(torch.uint8)
        classes = self._classes()
        best = next(classes)
        labels = torch.zeros_like(best, dtype=torch.uint8)
        for label, logits in enumerate(classes, start=1):
            labels.masked_fill_(logits > best, label)
            torch.maximum(best, logits, out=best)
        return labels

    def write(self, labels: MetaTensor, path: Path) -> None:
        """Write the label map."""
        save = SaveImage(
            output_dir=path.parent,
            output_postfix="",
            separate_folder=False,
            resample=False,
            output_dtype=np.uint8,
            print_log=False,
        )
        save(labels)

    @torch.inference_mode()
    def write_margins(self, path: Path) -> None:
        """Write for each voxel of the scan by how much the best logit exceeds the next."""
        classes = self._classes()
        best = next(classes).clone()
        second = torch.full_like(best, -torch.inf)
        for logits in classes:
            torch.maximum(second, torch.minimum(best, logits), out=second)
            torch.maximum(best, logits, out=best)
        np.save(path, self._back(best - second)[0].numpy())

    def counts(self) -> dict[str, float]:
        """Return the seconds in the network and the windows of the last scan."""
        seconds, windows = self._clock.read()
        return {"network": seconds, "windows": windows}

    def about(self) -> dict[str, Any]:
        """Return what else a reader wants to know."""
        return {
            "backend": f"torch, {'autocast' if self._cuda else 'float32'}, {self.device}",
            "versions": {"monai": monai.__version__, "torch": torch.__version__, "numpy": np.__version__},
        }
