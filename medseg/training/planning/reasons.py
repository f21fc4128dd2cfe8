"""Why a network, its patch and its batch are what they are, in words."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

from medseg.training.planning.choice import ASKED, Choice, Wishes, times
from medseg.training.planning.grid import Grid
from medseg.training.planning.machine import Machine
from medseg.training.planning.memory import amount
from medseg.training.planning.network import Fit, effort_of

_LITTLE = 0.1  # of a typical scan in a patch


def why_fit(fit: Fit, grid: Grid, wishes: Wishes, machine: Machine) -> tuple[Choice, ...]:
    """Return what was chosen for patch, network, batch and memory, and why."""
    patch = Choice("patch", times(fit.patch[: grid.axes]), _why_patch(fit, grid, wishes))
    need, name = fit.memory, machine.name
    memory = Choice(
        "memory",
        f"{amount(need.of(fit.batch))} of {amount(machine.memory)}",
        f"{amount(need.patch)} for each patch and {amount(need.fixed)} beside, estimated; {name}",
    )
    return patch, *_about_network(fit, grid, wishes, machine), _about_batch(fit, grid, wishes, machine), memory


def _why_patch(fit: Fit, grid: Grid, wishes: Wishes) -> str:
    typical = times(grid.typical[: grid.axes])
    seen = prod(min(1.0, n / whole) for n, whole in zip(fit.patch[: grid.axes], grid.typical, strict=False))
    seen_of_it = f"covers a typical scan, {typical}" if seen == 1 else f"{_percent(seen)} of a typical scan, {typical}"
    if wishes.patch:
        return f"{ASKED}; {seen_of_it}"
    if seen == 1 or not fit.limit:
        return seen_of_it
    reason = "as much as memory holds" if fit.limit == "memory" else "as much as time allows"
    coarser = "; a coarser --spacing sees more" if grid.physical and seen < _LITTLE else ""
    return f"{reason}: {seen_of_it}{coarser}"


def _about_network(fit: Fit, grid: Grid, wishes: Wishes, machine: Machine) -> Iterator[Choice]:
    options: dict[str, Any] = fit.network.options
    name, need = fit.network.architecture, fit.memory
    reasons = [f"{need.weights / 1e6:.1f} M weights", *([ASKED] if wishes.network else [])]
    if "widths" not in options:
        yield Choice("network", name, "; ".join([*reasons[::-1], "its default options"]))
        return
    residual = " with residual blocks" if options.get("residual") else ""
    yield Choice("network", name + residual, "; ".join(reasons[::-1]))
    widths = options["widths"]
    lean = "lean, as time decides on a CPU" if machine.kind == "cpu" else "doubled from stage to stage"
    yield Choice("widths", " ".join(map(str, widths)), f"{lean}; coarsest features {times(need.coarsest)}")
    yield _about_stem(options, grid, machine)
    kernels = options.get("kernels", [3] * len(widths))
    waits = "an axis more than twice as coarse as the others waits"
    every = "every axis is halved while it keeps 4 voxels"
    is_coarse = 1 in {size for kernel in kernels for size in (kernel if isinstance(kernel, list) else [kernel])}
    yield Choice("strides", _listed(options.get("strides", [2] * (len(widths) - 1))), waits if is_coarse else every)
    yield Choice(
        "kernels",
        _listed(kernels),
        "1 along an axis more than twice as coarse" if is_coarse else "no axis is much coarser than the others",
    )
    on = bool(options.get("deep_supervision"))
    why = "a few per cent of the time" if on else "left out on a CPU: time decides"
    yield Choice("deep supervision", "on" if on else "off", why)


def _about_stem(options: dict[str, Any], grid: Grid, machine: Machine) -> Choice:
    if "stem_stride" in options:
        why = "on a CPU time decides: the finest grid takes most of it"
        return Choice("stem", f"stride {_listed([options['stem_stride']])}", why)
    if machine.kind != "cpu":
        return Choice("stem", "stride 1", "time enough for the finest grid")
    return Choice("stem", "stride 1", "2D: the finest grid is affordable" if grid.axes == 2 else "the patch is small")


def _about_batch(fit: Fit, grid: Grid, wishes: Wishes, machine: Machine) -> Choice:
    value = f"{fit.batch} patch{'es' * (fit.batch > 1)}"
    if wishes.batch:
        return Choice("batch", value, ASKED)
    share = _percent(min(1.0, fit.batch * prod(fit.patch) / grid.voxels))
    most = effort_of(machine, grid.axes).batch
    limits = f"between 2 and {most}" if most > 2 else f"as ever on a {machine.kind.upper()}"
    return Choice("batch", value, f"{limits}; {share} of all voxels in a step")


def _listed(sizes: list[int | list[int]]) -> str:
    """Return strides or kernels, one word each.

    >>> _listed([[2, 2, 1], 2])
    '2x2x1 2'
    """
    return " ".join("x".join(map(str, size)) if isinstance(size, list) else str(size) for size in sizes)


def _percent(share: float) -> str:
    """Return a share, however small.

    >>> _percent(0.21), _percent(0.00012)
    ('21 %', '0.012 %')
    """
    return f"{share * 100:.2g} %" if share < 1 else "100 %"
