"""Which files of a folder are a scan and its label map, told by the names of files and folders alone."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from medseg.dicom.parts import holds_dicom
from medseg.errors import UsageError
from medseg.io import PICTURES, SUFFIXES, scans_in, suffix_of
from medseg.training.dataset import Finding
from medseg.training.layouts.gather import LAYOUTS, Listed, Listing, short

_IMAGE_FOLDERS = {"images", "image", "imgs", "img", "imagestr", "trainimages", "scans", "volumes"}
_LABEL_FOLDERS = {
    *("labels", "label", "labelstr", "trainlabels", "masks", "mask", "trainmasks", "segmentations", "segmentation"),
    *("segs", "seg", "annotations", "annotation", "references", "reference", "groundtruth", "gt"),
}
_TRAIN_FOLDERS = {"train", "training"}
_TEST_FOLDERS = {"imagests", "labelsts", "test", "testing", "testimages", "testlabels"}
_IMAGE_WORDS = "image|images|img|imgs|imaging|scan|volume|vol"
_LABEL_WORDS = "seg|segmentation|label|labels|mask|masks|gt|groundtruth|truth|annotation|reference|roi"
_LABEL_END = re.compile(rf"(?:^|[-_. ])(?:{_LABEL_WORDS})$", re.IGNORECASE)
_LABEL_START = re.compile(rf"^(?:{_LABEL_WORDS})[-_. ]", re.IGNORECASE)
_IMAGE = re.compile(rf"^(?:{_IMAGE_WORDS})(?:[-_. ]|$)", re.IGNORECASE)
_CUT = re.compile(r"[-_. ]")
_DETACHED = (".mhd", ".nhdr", ".hdr", ".img")  # refused when they are opened, with what to do

Named = tuple[str, Path]  # a file under the name by which it pairs


def cases_in(folder: Path, *, ending: str = "", deeper: bool = True) -> Listing:
    """Return the cases of a folder of images beside a folder of labels, of pairs, or of a folder for each case.

    Labels pair with images by name. A word such as `_seg`, `_label` or `mask-` does not count in the name of a label,
    nor does `_img` in that of an image; what else follows in the name of an image, such as `_0000` or `_t1`, is its
    channel. In a folder of one case the label is told by its word, and the channels are what their names differ in.

    Parameters
    ----------
    folder : Path
        The folder, or one that holds it under the name `train`.
    ending : str
        Suffix of the files that count, such as '.nii.gz'; all scans where it is left out.
    deeper : bool
        Whether to look into a folder `train`, or into the only one.

    Raises
    ------
    UsageError
        If it has none of these forms.
    """
    images, labels = (_only(folder, names) for names in (_IMAGE_FOLDERS, _LABEL_FOLDERS))
    if images and labels:
        listing = _in_two_folders(_training_part(images), _training_part(labels), ending)
        return _with_unused(listing, folder, {images, labels})
    files, folders = _scans(folder, ending), _folders(folder)
    train = [sub for sub in folders if deeper and not files and _plain(sub.name) in _TRAIN_FOLDERS]
    if not train:
        if found := _by_word([(stem(path), path) for path in files]):
            return _with_unused(_plus(found, _passed_over([folder], ending)), folder, set())
        if found := _by_word(_entries(folder, ending)):
            return _plus(found, _passed_over([folder, *folders], ending))
        named = [sub for sub in folders if _plain(sub.name) in _IMAGE_FOLDERS | _LABEL_FOLDERS]
        train = folders if deeper and not files and not named and len(folders) == 1 else []
    if len(train) == 1:
        return _with_unused(cases_in(train[0], ending=ending, deeper=False), folder, {*train})
    raise UsageError(f"{folder}: holds {_seen(files, folders)}", hint=LAYOUTS)


def label_beside(image: Path) -> Path | None:
    """Return the file of an image's name in the folder of labels beside the image's own; None if there is none."""
    places = _folders(image.parent.parent) if image.parent.parent.is_dir() else []
    found = [sub / image.name for sub in places if _plain(sub.name) in _LABEL_FOLDERS]
    return next((path for path in found if path.is_file()), None)


def channel_files(path: Path) -> dict[str, Path]:
    """Return the files `x_0000`, `x_0001`, ... that stand in for a file `x`, by their numbers."""
    found: dict[str, Path] = {}
    while (other := path.with_name(f"{stem(path)}_{len(found):04d}{suffix_of(path)}")).is_file():
        found[f"{len(found):04d}"] = other
    return found


def stem(path: Path) -> str:
    """Return the name of a file without the suffix of its format, whether or not the file is there."""
    ends = (suffix_of(path), *_DETACHED, ".dcm")
    end = next((end for end in ends if end and path.name.lower().endswith(end)), "")
    return path.name[: -len(end)] if end else path.name


def _in_two_folders(images: Path, labels: Path, ending: str) -> Listing:
    named, references = _entries(images, ending), _entries(labels, ending)
    for folder, found in ((images, named), (labels, references)):
        if not found:
            raise UsageError(f"{folder}: holds no scan{f' of {ending}' if ending else ''}", hint=LAYOUTS)
    listing = _paired(named, _grouped(references), _bare_labels(references))
    return _plus(listing, _passed_over([images, labels], ending))


def _by_word(named: Sequence[Named]) -> Listing | None:
    """Return the cases among files of which labels have a word for it in their names; None if there is none."""
    labels = _bare_labels(named)
    used = {path for paths in labels.values() for path in paths}
    listing = _paired([(name, path) for name, path in named if path not in used], {}, labels)
    return listing if any(listed.images and listed.reference for listed in listing.cases) else None


def _paired(images: Sequence[Named], exact: Mapping[str, list[Path]], loose: Mapping[str, list[Path]]) -> Listing:
    """Return images and labels by case: a label under its whole name goes before one under a part of it."""
    members: dict[str, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    alone: list[Path] = []
    for name, path in images:
        base, channel = next(((b, c) for b, c in _bases(name) if b in exact or b in loose), ("", ""))
        if base:
            members[base][channel].append(path)
        else:
            alone.append(path)
    cases, findings, used = list[Listed](), list[Finding](), set[Path]()
    for base, channels in members.items():
        references = exact.get(base) or loose[base]
        if "" in channels:  # the image of that very name: others only begin like it
            alone += [path for channel in channels if channel for path in channels[channel]]
        own = {"": channels[""]} if "" in channels else channels
        used |= {*references}
        if twice := next((paths for paths in (references, *own.values()) if len(paths) > 1), None):
            names = " and ".join(map(str, twice))
            findings.append(Finding("error", "AMBIGUOUS", base, f"{names} are both of case {base}; keep one"))
        else:
            cases.append(Listed(base, {channel: paths[0] for channel, paths in own.items()}, references[0]))
    cases, mixed = _as_one_channel(cases)
    cases += [Listed(short(path), {"": path}, None) for path in alone]
    unused = {path for paths in (*exact.values(), *loose.values()) for path in paths} - used
    cases += [Listed(short(path), {}, path) for path in sorted(unused)]
    return Listing(tuple(cases), (*findings, *mixed))


def _bases(name: str) -> Iterator[tuple[str, str]]:
    """Yield what may be the name of an image's case, with what is then its channel; the whole name first."""
    for whole in dict.fromkeys((name, _IMAGE.sub("", name))):
        yield whole, ""
    for whole in dict.fromkeys((name, _IMAGE.sub("", name))):
        for cut in reversed([*_CUT.finditer(whole)]):
            channel = whole[cut.end() :]
            yield whole[: cut.start()], "" if re.fullmatch(_IMAGE_WORDS, channel, re.IGNORECASE) else channel


def _as_one_channel(cases: list[Listed]) -> tuple[list[Listed], list[Finding]]:
    """Return cases of one image each as of one channel, however the images are named."""
    names = sorted({channel for listed in cases for channel in listed.images})
    if len(names) < 2 or any(len(listed.images) > 1 for listed in cases):
        return cases, []
    detail = f"every case has one image, named {', '.join(map(repr, names[:5]))}: all are taken as one channel"
    joined = [Listed(listed.name, {"": next(iter(listed.images.values()))}, listed.reference) for listed in cases]
    return joined, [Finding("warning", "NAMES", cases[0].name, detail)]


def _entries(folder: Path, ending: str) -> list[Named]:
    """Return the scans of a folder and of the folders in it under the names by which they pair."""
    dicom = [] if ending else sorted(path for path in folder.glob("*.[dD][cC][mM]") if not path.name.startswith("."))
    named = [(stem(path), path) for path in (*_scans(folder, ending), *dicom)]
    for sub in _folders(folder):
        files = _scans(sub, ending)
        labels = [path for path in files if _bare(stem(path)) is not None]
        if len(files) == len(labels) <= 1 and holds_dicom(sub):
            named.append((sub.name, sub))
        if len(labels) == 1:
            named.append((f"{sub.name}_seg", labels[0]))
            files = [path for path in files if path not in labels]
        start = _common_start(sub.name, [stem(path) for path in (*files, *labels)])
        named += [(f"{sub.name}_{stem(path)[start:]}" if stem(path)[start:] else sub.name, path) for path in files]
    return named


def _common_start(folder: str, stems: Sequence[str]) -> int:
    """Return how many letters the names in the folder of a case share: its own name, or up to a separator."""
    if all(name == folder or (name.startswith(folder) and _CUT.match(name[len(folder) :])) for name in stems):
        return len(folder) + 1
    starts = [stems[0][: cut.end()] for cut in _CUT.finditer(stems[0])]
    return max((len(start) for start in starts if all(name.startswith(start) for name in stems)), default=0)


def _bare(name: str) -> str | None:
    """Return the name of a label without the word that says that it is one; None if there is no such word."""
    for word in (_LABEL_END, _LABEL_START):
        if word.search(name):
            return word.sub("", name)
    return None


def _bare_labels(named: Iterable[Named]) -> dict[str, list[Path]]:
    found = [(_bare(name), path) for name, path in named]
    return _grouped((name, path) for name, path in found if name is not None)


def _scans(folder: Path, ending: str) -> list[Path]:
    """Return the scans directly in a folder; pictures beside volumes are previews, and are left out."""
    found = [path for path in scans_in(folder) if path.name.lower().endswith(ending.lower())]
    volumes = [path for path in found if not _is_picture(path)]
    return volumes or found


def _passed_over(folders: Iterable[Path], ending: str) -> list[Finding]:
    found = [
        path for folder in folders for path in {*scans_in(folder)} - {*_scans(folder, ending)} if _is_picture(path)
    ]
    if not found:
        return []
    detail = f"{len(found)} pictures, such as {min(found)}, lie beside volumes and are not used"
    return [Finding("warning", "UNUSED", short(min(found)), detail)]


def _with_unused(listing: Listing, folder: Path, used: set[Path]) -> Listing:
    """Return a listing with a warning of folders that hold scans, too, and are none of a test set."""
    others = [sub for sub in _folders(folder) if sub not in used and _plain(sub.name) not in _TEST_FOLDERS]
    holding = [sub for sub in others if any(scans_in(place) for place in (sub, *_folders(sub)))]
    detail = "holds scans that are not used; give a CSV to use them"
    return _plus(listing, [Finding("warning", "UNUSED", sub.name, f"{sub} {detail}") for sub in holding])


def _plus(listing: Listing, findings: Iterable[Finding]) -> Listing:
    return Listing(listing.cases, (*listing.findings, *findings), listing.channels)


def _only(folder: Path, names: set[str]) -> Path | None:
    found = [sub for sub in _folders(folder) if _plain(sub.name) in names]
    if len(found) > 1:
        raise UsageError(
            f"{folder}: both {found[0].name} and {found[1].name} may be meant", hint="rename one, or give a CSV"
        )
    return found[0] if found else None


def _training_part(folder: Path) -> Path:
    inner = [sub for sub in _folders(folder) if _plain(sub.name) in _TRAIN_FOLDERS]
    return inner[0] if inner and not scans_in(folder) else folder


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "__")))


def _grouped(named: Iterable[Named]) -> dict[str, list[Path]]:
    groups: dict[str, list[Path]] = defaultdict(list)
    for name, path in named:
        groups[name].append(path)
    return dict(groups)


def _is_picture(path: Path) -> bool:
    return SUFFIXES.get(suffix_of(path)) in PICTURES


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _seen(files: Sequence[Path], folders: Sequence[Path]) -> str:
    parts = [f"scans ({len(files)}, such as {files[0].name})"] if files else []
    parts += [f"folders ({len(folders)}, such as {folders[0].name})"] if folders else []
    return f"{' and '.join(parts)}, but no pair of image and label" if parts else "no scan"
