"""What patients, studies and series are called in outputs: keyed hashes, with a key that belongs to the user.

The key lies in the user's configuration folder, not in an output folder: who gets the results cannot try out which
patient a name stands for, and one patient has one name in all outputs of one user.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from medseg.atomic import write_atomic
from medseg.errors import OutputError, UsageError

_KEY_BYTES = 32
_LETTERS = 16  # of a name: 64 bits, so that a million series get a million names
_ODD = re.compile(r"[^A-Za-z0-9._+-]+")


@dataclass(frozen=True)
class Names:
    """How identifiers become names of folders.

    Parameters
    ----------
    key : bytes
        Of the hashes.
    keep : bool
        Whether identifiers stay as they are, but for letters that a folder's name cannot have.
    """

    key: bytes
    keep: bool = False

    def of(self, kind: str, identifier: str) -> str:
        """Return the name of a patient, a study, a series or a folder."""
        digest = hmac.digest(self.key, f"{kind}\0{identifier}".encode("utf-8", "surrogateescape"), "sha256").hex()
        if not self.keep:
            return digest[:_LETTERS]
        plain = _ODD.sub("_", identifier).strip(".")[:100]
        usable = plain == identifier and plain and not plain.startswith("-")
        return plain if usable else f"{plain.lstrip('-')}-{digest[:8]}"

    def in_log(self, place: str) -> str:
        """Return what a log calls an item: never an identifier that was kept."""
        return Names(self.key).of("item", place) if self.keep else place

    @property
    def mark(self) -> str:
        """A word by which one way of naming is told from another; nothing of the key can be found from it."""
        return f"{'kept' if self.keep else 'hashed'}-{hmac.digest(self.key, b'mark', 'sha256').hex()[:12]}"


def fingerprint(parts: list[str]) -> str:
    """Return a hash of the inputs of one result, in whatever order they come."""
    digest = hashlib.sha256()
    for part in sorted(parts):
        digest.update(part.encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()


def own_names(key_file: Path | None = None, *, keep: bool = False, make: bool = True) -> Names:
    """Return the names of this user; the key is made where there is none yet.

    Parameters
    ----------
    key_file : Path, optional
        Where the key lies; in the user's configuration when left out.
    keep : bool
        Keep identifiers as they are.
    make : bool
        Make a key where there is none.

    Raises
    ------
    UsageError
        If the file is no key, others can read it, or there is none and none is made.
    OutputError
        If it cannot be made, or read.
    """
    path = key_file or platformdirs.user_config_path("medseg") / "names.key"
    try:
        if not path.exists() and not make:
            raise UsageError(f"{path}: there is no key", hint="name the one of the run with --key-file")
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            _make(path)
        text, mode = path.read_text(encoding="ascii", errors="replace").strip(), path.stat().st_mode
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(
            f"{path}: the key cannot be used: {error.strerror}", hint="give a file with --key-file"
        ) from error
    if not re.fullmatch(f"[0-9a-f]{{{2 * _KEY_BYTES}}}", text):
        raise UsageError(f"{path}: is no key", hint=f"give a file with {2 * _KEY_BYTES} hexadecimal digits")
    if os.name != "nt" and mode & 0o077:
        raise UsageError(f"{path}: others can read this key", hint=f"chmod 600 {path}")
    return Names(bytes.fromhex(text), keep)


def _make(path: Path) -> None:
    """Make a key for its owner alone; of two that are made at once, one stays."""
    new = path.with_name(f".medseg-{secrets.token_hex(8)}.part")
    write_atomic(new, [secrets.token_hex(_KEY_BYTES).encode() + b"\n"])
    new.chmod(0o600)
    try:
        os.link(new, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without links
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
