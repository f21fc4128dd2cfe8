"""Networks converted for the CPU of this machine, kept in the user's cache folder: how they are kept, found, removed.

A *form* is all members of a model as one OpenVINO network: a `.xml` file, its weights in a `.bin` file, and a manifest
that is written last and holds their checksums, so that what is damaged or half-written is never used. To find and to
run one takes no torch.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import platformdirs
from pydantic import Field

from medseg import __version__, zoo
from medseg.atomic import Outputs, check_writable
from medseg.bundle import Bundle, canonical_json
from medseg.errors import UsageError
from medseg.inference.backends import Backend, How
from medseg.inference.backends.openvino_cpu import Network, OpenVinoBackend, convert, has_bfloat16, save
from medseg.kernels import Host
from medseg.plan import Record

_READ = 1 << 20
_SAME_FILES = {"float32", "bfloat16"}  # the precision of these is chosen when the network is loaded

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Manifest(Record):
    """What stands beside a form.

    Parameters
    ----------
    format : 1
        Of these files.
    medseg, openvino : str
        Versions that made it.
    precision : str
        In which it is to compute; for 'float32' and 'bfloat16' the files are the same.
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

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return self.network.stat().st_size + self.network.with_suffix(".bin").stat().st_size


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
    if not (bundle.sha256 and version):
        return None, ""
    stem = folder(bundle) / _name(mirror=mirror, disagreement=disagreement)
    again = f"run `{command(bundle, precision=precision, mirror=mirror, disagreement=disagreement)}` again"
    try:
        manifest = Manifest.parse(json.loads(stem.with_suffix(".json").read_bytes()))
        network = _file(stem, manifest)
        sums = (_sha256(network), _sha256(network.with_suffix(".bin")))
    except (OSError, ValueError, RecursionError) as error:
        absent = isinstance(error, FileNotFoundError) and not stem.with_suffix(".json").exists()
        return None, "" if absent else f"the optimised form in {stem.parent} is damaged; {again}"
    if sums != (manifest.network, manifest.weights):
        return None, f"the optimised form in {stem.parent} is damaged; {again}"
    if (manifest.medseg, manifest.openvino) != (__version__, version):
        again = f"run `{command(bundle, precision=manifest.precision, mirror=mirror, disagreement=disagreement)}` again"
        return None, f"the optimised form was made by another version of medseg or OpenVINO; {again}"
    chosen = precision or manifest.precision
    if chosen != manifest.precision and not {chosen, manifest.precision} <= _SAME_FILES:
        return None, ""
    if not precision and chosen == "bfloat16" and not has_bfloat16():
        chosen = "float32"
    return Form(network, chosen), ""


def command(bundle: Bundle, *, precision: str | None, mirror: bool, disagreement: bool) -> str:
    """Return what a user types to make a form."""
    known = bundle.file is None or zoo.models().get(bundle.card.name) == bundle.file
    words = ["medseg models optimize", bundle.card.name if known else shlex.quote(str(bundle.file))]
    if precision not in {None, "float32"}:
        words.append(f"--precision {precision}")
    if precision == "int8":
        words.append("--calibrate SCANS")
    return " ".join([*words, *["--mirror"] * mirror, *["--uncertainty"] * disagreement])


def open_form(bundle: Bundle, how: How, host: Host, *, disagreement: bool = False) -> Backend | None:
    """Return what runs the form of a model; None where none is ready.

    Where the user asked for OpenVINO by name, the network is then converted at once, in memory; that takes seconds, and
    torch.

    Parameters
    ----------
    bundle : Bundle
        The model.
    how : How
        What the user asked for.
    host : Host
        For the answers.
    disagreement : bool
        As in `Ensemble.of`.

    Raises
    ------
    DeviceError
        If the CPU has no units for the precision.
    UsageError
        If OpenVINO was asked for by name and is not installed, or cannot have the precision at once.
    """
    form, _ = find(bundle, precision=how.precision, mirror=how.mirror, disagreement=disagreement)
    if form:
        return OpenVinoBackend(form.network, precision=form.precision, host=host, threads=how.threads)
    if how.backend != "openvino":
        return None
    precision = how.precision or "float32"
    if precision not in _SAME_FILES:
        raise UsageError(
            f"{bundle.card.name} has no {precision} form on this machine",
            hint=f"first: {command(bundle, precision=precision, mirror=how.mirror, disagreement=disagreement)}",
        )
    from medseg.inference.ensemble import Ensemble

    network = Ensemble.of(bundle, mirror=how.mirror, disagreement=disagreement)
    model = convert(network, (1, len(bundle.plan.channels), *bundle.plan.patch))
    return OpenVinoBackend(model, precision=precision, host=host, threads=how.threads)


def keep(network: Network, bundle: Bundle, *, precision: str, mirror: bool = False, disagreement: bool = False) -> Form:
    """Write the form of a model, its manifest last, and drop the one that it replaces.

    Raises
    ------
    OutputError
        If the cache folder cannot be written.
    UsageError
        If the model was not loaded from a file.
    """
    if not bundle.sha256:
        raise UsageError(f"{bundle.card.name} was not loaded from a file", hint="save the model, and load it")
    stem = folder(bundle) / _name(mirror=mirror, disagreement=disagreement)
    check_writable(stem.parent)
    older = list(stem.parent.glob(f"{stem.name}-*"))
    part = stem.with_name(f".medseg-{secrets.token_hex(8)}.xml")
    try:
        save(network, part)
        manifest = Manifest(
            format=1,
            medseg=__version__,
            openvino=_version_of_openvino(),
            precision=precision,
            network=_sha256(part),
            weights=_sha256(part.with_suffix(".bin")),
        )
        path = _file(stem, manifest)
        with Outputs() as outputs:
            outputs.write(path, _chunks(part))
            outputs.write(path.with_suffix(".bin"), _chunks(part.with_suffix(".bin")))
            outputs.write(stem.with_suffix(".json"), [canonical_json(manifest).encode()])
    finally:
        for file in (part, part.with_suffix(".bin")):
            file.unlink(missing_ok=True)
    for file in older:
        if file.stem != path.stem:
            file.unlink(missing_ok=True)
    return Form(path, precision)


def remove(bundle: Bundle) -> bool:
    """Remove all forms of a model; return whether there were any."""
    there = bool(bundle.sha256) and folder(bundle).is_dir()
    if there:
        shutil.rmtree(folder(bundle))
    return there


def _name(*, mirror: bool, disagreement: bool) -> str:
    """Return the name of the form that answers a question; each question has a form of its own."""
    return f"network{'_mirror' * mirror}{'_disagreement' * disagreement}"


def _file(stem: Path, manifest: Manifest) -> Path:
    """Return the file of a network, named after what it holds: while it is replaced, the older one stays whole."""
    return stem.with_name(f"{stem.name}-{manifest.network[:8]}{manifest.weights[:8]}.xml")


def _version_of_openvino() -> str:
    """Return the version that is installed, without importing it; empty where there is none."""
    if find_spec("openvino") is None:
        return ""
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
