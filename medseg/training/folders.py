"""Which files of a folder are a scan and its label map, told by the names of folders and files alone.

Three forms: a folder of images beside a folder of labels; `x.nii.gz` beside `x_seg.nii.gz`; a folder for each case.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from medseg.dicom.parts import holds_dicom
from medseg.errors import UsageError
from medseg.io import PICTURES, SUFFIXES, scans_in, suffix_of
from medseg.training.dataset import Finding
from medseg.training.gather import LAYOUTS, Listed, Listing, short

_IMAGE_FOLDERS = {"images", "image", "imgs", "img", "imagestr", "trainimages", "scans", "volumes"}
_LABEL_FOLDERS = {
    *("labels", "label", "labelstr", "trainlabels", "masks", "mask", "trainmasks", "segmentations", "segmentation"),
    *("segs", "seg", "annotations", "annotation", "references", "reference", "groundtruth", "gt"),
}
_TRAIN_FOLDERS = {"train", "training", "tr"}
_TEST_FOLDERS = {"imagests", "labelsts", "test", "testing", "testimages", "testlabels"}
_IMAGE_WORDS = "image|images|img|imgs|imaging|scan|volume|vol"
_LABEL_WORDS = "seg|segmentation|label|labels|mask|masks|gt|groundtruth|annotation|reference"
_DETACHED = (".mhd", ".nhdr", ".hdr", ".img")  # refused when they are opened, with what to do
_CUT = re.compile(r"[-_. ]")
_CHANNEL = re.compile(r"_\d{4}$")


def cases_in(folder: Path, *, ending: str = "") -> Listing:
    """Return the cases of a folder in any of the three forms, or in its folder `train`.

    Parameters
    ----------
    folder : Path
        The folder.
    ending : str
        Suffix of the files that count, such as '.nii.gz'; all scans where it is left out.

    Raises
    ------
    UsageError
        If it has none of these forms.
    """
    images, labels = (_only(folder, names) for names in (_IMAGE_FOLDERS, _LABEL_FOLDERS))
    if images and labels:
        listing = _in_two_folders(_training_part(images), _training_part(labels), ending)
        return _with_unused(listing, _others(folder, {images, labels}))
    files, passed = _scans(folder, ending)
    references = [path for path in files if _is_label(stem(path))]
    if references:
        rest = [path for path in files if path not in references]
        listing = Listing(*_paired(_named(rest), {}, _by_stem(references, bare=True)))
        return _with_unused(_plus(listing, passed), _others(folder, set()))
    folders = _folders(folder)
    by_case = [_in_case_folder(sub, ending) for sub in folders]
    if any(case.reference for listing in by_case for case in listing.cases):
        return _as_channels(by_case)
    inner = [sub for sub in folders if _plain(sub.name) in _TRAIN_FOLDERS] or folders
    if len(inner) == 1:
        return _with_unused(cases_in(inner[0], ending=ending), _others(folder, {*inner}))
    raise UsageError(f"{folder}: holds {_seen(files, folders, ending)}, no pairs of image and label", hint=LAYOUTS)


def label_beside(image: Path) -> Path | None:
    """Return the label map of an image's name in the folder of labels beside its own; None if there is none."""
    places = [sub / image.name for sub in _folders(image.parent.parent) if _plain(sub.name) in _LABEL_FOLDERS]
    return next((path for path in places if path.is_file()), None)


def stem(path: Path) -> str:
    """Return the name of a file without the suffix of its format."""
    ends = (suffix_of(path), *_DETACHED, ".dcm")
    end = next((end for end in ends if end and path.name.lower().endswith(end)), "")
    return path.name[: -len(end)] if end else path.name


def channel_files(path: Path) -> Mapping[str, Path]:
    """Return the files `x_0000`, `x_0001`, ... beside a path `x` that is not there."""
    found = re.compile(rf"{re.escape(stem(path))}_(\d{{4}})")
    names = [(found.fullmatch(stem(other)), other) for other in _listed(path.parent)]
    end = suffix_of(path)
    return {match[1]: other for match, other in sorted(names, key=lambda item: item[1]) if match and end == suffix_of(other)}
