"""What every request must pass before anything of it is read: where it was sent, where from, by whom, and how large."""

from __future__ import annotations

import logging
import re
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from medseg.gate import readable
from medseg.server.answers import Rejected
from medseg.server.settings import Settings

_OPEN = {
    ("GET", "/"), ("GET", "/health"), ("GET", "/auth/"), ("POST", "/auth/token"),
    ("GET", "/docs"), ("GET", "/openapi.json"),  # a browser cannot send a token with an address; they hold no secret
}  # fmt: skip
_OPEN_PREFIX = "/page/"  # what the page itself is made of: it asks for the token
_QUERY = 4096  # bytes
_HEAD = 16 << 10  # bytes of the address and the headers
_SAFE = {"GET", "HEAD", "OPTIONS"}
_METHODS = _SAFE | {"POST", "PUT", "DELETE", "PATCH", "TRACE", "CONNECT"}
_NAME = re.compile(r"^(?:\[([0-9a-fA-F:.]+)\]|([^:\[\]/@\s]+))(?::\d{1,5})?$")
_HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
    "content-security-policy": "default-src 'self'; img-src 'self' blob: data:; connect-src 'self' blob:; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
}
_PREFLIGHT = Response(status_code=204)
_log = logging.getLogger("medseg.server")


class Guard:
    """An ASGI application around another one.

    Parameters
    ----------
    app : ASGI application
        Sees only what passes.
    settings : Settings
        What may pass.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app, self._settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let one request pass, or answer it."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        start, status = time.monotonic(), 0
        headers = Headers(scope=scope)
        taken = 0

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self._settings.limits.upload:
                raise self._too_large()
            return message

        async def marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self._mark(MutableHeaders(raw=message["headers"]), headers)
                message["headers"] = list(message["headers"])
            await send(message)

        try:
            self._check(scope, headers)
            await (_PREFLIGHT if _is_preflight(scope, headers) else self._app)(scope, counted, marked)
        except Rejected as error:
            await _answer(error.answer(), scope, receive, marked, begun=bool(status))
        except Exception as error:  # noqa: BLE001 - its text may quote a scan, and nobody outside needs it
            _log.error("%s: %s", _asked(scope), type(error).__name__)
            wrong = Rejected(500, "INTERNAL", "the server could not do it", "ask who runs it to look into its log")
            await _answer(wrong.answer(), scope, receive, marked, begun=bool(status))
        finally:
            _log.info("%s %d %.0f ms", _asked(scope), status, 1000 * (time.monotonic() - start))

    def _check(self, scope: Scope, headers: Headers) -> None:
        own = self._settings
        host = _name_in(headers.get("host", ""))
        if len(headers.getlist("host")) != 1 or not own.knows_host(host):
            raise Rejected(400, "HOST", "the request was not sent to a name of this server", "see --allow-host")
        if len(scope["raw_path"]) + sum(len(name) + len(value) for name, value in scope["headers"]) > _HEAD:
            raise Rejected(431, "HEAD", "the headers are too long", f"at most {_HEAD} bytes are taken")
        if len(scope["query_string"]) > _QUERY:
            raise Rejected(414, "QUERY", "the address is too long", f"at most {_QUERY} bytes may follow the ?")
        origin = headers.get("origin")
        if origin is not None and not self._knows_origin(headers.getlist("origin"), headers["host"]):
            raise Rejected(403, "ORIGIN", "a web page from elsewhere asks", "see --allow-origin")
        if headers.get("content-encoding", "identity") != "identity":
            raise Rejected(415, "ENCODING", "the body is compressed as a whole", "send it as it is")
        length = headers.get("content-length", "0")
        if len(headers.getlist("content-length")) > 1 or not re.fullmatch(r"[0-9]{1,19}", length):
            raise _odd_length("is no number")
        if "content-length" in headers and "transfer-encoding" in headers:
            raise _odd_length("is said twice")
        if int(length) > own.limits.upload:
            raise self._too_large()
        free = self._is_open(scope) or _is_preflight(scope, headers)
        if own.token and not free and not own.knows_token(bearer(headers)):
            raise Rejected(
                401, "TOKEN", "the token is missing or wrong", "send it as 'Authorization: Bearer ...'",
                headers={"www-authenticate": "Bearer"},
            )  # fmt: skip

    @staticmethod
    def _is_open(scope: Scope) -> bool:
        return (scope["method"], scope["path"]) in _OPEN or (
            scope["method"] in _SAFE and scope["path"].startswith(_OPEN_PREFIX)
        )

    def _knows_origin(self, origins: list[str], host: str) -> bool:
        own = {f"{scheme}://{host}".lower() for scheme in ("http", "https")}
        return len(origins) == 1 and (origins[0] in self._settings.allow_origins or origins[0].lower() in own)

    def _too_large(self) -> Rejected:
        most = readable(self._settings.limits.upload)
        return Rejected(
            413, "TOO_LARGE", f"the request is larger than {most}", "crop the scan", headers={"connection": "close"}
        )

    def _mark(self, answer: MutableHeaders, asked: Headers) -> None:
        for name, value in _HEADERS.items():
            answer.setdefault(name, value)
        origin = asked.get("origin", "")
        if origin in self._settings.allow_origins:
            answer["access-control-allow-origin"] = origin
            answer["access-control-allow-headers"] = "authorization, content-type"
            answer["access-control-allow-methods"] = "GET, POST, PUT, DELETE"
            answer["access-control-expose-headers"] = "location, content-disposition"
            answer["cross-origin-resource-policy"] = "cross-origin"
            answer["vary"] = "origin"


async def _answer(answer: Response, scope: Scope, receive: Receive, send: Send, *, begun: bool) -> None:
    if not begun:
        await answer(scope, receive, send)


def _odd_length(problem: str) -> Rejected:
    """Return a refusal that ends the connection: where the next request begins is not certain."""
    hint, headers = "send a Content-Length, or chunks", {"connection": "close"}
    return Rejected(400, "LENGTH", f"the length of the body {problem}", hint, headers=headers)


def _is_preflight(scope: Scope, headers: Headers) -> bool:
    """Return whether a browser asks if a web page from elsewhere may ask."""
    return scope["method"] == "OPTIONS" and "origin" in headers and "access-control-request-method" in headers


def _name_in(host: str) -> str:
    """Return the name in a Host header, without the port; '' if it is none."""
    found = _NAME.match(host)
    return (found[1] or found[2]).lower().rstrip(".") if found else ""


def bearer(headers: Headers) -> str:
    """Return the token that came with a request; '' if none did."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _asked(scope: Scope) -> str:
    """Return what a log may say of a request: method and route, not what stands in them."""
    method = scope["method"] if scope["method"] in _METHODS else "?"
    return f"{method} {getattr(scope.get('route'), 'path', '?')}"
