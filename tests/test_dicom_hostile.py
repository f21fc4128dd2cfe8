"""Damaged and hostile DICOM: one named refusal each, no crash, no hang, no memory that a header merely claims."""

import resource
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from phantoms import body, series, store
from pydicom.uid import RLELossless

from medseg.dicom import elements, pixels
from medseg.dicom.series import read_series, survey
from medseg.errors import ScanError


def refused(folder, **options) -> ScanError:
    with pytest.raises(ScanError) as caught:
        read_series(folder, **options)
    assert len(str(caught.value)) < 400
    return caught.value


@pytest.fixture
def files(tmp_path):
    return sorted(store(series(), tmp_path / "a", shuffled=False).iterdir())


def element(tag, kind, value, *, length=None):
    group, number = divmod(tag, 1 << 16)
    size = len(value) if length is None else length
    wide = kind in (b"SQ", b"OB", b"OW", b"UN")
    head = struct.pack("<HH2s", group, number, kind) + struct.pack(
        "<HI" if wide else "<H", *([0] if wide else []), size
    )
    return head + value


def test_truncated_pixels_are_refused_with_their_slice(files):
    files[4].write_bytes(files[4].read_bytes()[:-100])
    error = refused(files[0].parent)
    assert error.code == "PIXEL_TRUNCATED"
    assert "slice 5" in str(error)


def test_a_file_cut_anywhere_is_refused(files):
    whole = files[4].read_bytes()
    for length in (*range(132, len(whole) - 2600, 7), len(whole) - 2000, len(whole) - 1):
        files[4].write_bytes(whole[:length])
        assert refused(files[0].parent).code in {
            "DICOM_DAMAGED", "PIXEL_TRUNCATED", "NO_POSITION", "SEVERAL_SERIES", "GEOM_MISSING_SLICE",
        }  # fmt: skip


@given(st.data())
def test_changed_bytes_never_escape_as_anything_but_a_refusal(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("fuzz")
    store(series(body((8, 6, 3))), folder)
    victim = sorted(folder.iterdir())[1]
    content = bytearray(victim.read_bytes())
    for place in data.draw(st.lists(st.integers(132, len(content) - 97), min_size=1, max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    victim.write_bytes(content)
    try:
        volume = read_series(folder)
    except ScanError as error:
        assert error.code
    else:
        assert np.isfinite(volume.array).all()


def test_rows_that_no_file_holds_are_refused_before_memory_is_taken(tmp_path):
    datasets = series(Rows=65535, Columns=65535)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert refused(store(datasets, tmp_path / "a")).code == "PIXEL_TRUNCATED"
    packed = series()
    for dataset in packed:
        dataset.compress(RLELossless, generate_instance_uid=False)
        dataset.Rows = dataset.Columns = 65535
    assert refused(store(packed, tmp_path / "b")).code == "PIXEL_TRUNCATED"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


def test_a_length_of_four_gigabytes_is_refused(files):
    whole = files[4].read_bytes()
    place = whole.index(b"\x10\x00\x10\x00PN")
    files[4].write_bytes(whole[:place] + element(0x00090010, b"UN", b"", length=0xFFFFFFF0) + whole[place:])
    assert refused(files[0].parent).code == "DICOM_DAMAGED"


@pytest.mark.parametrize("depth", [65, 20_000])
def test_sequences_deep_in_one_another_are_refused(files, depth):
    nest = (element(0x00081140, b"SQ", b"", length=0xFFFFFFFF) + b"\xfe\xff\x00\xe0\xff\xff\xff\xff") * depth
    whole = files[4].read_bytes()
    place = whole.index(b"\x10\x00\x10\x00PN")
    files[4].write_bytes(whole[:place] + nest + whole[place:])
    start = time.perf_counter()
    error = refused(files[0].parent)
    assert error.code == "DICOM_DAMAGED"
    assert time.perf_counter() - start < 5


def test_a_deflate_bomb_is_refused(files, monkeypatch):
    whole = files[4].read_bytes()
    start = whole.index(b"\x08\x00\x05\x00")
    meta = whole[:start].replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99")
    length = meta.index(b"\x02\x00\x10\x00UI") + 6
    meta = meta[:length] + struct.pack("<H", 22) + meta[length + 2 :]
    total = meta.index(b"\x02\x00\x00\x00UL") + 8
    meta = meta[:total] + struct.pack("<I", struct.unpack_from("<I", meta, total)[0] + 2) + meta[total + 4 :]

    def deflated(body):
        engine = zlib.compressobj(9, wbits=-15)
        return engine.compress(body) + engine.flush()

    files[4].write_bytes(meta + deflated(whole[start:]))
    np.testing.assert_array_equal(read_series(files[0].parent).array[0], body())  # an honest one is read
    monkeypatch.setattr(elements, "_MAX_INFLATED", 1 << 22)
    bomb = whole[start:] + element(0x7FE10010, b"OB", bytes(1 << 23))
    files[4].write_bytes(meta + deflated(bomb))
    assert refused(files[0].parent).code == "DICOM_DAMAGED"


def test_compressed_rubbish_is_one_refused_series(tmp_path):
    datasets = series()
    for dataset in datasets:
        dataset.compress(RLELossless, generate_instance_uid=False)
        dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.90"
    assert refused(store(datasets, tmp_path / "a")).code == "PIXEL_DAMAGED"


@pytest.mark.parametrize(
    "program", ["import os; os.abort()", "import time; time.sleep(60)", "print('x' * 100, flush=True)", "1 / 0"]
)
def test_a_decoder_that_dies_or_hangs_is_one_refused_series(tmp_path, monkeypatch, program):
    datasets = series()
    for dataset in datasets:
        dataset.compress(RLELossless, generate_instance_uid=False)
    decoder = tmp_path / "decoder.py"
    decoder.write_text(program)
    monkeypatch.setattr(pixels, "_DECODER", decoder)
    monkeypatch.setattr(pixels, "_PATIENCE", 1.0)
    error = refused(store(datasets, tmp_path / "a"))
    assert error.code == "PIXEL_DAMAGED"
    assert "slice 1" in str(error)


def test_a_missing_decoder_is_named_with_its_package(tmp_path, monkeypatch):
    datasets = series()
    for dataset in datasets:
        dataset.compress(RLELossless, generate_instance_uid=False)
        dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.201"
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "openjpeg.py").write_text("raise ImportError('not here', name='openjpeg')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "empty"))
    error = refused(store(datasets, tmp_path / "a"))
    assert error.code == "NO_DECODER"
    assert "pip install pylibjpeg pylibjpeg-openjpeg" in error.hint


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc")
def test_a_decoder_ends_with_the_program_that_started_it(tmp_path):
    code = (
        "import os, sys; from medseg.dicom import pixels\n"
        "context = pixels._child(100); child = context.__enter__(); print(child.process.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    child = int(done.stdout)
    for _ in range(100):
        try:
            state = Path(f"/proc/{child}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return
        if state == "Z":  # ended, and not yet waited for
            return
        time.sleep(0.1)
    pytest.fail("the decoder outlives its parent")


def test_a_multi_frame_object_without_places_is_refused(tmp_path):
    datasets = series()[:1]
    datasets[0].NumberOfFrames = 12
    assert refused(store(datasets, tmp_path / "a")).code == "MULTIFRAME"


def test_a_folder_without_images_says_what_it_holds(tmp_path):
    report = series()[0]
    del report.PixelData, report.Rows, report.Columns
    error = refused(store([report], tmp_path / "a"))
    assert error.code == "NO_IMAGES"
    assert "1 DICOM objects without pixels" in str(error)


@pytest.mark.parametrize("damage", ["cut", "encrypted", "checksum"])
def test_a_damaged_archive_is_refused(tmp_path, files, damage):
    path = tmp_path / "study.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED if damage == "checksum" else zipfile.ZIP_DEFLATED) as archive:
        for file in files:
            archive.write(file, file.name)
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "encrypted":
        content[6] |= 1
        content[content.index(b"PK\x01\x02") + 8] |= 1
    else:
        content[content.index(b"\xe0\x7f\x10\x00") + 300] ^= 0xFF
    path.write_bytes(content)
    if damage == "cut":
        from medseg import read

        with pytest.raises(ScanError):
            read(path)
    else:
        assert refused(path).code in {"ARCHIVE", "PIXEL_DAMAGED"}


def test_random_files_are_no_dicom(tmp_path):
    rng = np.random.default_rng(0)
    for k in range(50):
        start = b"\x08\x00\x05\x00CS" if k % 2 else b""
        (tmp_path / f"{k}.bin").write_bytes(start + rng.bytes(500))
    assert survey(tmp_path).rows == ()
