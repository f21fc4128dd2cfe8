"""How long a scan would take, and how much memory, found out on one window from its middle."""

from __future__ import annotations

from dataclasses import dataclass, replace

from medseg.geometry import Geometry, tuple_of_three
from medseg.inference.engine import Pass
from medseg.inference.stage import Stage
from medseg.inference.uncertainty import Watch
from medseg.prepare import Prepared
from medseg.restore import Placement
from medseg.volume import Volume


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
    need = stage.need(windows, onto, probabilities=probabilities, maps=watch.maps if watch else 0)
    need = replace(need, working=stage.working)
    strips = need.strips_within(stage.limit(memory))
    whole = Pass(prepared, onto, stage.plan, stage.backend, windows=windows)
    corners = [corner for strip in windows.strips(strips) for corner in strip.corners]
    air = sum(map(whole.is_air, corners))
    part, region = _middle(prepared, onto, windows.patch)
    for _ in range(2):  # the first call of a network is slower than all others
        sample = Pass(part, region, stage.plan, stage.backend, windows=stage.windows(part, overlap))
        if watch:
            watch.begin(part, sample.windows, stage.backend.place)
        sample.run(watch=watch)
    answered = len(corners) - air
    covered = _covered(prepared.geometry, onto)
    scale = {"network": answered, "blend": answered, "restore": covered / max(1, _covered(part.geometry, region))}
    on_device = stage.backend.room() is not None
    held = need.slab(strips) + need.working
    return Estimate(
        {"answered": answered, "air": air},
        strips,
        {name: seconds * scale[name] for name, seconds in sample.seconds.items()},
        need.lasting + (0 if on_device else held),
        held if on_device else 0,
        sample,
        _covered(part.geometry, region) / max(1, covered),
    )


def _middle(prepared: Prepared, onto: Geometry, patch: tuple[int, int, int]) -> tuple[Prepared, Geometry]:
    """Return as much of a scan as one window sees, from the middle, and the grid of the scan there."""
    shape = prepared.geometry.shape
    start = tuple_of_three(max(0, size - window) // 2 for size, window in zip(shape, patch, strict=True))
    stop = tuple_of_three(min(size, at + window) for size, at, window in zip(shape, start, patch, strict=True))
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
