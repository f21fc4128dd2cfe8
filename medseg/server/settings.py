"""What a server may do, for whom, and how much of it."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medseg.errors import UsageError

_SHORTEST = 16  # characters of a token


@dataclass(frozen=True)
class Limits:
    """How much of everything.

    Parameters
    ----------
    upload : int
        Bytes of one request.
    voxels : int
        Bytes of the voxels of one scan, decompressed.
    ratio : float
        Of decompressed to compressed bytes.
    files : int
        In one request, and in one zip archive.
    queue : int
        Jobs that wait.
    kept : int
        Jobs that are done and sessions, whose files are kept; the oldest go first.
    spool : int
        Bytes of all files that are kept.
    keep : float
        Seconds for which results and sessions are kept after they were last asked for.
    patience : float
        Seconds for which a job goes on after the last of those who watched it has left.
    models : int
        Models that are held in memory at a time.
    connections, connections_each : int
        At a time: of all clients, and of one address.
    headers : float
        Seconds in which the head of a request must arrive.
    pace : int
        Bytes that must arrive, or be taken, in each `pace_every` seconds.
    pace_every : float
        Seconds.
    """

    upload: int = 2 << 30
    voxels: int = 4 << 30
    ratio: float = 400.0
    files: int = 20_000
    queue: int = 32
    kept: int = 64
    spool: int = 16 << 30
    keep: float = 900.0
    patience: float = 30.0
    models: int = 4
    connections: int = 256
    connections_each: int = 128
    headers: float = 10.0
    pace: int = 1024
    pace_every: float = 20.0


@dataclass(frozen=True)
class Settings:
    """Where a server listens, whom it answers, and with what.

    Parameters
    ----------
    host, port : str, int
        Where to listen; port 0 is any that is free.
    token : str
        Who asks must know it; '' lets everyone on this computer ask.
    models : tuple of str
        Names or files; all that `medseg models list` shows when empty.
    allow_hosts : tuple of str
        Further names under which it may be asked.
    allow_origins : tuple of str
        Web pages from elsewhere that may ask, such as 'https://viewer.example'.
    datastore : Path, optional
        Folder of scans to label; labels that clients send are kept in it.
    spool : Path, optional
        Folder for what is kept for a while; one of the user's cache when left out.
    certificate, key : Path, optional
        For HTTPS.
    predictor : mapping
        Options of `medseg.Predictor`.
    limits : Limits
        How much.

    Raises
    ------
    UsageError
        If it would not be safe.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str = field(default="", repr=False)
    models: tuple[str, ...] = ()
    allow_hosts: tuple[str, ...] = ()
    allow_origins: tuple[str, ...] = ()
    datastore: Path | None = None
    spool: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    predictor: Mapping[str, Any] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if not self.is_local and not self.token:
            raise UsageError(
                f"--host {self.host} would let everyone on the network in",
                hint="give a file with a secret by --token-file, or leave --host out",
            )
        if self.token and len(self.token) < _SHORTEST:
            raise UsageError(
                f"the token is shorter than {_SHORTEST} characters",
                hint="make one: python3 -c 'import secrets; print(secrets.token_urlsafe(32))' > token",
            )
        if bool(self.certificate) != bool(self.key):
            raise UsageError("HTTPS needs both --tls-certificate and --tls-key", hint="give both, or none")
        if self.datastore and not self.datastore.is_dir():
            raise UsageError(f"{self.datastore}: is no folder", hint="give a folder of scans")

    @property
    def is_local(self) -> bool:
        """Whether only programs on this computer can connect."""
        return self.host == "localhost" or _is_loopback(self.host)

    def knows_host(self, name: str) -> bool:
        """Return whether a request may be meant for this server, by the name it was sent to.

        A web page that has its own name point at this computer is kept out so. Numbers cannot be pointed elsewhere:
        where a token is asked for too, any will do.
        """
        if name in {"localhost", self.host.lower(), *(host.lower() for host in self.allow_hosts)}:
            return True
        return _is_loopback(name) or (not self.is_local and _is_address(name))

    def knows_token(self, token: str) -> bool:
        """Return whether it is the one, in a time that does not tell how much of it was right."""
        return hmac.compare_digest(token.encode(), self.token.encode())


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_loopback(name: str) -> bool:
    return _is_address(name) and ipaddress.ip_address(name).is_loopback
