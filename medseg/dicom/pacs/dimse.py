"""A PACS over DIMSE (PS3.7, PS3.4 annexes B and C): C-FIND finds, C-GET or C-MOVE fetches, C-STORE stores.

pynetdicom's log quotes identifiers, so all that it does happens under `privacy.quiet`.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from pydicom import Dataset, dcmread
from pydicom.uid import UID
from pynetdicom import AE, build_context, build_role, evt
from pynetdicom.association import Association
from pynetdicom.dsutils import encode_file_meta
from pynetdicom.pdu_primitives import SCP_SCU_RoleSelectionNegotiation as _Role
from pynetdicom.presentation import PresentationContext

from medseg.dicom.elements import read_elements
from medseg.dicom.pacs.contexts import ENCODINGS, KINDS, pairs
from medseg.dicom.pacs.landing import Landing
from medseg.dicom.pacs.query import Query, Remote, check_named, count, is_uid
from medseg.dicom.parts import Damaged, Part
from medseg.dicom.privacy import quiet
from medseg.errors import MedsegError, PacsError

_CONNECT = 10.0  # seconds for a connection to come about
_AGREE = 30.0  # seconds for an association to be agreed on or ended
_SILENCE = 300.0  # seconds for one message; an object is one
_LONGEST = 3600.0  # seconds for one question
_STUDIES = 100  # of which the series are asked for in one association
_MAX_ANSWERS = 1_000_000
_FIND, _MOVE, _GET = (UID(f"1.2.840.10008.5.1.4.1.2.2.{n}") for n in (1, 2, 3))  # study root
_DONE, _SOME, _NO_ROOM, _NO_MATCH, _NOT_TAKEN = 0x0000, 0xB000, 0xA700, 0xA900, 0x0122
_STORED = {_DONE, _SOME, 0xB006, 0xB007}  # the last with a warning: elements were coerced or discarded
_PENDING = {0xFF00, 0xFF01}
_HINTS = {
    0xA700: "it is overburdened or limits its answers: ask for less, by modality and dates",
    0xA801: "register our AE title with the address and port behind listen= and move= there",
    0x0124: "register our AE title there",
}
_LOG = "look at the log of the PACS"
_LISTENING = threading.Lock()  # our port can be listened on once


@dataclass(frozen=True)
class Dimse:
    """A PACS that speaks DIMSE.

    Parameters
    ----------
    called : str
        Its AE title.
    host : str
        Name or number.
    port : int
        Of the service.
    own : str
        Our AE title, as it is registered there.
    move : int
        Port of this machine to which series are sent by C-MOVE; 0 for C-GET.
    listen : str
        Interface of this machine on which that port listens.
    """

    called: str
    host: str
    port: int
    own: str = field(default="MEDSEG", kw_only=True)
    move: int = field(default=0, kw_only=True)
    listen: str = field(default="127.0.0.1", kw_only=True)

    def find(self, query: Query) -> Iterator[Remote]:
        """Yield the series that match, each once; see `Pacs`."""
        with quiet():
            studies = self._studies(query)
        seen: set[tuple[str, str]] = set()
        for first in range(0, len(studies), _STUDIES):  # no association stands open while others work
            with quiet():
                found = self._series(studies[first : first + _STUDIES])
            for remote in found:
                if query.matches(remote) and (remote.study, remote.series) not in seen:
                    seen.add((remote.study, remote.series))
                    yield remote

    def retrieve(self, remote: Remote, folder: Path) -> int:
        """Write each object of a series into an empty folder; return how many there are; see `Pacs`."""
        check_named(remote)
        wanted = _asked("SERIES", StudyInstanceUID=remote.study, SeriesInstanceUID=remote.series)
        with Landing(folder, remote) as landing, quiet():
            if self.move:
                self._fetch_by_move(wanted, landing)
            else:
                self._fetch_by_get(wanted, landing, remote.modality)
            return landing.finish()

    def store(self, files: Sequence[Path]) -> tuple[Path, ...]:
        """Send DICOM files; return those whose kind the PACS does not take; see `Pacs`."""
        kinds = {path: _kind(path) for path in files}
        contexts = [build_context(*kind) for kind in dict.fromkeys(kinds.values())]
        if not contexts:
            return ()
        with quiet(), self._association(contexts) as line:
            taken = {(str(one.abstract_syntax), str(one.transfer_syntax[0])) for one in line.accepted_contexts}
            return tuple(path for path in files if kinds[path] not in taken or not self._stored(line, path))

    def _studies(self, query: Query) -> list[Dataset]:
        """Return the studies that the PACS finds, each once; it may know nothing of modalities at this level."""
        found: dict[str, Dataset] = {}
        with self._association([build_context(_FIND)]) as line:
            self._check_offer(line, _FIND, "C-FIND")
            for modality in query.modality or ("",):
                asked = _asked(
                    "STUDY", StudyInstanceUID="", PatientID="", StudyDate=query.span, ModalitiesInStudy=modality
                )
                for study in self._answers(line, asked):
                    found.setdefault(_text(study, "StudyInstanceUID"), study)
        if not all(map(is_uid, found)):
            self._fail("names a study by something that is no UID", "have it corrected there")
        return list(found.values())

    def _series(self, studies: Sequence[Dataset]) -> list[Remote]:
        found = []
        with self._association([build_context(_FIND)]) as line:
            self._check_offer(line, _FIND, "C-FIND")
            for study in studies:
                uid = _text(study, "StudyInstanceUID")
                keys = ("SeriesInstanceUID", "Modality", "SeriesDescription", "NumberOfSeriesRelatedInstances")
                asked = _asked("SERIES", StudyInstanceUID=uid, **dict.fromkeys(keys, ""))
                for series in self._answers(line, asked):
                    name, modality, description, images = (_text(series, key) for key in keys)
                    patient, date = _text(study, "PatientID"), _text(study, "StudyDate")
                    found.append(Remote(patient, uid, name, modality, description, date, count(images)))
        return found

    def _answers(self, line: Association, asked: Dataset) -> list[Dataset]:
        found: list[Dataset] = []
        for status, answer in self._within(line.send_c_find(asked, _FIND)):
            if status not in _PENDING:
                self._check(status, "find", _DONE)
                break
            if answer is None or len(found) >= _MAX_ANSWERS:
                self._fail("answers with something that cannot be read, or without end", _LOG)
            found.append(answer)
        return found

    def _fetch_by_get(self, wanted: Dataset, landing: Landing, modality: str) -> None:
        offered = pairs(modality)
        contexts = [build_context(_GET), *(build_context(kind, [*encodings]) for kind, encodings in offered)]
        roles = [build_role(kind, scp_role=True) for kind in dict.fromkeys(kind for kind, _ in offered)]
        with self._association(contexts, roles, landing) as line:
            self._check_offer(line, _GET, "C-GET")
            self._follow(line.send_c_get(wanted, _GET), landing)

    def _fetch_by_move(self, wanted: Dataset, landing: Landing) -> None:
        ours = AE(ae_title=self.own)
        ours.require_called_aet = True
        ours.acse_timeout, ours.dimse_timeout, ours.network_timeout = _AGREE, _SILENCE, _SILENCE
        contexts = [build_context(kind, [*ENCODINGS]) for kind in KINDS]
        with _LISTENING, ExitStack() as stack:
            try:
                ours.start_server(
                    (self.listen, self.move), block=False, contexts=contexts, evt_handlers=_events(landing, [])
                )
            except OSError as error:
                reason = error.strerror or type(error).__name__
                problem = f"port {self.move} of this machine cannot be listened on: {reason}"
                raise PacsError(problem, hint="give a free port behind move=") from None
            stack.callback(ours.shutdown)
            line = stack.enter_context(self._association([build_context(_MOVE)]))
            self._check_offer(line, _MOVE, "C-MOVE")
            self._follow(line.send_c_move(wanted, self.own, _MOVE), landing)

    def _follow(self, responses: Iterator[tuple[Dataset, Dataset | None]], landing: Landing) -> None:
        """Wait until all objects that the PACS can send have come."""
        for status, _ in self._within(responses):
            if landing.trouble:
                raise landing.trouble
            if status not in _PENDING:
                self._check(status, "send a series", _DONE, _SOME)  # what is missing is seen by counting
                return

    def _stored(self, line: Association, path: Path) -> bool:
        """Send one file; return whether the PACS takes its kind."""
        try:
            status = line.send_c_store(dcmread(path)).get("Status")
        except MedsegError:
            raise
        except Exception as error:  # noqa: BLE001 - pydicom and pynetdicom raise a dozen types, with values in their texts
            self._fail(f"was not sent a result: {type(error).__name__}", "look whether the file is whole")
        if status == _NOT_TAKEN:
            return False
        self._check(status, "store a result", *_STORED)
        return True

    def _within(
        self, responses: Iterator[tuple[Dataset, Dataset | None]]
    ) -> Iterator[tuple[int | None, Dataset | None]]:
        """Yield status and content of each response, None where the connection is lost, and not for ever."""
        end = time.monotonic() + _LONGEST
        for status, content in responses:
            if time.monotonic() > end:
                self._fail(f"is not done within {_LONGEST:.0f} seconds", _LOG)
            yield status.get("Status"), content

    @contextmanager
    def _association(
        self, contexts: list[PresentationContext], roles: Sequence[_Role] = (), landing: Landing | None = None
    ) -> Iterator[Association]:
        """Give an association as long as the block lasts; perhaps one in which the PACS takes none of the contexts."""
        opened: list[socket.socket] = []
        ours = AE(ae_title=self.own)
        ours.connection_timeout, ours.acse_timeout = _CONNECT, _AGREE
        ours.dimse_timeout, ours.network_timeout = _SILENCE, _SILENCE
        try:
            line = ours.associate(
                self.host,
                self.port,
                contexts,
                self.called,
                ext_neg=[*roles],
                evt_handlers=_events(landing, opened),
            )
        except (OSError, ValueError, RuntimeError) as error:
            reason = getattr(error, "strerror", None) or type(error).__name__
            self._fail(f"cannot be asked: {reason}", "check the address")
        try:
            if not line.is_established and not line.rejected_contexts:
                self._refused(line)
            _keep_answers(line)
            yield line
            line.release()
        except BaseException as error:
            line.abort()
            if isinstance(error, RuntimeError | ValueError) and not isinstance(error, MedsegError):
                self._check(None, "")  # as pynetdicom says that the association has ended
            raise
        finally:
            for one in opened:  # pynetdicom does not close all that it opens
                one.close()

    def _refused(self, line: Association) -> NoReturn:
        answer = line.acceptor.primitive
        if line.is_rejected and answer is not None:
            self._fail(f"refuses an association: {answer.reason_str}", "register our AE title there; check its own")
        self._fail(
            "does not answer, or breaks off", "check address and port, and that our AE title is registered there"
        )

    def _check_offer(self, line: Association, model: UID, name: str) -> None:
        if not any(one.abstract_syntax == model for one in line.accepted_contexts):
            self._fail(f"does not offer {name}", "allow it there, or ask in another way: &move=, or DICOMweb")

    def _check(self, status: int | None, task: str, *good: int) -> None:
        if status is None:
            self._fail("breaks off, or is silent for too long", "try again; if it stays so, look at its log")
        if status not in good:
            self._fail(f"does not {task} (status 0x{status:04X})", _HINTS.get(status, _LOG))

    def _fail(self, problem: str, hint: str) -> NoReturn:
        raise PacsError(f"the PACS {self.host}:{self.port} {problem}", hint=hint) from None


def _asked(level: str, **keys: str) -> Dataset:
    dataset = Dataset()
    dataset.QueryRetrieveLevel = level
    for key, value in keys.items():
        setattr(dataset, key, value)
    return dataset


def _text(dataset: Dataset, key: str) -> str:
    """Return a value as text, '' where there is none or it cannot be read."""
    try:
        value = dataset.get(key)
        return "" if value is None else "\\".join(map(str, value)) if _is_list(value) else str(value).strip(" \0")
    except Exception:  # noqa: BLE001 - pydicom parses values when asked for them, and raises a dozen types
        return ""


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _kind(path: Path) -> tuple[str, str]:
    """Return SOP class and transfer syntax of a file."""
    try:
        elements = read_elements(Part(path))
    except Damaged as error:
        raise PacsError(f"a result cannot be sent: {error}", hint="make it again") from None
    return elements.text(0x00020002) or elements.text(0x00080016), elements.syntax


def _keep_answers(line: Association) -> None:
    """Let nobody but who asks take an answer.

    pynetdicom's own thread takes messages too, and throws answers away. It is told to wait while a question is
    open, but may have looked at that word just before: a study or series would be missing, and nothing would say so.
    """
    take = line.dimse.get_msg

    def take_if_asked(block: bool = False) -> Any:  # noqa: FBT001, FBT002 - as it is called there
        return take(block) if block else (None, None)

    line.dimse.get_msg = take_if_asked  # type: ignore[method-assign]


def _events(landing: Landing | None, opened: list[socket.socket]) -> list[evt.EventHandlerType]:
    line: list[evt.EventHandlerType] = [(evt.EVT_CONN_OPEN, _hasten, [opened])]
    return line if landing is None else [*line, (evt.EVT_C_STORE, _land, [landing])]


def _hasten(event: evt.Event, opened: list[socket.socket]) -> None:
    """Send small packets at once (40 ms each otherwise), and let no peer hold up a thread for ever."""
    line = event.assoc.dul.socket
    if line is not None and line.socket is not None:
        line.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        line.socket.settimeout(_SILENCE)
        opened.append(line.socket)


def _land(event: evt.Event, landing: Landing) -> int:
    """Write an object as it came; pynetdicom's file meta alone is new."""
    head = b"\0" * 128 + b"DICM" + encode_file_meta(event.file_meta)
    try:
        return _DONE if landing.take([head, event.encoded_dataset(include_meta=False)]) else _NO_MATCH
    except MedsegError:
        return _NO_ROOM  # the landing keeps it
