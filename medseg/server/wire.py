"""HTTP connections that end when their other side dawdles: head, body and answer each have to get on."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from medseg.server.settings import Limits

_PIECES, _CRUMB = 4096, 16  # of a body: after so many, they must have so many bytes on average
_LINGER = 2.0  # seconds for a client to take an answer that came before its request was over


class _Parser(h11.Connection):
    """What makes requests of bytes, unless they come in crumbs: each costs as much as a large piece."""

    def __init__(self, most: int | None) -> None:
        super().__init__(h11.SERVER, **({"max_incomplete_event_size": most} if most else {}))
        self._pieces = self._bytes = 0

    def next_event(self) -> Any:
        """Return what comes next."""
        event = super().next_event()
        if isinstance(event, h11.Data):
            self._pieces, self._bytes = self._pieces + 1, self._bytes + len(event.data)
            if self._pieces > _PIECES and self._bytes < _CRUMB * self._pieces:
                raise h11.RemoteProtocolError("a body of crumbs")
        elif isinstance(event, h11.EndOfMessage):
            self._pieces = self._bytes = 0
        return event


class _Outlet:
    """A transport that knows how much was written to it, and that is closed as its connection wants."""

    def __init__(self, transport: asyncio.Transport, linger: Callable[[], bool]) -> None:
        self._transport, self.written = transport, 0
        self._linger = linger
        self.lingers = False

    def write(self, data: bytes) -> None:
        """Write."""
        self.written += len(data)
        self._transport.write(data)

    def close(self) -> None:
        """Close, or linger before."""
        if self._transport.is_closing() or not self._linger():
            self._transport.close()

    def is_closing(self) -> bool:
        """Return whether nothing more is to be sent."""
        return self.lingers or self._transport.is_closing()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class Connection(H11Protocol):
    """One connection; `protocol` makes a class of it for one server."""

    limits: Limits
    counts: Counter[str]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin, unless there are too many."""
        super().connection_made(transport)
        self.conn = _Parser(self.config.h11_max_incomplete_event_size)
        self.transport = self._out = _Outlet(transport, self._linger)  # type: ignore[assignment]
        self._address = str((transport.get_extra_info("peername") or ("",))[0])
        self._moved, self._before = 0, (0, 0)
        self._timer: asyncio.TimerHandle | None = None
        self.counts[self._address] += 1
        if len(self.connections) > self.limits.connections or self.counts[self._address] > self.limits.connections_each:
            transport.abort()
            return
        self._set_timer(self.limits.headers, self._abort)

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self.counts[self._address] -= 1
        super().connection_lost(exc)
        self._set_timer(0, None)

    def data_received(self, data: bytes) -> None:
        """Take what comes; what comes after an early answer is thrown away."""
        if self._out.lingers:
            return
        waited = self._waits_for_head()
        self._moved += len(data)
        super().data_received(data)
        if not self._waits_for_head():
            if waited:
                self._set_timer(self.limits.pace_every, self._look)
        elif not waited or self._timer is None:
            self._set_timer(self.limits.headers, self._abort)

    def on_response_complete(self) -> None:
        """Wait for the next request, unless this one is not over: the rest of it is not waited for."""
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY:
            self._out.close()
        elif self._waits_for_head():
            self._set_timer(None, None)  # the time between requests is uvicorn's to limit

    def _waits_for_head(self) -> bool:
        return self.conn.their_state is h11.IDLE

    def _linger(self) -> bool:
        """Let a client that still sends read its answer: a connection closed at once may take that away from it."""
        if self.conn.their_state is not h11.SEND_BODY:
            return False
        if not self._out.lingers:
            self._out.lingers = True
            self.flow.resume_reading()
            if self._out.can_write_eof():
                self._out.write_eof()
            self._set_timer(_LINGER, self._abort)
        return True

    def _abort(self) -> None:
        self.transport.abort()

    def _look(self) -> None:
        """End a connection whose body does not come, or whose answer is not taken."""
        reading = self.conn.their_state is h11.SEND_BODY and not self.flow.read_paused
        waiting = self.transport.get_write_buffer_size()
        moved, taken = self._moved, self._out.written - waiting
        slow_in = reading and moved - self._before[0] < self.limits.pace
        slow_out = waiting > 0 and taken - self._before[1] < self.limits.pace
        if slow_in or slow_out:
            self.transport.abort()
            return
        self._before = (moved, taken)
        self._set_timer(self.limits.pace_every, self._look)

    def _set_timer(self, seconds: float | None, call: Any) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(seconds or 0, call) if call else None


def protocol(limits: Limits) -> type[Connection]:
    """Return the class of the connections of one server."""
    return type("Connection", (Connection,), {"limits": limits, "counts": Counter()})
