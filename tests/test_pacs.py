"""A PACS: a real Orthanc, and false ones that hang, refuse, lie and break off."""

import json
import logging
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import BaseServer

import numpy as np
import orthanc
import pytest
from phantoms import organ, series, store
from pydicom import dcmread
from pydicom.uid import MRImageStorage, RLELossless
from pynetdicom import AE, build_context, evt
from pynetdicom.association import Association

from medseg.atomic import Outputs
from medseg.dicom.frames import Producer
from medseg.dicom.pacs import Query, Remote, connect, dicomweb, dimse
from medseg.dicom.pacs.contexts import KINDS, pairs
from medseg.dicom.pacs.multipart import parts
from medseg.dicom.privacy import quiet
from medseg.dicom.results import encode
from medseg.dicom.seg_reader import read_segmentation
from medseg.dicom.series import read_series
from medseg.errors import OutputError, PacsError, UsageError
from medseg.plan import Label
from medseg.volume import LabelMap

CANARY = "CANARY"
FIND, GET = dimse._FIND, dimse._GET
CT = "1.2.840.10008.5.1.4.1.1.2"
SERIES = Remote("CANARY-ID", "1.2.3", "1.2.3.4", "CT", "CANARY words", "20240131", 2)
WAYS = ["web", "dimse", "move"]


# --- a real one ---------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True, scope="module")
def brisk():
    """Servers in Python look every half second whether they shall end; here they look more often."""
    before = BaseServer.serve_forever.__defaults__
    BaseServer.serve_forever.__defaults__ = (0.02,)
    yield
    BaseServer.serve_forever.__defaults__ = before


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Folders of three series: CT, MR, and a CT in RLE."""
    folder = tmp_path_factory.mktemp("series")
    store(series(), folder / "ct")
    changes = {"Modality": "MR", "SOPClassUID": MRImageStorage, "StudyDate": "20230505", "PatientID": "P2"}
    store(series(uid="1.2.3.1", SeriesDescription="T1 MPRAGE", **changes), folder / "mr")
    packed = series(np.full((40, 32, 6), 7, np.int16), uid="1.2.3.2", StudyDate="20220101", SeriesDescription="packed")
    for dataset in packed:
        dataset.compress(RLELossless, generate_instance_uid=False)
    store(packed, folder / "rle")
    return folder


@pytest.fixture(scope="module")
def pacs(tmp_path_factory, place):
    """Orthanc with the three series; nothing else is stored in it."""
    if orthanc.MISSING:
        pytest.skip(orthanc.MISSING)
    with orthanc.started(tmp_path_factory.mktemp("orthanc")) as one:
        one.put(path for name in ("ct", "mr", "rle") for path in (place / name).iterdir())
        yield one


def found(address: str, query: Query) -> list[str]:
    return sorted(remote.description for remote in connect(address).find(query))


def one(address: str, description: str) -> Remote:
    (remote,) = connect(address).find(Query(description=description))
    return remote


@pytest.mark.parametrize("way", ["web", "dimse"])
@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        (Query(), ["T1 MPRAGE", "body", "packed"]),
        (Query(("CT",)), ["body", "packed"]),
        (Query(("PT",)), []),
        (Query(("MR", "CT")), ["T1 MPRAGE", "body", "packed"]),
        (Query(dates=("20230101", "20231231")), ["T1 MPRAGE"]),
        (Query(dates=("20230505", "20230505")), ["T1 MPRAGE"]),
        (Query(dates=("20230506", "")), ["body"]),
        (Query(dates=("", "20230505")), ["T1 MPRAGE", "packed"]),
        (Query(description="t1*"), ["T1 MPRAGE"]),
        (Query(description="t1"), []),
        (Query(("CT",), ("20230101", ""), "B?dy"), ["body"]),
        (Query(("MR",), ("20240101", "")), []),
    ],
)
def test_series_are_found_by_modality_date_and_description(pacs, way, query, wanted):
    assert found(getattr(pacs, way), query) == wanted


@pytest.mark.parametrize("way", ["web", "dimse"])
def test_all_is_told_of_a_series(pacs, place, way):
    header = dcmread(next((place / "mr").iterdir()))
    told = one(getattr(pacs, way), "T1*")
    assert (told.patient, told.study, told.series) == ("P2", header.StudyInstanceUID, header.SeriesInstanceUID)
    assert (told.modality, told.description, told.date, told.images) == ("MR", "T1 MPRAGE", "20230505", 12)
    assert not [part for part in ("P2", told.study, "MPRAGE", "20230505") if part in repr(told)]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("name", "description"), [("ct", "body"), ("mr", "T1*")])
def test_what_is_fetched_is_what_was_scanned(pacs, place, tmp_path, way, name, description):
    address = getattr(pacs, way)
    assert connect(address).retrieve(one(address, description), tmp_path / "new" / "here") == 12
    assert sorted(path.name for path in (tmp_path / "new" / "here").iterdir()) == [f"{n:06d}.dcm" for n in range(12)]
    own, fetched = read_series(place / name), read_series(tmp_path / "new" / "here")
    assert np.array_equal(own.array, fetched.array)
    assert own.geometry.same_as(fetched.geometry)


@pytest.mark.parametrize("way", WAYS)
def test_several_series_can_be_fetched_at_once(pacs, tmp_path, way):
    asked = connect(getattr(pacs, way))
    remotes = sorted(asked.find(Query()), key=lambda remote: remote.description)
    with ThreadPoolExecutor(3) as pool:
        folders = [tmp_path / str(number) for number in range(3)]
        assert [*pool.map(asked.retrieve, remotes, folders)] == [12, 12, 6]


@pytest.mark.parametrize("way", WAYS)
def test_a_packed_object_comes_as_it_is_kept(pacs, place, tmp_path, way):
    address = getattr(pacs, way)
    connect(address).retrieve(one(address, "packed"), tmp_path / "got")
    own = {str(d.SOPInstanceUID): d.PixelData for d in map(dcmread, (place / "rle").iterdir())}
    got = [dcmread(path) for path in (tmp_path / "got").iterdir()]
    assert {d.file_meta.TransferSyntaxUID for d in got} == {RLELossless}
    assert {str(d.SOPInstanceUID): d.PixelData for d in got} == own


def test_a_series_of_an_unknown_modality_is_fetched_too(pacs, tmp_path):
    remote = one(pacs.dimse, "body")
    unknown = Remote(remote.patient, remote.study, remote.series, "", "", "", None)
    assert connect(pacs.dimse).retrieve(unknown, tmp_path) == 12


@pytest.fixture(scope="module")
def results(place, tmp_path_factory):
    """A SEG in bits, one as label map, and the label map that both hold."""
    scan = read_series(place / "ct")
    labels = LabelMap(organ().astype(np.uint16), scan.geometry, (Label(value=1, name="liver"),), scan.source)
    folder = tmp_path_factory.mktemp("results")
    with Outputs() as outputs:
        for kind, content in encode(["dicom-seg", "dicom-labelmap"], labels, Producer("tiny", "1", "ab" * 32)).items():
            outputs.write(folder / kind, [content])
    return folder, labels


@pytest.mark.parametrize("way", ["web", "dimse"])
def test_a_segmentation_comes_back_as_it_was_sent(tmp_path, results, way):
    if orthanc.MISSING:
        pytest.skip(orthanc.MISSING)
    folder, labels = results
    with orthanc.started(tmp_path / "orthanc") as pacs:
        address = getattr(pacs, way)
        assert connect(address).store([folder / "dicom-seg"]) == ()
        assert connect(address).store([folder / "dicom-seg"]) == ()  # once more is no harm
        (remote,) = connect(address).find(Query(("SEG",)))
        assert connect(address).retrieve(remote, tmp_path / "got") == 1
    dataset = dcmread(tmp_path / "got" / "000000.dcm")
    again = read_segmentation(tmp_path, dataset, grid=labels.geometry)
    assert np.array_equal(again.array, labels.array)


def test_a_label_map_segmentation_is_handed_back_by_c_store_and_taken_by_stow(tmp_path, results):
    if orthanc.MISSING:
        pytest.skip(orthanc.MISSING)
    folder, _ = results
    bits, atoms = folder / "dicom-seg", folder / "dicom-labelmap"
    with orthanc.started(tmp_path / "orthanc") as pacs:
        assert connect(pacs.dimse).store([atoms]) == (atoms,)
        assert json.loads(pacs.ask("/instances")) == []
        assert connect(pacs.dimse).store([atoms, bits]) == (atoms,)
        assert len(json.loads(pacs.ask("/instances"))) == 1
        assert connect(pacs.web).store([atoms, bits]) == ()
        assert len(json.loads(pacs.ask("/instances"))) == 2
        assert connect(pacs.dimse).store([]) == ()


def test_a_title_that_is_not_registered_is_refused(pacs, tmp_path):
    stranger = connect(pacs.dimse.replace("MEDSEG", "STRANGER"))
    for question in (lambda: list(stranger.find(Query())), lambda: stranger.retrieve(SERIES, tmp_path)):
        with pytest.raises(PacsError, match="our AE title"):
            question()


def test_a_port_that_is_taken_is_said(pacs, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = connect(f"{pacs.dimse}&move={server.getsockname()[1]}")
        with pytest.raises(PacsError, match=r"cannot be listened on.*move="):
            taken.retrieve(SERIES, tmp_path)


def test_a_series_that_has_grown_short_is_an_error_and_leaves_nothing(pacs, tmp_path):
    for way in WAYS:
        address = getattr(pacs, way)
        there = one(address, "body")
        more = Remote(there.patient, there.study, there.series, "CT", "", "", 13)
        with pytest.raises(PacsError, match="12 of 13 objects"):
            connect(address).retrieve(more, tmp_path / way)
        assert not [*(tmp_path / way).iterdir()]
        gone = Remote("", there.study, "1.2.3.99", "CT", "", "", None)
        with pytest.raises(PacsError):
            connect(address).retrieve(gone, tmp_path / way)


def test_nothing_of_the_patient_is_logged(pacs, tmp_path, caplog, results):
    header = dcmread(results[0] / "dicom-seg", stop_before_pixels=True)
    with caplog.at_level(logging.DEBUG):
        for way in WAYS:
            address = getattr(pacs, way)
            connect(address).retrieve(one(address, "T1*"), tmp_path / way)
    assert "pynetdicom" in {record.name.split(".")[0] for record in caplog.records}
    for word in ("P2", "MPRAGE", "Doe", str(header.StudyInstanceUID), "20230505"):
        assert word not in caplog.text


# --- false ones over DIMSE ----------------------------------------------------------------------------------------


@pytest.fixture
def hasty(monkeypatch):
    """All patience is short."""
    for module, names in ((dimse, ("_CONNECT", "_AGREE", "_SILENCE")), (dicomweb, ("_CONNECT", "_SILENCE"))):
        for name in names:
            monkeypatch.setattr(module, name, 0.2)


def objects(count=2, **tags):
    datasets = series(np.zeros((8, 6, count), np.int16), PatientName=CANARY, **tags)
    for dataset in datasets:
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = SERIES.study, tags.get("SeriesInstanceUID", SERIES.series)
    return datasets


@contextmanager
def false_scp(*handlers, contexts=(FIND, GET, CT), **options):
    ours = AE(ae_title="FALSE")
    for name, value in options.items():
        setattr(ours, name, value)
    for context in contexts:
        both = {"scu_role": True, "scp_role": True} if context == CT else {}
        ours.add_supported_context(context, **both)
    server = ours.start_server(("127.0.0.1", 0), block=False, evt_handlers=[*handlers])
    try:
        yield f"dimse://FALSE@127.0.0.1:{server.server_address[1]}?aet=MEDSEG"
    finally:
        ours.shutdown()


@contextmanager
def mute(answer=b"", *, closes=False):
    """Give the port of something that takes connections, says a little and nothing more."""
    lines = []

    def serve(server):
        while True:
            try:
                line = server.accept()[0]
            except OSError:
                return
            lines.append(line)
            line.sendall(answer)
            if closes:
                line.close()

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, args=[server], daemon=True)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()
            for line in lines:
                line.close()


def error_of(question, *, within=4.0) -> str:
    """Return the text of the error that a question ends in, which holds nothing of the patient."""
    start = time.monotonic()
    with pytest.raises((PacsError, OutputError)) as caught:
        question()
    assert time.monotonic() - start < within
    told = traceback.TracebackException.from_exception(caught.value)
    whole = "".join([*told.format_exception_only(), *map(str, (told.__cause__, caught.value.__dict__))])
    assert told.__suppress_context__ or told.__context__ is None
    for word in (CANARY, SERIES.study, "../", "secret"):
        assert word not in whole
    return str(caught.value)


@pytest.mark.parametrize("answer", [b"", b"\x02\x00\x00\x00\x10\x00half a reply", b"HTTP/1.0 400 no\r\n\r\n"])
def test_what_takes_a_connection_and_is_silent_is_an_error(hasty, tmp_path, answer):
    with mute(answer) as port:
        silent = connect(f"dimse://X@127.0.0.1:{port}")
        error_of(lambda: list(silent.find(Query())))
        error_of(lambda: silent.retrieve(SERIES, tmp_path))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # pynetdicom leaves its socket open
def test_what_takes_no_connection_is_an_error(tmp_path, results):
    gone = orthanc.free_port()
    for address in (f"dimse://X@127.0.0.1:{gone}", f"dicomweb+http://127.0.0.1:{gone}"):
        error_of(lambda address=address: list(connect(address).find(Query())))
        error_of(lambda address=address: connect(address).retrieve(SERIES, tmp_path))
        error_of(lambda address=address: connect(address).store([results[0] / "dicom-seg"]))


def sleepy(event):
    time.sleep(0.6)
    yield 0x0000, None


def test_a_pacs_that_falls_asleep_is_an_error(hasty, tmp_path, results):
    asleep = [(evt.EVT_C_FIND, sleepy), (evt.EVT_C_GET, sleepy), (evt.EVT_C_STORE, lambda event: time.sleep(0.6))]
    with false_scp(*asleep, contexts=(FIND, GET, CT, "1.2.840.10008.5.1.4.1.1.66.4")) as address:
        assert "silent" in error_of(lambda: list(connect(address).find(Query())))
        assert "silent" in error_of(lambda: connect(address).retrieve(SERIES, tmp_path))
        assert "silent" in error_of(lambda: connect(address).store([results[0] / "dicom-seg"]))


def test_a_pacs_that_breaks_off_is_an_error(monkeypatch):
    def leave(event):
        event.assoc.abort()
        yield 0x0000, None

    def ended(*args):
        raise RuntimeError(CANARY)  # as pynetdicom says that an association ended since the last question

    with false_scp((evt.EVT_C_FIND, leave)) as address:
        assert "breaks off" in error_of(lambda: list(connect(address).find(Query())))
        monkeypatch.setattr(Association, "send_c_find", ended)
        assert "breaks off" in error_of(lambda: list(connect(address).find(Query())))


def test_a_refusal_says_why():
    with false_scp(require_called_aet=True) as address:
        assert "Called AE title" in error_of(lambda: list(connect(address.replace("FALSE", "OTHER")).find(Query())))


def test_a_pacs_that_offers_neither_find_nor_get_is_an_error(tmp_path):
    with false_scp(contexts=(CT,)) as address:
        assert "does not offer C-FIND" in error_of(lambda: list(connect(address).find(Query())))
        assert "does not offer C-GET" in error_of(lambda: connect(address).retrieve(SERIES, tmp_path))


def test_an_answer_that_is_cut_by_a_limit_is_an_error():
    def limited(event):
        yield 0xFF00, event.identifier
        yield 0xA700, None

    with false_scp((evt.EVT_C_FIND, limited)) as address:
        assert "0xA700" in error_of(lambda: list(connect(address).find(Query())))


@pytest.mark.parametrize(("datasets", "announced"), [(objects(1), 2), (objects(0), 2), (objects(0), None)])
def test_fewer_objects_than_announced_are_an_error(tmp_path, datasets, announced):
    def short(event):
        yield len(datasets)
        for dataset in datasets:
            yield 0xFF00, dataset

    remote = Remote("", SERIES.study, SERIES.series, "CT", "", "", announced)
    with false_scp((evt.EVT_C_GET, short)) as address:
        assert f"{len(datasets)} of " in error_of(lambda: connect(address).retrieve(remote, tmp_path))
    assert not [*tmp_path.iterdir()]


def test_objects_sent_twice_and_those_of_other_series_are_not_counted(tmp_path):
    first, second = objects(2)
    for sent in ([first, first], [first, objects(2, SeriesInstanceUID="1.2.3.5")[1]]):

        def wrong(event, sent=sent):
            yield 2
            for dataset in sent:
                yield 0xFF00, dataset

        with false_scp((evt.EVT_C_GET, wrong)) as address:
            assert "1 of 2" in error_of(lambda address=address: connect(address).retrieve(SERIES, tmp_path))

    def more(event):
        yield 3
        for dataset in (first, first, second):
            yield 0xFF00, dataset

    with false_scp((evt.EVT_C_GET, more)) as address:
        assert connect(address).retrieve(SERIES, tmp_path) == 2
    assert len([*tmp_path.iterdir()]) == 2


def test_names_in_the_data_are_no_places_on_the_disk(tmp_path):
    datasets = objects(2)
    with quiet():
        for number, dataset in enumerate(datasets):
            dataset.SOPInstanceUID = f"../../x{number}"

    def hostile(event):
        yield 2
        for dataset in datasets:
            yield 0xFF00, dataset

    with false_scp((evt.EVT_C_GET, hostile)) as address:
        assert connect(address).retrieve(SERIES, tmp_path / "a" / "b" / "c") == 2
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["000000.dcm", "000001.dcm"]


def test_uids_that_are_none_go_into_no_question(tmp_path):
    with mute() as port:
        for address in (f"dimse://X@127.0.0.1:{port}", f"dicomweb+http://127.0.0.1:{port}"):
            for uid in ("../../x", "1.2\\1.3", "*", "1.2/3", "1.2?x", "", "..", "1" * 65, "1.2 3"):
                remote = Remote("", SERIES.study, uid, "CT", "", "", 1)
                assert "no UID" in error_of(lambda r=remote, a=address: connect(a).retrieve(r, tmp_path), within=0.5)


def test_studies_and_series_that_are_answered_in_odd_ways(tmp_path):
    def odd(event):
        asked = event.identifier
        asked.PatientID = "P"
        if asked.QueryRetrieveLevel == "STUDY":
            asked.StudyInstanceUID, asked.StudyDate = SERIES.study, "2024.01.31"
            yield 0xFF00, asked
        else:
            with quiet():
                asked.SeriesInstanceUID, asked.Modality, asked.SeriesDescription = "../../x", "CT", CANARY
            yield 0xFF01, asked

    with false_scp((evt.EVT_C_FIND, odd)) as address:
        (remote,) = connect(address).find(Query(("CT", "MR"), ("20240131", "20240131")))
        assert (remote.series, remote.images) == ("../../x", None)
        assert not [*connect(address).find(Query(("MR",)))]
        error_of(lambda: connect(address).retrieve(remote, tmp_path))


@pytest.mark.parametrize("status", [0xA700, 0xC000, 0x0110])
def test_a_result_that_is_not_stored_is_an_error(results, status):
    kind = "1.2.840.10008.5.1.4.1.1.66.4"
    with false_scp((evt.EVT_C_STORE, lambda event: status), contexts=(kind,)) as address:
        assert f"0x{status:04X}" in error_of(lambda: connect(address).store([results[0] / "dicom-seg"]))


def test_a_kind_that_is_taken_and_then_refused_is_handed_back(results):
    kind = "1.2.840.10008.5.1.4.1.1.66.4"
    with false_scp((evt.EVT_C_STORE, lambda event: 0x0122), contexts=(kind,)) as address:
        assert connect(address).store([results[0] / "dicom-seg"]) == (results[0] / "dicom-seg",)


def test_a_full_disk_is_told_as_such(tmp_path, monkeypatch):
    def send(event):
        yield 2
        for dataset in objects(2):
            yield 0xFF00, dataset

    def full(handle, *args, **options):
        os.close(handle)
        raise OSError(28, "No space left on device")

    with false_scp((evt.EVT_C_GET, send)) as address:
        monkeypatch.setattr("medseg.dicom.pacs.landing.os.fdopen", full)
        assert "No space left" in error_of(lambda: connect(address).retrieve(SERIES, tmp_path))


def test_small_packets_are_sent_at_once():
    seen = []

    def look(event):
        time.sleep(0.05)  # until our own handler is through
        seen.append(event)
        yield 0x0000, None

    lines = []
    before = dimse._hasten

    def spy(event, opened):
        before(event, opened)
        line = event.assoc.dul.socket.socket
        lines.append(line.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    with pytest.MonkeyPatch.context() as patch, false_scp((evt.EVT_C_FIND, look)) as address:
        patch.setattr(dimse, "_hasten", spy)
        assert not [*connect(address).find(Query())]
    assert seen
    assert lines
    assert all(lines)


def test_no_answer_is_lost_to_a_thread_that_looks_late(monkeypatch):
    class Late(threading.Event):
        def wait(self, timeout=None):
            done = super().wait(timeout)
            time.sleep(0.1)  # the question is asked and answered meanwhile
            return done

    prepare, ask = Association.__init__, Association.send_c_find

    def slow(self, ae, mode):
        prepare(self, ae, mode)
        if mode == "requestor":
            self._reactor_checkpoint = Late()
            self._reactor_checkpoint.set()

    def answer(event):
        for _ in range(3):
            asked = event.identifier
            with quiet():
                asked.StudyInstanceUID, asked.SeriesInstanceUID = SERIES.study, f"1.2.3.{time.monotonic_ns()}"
            yield 0xFF00, asked

    def slowly(*args):
        time.sleep(0.02)  # the thread has begun to look
        answers = ask(*args)
        time.sleep(0.2)
        return answers

    monkeypatch.setattr(Association, "__init__", slow)
    monkeypatch.setattr(Association, "send_c_find", slowly)
    with false_scp((evt.EVT_C_FIND, answer)) as address:
        assert len([*connect(address).find(Query())]) == 3


def test_what_is_offered_fits_into_an_association():
    for modality in ("CT", "MR", "US", "XA", "", "nonsense", "SEG"):
        offered = pairs(modality)
        assert len(offered) <= 127
        build_context(*offered[0])
        assert {kind for kind, _ in pairs("")} == set(KINDS)
    assert len({(str(kind), *encodings) for kind, encodings in pairs("CT")}) == len(pairs("CT"))
    assert CT in {kind for kind, encodings in pairs("CT") if RLELossless in encodings}


# --- false ones over HTTP -----------------------------------------------------------------------------------------


@contextmanager
def false_web(answer, *, context=None):
    """Give the address of a server that answers what a function of (method, path, body, headers) says."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, headers, content = answer(self.command, self.path, body, self.headers)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET  # noqa: N815 - the server looks for this name

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if context:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    server.handle_error = lambda *args: None
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"dicomweb+http://127.0.0.1:{server.server_address[1]}/dicom-web"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def row(number: int, **changes) -> dict:
    told = {
        "00080060": "CT", "00080020": "20240131", "0008103E": CANARY, "00100020": CANARY,
        "0020000D": SERIES.study, "0020000E": f"1.2.3.{number}", "00201209": 2, **changes,
    }  # fmt: skip
    return {tag: {"vr": "LO", "Value": [value]} for tag, value in told.items()}


def paged(count: int, *, most: int, turns=True, headers=None):
    """Answer as a server that has `count` series and tells `most` of them at once."""

    def answer(method, path, body, asked):
        offset = int(path.split("offset=")[1].split("&")[0]) if turns else 0
        rows = [row(number) for number in range(offset, min(offset + most, count))]
        if not rows:
            return 204, {}, b""
        return 200, {"Content-Type": "application/dicom+json", **(headers or {})}, json.dumps(rows).encode()

    return answer


def test_all_pages_are_asked_for():
    with false_web(paged(7, most=2)) as address:
        assert [remote.series for remote in connect(address).find(Query())] == [f"1.2.3.{n}" for n in range(7)]


def test_a_server_that_always_begins_again_ends_or_is_an_error():
    with false_web(paged(7, most=7, turns=False)) as address:
        assert len([*connect(address).find(Query(("CT", "MR")))]) == 7
    more = {"Warning": '299 x: "There are 5 additional results that can be requested"'}
    with false_web(paged(7, most=2, turns=False, headers=more)) as address:
        assert "begins again" in error_of(lambda: list(connect(address).find(Query())))


def test_a_server_that_tells_more_than_was_asked_is_not_believed():
    rows = [row(1), row(2, **{"00080060": "MR"}), row(3, **{"00080020": "19990101"}), row(4, **{"0008103E": "x"})]
    with false_web(lambda *asked: (200, {}, json.dumps(rows).encode())) as address:
        query = Query(("CT",), ("20240101", ""), CANARY.lower())
        assert [remote.series for remote in connect(address).find(query)] == ["1.2.3.1"]


@pytest.mark.parametrize(
    "rows", [[{}], [None], [7], [{"0020000E": 7}], [{"0020000E": {"Value": {}}}], [row(1, **{"00201209": "many"})]]
)
def test_answers_with_holes_are_borne(tmp_path, rows):
    with false_web(lambda *asked: (200, {}, json.dumps(rows).encode())) as address:
        (remote,) = connect(address).find(Query())
        assert remote.images is None


@pytest.mark.parametrize(
    ("status", "headers", "content", "said"),
    [
        (401, {}, CANARY, "token"),
        (403, {}, CANARY, "token"),
        (404, {}, CANARY, "path"),
        (500, {}, CANARY, "500"),
        (302, {"Location": "http://127.0.0.1:9/CANARY"}, CANARY, "another address"),
        (200, {}, f"<html>{CANARY}", "list of series"),
        (200, {}, json.dumps({"a": CANARY}), "list of series"),
        (200, {}, "[" * 100_000, "list of series"),
        (200, {"Content-Length": "100"}, "[", "list of series"),
    ],
)
def test_a_server_that_does_not_answer_the_question_is_an_error(tmp_path, status, headers, content, said, results):
    with false_web(lambda *asked: (status, headers, content.encode())) as address:
        asked = connect(address, token="secret")
        assert said in error_of(lambda: list(asked.find(Query())))
        error_of(lambda: asked.retrieve(SERIES, tmp_path))
        if status != 200:
            error_of(lambda: asked.store([results[0] / "dicom-seg"]))
    assert not [*tmp_path.iterdir()]


def test_nobody_is_followed_to_another_address(tmp_path):
    visits = []

    def elsewhere(*asked):
        visits.append(asked)
        return 200, {}, b"[]"

    with false_web(elsewhere) as other:
        there = {"Location": other.removeprefix("dicomweb+")}
        with false_web(lambda *asked: (307, there, b"")) as address:
            error_of(lambda: list(connect(address, token="secret").find(Query())))
    assert not visits


def test_the_token_goes_along_and_nothing_else_of_the_user(monkeypatch, tmp_path):
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login a password b\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    seen = []

    def answer(method, path, body, headers):
        seen.append(headers.get("Authorization"))
        return 204, {}, b""

    with false_web(answer) as address:
        assert not [*connect(address, token="secret").find(Query())]
        assert not [*connect(address).find(Query())]
    assert seen == ["Bearer secret", None]
    assert "secret" not in repr(connect(address, token="secret"))


def test_a_certificate_is_held_against_the_authorities_of_this_system(tmp_path, monkeypatch):
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("openssl is not installed")
    words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=localhost -days 2"
    files = ["-addext", "subjectAltName=DNS:localhost", "-keyout", tmp_path / "key", "-out", tmp_path / "certificate"]
    subprocess.run([program, *words.split(), *files], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "certificate", tmp_path / "key")
    with false_web(lambda *asked: (204, {}, b""), context=context) as address:
        right = address.replace("http:", "https:").replace("127.0.0.1", "localhost")
        assert "prove" in error_of(lambda: list(connect(right).find(Query())))
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "certificate"))
        assert not [*connect(right).find(Query())]
        wrong = right.replace("localhost", "127.0.0.1")
        assert "prove" in error_of(lambda: list(connect(wrong).find(Query())))


@pytest.mark.parametrize("start", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n[", b"HTTP/1.1 200 OK\r\nX: "])
def test_a_server_that_hangs_is_an_error(hasty, tmp_path, start, results):
    with mute(start) as port:
        asked = connect(f"dicomweb+http://127.0.0.1:{port}")
        assert "does not answer" in error_of(lambda: list(asked.find(Query())))
        error_of(lambda: asked.retrieve(SERIES, tmp_path))
        error_of(lambda: asked.store([results[0] / "dicom-seg"]))


@pytest.mark.parametrize(
    "answer", [b"", b"\0" * 70_000, b"HTTP/1.1 abc\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 200]
)
def test_a_server_that_speaks_no_http_is_an_error(hasty, answer):
    with mute(answer, closes=True) as port:
        error_of(lambda: list(connect(f"dicomweb+http://127.0.0.1:{port}").find(Query())))
        error_of(lambda: list(connect(f"dicomweb+https://127.0.0.1:{port}").find(Query())))


def test_a_server_that_drips_is_cut_off(monkeypatch):
    monkeypatch.setattr(dicomweb, "_LONGEST", 0.3)

    def drip(server):
        line = server.accept()[0]
        with line:
            line.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
            try:
                while True:
                    line.sendall(b"[")
                    time.sleep(0.05)
            except OSError:
                pass

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=drip, args=[server], daemon=True)
        thread.start()
        error_of(lambda: list(connect(f"dicomweb+http://127.0.0.1:{server.getsockname()[1]}").find(Query())))
        thread.join()


def test_text_without_end_is_cut_off(monkeypatch):
    monkeypatch.setattr(dicomweb, "_MAX_TEXT", 1000)
    with false_web(lambda *asked: (200, {}, b" " * 5000)) as address:
        assert "without end" in error_of(lambda: list(connect(address).find(Query())))


def bytes_of(dataset, tmp_path) -> bytes:
    dataset.save_as(tmp_path / "one.dcm", enforce_file_format=True)
    content = (tmp_path / "one.dcm").read_bytes()
    (tmp_path / "one.dcm").unlink()
    return content


def body_of(contents, *, boundary=b"x1", end=b"--") -> bytes:
    pieces = [b"--" + boundary + b"\r\nContent-Type: application/dicom\r\n\r\n" + content for content in contents]
    return b"\r\n".join([*pieces, b"--" + boundary + end + b"\r\n"])


MULTIPART = {"Content-Type": 'multipart/related; type="application/dicom"; boundary=x1'}


def test_objects_are_written_byte_for_byte(tmp_path):
    contents = [bytes_of(dataset, tmp_path) for dataset in objects(2)]
    contents[0] += b"\xfc\xff\xfc\xff OB\0\0\x16\0\0\0\r\n--x2 almost a mark \r\n--"  # trailing padding
    with false_web(lambda *asked: (200, MULTIPART, body_of(contents))) as address:
        assert connect(address).retrieve(SERIES, tmp_path / "got") == 2
    assert [path.read_bytes() for path in sorted((tmp_path / "got").iterdir())] == contents


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda contents: body_of(contents)[:-200], "breaks off"),
        (lambda contents: body_of(contents, end=b""), "breaks off"),
        (lambda contents: body_of(contents[:1]), "1 of 2"),
        (lambda contents: body_of([contents[0], contents[0]]), "1 of 2"),
        (lambda contents: body_of([contents[0], b"<html>CANARY"]), "no DICOM"),
        (lambda contents: body_of([]), "0 of 2"),
        (lambda contents: b"CANARY", "breaks off"),
        (lambda contents: b"--x1\r\n" + b"a" * 70_000 + b"\r\n--x1--", "without content"),
    ],
)
def test_what_is_not_the_whole_series_is_an_error_and_leaves_nothing(tmp_path, change, said):
    contents = [bytes_of(dataset, tmp_path) for dataset in objects(2)]
    with false_web(lambda *asked: (200, MULTIPART, change(contents))) as address:
        assert said in error_of(lambda: connect(address).retrieve(SERIES, tmp_path))
    assert not [*tmp_path.iterdir()]


def test_what_is_damaged_is_left_to_the_reader_to_refuse(tmp_path):
    contents = [bytes_of(dataset, tmp_path) for dataset in objects(2)]
    contents[1] = contents[1][:400]
    with false_web(lambda *asked: (200, MULTIPART, body_of(contents))) as address:
        assert connect(address).retrieve(SERIES, tmp_path / "got") == 2


def test_a_folder_in_use_is_left_alone(tmp_path):
    (tmp_path / "mine").write_text("x")
    with mute() as port:
        for address in (f"dimse://X@127.0.0.1:{port}", f"dicomweb+http://127.0.0.1:{port}"):
            with pytest.raises(UsageError, match="not empty"):
                connect(address).retrieve(SERIES, tmp_path)
    assert (tmp_path / "mine").read_text() == "x"


@pytest.mark.parametrize("step", [1, 2, 7, 64, 1000])
def test_parts_are_the_same_in_pieces_of_any_size(step):
    contents = [b"", b"one\r\n--", b"\r\n\r\n--x \r\n--x", b"a" * 300]
    body = b"preamble\r\n" + body_of(contents) + b"epilogue"
    pieces = (body[start : start + step] for start in range(0, len(body), step))
    assert [b"".join(part) for part in parts(pieces, "x1")] == contents


def failure(*reasons, tag="00081198") -> bytes:
    return json.dumps(
        {tag: {"vr": "SQ", "Value": [{"00081197": {"vr": "US", "Value": [reason]}} for reason in reasons]}}
    ).encode()


@pytest.mark.parametrize(
    ("status", "content", "outcome"),
    [
        (200, b"", "stored"),
        (200, b"{}", "stored"),
        (202, b"{}", "stored"),  # with warnings
        (200, b"<NativeDicomModel/>", "stored"),
        (409, failure(0x0122), "handed back"),
        (202, failure(0xC122), "handed back"),
        (409, failure(0x0122, 0xA700), "0x"),
        (202, failure(0xC000), "0xC000"),
        (200, failure(0x0110), "0x0110"),
        (409, b"", "409"),
        (202, failure(0), "202"),
        (202, failure(7, tag="0008119A"), "0x0007"),
        (202, b'<DicomAttribute keyword="FailedSOPSequence"/>', "202"),
        (413, b"", "413"),
        (415, b"", "415"),
    ],
)
def test_the_answer_to_a_result_is_read(results, status, content, outcome):
    path = results[0] / "dicom-seg"
    with false_web(lambda *asked: (status, {}, content)) as address:
        if outcome == "stored":
            assert connect(address).store([path]) == ()
        elif outcome == "handed back":
            assert connect(address).store([path]) == (path,)
        else:
            assert outcome in error_of(lambda: connect(address).store([path]))


def test_a_result_is_sent_as_the_standard_says(results):
    seen = []

    def answer(method, path, body, headers):
        seen.append((method, path, body, headers))
        return 200, {}, b""

    path = results[0] / "dicom-seg"
    with false_web(answer) as address:
        connect(address).store([path])
    ((method, asked, body, headers),) = seen
    assert (method, asked, headers.get_content_type()) == ("POST", "/dicom-web/studies", "multipart/related")
    assert headers.get_param("type") == "application/dicom"
    assert [b"".join(part) for part in parts(iter([body]), headers.get_boundary())] == [path.read_bytes()]


# --- addresses and queries ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "", "http://h/dicom-web", "dicomweb://h", "dicomweb+http://", "dicomweb+http://h:0", "dicomweb+http://h:port",
        "dicomweb+http://h/x?y=1", "dicomweb+http://h/x#y", "dicomweb+http://h/ x", "dicomweb+http://[::1",
        "dimse://h:1", "dimse://A@h", "dimse://A@h:1?x=1", "dimse://A@h:1/x", "dimse://A@h:1?move=x",
        "dimse://A@h:1?move=0", "dimse://A@h:1?move=70000", "dimse://A@h:1?listen=127.0.0.1",
        "dimse://A@h:1?move=1&listen=example", "dimse://SEVENTEEN-LETTERS@h:1", "dimse://A@h:1?aet=", "dimse://A:b@h:1",
        "dimse://A@h:1?aet=a%5Cb",
    ],
)  # fmt: skip
def test_wrong_addresses_are_refused_with_an_example(address):
    with pytest.raises(UsageError, match=r"dicomweb\+http://127.0.0.1:8042/dicom-web or dimse://ORTHANC@"):
        connect(address)


def test_right_addresses():
    web = connect("dicomweb+https://pacs.example/a/b/")
    assert (web.host, web.port, web.path, web.secure) == ("pacs.example", 443, "/a/b", True)
    assert connect("dicomweb+http://[::1]:8042").host == "::1"
    line = connect("dimse://ORTHANC@127.0.0.1:4242?aet=OUR%20OWN&move=11113&listen=0.0.0.0")
    assert (line.called, line.own, line.move, line.listen) == ("ORTHANC", "OUR OWN", 11113, "0.0.0.0")


def test_passwords_and_odd_tokens_are_refused_and_not_repeated():
    for address, token in (
        ("dicomweb+http://user:secret@h/x", ""),
        ("dicomweb+http://h/x", "secret\r\nX: y"),
        ("dimse://A@h:1", "secret"),
        ("dimse://A:secret@h:1", ""),
        ("dicomweb+http://user:secret@h:port/x", ""),
    ):
        with pytest.raises(UsageError) as caught:
            connect(address, token=token)
        assert "secret" not in str(caught.value)
        assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_without_its_package_dimse_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "medseg.dicom.pacs.dimse", None)
    with pytest.raises(UsageError, match=r"pip install 'medseg\[pacs\]'"):
        connect("dimse://A@h:1")


@pytest.mark.parametrize(
    "words",
    [
        {"modality": ("ct",)}, {"modality": ("",)}, {"modality": ("C*",)}, {"modality": ("CT\\MR",)},
        {"dates": ("2024-01-31", "")}, {"dates": ("", "20240230")}, {"dates": ("20240102", "20240101")},
        {"dates": ("20240101-", "")},
    ],
)  # fmt: skip
def test_wrong_queries_are_refused(words):
    with pytest.raises(UsageError):
        Query(**words)
