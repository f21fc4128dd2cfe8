"""niivue, which draws in 3D: taken from the npm registry by name when the user asks for it, and checked."""

from __future__ import annotations

import hashlib
import io
import shutil
import subprocess
import tarfile
from pathlib import Path

import platformdirs

from medseg.atomic import check_writable, write_atomic
from medseg.errors import UsageError

VERSION = "0.69.0"
SHA256 = "47b896b77ec4a5be3ef1949c33ad393b6f45629921f326c279000bcf51bdb4af"  # of the file in the package
_MEMBER = "package/dist/niivue.umd.js"
_MOST = 64 << 20  # bytes of that file
_PATIENCE = 300.0  # seconds for npm


def viewer_file() -> Path | None:
    """Return the file of the viewer, if it was fetched and is what it should be."""
    path = _place()
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != SHA256:
        return None
    return path


def get_viewer() -> Path:
    """Fetch the viewer with `npm pack`, hold it against its checksum, and keep it for this user.

    Raises
    ------
    UsageError
        If npm is not there, cannot fetch it, or fetched something else.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise UsageError("npm is not installed", hint="install Node.js; without 3D the page needs nothing else")
    path = _place()
    check_writable(path.parent)
    package = _packed(npm, path.parent)
    try:
        content = _member_of(package)
    finally:
        package.unlink()
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256:
        raise UsageError(f"the viewer has another checksum ({found[:16]}...)", hint="do not use it; report it")
    write_atomic(path, [content])
    return path


def _packed(npm: str, folder: Path) -> Path:
    failed = UsageError("npm could not fetch the viewer", hint="try `npm view @niivue/niivue version` to see why")
    try:
        done = subprocess.run(  # noqa: S603 - a fixed command, and no shell
            [npm, "pack", "--silent", "--ignore-scripts", f"@niivue/niivue@{VERSION}"],
            cwd=folder, capture_output=True, text=True, check=False, timeout=_PATIENCE,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise failed from None
    name = done.stdout.strip().rpartition("\n")[2]
    if done.returncode or not name or not (folder / name).is_file():
        raise failed
    return folder / name


def _member_of(package: Path) -> bytes:
    try:
        with tarfile.open(fileobj=io.BytesIO(package.read_bytes())) as archive:
            member = archive.getmember(_MEMBER)
            file = archive.extractfile(member) if member.isfile() and member.size <= _MOST else None
            if file:
                return file.read()
    except (tarfile.TarError, KeyError, EOFError, OSError):
        pass
    raise UsageError("the package of the viewer is not as it should be", hint="do not use it; report it")


def _place() -> Path:
    return platformdirs.user_data_path("medseg") / "viewer" / f"niivue-{VERSION}.js"
