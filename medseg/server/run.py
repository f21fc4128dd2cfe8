"""From settings to a server that listens, and back to nothing."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from types import FrameType

import uvicorn

from medseg.errors import UsageError
from medseg.server.app import build
from medseg.server.service import Service
from medseg.server.settings import Settings
from medseg.server.spool import spool
from medseg.server.wire import protocol

_BACKLOG = 128
_HEAD = 16 << 10  # bytes of the head of a request
_GRACE = 3  # seconds for answers to end when the server is told to stop
_TO_STOP = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


def serve(settings: Settings, ready: Callable[[str], None]) -> None:
    """Answer requests until the process is told to stop.

    Parameters
    ----------
    settings : Settings
        Where, for whom, and with what.
    ready : callable
        Is called with the address once requests are answered.

    Raises
    ------
    UsageError
        If the address cannot be listened at, or the certificate is none.
    BundleError, DeviceError, OutputError
        If a model is none, there is no such device, or the folder for what is kept cannot be written.
    """
    with _unwound(), spool(settings.spool) as folder, closing(_listening(settings)) as listener:
        service = Service(settings, folder)
        service.shelf.predictor(service.shelf.names[0])  # what this computer cannot do is said now
        config = uvicorn.Config(
            build(service),
            http=protocol(settings.limits),
            ws="none",
            lifespan="on",
            log_config=None,
            log_level="critical",  # what it would say of an error may quote a scan; ours are said by the guard
            access_log=False,
            server_header=False,
            proxy_headers=False,
            h11_max_incomplete_event_size=_HEAD,
            timeout_graceful_shutdown=_GRACE,
            ssl_certfile=settings.certificate,
            ssl_keyfile=settings.key,
        )
        _load(config)
        _Server(config, lambda: ready(_address(settings, listener)), service.desk.close).run([listener])


class _Server(uvicorn.Server):
    """A server that says when it is ready."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None], ending: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready, self._ending = ready, ending

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End; who waits for a job is told so."""
        self._ending()
        await super().shutdown(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin."""
        await super().startup(sockets)
        if threading.current_thread() is threading.main_thread():
            for number in _TO_STOP:
                if signal.getsignal(number) is _end:
                    signal.signal(number, self.handle_exit)  # uvicorn listens to one of them only
        if self.started:
            self._ready()


@contextmanager
def _unwound() -> Iterator[None]:
    """While it lasts, a signal to stop ends the program by an exception, so that nothing that is kept stays behind."""
    if threading.current_thread() is not threading.main_thread():
        yield  # no other one may listen to signals
        return
    listened = [number for number in _TO_STOP if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, _end) for number in listened}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(0)


def _load(config: uvicorn.Config) -> None:
    try:
        config.load()
    except OSError as error:  # of ssl, too
        raise UsageError(
            f"--tls-certificate or --tls-key cannot be used: {error.strerror or error}", hint="give two files in PEM"
        ) from None


def _listening(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
    except (OSError, OverflowError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(
            f"cannot listen at {settings.host}:{settings.port}: {reason}", hint="choose another --port, or 0 for any"
        ) from None
    listener.listen(_BACKLOG)
    return listener


def _address(settings: Settings, listener: socket.socket) -> str:
    scheme = "https" if settings.certificate else "http"
    name = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"{scheme}://{name}:{listener.getsockname()[1]}"
