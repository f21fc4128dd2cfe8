"""No value of an element in logs, warnings and messages: datasets full of canaries, read and written in every way."""

import io
import logging
import os
import subprocess
import sys
import threading
import warnings
from contextlib import contextmanager

import highdicom
import pydicom
import pydicom.config
import pytest
from phantoms import series, stack_of, store
from pydicom import Dataset, dcmread
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag

from medseg.dicom.frames import Producer
from medseg.dicom.privacy import quiet, scrub
from medseg.dicom.study import completed, fit, study_header
from medseg.errors import MedsegError, ScanError, UsageError

CANARIES = {
    0x00100010: ("PN", b"CANARY^NAME^^^^=CANARY=x=y=z "),
    0x00100020: ("LO", b"CANARYID" * 20),
    0x00100030: ("DA", b"CANARYDATE"),
    0x00100040: ("CS", b"canarysex "),
    0x00101010: ("AS", b"CANARYAG"),
    0x00101030: ("DS", b"CANARY1.5 "),
    0x00080050: ("SH", b"CANARYACCESSION-TOO-LONG"),
    0x00080020: ("DA", b"CANARY20"),
    0x00080030: ("TM", b"CANARY"),
    0x00200011: ("IS", b"CANARY"),
    0x00080018: ("UI", b"CANARY.1"),
    0x00090010: ("LO", b"CANARY MAKER"),
    0x00091001: ("DS", b"CANARY2.5 "),
    0x00091002: ("UN", b"CANARY"),
}


class Capture(logging.Handler):
    def __init__(self):
        super().__init__(logging.DEBUG)
        self.lines = []

    def emit(self, record):
        self.lines.append(self.format(record) + repr(record.__dict__))


@contextmanager
def everything_said():
    """Yield a list that at the end holds all log lines and warnings, at the lowest of levels."""
    handler, found, root = Capture(), [], logging.getLogger()
    package = logging.getLogger("pydicom")
    levels = root.level, package.level
    root.addHandler(handler)
    pydicom.config.debug(debug_on=True, default_handler=False)
    root.setLevel(logging.DEBUG)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield found
        found += handler.lines + [f"{w.message!r} {w.filename}" for w in caught]
    finally:
        pydicom.config.debug(debug_on=False, default_handler=False)
        root.removeHandler(handler)
        root.setLevel(levels[0])
        package.setLevel(levels[1])


def canary_file() -> bytes:
    dataset = series()[0]
    dataset.preamble = bytes(128)
    for tag, (vr, value) in CANARIES.items():
        dataset[tag] = RawDataElement(Tag(tag), vr, len(value), value, 0, is_implicit_VR=False, is_little_endian=True)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset.save_as(buffer, enforce_file_format=False)
    assert buffer.getvalue().count(b"CANARY") > 12
    return buffer.getvalue()


def use(encoded: bytes) -> list[Exception]:
    """Read a file, look at every value, write it, hand it to highdicom, and return what was raised."""
    raised = []

    def attempt(action, *args):
        try:
            return action(*args)
        except Exception as error:  # noqa: BLE001 - whatever it is, its text is looked at
            raised.append(error)

    dataset = dcmread(io.BytesIO(encoded), force=True)
    for tag in list(dataset.keys()):
        attempt(lambda tag=tag: dataset[tag].value)
    attempt(dataset.decode)
    attempt(dataset.to_json)
    attempt(lambda: dcmread(io.BytesIO(encoded)).save_as(io.BytesIO(), implicit_vr=True))
    attempt(lambda: highdicom.sc.SCImage.from_ref_dataset(dataset, b"", "MONOCHROME2", 8, "WSD", "1.2", 1, "1.2.3", 1))
    attempt(setattr, Dataset(), "PatientBirthDate", "CANARY")
    attempt(setattr, Dataset(), "PatientWeight", "CANARY")
    attempt(completed, dataset)
    return raised


def test_without_the_guard_the_canaries_sing():
    with everything_said() as said:
        raised = use(canary_file())
    assert len([line for line in said if "CANARY" in line.upper()]) > 5
    assert [error for error in raised if "CANARY" in str(error)]


def test_no_value_is_logged_or_warned_of():
    with everything_said() as said, quiet():
        raised = use(canary_file())
    assert len(said) > 50  # debug lines, each without its text
    assert not [line for line in said if "CANARY" in line.upper()]
    assert any("(0010," in line for line in said)
    assert raised


def test_scrubbed_exceptions_hold_no_value_and_keep_type_and_tag():
    with quiet():
        raised = use(canary_file())
    for error in raised:
        assert "CANARY" not in scrub(error).upper()
        assert "CANARY" not in scrub(str(error)).upper()
        assert "CANARY" not in scrub(f"{type(error).__name__}: {error}").upper()
        assert scrub(error).startswith(type(error).__name__)


def test_withheld_holds_for_a_whole_process_and_leaves_others_alone(tmp_path):
    (tmp_path / "canary.dcm").write_bytes(canary_file())
    program = """
import logging, sys, warnings
import pydicom.config
logging.basicConfig(level=logging.DEBUG)
logging.captureWarnings(sys.argv[2] == "captured")
from medseg.dicom.privacy import withheld
before = warnings.filters[:]
guard = withheld(); guard.__enter__()
assert warnings.filters == before
pydicom.config.debug(True)
warnings.simplefilter("always")
for tag in list((dataset := pydicom.dcmread(sys.argv[1], force=True)).keys()):
    try: dataset[tag].value
    except Exception: pass
logging.getLogger("pynetdicom.acse").info("%s called", "CANARY")
logging.getLogger("highdicom.base").warning("CANARY")
try: raise ValueError("CANARY")
except ValueError: logging.getLogger("pydicom").exception("failed")
warnings.simplefilter("error")
try: pydicom.Dataset().PatientBirthDate = "CANARY"
except UserWarning as error: print("raised", error)
logging.getLogger("mine").warning("said by %s", "me")
warnings.simplefilter("always")
warnings.warn("warned by me")
"""
    for mode in ("shown", "captured"):
        argv = [sys.executable, "-c", program, tmp_path / "canary.dcm", mode]
        ran = subprocess.run(argv, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": ""})
        said = ran.stdout + ran.stderr
        assert "CANARY" not in said.upper().replace("CANARY.DCM", "")
        assert "raised pydicom, VR DA" in said
        assert "UserWarning: pydicom, VR" in said
        assert "pynetdicom.acse: the text is withheld" in said
        assert "said by me" in said
        assert "<string>:24: UserWarning: warned by me" in said  # at the line of the caller


def test_nothing_is_left_behind():
    before = warnings.warn, logging.getLogRecordFactory(), warnings.filters[:]
    with quiet(), quiet():
        assert warnings.warn is not before[0]
    assert (warnings.warn, logging.getLogRecordFactory(), warnings.filters[:]) == before


def test_errors_pass_and_leave_nothing_behind():
    before = warnings.warn
    with pytest.raises(ScanError, match="no slices"), quiet():
        raise ScanError("a.dcm: no slices", hint="look", code="EMPTY")
    assert warnings.warn is before


def test_warnings_and_logs_of_others_are_as_they_were():
    with everything_said() as said, quiet():
        warnings.warn("mine", DeprecationWarning, stacklevel=1)
        logging.getLogger("pydicomlike").warning("also %s", "mine")
        logging.getLogger("mine").error("%d", 5)
    assert any("DeprecationWarning('mine')" in line and __file__ in line for line in said)
    assert any(line.startswith("also mine") for line in said)
    assert any(line.startswith("5") for line in said)


def test_it_holds_in_many_threads_at_once():
    encoded, failed = canary_file(), []

    def read():
        try:
            for _ in range(5):
                with quiet():
                    use(encoded)
        except BaseException as error:  # noqa: BLE001
            failed.append(error)

    before = warnings.warn, logging.getLogRecordFactory()
    with everything_said() as said:
        threads = [threading.Thread(target=read) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failed
    assert not [line for line in said if "CANARY" in line.upper()]
    assert (warnings.warn, logging.getLogRecordFactory()) == before


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("could not convert string to float: 'CANARY1.5'", "an error"),
        ("ValueError: Invalid value for VR DA: 'CANARY'.", "ValueError, VR DA"),
        ("pydicom.errors.InvalidDicomError: CANARY (0010, 0010)", "InvalidDicomError, (0010,0010)"),
        ("KeyError: (0010,0010) and 0010,0010 and (1970,0102) CANARY", "KeyError, (0010,0010)"),
        ("CANARYError: no such type", "an error"),
        ("'Dataset' object has no attribute 'PatientName'", "an error, (0010,0010)"),
        ("'FileDataset' object has no attribute 'McCanary'", "an error"),
        ("", "an error"),
    ],
)
def test_scrub_keeps_what_is_no_value(text, expected):
    assert scrub(text) == expected


def test_a_header_of_canaries_becomes_one_that_can_be_written(tmp_path):
    (tmp_path / "canary.dcm").write_bytes(canary_file())
    with everything_said() as said:
        with quiet():
            found = dcmread(tmp_path / "canary.dcm")
        found = completed(found)
    assert not [line for line in said if "CANARY" in line.upper()]
    assert (found.PatientBirthDate, found.StudyDate, found.StudyTime, found.PatientSex) == ("", "", "", "")
    assert str(found.PatientName).startswith("CANARY^NAME")  # the patient's own, in the patient's own study
    assert "PatientWeight" not in found
    assert not [tag for tag in found.keys() if tag.is_private]  # noqa: SIM118 - iterating converts values


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID"])
def test_a_header_without_a_uid_is_refused_by_its_name(keyword):
    dataset = series()[0]
    del dataset[keyword]
    with pytest.raises(UsageError, match=f"no {keyword}"):
        completed(dataset)


def test_a_header_is_translated_to_utf_8_and_old_dates_are_understood(tmp_path):
    dataset = series(SpecificCharacterSet="ISO_IR 100", PatientName="Müller^Jürgen")[0]
    dataset[0x00080020] = RawDataElement(Tag(0x00080020), "DA", 10, b"2024.01.31", 0, False, True)
    dataset[0x00080030] = RawDataElement(Tag(0x00080030), "TM", 8, b"10:11:12", 0, False, True)
    del dataset.StudyID
    found = completed(dataset)
    assert (found.StudyDate, found.StudyTime, found.StudyID) == ("20240131", "101112", "")
    buffer = io.BytesIO()
    found.save_as(buffer, implicit_vr=False, little_endian=True)
    assert "Müller^Jürgen".encode() in buffer.getvalue()


@pytest.mark.parametrize(("tag", "vr", "value"), [(0x00280010, "US", b"abc"), (0x00081140, "SQ", b"\xfe\xff\0\xe0\1")])
def test_bytes_that_are_no_value_are_left_out(tag, vr, value):
    dataset = series()[0]
    dataset[tag] = RawDataElement(Tag(tag), vr, len(value), value, 0, is_implicit_VR=False, is_little_endian=True)
    assert tag not in completed(dataset)


def test_a_scan_that_is_gone_is_said_so(tmp_path):
    stack = stack_of(store(series(), tmp_path / "scan"))
    stack.frames[0].path.unlink()
    with pytest.raises(UsageError, match="no longer there"):
        study_header(stack)


def test_text_is_made_to_fit_one_value():
    assert fit("a\\b\n c\0d" + "e" * 100, 10) == "a b c deee"
    assert fit("  \\ ") == ""


def test_every_writer_keeps_quiet(tmp_path):
    from medseg.dicom.capture import encode_capture

    picture = io.BytesIO()
    from PIL import Image

    Image.new("RGB", (40, 40)).save(picture, "PNG")
    stack = stack_of(store(series(), tmp_path / "scan"))
    known = canary_file().replace(b"\x08\0\x18\0UI\x08\0CANARY.1", b"\x08\0\x18\0UI\x04\x001.2\0")
    stack.frames[0].path.write_bytes(known)
    with everything_said() as said:
        try:
            encode_capture(picture.getvalue(), stack, Producer("m", "1", "0" * 64))
        except MedsegError as error:
            said.append(str(error))
    assert not [line for line in said if "CANARY" in line.upper()]
