"""A PACS over the network: series looked for, fetched, and results stored back; by DICOMweb or by DIMSE.

Nothing here writes a name, an identifier or a UID into a message or a log, and nothing but an address that the user
gave is ever connected to.
"""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import NoReturn
from urllib.parse import SplitResult, parse_qsl, urlsplit

from medseg.dicom.pacs.query import Pacs, Query, Remote
from medseg.errors import UsageError

__all__ = ["Pacs", "Query", "Remote", "connect"]

_WEB = "dicomweb+http://127.0.0.1:8042/dicom-web"
_DIMSE = "dimse://ORTHANC@127.0.0.1:4242?aet=MEDSEG"
_TITLE = re.compile(r"[!-\[\]-~](?:[ -\[\]-~]{0,14}[!-\[\]-~])?")  # 1 to 16 letters, no backslash, no space at an end
_TOKEN = re.compile(r"[!-~]+")


def connect(address: str, *, token: str = "") -> Pacs:
    """Return the PACS at an address; it is not asked anything yet.

    Parameters
    ----------
    address : str
        `dicomweb+http://HOST:PORT/PATH`, `dicomweb+https://HOST/PATH`, or `dimse://CALLED@HOST:PORT?aet=OWN`. DIMSE
        fetches by C-GET; with `&move=PORT&listen=ADDRESS` by C-MOVE to that port of this machine, which listens there
        (on 127.0.0.1 without `listen`) as long as a series is under way.
    token : str
        DICOMweb: sent as bearer token.

    Raises
    ------
    UsageError
        If the address or the token is none, or the packages of the extra `pacs` are not installed.
    """
    url = _split(address)
    if url.scheme in {"dicomweb+http", "dicomweb+https"}:
        return _over_web(url, token)
    if token:
        raise UsageError("DIMSE knows no tokens", hint="leave the token out, or give a dicomweb+https address")
    return _over_dimse(url)


def _split(address: str) -> SplitResult:
    try:
        url = urlsplit(address)
        port = url.port
    except ValueError:
        _refuse("is not an address")
    if url.scheme not in {"dicomweb+http", "dicomweb+https", "dimse"}:
        _refuse("begins with no way to ask that is known")
    if not url.hostname or port == 0 or re.search(r"[^!-~]", address):
        _refuse("names no host, or has letters that an address cannot have")
    return url


def _over_web(url: SplitResult, token: str) -> Pacs:
    from medseg.dicom.pacs.dicomweb import DicomWeb

    if "@" in url.netloc:
        raise UsageError(
            "the address of the PACS holds a user or a password, which would end up in histories and process lists",
            hint="leave it out and give a token",
        )
    if url.query or url.fragment:
        _refuse("has a part after ? or #")
    if token and not _TOKEN.fullmatch(token):
        raise UsageError("the token has letters that no token has", hint="give it without spaces and line ends")
    secure = url.scheme.endswith("s")
    port = url.port or (443 if secure else 80)
    return DicomWeb(url.hostname or "", port, url.path.rstrip("/"), secure=secure, token=token)


def _over_dimse(url: SplitResult) -> Pacs:
    try:
        from medseg.dicom.pacs.dimse import Dimse
    except ModuleNotFoundError:
        raise UsageError("DIMSE needs the package pynetdicom", hint="pip install 'medseg[pacs]'") from None

    options = dict(parse_qsl(url.query, keep_blank_values=True))
    called, own = url.username or "", options.pop("aet", "MEDSEG")
    move, listen = options.pop("move", ""), options.pop("listen", "")
    if options or url.fragment or url.path.strip("/") or url.password is not None:
        _refuse("has parts that are not known")
    if not url.port:
        _refuse("names no port")
    if not (_TITLE.fullmatch(called) and _TITLE.fullmatch(own)):
        _refuse("needs the AE title of the PACS before the @, and our own behind aet=, of 1 to 16 letters")
    if (listen and not move) or (move and not (move.isascii() and move.isdigit() and 0 < int(move) < 65536)):
        _refuse("needs a port of this machine behind move=")
    try:
        ip_address(listen or "127.0.0.1")
    except ValueError:
        _refuse("needs the number of an interface of this machine behind listen=")
    return Dimse(called, url.hostname or "", url.port, own=own, move=int(move or 0), listen=listen or "127.0.0.1")


def _refuse(problem: str) -> NoReturn:
    """Refuse an address without repeating it: it may hold a password."""
    raise UsageError(f"the address of the PACS {problem}", hint=f"write it like {_WEB} or {_DIMSE}") from None
