"""What `medseg models optimize` does for one network of a model, and says of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medseg.bundle import Bundle

_MOST = 300  # windows that scale int8


def optimize_stage(
    stage: Bundle,
    scans: Sequence[Path],
    *,
    precision: str,
    mirror: bool,
    disagreement: bool,
    threads: int | None,
) -> None:
    """Make and keep the form of one network, and print how it compares with torch."""
    from medseg.inference.optimising import make

    form, found = make(
        stage,
        precision=precision,
        mirror=mirror,
        disagreement=disagreement,
        threads=threads,
        windows=_windows(stage, scans) if scans else (),
    )
    print(f"{stage.card.name} {stage.card.version}, windows of {' x '.join(map(str, stage.plan.patch))} voxels")
    print(f"  torch, float32        {found.before * 1e3:9.1f} ms per window")
    print(
        f"  {f'openvino, {precision}':<22}{found.after * 1e3:9.1f} ms per window,"
        f" {found.before / found.after:.1f} times as fast"
    )
    print(
        f"  same label in {found.agreement:.4%} of the voxels of {'scans' if scans else 'noise'}; logits differ by up"
    )
    print(f"  to {found.difference:.1e}, where the largest is {found.largest:.1f}")
    print(f"  kept in {form.network.parent} ({form.size / 1e6:.1f} MB); `medseg predict` now takes it by itself")


def _windows(stage: Bundle, scans: Sequence[Path]) -> list[Any]:
    """Return windows of scans, from all over them."""
    from medseg.cli.inputs import Options, find_jobs
    from medseg.inference.optimising import windows_of
    from medseg.io import read
    from medseg.prepare import prepare
    from medseg.volume import stack_channels

    plan = stage.plan
    found: list[Any] = []
    jobs = find_jobs(scans, (), plan, Options(None, (), picture=False, probabilities=False))
    for job in jobs:
        scan = stack_channels([read(path) for path in job.scan])
        own = list(windows_of(prepare(scan, plan), plan))
        found += own[:: -(-len(own) * len(jobs) // _MOST)]
    return found
