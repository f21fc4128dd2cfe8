"""One case, opened once: what is wrong with it, and what is kept of it when its voxels are gone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from medseg.errors import GeometryError, MedsegError, ScanError, ShapeMismatch
from medseg.geometry import Geometry
from medseg.io import PICTURES, read
from medseg.plan import Label
from medseg.training.alignment import RoundingError, laid
from medseg.training.check.suspicion import Scene, Trace, trace
from medseg.training.dataset import Case, Dataset, File, Finding
from medseg.training.planning.survey import CaseFacts
from medseg.training.planning.symmetry import coarse
from medseg.volume import LabelMap, Volume

T = TypeVar("T")

_DRAWN = 2000  # voxels at which intensities are noted
_LISTED = 5  # values that one sentence names
_ONE_VOLUME = "give files of one volume each (`medseg convert --volume N`, or the pages of a stack as NIfTI or NRRD)"


@dataclass(frozen=True, eq=False)
class Portrait:
    """What a readable case looks like.

    Parameters
    ----------
    facts : CaseFacts
        For the plan; its volumes are not yet told by label.
    voxel_ml : float
        mL of a voxel.
    counts : dict
        Voxels of each value in the reference, without background.
    named : tuple of Label
        What the file of the reference calls them; empty where it does not.
    picture : bool
        Whether the scan is one file of a picture format.
    image_digest, label_digest : str
        Of the voxels, in whatever order they are stored.
    warnings : tuple of str
        What was odd about the files.
    trace : Trace, optional
        By which it is judged whether the label follows the image.
    """

    facts: CaseFacts
    voxel_ml: float
    counts: dict[int, int]
    named: tuple[Label, ...]
    picture: bool
    image_digest: str
    label_digest: str
    warnings: tuple[str, ...]
    trace: Trace | None

    @property
    def flat(self) -> bool:
        """Whether the scan is one slice."""
        return 1 in self.facts.shape

    @property
    def foreground(self) -> int:
        """Labelled voxels."""
        return sum(self.counts.values())


@dataclass(frozen=True, eq=False)
class Seen:
    """A case that was opened: what was found, the values in its reference, and its portrait if both go together."""

    findings: tuple[Finding, ...]
    values: tuple[int, ...] = ()
    portrait: Portrait | None = None


def inspect(case: Case, dataset: Dataset, *, seed: int, fix: bool) -> Seen:
    """Return what is to be said of a case; each of its files is read once.

    Parameters
    ----------
    case : Case
        Of the data set.
    dataset : Dataset
        Says which values its references may hold.
    seed : int
        Of the choice of voxels.
    fix : bool
        Whether a reference may lie off its scan's grid by rounding noise.
    """
    findings: list[Finding] = []
    scan = _opened(case, case.scan, findings)
    drawn = _opened(case, case.labels, findings)
    if scan is not None:
        findings += _about_intensities(case, scan)
    counts = _counts(drawn) if drawn else {}
    if drawn is not None:
        findings += _about_values(case, drawn, counts, dataset)
    if scan is None or drawn is None:
        return Seen(tuple(findings), tuple(counts))
    reference = _on_grid(case, drawn, scan.geometry, findings, fix=fix)
    if reference and reference.array.size != drawn.array.size:
        counts = _counts(reference)
    portrait = _portrait(case, scan, reference, counts, dataset, seed=seed) if reference else None
    return Seen(tuple(findings), tuple(counts), portrait)


def scene_of(case: Case, dataset: Dataset, *, fix: bool) -> Scene:
    """Return intensities and labelled voxels of a case in RAS."""
    scan = case.scan()
    order = scan.geometry.order_to("RAS")
    return order.apply(scan.array), _foreground(order.apply(laid(case.labels(), scan.geometry, fix=fix).array), dataset)


def listed(values: list[str]) -> str:
    """Return the first few of many, and how many more there are."""
    more = f" and {len(values) - _LISTED} more" if len(values) > _LISTED else ""
    return ", ".join(values[:_LISTED]) + more


def _opened(case: Case, read_it: Callable[[], T], findings: list[Finding]) -> T | None:
    try:
        return read_it()
    except ShapeMismatch as error:
        findings.append(Finding("error", "CHANNELS", case.name, str(error)))
    except MedsegError as error:
        code = error.code if isinstance(error, ScanError) else "UNREADABLE"
        odd = _odd_values(case.reference) if code == "NOT_LABELS" else ""
        said = f"{error.problem}; {_ONE_VOLUME}" if code == "SEVERAL_VOLUMES" else str(error)
        findings.append(Finding("error", code, case.name, f"{said}{odd}"))
    return None


def _odd_values(file: File) -> str:
    """Return which values of a label map are none."""
    try:
        array = read(file.path, volume=file.volume).array
    except MedsegError:
        return ""
    values, counts = np.unique(array[(array != np.rint(array)) | (array < 0) | (array > 65535)], return_counts=True)
    found = [f"{value:.6g} ({count} voxels)" for value, count in zip(values.tolist(), counts.tolist(), strict=True)]
    return f"; it holds {listed(found)}" if found else ""


def _about_intensities(case: Case, scan: Volume) -> list[Finding]:
    constant = [number for number, channel in enumerate(scan.array) if channel.min() == channel.max()]
    if len(constant) == len(scan.array):
        value = f"{float(scan.array.flat[0]):g}"
        return [Finding("error", "CONSTANT", case.name, f"every voxel of the image is {value}; export it again")]
    detail = f"every voxel of channel {', '.join(map(str, constant))} has one value; is that channel missing?"
    return [Finding("warning", "CONSTANT", case.name, detail)] if constant else []


def _about_values(case: Case, drawn: LabelMap, counts: dict[int, int], dataset: Dataset) -> list[Finding]:
    counts = {value: count for value, count in counts.items() if value != dataset.ignore}
    if not counts and (drawn.array == dataset.ignore).all():
        return [
            Finding("error", "IGNORED", case.name, f"every voxel is {dataset.ignore}, to be ignored; drop the case")
        ]
    if not counts:
        return [Finding("warning", "EMPTY", case.name, "no voxel is labelled; is that so?")]
    known = {atom for label in dataset.labels for atom in label.atoms}
    unknown = [f"{value} ({count} voxels)" for value, count in counts.items() if value not in known]
    if known and unknown:
        names = listed([f"{', '.join(map(str, label.atoms))} {label.name}" for label in dataset.labels])
        detail = f"holds {listed(unknown)}, which is no label; labels are {names}"
        return [Finding("error", "UNKNOWN_VALUE", case.name, detail)]
    if drawn.source and drawn.source.format == "jpeg" and len(counts) > 1:
        detail = f"the label is a JPEG, which changes values: it holds {len(counts)}; save it as PNG from its source"
        return [Finding("error", "LOSSY", case.name, detail)]
    return []


def _on_grid(case: Case, drawn: LabelMap, grid: Geometry, findings: list[Finding], *, fix: bool) -> LabelMap | None:
    try:
        return laid(drawn, grid)
    except RoundingError as error:
        if not fix:
            findings.append(Finding("error", "GRID_ROUNDING", case.name, str(error)))
            return None
        said = error.problem
    except GeometryError as error:
        findings.append(Finding("error", "GRID", case.name, str(error)))
        return None
    try:
        reference = laid(drawn, grid, fix=True)
    except GeometryError as error:
        findings.append(Finding("error", "GRID", case.name, str(error)))
        return None
    findings.append(Finding("warning", "GRID_ROUNDING", case.name, f"{said}; brought onto the image's grid"))
    return reference


def _portrait(
    case: Case, scan: Volume, reference: LabelMap, counts: dict[int, int], dataset: Dataset, *, seed: int
) -> Portrait:
    order = scan.geometry.order_to("RAS")
    image, values = order.apply(scan.array), order.apply(reference.array)
    mask = _foreground(values, dataset)
    sources = [source for source in (scan.source, reference.source) if source]
    return Portrait(
        facts=_facts(case.name, image, mask, scan.geometry.reordered(order), seed),
        voxel_ml=scan.geometry.voxel_volume / 1000,
        counts={value: count for value, count in counts.items() if value != dataset.ignore},
        named=reference.labels,
        picture=bool(scan.source and scan.source.format in PICTURES and len(case.images) == 1),
        image_digest=_digest(image, np.float32),
        label_digest=_digest(values[None], np.uint16),
        warnings=tuple(dict.fromkeys(warning for source in sources for warning in source.warnings)),
        trace=trace((image, mask), len(dataset.cases), seed=seed),
    )


def _facts(name: str, image: npt.NDArray[Any], mask: npt.NDArray[np.bool_], grid: Geometry, seed: int) -> CaseFacts:
    """Return the facts of a case whose voxels lie in RAS; its volumes are filled in when its labels are known."""
    rng = np.random.default_rng(seed)
    labelled = np.flatnonzero(mask.ravel(order="F"))  # the order in which most files lie
    drawn = [
        labelled if len(labelled) <= _DRAWN else np.sort(rng.choice(labelled, _DRAWN, replace=False)),
        np.sort(rng.choice(mask.size, min(mask.size, _DRAWN), replace=False)),
    ]
    floor = np.ones(mask.shape, bool)
    for channel in image:
        floor &= channel == channel.min()
    foreground, whole = (_intensities(image, at) for at in drawn)
    return CaseFacts(
        name=name,
        shape=grid.shape,
        spacing=grid.spacing,
        physical=grid.physical,
        foreground=foreground,
        whole=whole,
        floor_share=float(floor.mean()),
        volumes_ml={},
        coarse=coarse(image),
    )


def _intensities(image: npt.NDArray[Any], places: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    i, j, k = np.unravel_index(places, image.shape[1:], order="F")
    found: npt.NDArray[np.float32] = image[:, i, j, k].astype(np.float32)
    return found


def _foreground(values: npt.NDArray[Any], dataset: Dataset) -> npt.NDArray[np.bool_]:
    found: npt.NDArray[np.bool_] = values > 0
    return found if dataset.ignore is None else found & (values != dataset.ignore)


def _counts(labels: LabelMap) -> dict[int, int]:
    """Return the voxels of each value but 0."""
    values = tuple(Label(value=value, name=str(value)) for value in labels.values())
    return {int(name): count for name, count in replace(labels, labels=values).counts().items()}


def _digest(array: npt.NDArray[Any], dtype: type[np.generic]) -> str:
    """Return a digest of voxels (C, X, Y, Z), one plane after the other."""
    digest = hashlib.blake2b(repr(array.shape).encode(), digest_size=16)
    for channel in array:
        for plane in np.moveaxis(channel, 2, 0):
            digest.update(np.add(np.ascontiguousarray(plane.T, dtype), 0, dtype=dtype).data)  # -0 is 0
    return digest.hexdigest()
