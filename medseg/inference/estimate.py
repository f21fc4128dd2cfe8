"""How long a scan would take, and how much memory, found out on one window near its middle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod

from medseg.geometry import Geometry, tuple_of_three
from medseg.inference.engine import Pass, is_air
from medseg.inference.heap import give_back
from medseg.inference.stage import Stage
from medseg.inference.uncertainty import Watch
from medseg.inference.windows import Three, Windows
from medseg.kernels import Host
from medseg.prepare import Prepared
from medseg.restore import Placement
from medseg.volume import Volume

_MOST, _LONG = 20, 1.0  # so many windows, or seconds, are tried at most, but no fewer than two


@dataclass(frozen=True)
class Estimate:
    """What a pass over a scan would take.

    Parameters
    ----------
    windows : dict
        How many would be 'answered', and how many hold only 'air'.
    strips : int
        Parts in which it would run, to fit into memory.
    seconds : dict
        Of each part of the pass.
    host, device : int
        Bytes beside what the process holds already, and on a device with memory of its own.
    sample : Pass
        The pass over one window from which this was found.
    share : float
        Of the scan's voxels, those that the sample restored.
    """

    windows: dict[str, int]
    strips: int
    seconds: dict[str, float]
    host: int
    device: int
    sample: Pass
    share: float


def estimate(
    stage: Stage,
    prepared: Prepared,
    onto: Geometry,
    *,
    overlap: float | None = None,
    memory: int | None = None,
    probabilities: bool = False,
    watch: Watch | None = None,
) -> Estimate:
    """Return what a pass would take; arguments as of `Stage.run`.

    Raises
    ------
    MemoryLimit
        If it would not fit.
    """
    windows = stage.windows(prepared, overlap)
    need = stage.need(windows, onto, probabilities=probabilities, watch=watch)
    need, strips = stage.fitted(need, memory)
    if not need.working:
        need = replace(need, working=stage.working(stage.backend))
    corners = [corner for strip in windows.strips(strips) for corner in strip.corners]
    seen = [corner for corner in corners if not is_air(prepared, stage.plan, windows, corner)]
    part, region = _around(_most_central(seen or corners, windows), windows, prepared, onto)
    host = stage.backend.place
    if isinstance(host, Host):
        host.expect(float(prod(windows.shape)) * stage.channels, wait=True)
    sampled = partial(_sampled, stage, part, region, probabilities=probabilities, watch=watch)
    sampled(1)  # the first call of a network is slower than all others
    once = sampled(1)
    count = max(2, min(_MOST, int(_LONG / sum(once.seconds.values()))))
    often = sampled(count)
    give_back()
    covered, share = _covered(prepared.geometry, onto), max(1, _covered(part.geometry, region))
    blend = (often.seconds["blend"] - once.seconds["blend"]) / (count - 1)  # without what a new slab takes
    seconds = {
        "network": len(seen) * often.seconds["network"] / count,
        "blend": len(seen) * max(0.0, blend),
        "restore": once.seconds["restore"] * covered / share,
    }
    on_device = stage.backend.room() is not None
    return Estimate(
        {"answered": len(seen), "air": len(corners) - len(seen)},
        strips,
        seconds,
        need.on_host + (0 if on_device else need.beside(strips)),
        need.beside(strips) if on_device else 0,
        once,
        share / max(1, covered),
    )


def _sampled(
    stage: Stage, part: Prepared, region: Geometry, count: int, *, probabilities: bool, watch: Watch | None
) -> Pass:
    """Return a pass over as much as one window sees, which is answered so many times."""
    windows = stage.windows(part, 0.0)
    i, j, k = windows.starts
    windows = replace(windows, starts=(i * count, j, k))
    sample = Pass(part, region, stage.plan, stage.backend, windows=windows, probabilities=probabilities)
    if watch:
        watch.begin(part, windows, stage.backend.place)
    sample.run(watch=watch)
    return sample


def _most_central(corners: Sequence[Three], windows: Windows) -> Three:
    """Return the corner of the window that lies nearest to the middle of the grid."""

    def away(corner: Three) -> int:
        ends = zip(corner, windows.end(corner), windows.shape, strict=True)
        return sum((start + stop - size) ** 2 for start, stop, size in ends)

    return min(corners, key=away)


def _around(corner: Three, windows: Windows, prepared: Prepared, onto: Geometry) -> tuple[Prepared, Geometry]:
    """Return as much of a scan as one window sees, and the grid of the scan there."""
    start = tuple_of_three(max(0, at) for at in corner)
    stop = tuple_of_three(min(size, at) for size, at in zip(windows.shape, windows.end(corner), strict=True))
    box = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
    volume = Volume(prepared.volume.array[(slice(None), *box)], prepared.geometry.cropped(start, stop))
    place = Placement.of(volume.geometry, onto)
    region = onto.reordered(place.order).cropped(
        tuple_of_three(span.start for span in place.box), tuple_of_three(span.stop for span in place.box)
    )
    return Prepared(volume, prepared.rescale), region


def _covered(grid: Geometry, onto: Geometry) -> int:
    count = 1
    for span in Placement.of(grid, onto).box:
        count *= span.stop - span.start
    return count
