"""A PACS over DICOMweb (PS3.18): QIDO-RS finds, WADO-RS fetches, STOW-RS stores.

On `http.client`, which follows no redirects, asks no environment for proxies or passwords and logs nothing. Each
question is a connection of its own. Objects stream to and from the disk.
"""

from __future__ import annotations

import json
import secrets
import socket
import ssl
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlencode

from medseg.dicom.pacs.landing import Landing
from medseg.dicom.pacs.multipart import parts
from medseg.dicom.pacs.query import Query, Remote, check_named, count
from medseg.errors import MedsegError, PacsError

_CONNECT = 10.0  # seconds for a connection to come about
_SILENCE = 120.0  # seconds without a byte
_LONGEST = 3600.0  # seconds for one question, however slowly its answer drips
_PAGE = 200  # series asked for at once; a PACS may tell fewer
_MAX_TEXT = 1 << 26  # bytes of an answer that is no object
_PIECE = 1 << 20
_JSON = "application/dicom+json"
_OBJECTS = 'multipart/related; type="application/dicom"; transfer-syntax=*'  # as they are stored there
_PATIENT, _STUDY, _SERIES, _MODALITY = "00100020", "0020000D", "0020000E", "00080060"
_DATE, _DESCRIPTION, _IMAGES = "00080020", "0008103E", "00201209"
_ASKED = (_PATIENT, _DATE, _DESCRIPTION, _IMAGES)
_FAILED, _UNNAMED, _REASON = "00081198", "0008119A", "00081197"
_NOT_TAKEN = {0x0122, 0xC122}  # SOP class, transfer syntax not supported (PS3.18 annex I.2.2)
_LOG = "look at the log of the PACS"


@dataclass(frozen=True)
class DicomWeb:
    """A PACS that speaks DICOMweb.

    Parameters
    ----------
    host : str
        Name or number.
    port : int
        Of the service.
    path : str
        Its root, '/dicom-web'.
    secure : bool
        TLS; the certificate is held against this system's authorities.
    token : str
        Bearer token; none where empty.
    """

    host: str
    port: int
    path: str
    secure: bool = field(kw_only=True)
    token: str = field(default="", kw_only=True, repr=False)

    def find(self, query: Query) -> Iterator[Remote]:
        """Yield the series that match, each once; see `Pacs`."""
        seen: set[tuple[str, str]] = set()
        for modality in query.modality or ("",):
            for remote in self._listed(query, modality):
                if query.matches(remote) and (remote.study, remote.series) not in seen:
                    seen.add((remote.study, remote.series))
                    yield remote

    def retrieve(self, remote: Remote, folder: Path) -> int:
        """Write each object of a series into an empty folder; return how many there are; see `Pacs`."""
        check_named(remote)
        place = f"/studies/{remote.study}/series/{remote.series}"
        with Landing(folder, remote) as landing:
            with self._ask("GET", place, {"Accept": _OBJECTS}) as response:
                self._check(response, 200)
                boundary = response.headers.get_boundary()
                if response.headers.get_content_type() != "multipart/related" or not boundary:
                    self._fail("answers with something else than DICOM objects", _LOG)
                for part in parts(self._chunks(response), boundary):
                    landing.take(part)
            return landing.finish()

    def store(self, files: Sequence[Path]) -> tuple[Path, ...]:
        """Send DICOM files; return those whose kind the PACS does not take; see `Pacs`."""
        return tuple(path for path in files if not self._stored(path))

    def _listed(self, query: Query, modality: str) -> Iterator[Remote]:
        """Yield the series of all pages, some perhaps twice, as the PACS tells them."""
        terms = {"Modality": modality, "StudyDate": query.span}
        asked = [(name, value) for name, value in terms.items() if value]
        asked += [("includefield", tag) for tag in _ASKED] + [("limit", str(_PAGE))]
        seen: set[tuple[str, str]] = set()
        offset = 0
        while True:
            rows, warned = self._rows(f"/series?{urlencode([*asked, ('offset', str(offset))])}")
            page = [_remote(row) for row in rows]
            names = {(remote.study, remote.series) for remote in page}
            if names <= seen:  # nothing, or a PACS that begins again
                if page and warned:
                    self._fail(
                        "has more series than it tells, and begins again when asked for them", "narrow the dates"
                    )
                return
            yield from page
            seen |= names
            offset += len(page)

    def _rows(self, place: str) -> tuple[list[Any], bool]:
        """Return a page of answers, and whether the PACS says that there are more."""
        with self._ask("GET", place, {"Accept": _JSON}) as response:
            self._check(response, 200, 204)
            text = self._text(response)
            warned = response.headers.get("Warning") is not None
        try:
            rows = json.loads(text) if text else []
        except (ValueError, RecursionError):
            rows = None
        if not isinstance(rows, list):
            self._fail("answers with something else than a list of series", "check the path, often /dicom-web")
        return rows, warned

    def _stored(self, path: Path) -> bool:
        """Send one file; return whether the PACS takes its kind."""
        boundary = secrets.token_hex(16)
        head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        tail = f"\r\n--{boundary}--\r\n".encode()
        headers = {
            "Accept": _JSON,
            "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
            "Content-Length": str(len(head) + path.stat().st_size + len(tail)),
        }
        with self._ask("POST", "/studies", headers, _body(head, path, tail)) as response:
            self._check(response, 200, 202, 409)
            reasons = _reasons(self._text(response))
        taken = not reasons and response.status != 409
        if not taken and not (reasons and set(reasons) <= _NOT_TAKEN):
            shown = f", reason 0x{reasons[0]:04X}" if reasons and reasons[0] else ""
            self._fail(f"did not store a result (answer {response.status}{shown})", _LOG)
        return taken

    @contextmanager
    def _ask(
        self, method: str, place: str, headers: Mapping[str, str], body: Iterable[bytes] | None = None
    ) -> Iterator[HTTPResponse]:
        """Ask, and give the answer as long as the block lasts."""
        proof = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        with ExitStack() as stack:
            with self._told():
                connection = stack.enter_context(closing(self._connection()))
                connection.connect()
                connection.sock.settimeout(_SILENCE)
                late = threading.Timer(_LONGEST, _cut, [connection.sock])
                late.daemon = True
                late.start()
                stack.callback(late.cancel)
                connection.request(method, self.path + place, body, {**headers, **proof, "Connection": "close"})
                response = stack.enter_context(closing(connection.getresponse()))
            yield response

    def _connection(self) -> HTTPConnection:
        if self.secure:
            context = ssl.create_default_context()
            return HTTPSConnection(self.host, self.port, timeout=_CONNECT, context=context)
        return HTTPConnection(self.host, self.port, timeout=_CONNECT)

    def _chunks(self, response: HTTPResponse) -> Iterator[bytes]:
        while True:
            with self._told():
                chunk = response.read1(_PIECE)
            if not chunk:
                return
            yield chunk

    def _text(self, response: HTTPResponse) -> bytes:
        text = bytearray()
        for chunk in self._chunks(response):
            text += chunk
            if len(text) > _MAX_TEXT:
                self._fail("answers without end", _LOG)
        return bytes(text)

    def _check(self, response: HTTPResponse, *good: int) -> None:
        status = response.status
        if status in good:
            return
        if status in {401, 403}:
            self._fail(f"does not let us in (answer {status})", "give a token that may do this")
        if 300 <= status < 400:
            self._fail(f"sends us to another address (answer {status})", "give that address, if it is to be trusted")
        if status == 404:
            self._fail("has nothing there (answer 404)", "check the path of the address, often /dicom-web")
        self._fail(f"cannot do it (answer {status})", _LOG)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Tell of what goes wrong on the way by its kind alone: texts of the libraries may hold addresses and data."""
        try:
            yield
        except MedsegError:
            raise
        except ssl.SSLCertVerificationError as error:
            hint = "give the name that its certificate is for, and this system the authority that signed it"
            self._fail(f"cannot prove that it is the one ({error.verify_message})", hint)
        except TimeoutError:
            self._fail("does not answer", "see whether it runs, and try again")
        except (OSError, HTTPException, ValueError) as error:
            reason = getattr(error, "strerror", None) or type(error).__name__
            self._fail(f"cannot be asked: {reason}", "check the address, and whether it runs")

    def _fail(self, problem: str, hint: str) -> NoReturn:
        raise PacsError(f"the PACS {self.host}:{self.port} {problem}", hint=hint) from None


def _remote(row: Any) -> Remote:
    """Return a series from an answer in DICOM JSON (PS3.18 annex F), whatever that may hold."""
    return Remote(
        patient=_value(row, _PATIENT),
        study=_value(row, _STUDY),
        series=_value(row, _SERIES),
        modality=_value(row, _MODALITY),
        description=_value(row, _DESCRIPTION),
        date=_value(row, _DATE),
        images=count(_value(row, _IMAGES)),
    )


def _value(row: Any, tag: str) -> str:
    return "\\".join(str(value).strip(" \0") for value in _values(row, tag) if isinstance(value, str | int))


def _values(row: Any, tag: str) -> list[Any]:
    element = row.get(tag) if isinstance(row, dict) else None
    values = element.get("Value") if isinstance(element, dict) else None
    return values if isinstance(values, list) else []


def _reasons(text: bytes) -> list[int]:
    """Return why objects were not stored, a number for each that was not; 0 for one that is not told."""
    try:
        answer = json.loads(text) if text else {}
    except (ValueError, RecursionError):  # some answer in XML, whatever is asked for
        return [0] if any(word in text for word in (b"FailedSOPSequence", _FAILED.encode())) else []
    if isinstance(answer, list) and len(answer) == 1:
        answer = answer[0]
    failed = [*_values(answer, _FAILED), *_values(answer, _UNNAMED)]
    return [count(_value(item, _REASON)) or 0 for item in failed]


def _body(head: bytes, path: Path, tail: bytes) -> Iterator[bytes]:
    yield head
    with open(path, "rb", buffering=0) as file:
        while piece := file.read(_PIECE):
            yield piece
    yield tail


def _cut(line: socket.socket) -> None:
    with suppress(OSError):  # it is closed already
        line.shutdown(socket.SHUT_RDWR)
