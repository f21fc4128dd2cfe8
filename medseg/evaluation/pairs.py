"""Which files of two folders belong together, and the scores of a pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medseg.dicom.parts import holds_dicom
from medseg.errors import UsageError
from medseg.evaluation.case import Case, Settings, evaluate
from medseg.evaluation.grids import on_common_grid
from medseg.io import PICTURES, SUFFIXES, read_labels, scans_in, stem_of, suffix_of
from medseg.progress import Progress, silent
from medseg.volume import LabelMap

_FORMS = ("_labelmap", "_rtstruct", "_sr", "_sc")  # of a result, as `medseg predict` names its DICOM objects


@dataclass(frozen=True)
class Pair:
    """A prediction and its reference, under the name of the case."""

    case: str
    prediction: Path
    reference: Path


@dataclass(frozen=True)
class Pairing:
    """What belongs together, what is left over on either side, and what cannot be told (case and reason)."""

    pairs: tuple[Pair, ...]
    only_predictions: tuple[Path, ...] = ()
    only_references: tuple[Path, ...] = ()
    ambiguous: tuple[tuple[str, str], ...] = ()


def pair_files(predictions: Path, references: Path) -> Pairing:
    """Return the pairs of two files or two folders.

    In folders, files pair by their names without suffix; `_seg` at the end of either name, as `medseg predict` writes,
    does not count. Beside a file with it the scan of the same name is passed over, and so are the picture of a result
    and its DICOM objects beside another form of it.

    A folder with a DICOM SEG or RTSTRUCT and its scan, and no other label map, is one case.

    Raises
    ------
    UsageError
        If a path is not there, one is a file and the other a folder, a folder cannot be listed, or nothing belongs
        together.
    """
    for path in (predictions, references):
        if not path.exists():
            raise UsageError(f"{path}: there is no such file or folder", hint="check the name")
    whole = [not path.is_dir() or _is_one_case(path) for path in (predictions, references)]
    if all(whole):
        return Pairing((Pair(_case(references), predictions, references),))
    if any(whole):
        raise UsageError(
            f"{predictions} and {references}: one is a folder, the other a file", hint="give two files or two folders"
        )
    predicted, true = _label_maps(predictions), _label_maps(references)
    common = sorted(predicted.keys() & true.keys())
    if not common:
        raise UsageError(
            f"{predictions} ({_some(predicted)}) and {references} ({_some(true)}): no two files have one name",
            hint="give each prediction the name of its reference; _seg at the end does not count",
        )
    unclear = {case: files for side in (predicted, true) for case, files in side.items() if len(files) > 1}
    return Pairing(
        tuple(Pair(case, predicted[case][0], true[case][0]) for case in common if case not in unclear),
        tuple(path for case in sorted(predicted.keys() - true.keys()) for path in predicted[case]),
        tuple(path for case in sorted(true.keys() - predicted.keys()) for path in true[case]),
        tuple((case, _several(unclear[case])) for case in common if case in unclear),
    )


def evaluate_pair(pair: Pair, settings: Settings, *, progress: Progress = silent) -> tuple[Case, list[str]]:
    """Return the scores of a pair of files, and a sentence for each oddity of either.

    Raises
    ------
    ScanError, GeometryError, UsageError
        If a file cannot be read, or as `evaluate`.
    """
    progress("read", 0.0)
    prediction, reference = read_pair(pair, settings)
    progress("scores", 0.0)
    case = evaluate(prediction, reference, settings, case=pair.case)
    progress("scores", 1.0)
    sources = [labels.source for labels in (prediction, reference) if labels.source]
    return case, [f"{source.path}: {warning}" for source in sources for warning in source.warnings]


def read_pair(pair: Pair, settings: Settings) -> tuple[LabelMap, LabelMap]:
    """Return prediction and reference; a DICOM SEG or RTSTRUCT is laid onto the grid of the other.

    Of two DICOM objects each lies on the grid of its scan, where that is in the same folder.

    Raises
    ------
    ScanError
        If a file cannot be read, or a SEG does not lie on the other's grid and `settings.resample` is not set.
    """
    from_dicom = holds_dicom(pair.prediction), holds_dicom(pair.reference)
    match from_dicom:
        case True, False:
            reference = read_labels(pair.reference)
            return read_labels(pair.prediction, grid=reference.geometry, resample=settings.resample), reference
        case False, True:
            prediction = read_labels(pair.prediction)
            return prediction, read_labels(pair.reference, grid=prediction.geometry, resample=settings.resample)
        case True, True:
            return on_common_grid(read_labels(pair.prediction), read_labels(pair.reference))
    return read_labels(pair.prediction), read_labels(pair.reference)


def _label_maps(folder: Path) -> dict[str, list[Path]]:
    """Return the label maps directly in a folder, by the names of their cases."""
    found = _with_dicom(folder, scans_in(folder))
    volumes = {stem_of(path) for path in found if SUFFIXES.get(suffix_of(path)) not in PICTURES}
    found = [path for path in found if stem_of(path) not in volumes or SUFFIXES.get(suffix_of(path)) not in PICTURES]
    results = {_case(path) for path in found if stem_of(path).endswith("_seg")}
    cases: dict[str, list[Path]] = {}
    for path in found:
        if stem_of(path).endswith("_seg") or stem_of(path) not in results:
            cases.setdefault(_case(path), []).append(path)
    return cases


def _with_dicom(folder: Path, found: Sequence[Path]) -> list[Path]:
    """Return files and the DICOM objects of a folder, without those that only repeat one of them in another form."""
    objects = sorted(folder.glob("*.dcm"))
    others = {stem_of(path) for path in found if SUFFIXES.get(suffix_of(path)) not in PICTURES}
    stems = others | {stem_of(path) for path in objects}
    repeats = {f"{stem}{end}" for stem in stems for end in _FORMS} | others
    return sorted([*found, *(path for path in objects if stem_of(path) not in repeats)])


def _is_one_case(folder: Path) -> bool:
    """Return whether a folder holds a DICOM study with a label object, and not one label map for each case."""
    if scans_in(folder) or not holds_dicom(folder):
        return False
    from medseg.dicom.labels import count_labels

    return count_labels(folder) == 1


def _case(path: Path) -> str:
    return stem_of(path).removesuffix("_seg")


def _several(files: Sequence[Path]) -> str:
    return f"{' and '.join(path.name for path in files)} are label maps of one case; keep one"


def _some(cases: Mapping[str, Sequence[Path]]) -> str:
    names = [path.name for files in cases.values() for path in files]
    return f"{len(names)} files, such as {names[0]}" if names else "no label map"
