"""Keeps the values of elements out of messages: pydicom, pynetdicom and highdicom quote them, and some are names.

What those packages log, and what they warn of, is replaced by a sentence that names at most the package, the tag and
the value representation. Nothing else that a program logs or warns of is touched, and no exception is caught.
"""

from __future__ import annotations

import builtins
import inspect
import logging
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_PACKAGES = frozenset({"pydicom", "pynetdicom", "highdicom"})
_WITHHELD = "the text is withheld, as it may quote the patient's data"
_TAG = re.compile(r"(?<![0-9A-Fa-f])([0-9A-Fa-f]{4}), ?([0-9A-Fa-f]{4})(?![0-9A-Fa-f])")
_KEYWORD = re.compile(r"\b[A-Z][a-z]+(?:[A-Z0-9][A-Za-z0-9]*)+\b")
_VR = re.compile(r"\bVR (?:of )?'?([A-Z]{2})\b")
_ERROR = re.compile(r"\s*(?:\w+\.)*(\w+)(?::|$)")


@contextmanager
def quiet() -> Iterator[None]:
    """While it lasts, those packages warn of nothing, and their log lines carry no text of theirs.

    Hold it while values are used as well as while a file is read: pydicom looks at a value when it is asked for it.
    The warnings that it drops are in the log. It holds for all threads of the process, and may be nested.
    """
    _watch.begin(silent=True)
    try:
        yield
    finally:
        _watch.end(silent=True)


@contextmanager
def withheld() -> Iterator[None]:
    """While it lasts, what those packages log or warn of carries no text of theirs; their warnings are still warned of.

    For a command, from its first line to its last. It loads none of those packages.
    """
    _watch.begin(silent=False)
    try:
        yield
    finally:
        _watch.end(silent=False)


def scrub(error: BaseException | str) -> str:
    """Return what may be told of an exception of those packages, or of its text: its type, tags and representation.

    Nothing else of the text is kept: not all values in it stand between quotes. Raise what is made with it
    `from None`, or a traceback tells the rest.

    >>> scrub("ValueError: Invalid value for VR DA: 'Doe' in (0010,0030)")
    'ValueError, (0010,0030), VR DA'
    """
    text = str(error)
    name = type(error).__name__ if isinstance(error, BaseException) else _type_in(text)
    return ", ".join([name, *_traces(text)])


def _type_in(text: str) -> str:
    """Return the name of the exception with which a text begins, as the last line of a traceback does."""
    import pydicom.errors

    match = _ERROR.match(text)
    for home in (builtins, pydicom.errors):
        kind = getattr(home, match[1], None) if match else None
        if isinstance(kind, type) and issubclass(kind, BaseException):
            return kind.__name__
    return "an error"


def _traces(text: str) -> list[str]:
    """Return the tags (of the standard's dictionary) and value representations that a text names, each once."""
    from pydicom.datadict import dictionary_has_tag, tag_for_keyword
    from pydicom.valuerep import VR

    tags = [int(group + element, 16) for group, element in _TAG.findall(text)]
    tags += [tag for tag in map(tag_for_keyword, _KEYWORD.findall(text)) if tag is not None]
    known = [f"({tag >> 16:04X},{tag & 0xFFFF:04X})" for tag in tags if dictionary_has_tag(tag)]
    representations = [f"VR {name}" for name in _VR.findall(text) if name in VR.__members__]
    return list(dict.fromkeys(known + representations))


def _sentence(package: str, text: str) -> str:
    return f"{', '.join([package, *_traces(text)])}: {_WITHHELD}"


def _package_of(name: object) -> str | None:
    package = str(name).split(".", 1)[0]
    return package if package in _PACKAGES else None


def _package_warning(frame: FrameType | None, stacklevel: int) -> str | None:
    """Return the package from which a warning comes, or to which it is ascribed."""
    for _ in range(max(1, stacklevel)):
        if frame is None:
            return None
        if package := _package_of(frame.f_globals.get("__name__")):
            return package
        frame = frame.f_back
    return None


class _Watch:
    """Stands between those packages and `warnings.warn` and the log records, while at least one user needs it.

    A record factory, as a filter of a logger does not see the records of the loggers below it; `warnings.warn`
    itself, as a filter cannot change a text, and whoever records warnings or makes them errors sees them unfiltered.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._silent = 0
        self._warn: Callable[..., None] = warnings.warn
        self._factory: Callable[..., logging.LogRecord] = logging.getLogRecordFactory()
        self._before: tuple[Callable[..., None], Callable[..., logging.LogRecord]] = (self._warn, self._factory)

    def begin(self, *, silent: bool) -> None:
        with self._lock:
            if not self._users:
                self._plant()
            self._users += 1
            self._silent += silent

    def end(self, *, silent: bool) -> None:
        with self._lock:
            self._users -= 1
            self._silent -= silent
            if not self._users:
                self._uproot()

    def _plant(self) -> None:
        self._before = warnings.warn, logging.getLogRecordFactory()
        self._warn, self._factory = self._guarded(self._before[0]), self._emptied(self._before[1])
        warnings.warn = self._warn
        logging.setLogRecordFactory(self._factory)

    def _uproot(self) -> None:
        """Put back what was there, unless another one has put itself in front since: it still calls us."""
        if warnings.warn is self._warn:
            warnings.warn = self._before[0]
        if logging.getLogRecordFactory() is self._factory:
            logging.setLogRecordFactory(self._before[1])

    def _guarded(self, warn: Callable[..., None]) -> Callable[..., None]:
        def guarded(
            message: Any, category: type[Warning] | None = None, stacklevel: int = 1, *rest: Any, **more: Any
        ) -> None:
            here = inspect.currentframe()
            package = _package_warning(here.f_back if here else None, stacklevel) if self._users else None
            if package is None:
                warn(message, category, stacklevel + 1, *rest, **more)
            elif not self._silent:
                kind = type(message) if isinstance(message, Warning) else category
                warn(_sentence(package, str(message)), kind, stacklevel + 1, *rest, **more)

        return guarded

    def _emptied(self, factory: Callable[..., logging.LogRecord]) -> Callable[..., logging.LogRecord]:
        def emptied(name: str, level: int, path: str, line: int, text: Any, args: Any, *rest: Any, **more: Any) -> Any:
            if not self._users or _package_of(name) is None:
                return factory(name, level, path, line, text, args, *rest, **more)
            record = factory(name, level, path, line, _sentence(name, f"{text} {args}"), (), *rest, **more)
            record.exc_info = record.exc_text = record.stack_info = None
            return record

        return emptied


_watch = _Watch()
