"""Bodies of several parts (RFC 2046), as they arrive: no part is held as a whole."""

from __future__ import annotations

from collections.abc import Iterator

from medseg.errors import PacsError

_MAX_HEAD = 1 << 16  # bytes of the headers of a part


def parts(chunks: Iterator[bytes], boundary: str) -> Iterator[Iterator[bytes]]:
    """Yield the content of each part, in pieces; each must be used up before the next is asked for.

    Parameters
    ----------
    chunks : iterator of bytes
        The body.
    boundary : str
        What stands between parts.

    Raises
    ------
    PacsError
        If the body ends before its last part does.
    """
    stream = _Stream(chunks)
    delimiter = b"\r\n--" + boundary.encode("latin-1")
    for _ in stream.until(delimiter):
        pass  # what stands before the first part has no meaning
    while stream.take(2) != b"--":
        stream.skip_head()
        yield stream.until(delimiter)


class _Stream:
    """Bytes of which a little is looked at ahead."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._held = bytearray(b"\r\n")  # the first delimiter may stand at the very beginning

    def until(self, mark: bytes) -> Iterator[bytes]:
        """Yield what stands before a mark, and stop behind it."""
        while (place := self._held.find(mark)) < 0:
            sure = len(self._held) - len(mark) + 1
            if sure > 0:
                yield bytes(self._held[:sure])
                del self._held[:sure]
            self._fetch()
        yield bytes(self._held[:place])
        del self._held[: place + len(mark)]

    def take(self, count: int) -> bytes:
        """Return the next bytes and leave them held: a line end after a delimiter may also end the headers."""
        while len(self._held) < count:
            self._fetch()
        return bytes(self._held[:count])

    def skip_head(self) -> None:
        """Go behind the headers of a part, which an empty line ends."""
        while (place := self._held.find(b"\r\n\r\n")) < 0:
            if len(self._held) > _MAX_HEAD:
                raise PacsError("the PACS sent a part without content", hint="look at its log")
            self._fetch()
        del self._held[: place + 4]

    def _fetch(self) -> None:
        chunk = next(self._chunks, b"")
        if not chunk:
            raise PacsError("the answer of the PACS breaks off", hint="try again; if it stays so, look at its log")
        self._held += chunk
