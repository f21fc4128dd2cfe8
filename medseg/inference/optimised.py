"""Networks converted for the CPU of this machine, kept in the user's cache folder: how they are made, found, removed.

A *form* is all members of a model as one OpenVINO network: a `.xml` file, its weights in a `.bin` file, and a manifest
that is written last and holds their checksums, so that what is damaged or half-written is never used. Finding one takes
neither torch nor OpenVINO.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import platformdirs
from pydantic import Field

from medseg import __version__
from medseg.atomic import Outputs, check_writable
from medseg.bundle import Bundle, canonical_json
from medseg.errors import BundleError, PlanError, UsageError
from medseg.inference.backends import Backend
from medseg.inference.backends.openvino_cpu import OpenVinoBackend, convert, has_bfloat16, quantise, save
from medseg.inference.windows import Windows
from medseg.kernels import Host
from medseg.plan import Plan, Record
from medseg.prepare import Prepared

FORMAT = 1
PRECISIONS = ("float32", "bfloat16", "int8")
_APART = {"float32": 1e-3, "bfloat16": 0.1, "int8": 0.5}  # from torch at most, as a fraction of the largest logit
_TRIALS = 3  # windows that are looked at where there are none of scans
_READ = 1 << 20

Window = npt.NDArray[np.float32]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Manifest(Record):
    """What stands beside a form.

    Parameters
    ----------
    format : int
        Of these files.
    medseg, openvino : str
        Versions that made it.
    precision : str
        In which it is to compute; 'float32' and 'bfloat16' have the same files.
    network, weights : str
        Checksums of the files.
    """

    format: Literal[1]
    medseg: str
    openvino: str
    precision: Literal["float32", "bfloat16", "int8"]
    network: Sha256
    weights: Sha256


@dataclass(frozen=True)
class Form:
    """A form that is sound and can be used on this machine.

    Parameters
    ----------
    network : Path
        The `.xml` file.
    precision : str
        'float32', 'bfloat16' or 'int8'.
    """

    network: Path
    precision: str


@dataclass(frozen=True)
class Trial:
    """How a form compares with torch on some windows.

    Parameters
    ----------
    difference, largest : float
        Largest difference of a value, and largest value.
    agreement : float
        Fraction of voxels with the same label.
    before, after : float
        Seconds per window in torch, float32, and in the form.
    """

    difference: float
    largest: float
    agreement: float
    before: float
    after: float


def folder(bundle: Bundle) -> Path:
    """Return where the forms of a model are."""
    return platformdirs.user_cache_path("medseg") / "forms" / bundle.sha256


def find(
    bundle: Bundle, *, precision: str | None = None, mirror: bool = False, disagreement: bool = False
) -> tuple[Form | None, str]:
    """Return the form of a model that is ready, and what is wrong with one that cannot be used.

    Parameters
    ----------
    bundle : Bundle
        One that was not loaded from a file has none.
    precision : str, optional
        The one that it was made for when left out, but never one for which this CPU has no units.
    mirror, disagreement : bool
        As in `Ensemble.of`.
    """
    version = _version_of_openvino()
    stem = folder(bundle) / _stem(mirror=mirror, disagreement=disagreement)
    if not (bundle.sha256 and version and stem.with_suffix(".json").exists()):
        return None, ""
    again = f"run `medseg models optimize {bundle.card.name}` again"
    try:
        manifest = Manifest.parse(json.loads(stem.with_suffix(".json").read_bytes()))
        network = _file(stem, manifest)
        sums = [_sha256(network), _sha256(network.with_suffix(".bin"))]
    except (OSError, ValueError, PlanError):
        return None, f"the optimised form in {stem.parent} is damaged; {again}"
    if sums != [manifest.network, manifest.weights]:
        return None, f"the optimised form in {stem.parent} is damaged; {again}"
    if (manifest.medseg, manifest.openvino) != (__version__, version):
        return None, f"the optimised form was made by other versions of medseg or OpenVINO; {again}"
    if precision and (precision == "int8") != (manifest.precision == "int8"):
        return None, ""
    chosen = precision or manifest.precision
    if precision is None and chosen == "bfloat16" and not has_bfloat16():
        chosen = "float32"
    return Form(network, chosen), ""


def open_form(
    bundle: Bundle,
    *,
    host: Host,
    threads: int | None = None,
    precision: str | None = None,
    mirror: bool = False,
    disagreement: bool = False,
    now: bool = False,
) -> tuple[Backend | None, str]:
    """Return the form of a model as a backend, and what is wrong with one that cannot be used.

    Parameters
    ----------
    bundle, precision, mirror, disagreement
        As in `find`.
    host, threads
        As in `OpenVinoBackend`.
    now : bool
        Where none is ready, convert the network now, in memory, which takes seconds and torch.

    Raises
    ------
    DeviceError
        If the CPU has no units for the precision.
    UsageError
        If `now`, and OpenVINO is not installed or the precision takes scans to calibrate it.
    """
    form, wrong = find(bundle, precision=precision, mirror=mirror, disagreement=disagreement)
    if form:
        return OpenVinoBackend(form.network, precision=form.precision, host=host, threads=threads), ""
    if not now:
        return None, wrong
    if precision == "int8":
        raise UsageError(
            f"there is no int8 form of {bundle.card.name} yet",
            hint=f"medseg models optimize {bundle.card.name} --precision int8 --calibrate SCAN",
        )
    network, _ = _converted(bundle, mirror=mirror, disagreement=disagreement)
    return OpenVinoBackend(network, precision=precision or "float32", host=host, threads=threads), wrong


def make(
    bundle: Bundle,
    *,
    precision: str = "float32",
    mirror: bool = False,
    disagreement: bool = False,
    threads: int | None = None,
    windows: Sequence[Window] = (),
) -> tuple[Form, Trial]:
    """Make the form of a model, hold it against torch, and keep it in place of an older one.

    Parameters
    ----------
    bundle, mirror, disagreement
        As in `find`.
    precision : str
        'float32', 'bfloat16' or 'int8'.
    threads : int, optional
        To compare with.
    windows : sequence of (1, C, I, J, K) arrays of float32
        Of scans: int8 is scaled by them. Without any, torch and form are compared on noise.

    Raises
    ------
    BundleError
        If the form gives other answers than torch; it is not kept.
    DeviceError
        If this CPU has no units for the precision.
    OutputError
        If the cache folder cannot be written.
    UsageError
        If OpenVINO or nncf is not installed, or int8 is asked for without windows.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"there is no precision {precision!r}", hint=f"choose from: {', '.join(PRECISIONS)}")
    if precision == "int8" and not windows:
        raise UsageError("int8 is scaled by what scans look like", hint="name some with --calibrate, 10 or more")
    model, network = _converted(bundle, mirror=mirror, disagreement=disagreement)
    if precision == "int8":
        model = quantise(model, windows)
    host = Host(threads)
    found = _compare(
        _in_torch(network, threads),
        OpenVinoBackend(model, precision=precision, host=host, threads=threads),
        windows[:: -(-len(windows) // _TRIALS)] if windows else _noise(bundle.plan),
        channels=len(bundle.plan.atoms) + 1,
    )
    if not found.difference <= _APART[precision] * found.largest:  # nor if it is no number
        raise BundleError(
            f"{bundle.card.name}: the {precision} form differs from torch by {found.difference:.2g} where the largest"
            f" value is {found.largest:.2g}",
            hint="use another --precision, or torch",
        )
    return _keep(model, bundle, _stem(mirror=mirror, disagreement=disagreement), precision), found


def remove(bundle: Bundle) -> bool:
    """Remove all forms of a model; return whether there were any."""
    there = bool(bundle.sha256) and folder(bundle).is_dir()
    if there:
        shutil.rmtree(folder(bundle))
    return there


def windows_of(prepared: Prepared, plan: Plan) -> Iterator[Window]:
    """Yield windows (1, C, I, J, K) side by side over a prepared scan, zero outside it."""
    shape = prepared.geometry.shape
    for strip in Windows.over(shape, plan.patch, 0.0).strips(1):
        for corner in strip.corners:
            stop = [a + size for a, size in zip(corner, plan.patch, strict=True)]
            values = prepared.window(
                [max(0, a) for a in corner], [min(*ends) for ends in zip(stop, shape, strict=True)]
            )
            pads = [(max(0, -a), max(0, b - n)) for a, b, n in zip(corner, stop, shape, strict=True)]
            yield np.pad(values, [(0, 0), *pads])[None]


def _converted(bundle: Bundle, *, mirror: bool, disagreement: bool) -> tuple[Any, Any]:
    """Return the network of a model in OpenVINO and in torch."""
    from medseg.inference.ensemble import Ensemble

    network = Ensemble.of(bundle, mirror=mirror, disagreement=disagreement)
    return convert(network, (1, len(bundle.plan.channels), *bundle.plan.patch)), network


def _in_torch(network: Any, threads: int | None) -> Callable[[Window], Window]:
    import torch

    if threads:
        torch.set_num_threads(threads)

    def answer(windows: Window) -> Window:
        with torch.inference_mode():
            logits: Window = network(torch.from_numpy(windows)).numpy()
        return logits

    return answer


def _noise(plan: Plan) -> list[Window]:
    noise = np.random.default_rng(0).standard_normal((_TRIALS, 1, len(plan.channels), *plan.patch), np.float32)
    return list(noise)


def _compare(
    torch: Callable[[Window], Window], form: Callable[[Window], Window], windows: Sequence[Window], *, channels: int
) -> Trial:
    """Return how two networks compare; the first window is answered twice, as a first call takes longer."""
    seconds, answers = [], []
    for network in (torch, form):
        network(windows[0])
        start = time.perf_counter()
        answers.append([network(window).copy() for window in windows])
        seconds.append((time.perf_counter() - start) / len(windows))
    one, other = (np.concatenate(parts) for parts in answers)
    same = one[:, :channels].argmax(1) == other[:, :channels].argmax(1)
    return Trial(float(np.abs(one - other).max()), float(np.abs(one).max()), float(same.mean()), *seconds)


def _keep(model: Any, bundle: Bundle, name: str, precision: str) -> Form:
    """Write a form, its manifest last, and drop the one that it replaces."""
    place = folder(bundle)
    if not bundle.sha256:
        raise UsageError(f"{bundle.card.name} was not loaded from a file", hint="save the model, and load it")
    check_writable(place)
    part = place / f".medseg-{secrets.token_hex(8)}.xml"
    older = list(place.glob(f"{name}-*"))
    try:
        save(model, part)
        sums = _sha256(part), _sha256(part.with_suffix(".bin"))
        version = _version_of_openvino()
        manifest = Manifest.parse(
            dict(
                format=FORMAT,
                medseg=__version__,
                openvino=version,
                precision=precision,
                network=sums[0],
                weights=sums[1],
            )
        )
        network = _file(place / name, manifest)
        with Outputs() as outputs:
            outputs.write(network, _chunks(part))
            outputs.write(network.with_suffix(".bin"), _chunks(part.with_suffix(".bin")))
            outputs.write(place / f"{name}.json", [canonical_json(manifest).encode()])
    finally:
        for path in (part, part.with_suffix(".bin")):
            path.unlink(missing_ok=True)
    for path in older:
        if path.stem != network.stem:
            path.unlink(missing_ok=True)
    return Form(network, precision)


def _stem(*, mirror: bool, disagreement: bool) -> str:
    """Return the name of the form that answers a question; another one has files of its own."""
    return f"network{'_mirror' * mirror}{'_disagreement' * disagreement}"


def _file(stem: Path, manifest: Manifest) -> Path:
    """Return the file of a network: another one has another name, so that it never stands beside a wrong manifest."""
    return stem.with_name(f"{stem.name}-{manifest.network[:8]}{manifest.weights[:8]}.xml")


def _version_of_openvino() -> str:
    """Return the version that is installed, without importing it; empty where there is none."""
    try:
        return metadata.version("openvino")
    except metadata.PackageNotFoundError:
        return ""


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _chunks(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while chunk := file.read(_READ):
            yield chunk
