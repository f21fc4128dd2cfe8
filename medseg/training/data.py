"""From the files of a case to what the loop learns from: scan and reference on the plan's grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medseg.errors import UsageError
from medseg.geometry import Geometry
from medseg.plan import Label, Plan
from medseg.prepare import Prepared, prepare
from medseg.restore import resample_labels
from medseg.training.alignment import laid
from medseg.training.dataset import Case
from medseg.training.losses import border_weights
from medseg.training.patches import IGNORE, Sample, points_of
from medseg.volume import LabelMap, looked_up


@dataclass(frozen=True)
class Legend:
    """What the values in the references mean to a plan.

    Parameters
    ----------
    labels : tuple of Label
        Names and values (atoms) as they stand in the references; those of the plan when left out.
    atoms : mapping of int to int
        The plan's atom for each value; its own where it is not named.
    ignore : int, optional
        The value of voxels that nobody has drawn.
    fix : bool
        Whether a reference may lie off its scan's grid by rounding noise.
    """

    labels: tuple[Label, ...] = ()
    atoms: Mapping[int, int] = field(default_factory=dict)
    ignore: int | None = None
    fix: bool = False


@dataclass(frozen=True, eq=False)
class PreparedCase:
    """A case on the plan's grid, and its reference with the plan's labels on the scan's own grid."""

    sample: Sample
    prepared: Prepared
    reference: LabelMap


def prepare_case(case: Case, plan: Plan, legend: Legend | None = None) -> PreparedCase:
    """Return a case as the loop and the quality check see it.

    The scan comes by `prepare`, as in predicting; the reference by the way that answers go back.

    Raises
    ------
    ScanError
        If a file cannot be read.
    GeometryError
        If the reference does not lie on the scan's grid.
    UsageError
        If the reference holds a value that the legend does not know.
    """
    scan = case.scan()
    prepared = prepare(scan, plan)
    channels = _drawn_channels(case, plan, legend or Legend(), scan.geometry)
    target = resample_labels(channels, scan.geometry, prepared.geometry)[None]
    sample = Sample(prepared.array(), target, points=points_of(target))
    return PreparedCase(sample, prepared, _in_atoms(channels, plan, scan.geometry))


def reference_of(case: Case, plan: Plan, legend: Legend, geometry: Geometry) -> tuple[LabelMap, npt.NDArray[np.bool_]]:
    """Return the reference of a case with the plan's labels on the grid of its scan, and where it has been drawn.

    Raises
    ------
    MedsegError
        As `prepare_case`.
    """
    channels = _drawn_channels(case, plan, legend, geometry)
    return _in_atoms(channels, plan, geometry), channels != IGNORE


def _drawn_channels(case: Case, plan: Plan, legend: Legend, geometry: Geometry) -> npt.NDArray[np.uint8]:
    """Return the channel number of each voxel of a scan, as its reference says."""
    drawn = laid(case.labels(legend.labels or plan.labels), geometry, fix=legend.fix)
    return looked_up(_table(drawn, plan, legend, case.name), drawn.array)


def _in_atoms(channels: npt.NDArray[np.uint8], plan: Plan, geometry: Geometry) -> LabelMap:
    atoms = np.zeros(IGNORE + 1, np.min_scalar_type(max(plan.atoms)))
    atoms[1 : len(plan.atoms) + 1] = plan.atoms
    return LabelMap(looked_up(atoms, channels), geometry, plan.labels)


def prepare_sample(case: Case, plan: Plan) -> Sample:
    """Return a case on the plan's grid, in memory."""
    return prepare_case(case, plan).sample


def _table(drawn: LabelMap, plan: Plan, legend: Legend, case: str) -> npt.NDArray[np.uint8]:
    """Return the channel number of each value in a reference."""
    table = np.zeros(int(drawn.array.max()) + 1, np.uint8)
    for value in drawn.values():
        atom = legend.atoms.get(value, value)
        if value == legend.ignore:
            table[value] = IGNORE
        elif atom in plan.atoms:
            table[value] = plan.atoms.index(atom) + 1
        else:
            raise UsageError(
                f"{case}: the reference holds the value {value}, which is no label", hint="see `medseg check`"
            )
    return table


def with_border_weights(sample: Sample, axes: int) -> Sample:
    """Return a sample with the weights of the U-Net paper's loss; cells are the pieces of its labels.

    Pieces are sought in the volume, or with 2 `axes` in each slice.
    """
    cells = sample.target[0]
    parts = np.moveaxis(cells, 2, 0)[..., None] if axes == 2 else cells[None]
    weights = [border_weights(_pieces(part, axes)).reshape(part.shape) for part in parts]
    found = np.concatenate(weights, axis=2) if axes == 2 else weights[0]
    return replace(sample, weights=np.ascontiguousarray(found[None], np.float32))


def _pieces(labels: npt.NDArray[np.uint8], axes: int) -> npt.NDArray[np.int32]:
    """Return a number for each piece of each label, of voxels that touch by their faces."""
    numbers = np.zeros(labels.shape, np.int32)
    for label in range(1, int(labels.max()) + 1):
        pieces, _ = ndimage.label(labels == label)
        numbers[labels == label] = pieces[labels == label] + numbers.max()
    return numbers.reshape(numbers.shape[:axes])
