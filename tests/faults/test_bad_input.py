"""Studies that cannot be segmented are put aside with their reasons, and cost the others nothing."""

import gzip
import json
import os
import shutil

import nibabel as nib
import numpy as np
import pytest
from pydicom import dcmread
from trials import trial_in, visible


@pytest.fixture
def trial(tmp_path):
    with trial_in(tmp_path) as one:
        yield one


def change(path, edit) -> None:
    """Store a DICOM file anew after an edit."""
    dataset = dcmread(path)
    edit(dataset)
    dataset.save_as(path, enforce_file_format=True)


def lacks_a_slice(files):
    files[7].unlink()


def holds_a_slice_twice(files):
    dataset = dcmread(files[7])
    dataset.PixelData = bytes(len(dataset.PixelData))
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"{dataset.SOPInstanceUID}.1"
    dataset.save_as(files[7].with_name("twin.dcm"), enforce_file_format=True)


def lacks_pixels(files):
    files[7].write_bytes(files[7].read_bytes()[:-200])


def lacks_positions(files):
    for path in files:
        change(path, lambda dataset: dataset.__delattr__("ImagePositionPatient"))


def has_a_damaged_header(files):
    data = bytearray(files[7].read_bytes())
    data[400:700] = bytes([0xFF]) * 300
    files[7].write_bytes(data)


def is_cut_off(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def is_empty(path):
    path.write_bytes(b"")


def is_nothing_but_nan(path):
    nib.save(nib.Nifti1Image(np.full((16, 16, 16), np.nan, np.float32), np.eye(4)), path)


def is_text(path):
    path.write_bytes(gzip.compress(b"<html>The requested file was not found</html>" * 20))


def is_flat(path):
    image = nib.load(path)
    header = image.header.copy()
    header["sform_code"], header["qform_code"] = 1, 0
    header["vox_offset"] = 352
    header["srow_x"], header["srow_y"], header["srow_z"] = [1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0]
    raw = bytearray(gzip.decompress(path.read_bytes()))
    raw[:348] = header.binaryblock
    path.write_bytes(gzip.compress(bytes(raw)))


BAD_SERIES = {
    lacks_a_slice: "GEOM_MISSING_SLICE",
    holds_a_slice_twice: "DUP_POSITION",
    lacks_pixels: "PIXEL_TRUNCATED",
    lacks_positions: "NO_POSITION",
    has_a_damaged_header: "DICOM_DAMAGED",
}
BAD_FILES = {
    is_cut_off: "TRUNCATED",
    is_empty: "EMPTY",
    is_nothing_but_nan: "NOT_FINITE",
    is_text: "NOT_NIFTI",
    is_flat: "AFFINE",
}


@pytest.mark.slow
def test_ten_bad_of_fifty_are_ten_reasons_and_forty_results(trial):
    trial.scans(40, dicom=5)
    for number, edit in enumerate(BAD_SERIES):
        edit(trial.series(edit.__name__, 20 + number))
    for number, edit in enumerate(BAD_FILES):
        edit(trial.scan(f"{edit.__name__}.nii.gz", seed=60 + number))
    ended = trial.run("--no-picture")
    assert (ended.code, ended.err) == (1, "")
    assert ended.out.startswith("40 of 50 scans segmented\n10 failed: see ")
    trial.check_complete(40, 10)
    expected = sorted([*BAD_SERIES.values(), *BAD_FILES.values()])
    assert sorted(row["code"] for row in trial.ledger().values() if row["state"] == "failed") == expected
    assert sorted(line["code"] for line in trial.log() if line["state"] == "failed") == expected
    told = trial.medseg("status", trial.out, "--json")
    assert told.code == 1
    assert sorted(code for code, count, _ in json.loads(told.out)["reasons"] if count == 1) == expected
    told = trial.medseg("status", trial.out, "--failed")
    assert len([line for line in told.out.splitlines() if line.count("/") == 2]) == 10
    again = trial.run("--no-picture")
    assert (again.code, trial.workers_started()) == (1, 1)
    trial.check_complete(40, 10)


@pytest.mark.slow
def test_what_failed_is_tried_again_when_it_was_repaired_or_a_user_says_so(trial):
    trial.scans(3, dicom=1)
    sound, cut = trial.scan("cut.nii.gz", seed=60), trial.archive / "cut.nii.gz"
    whole = sound.read_bytes()
    is_cut_off(cut)
    is_nothing_but_nan(trial.scan("nan.nii.gz"))
    files = trial.series("missing", 5)
    slice_8 = files[7].read_bytes()
    lacks_a_slice(files)
    assert trial.run("--no-picture").code == 1
    trial.check_complete(3, 3)

    assert trial.medseg("retry", trial.out, "--reason", "NO_SUCH").out == "nothing failed like that\n"
    assert trial.run("--no-picture").code == 1
    assert (len(trial.log()), trial.workers_started()) == (6, 1)

    assert trial.medseg("retry", trial.out, "--reason", "TRUNCATED").out.startswith("1 wait")
    assert trial.states()["waiting"] == 1
    assert trial.run("--no-picture").code == 1  # nobody repaired it
    assert (len(trial.log()), trial.log()[-1]["code"], trial.states()["failed"]) == (7, "TRUNCATED", 3)

    cut.write_bytes(whole)
    assert trial.medseg("retry", trial.out, "--reason", "TRUNCATED").out.startswith("1 wait")
    assert trial.run("--no-picture").code == 1
    assert (len(trial.log()), trial.log()[-1]["state"]) == (8, "done")
    trial.check_complete(4, 2)

    files[7].write_bytes(slice_8)  # without a word to medseg
    trial.scan("nan.nii.gz", seed=61)
    ended = trial.run("--no-picture")
    assert (ended.code, ended.err) == (0, "")
    assert len(trial.log()) == 10
    trial.check_complete(6)


@pytest.mark.slow
def test_scans_that_went_bad_lose_the_results_that_they_had(trial):
    trial.scans(2)
    scan, files = trial.scan("later.nii.gz", seed=7), trial.series("later", 7)
    assert trial.run("--no-picture").code == 0
    is_cut_off(scan)
    lacks_a_slice(files)
    assert trial.run("--no-picture").code == 1
    rows = trial.ledger()
    assert sorted(row["code"] for row in rows.values() if row["state"] == "failed") == [
        "GEOM_MISSING_SLICE",
        "TRUNCATED",
    ]
    left = {str(path.parent.relative_to(trial.out / "results")) for path in visible(trial.out)}
    assert left == {place for place, row in rows.items() if row["state"] == "done"}
    assert len(left) == 2


def test_reasons_are_whole_sentences_whatever_files_are_called(trial):
    files = trial.series("numbers", 3)
    for number, path in enumerate(files):
        path.rename(path.with_name(str(number)))
    cut = files[7].with_name("7")
    lacks_pixels([cut] * 8)
    trial.scan("a.nii.gz").write_bytes(b"")
    assert trial.run("--no-picture").code == 1
    told = {row["code"]: row["problem"] for row in trial.ledger().values()}
    assert told["PIXEL_TRUNCATED"] == "slice 8 declares 512 bytes of pixels and holds 312 bytes"
    assert told["EMPTY"] == "is empty"


def test_a_series_that_lies_in_a_folder_and_in_a_zip_archive_is_one_whenever_it_is_looked_at(trial):
    files = trial.series("folder", 3)
    shutil.make_archive(str(trial.archive / "copy"), "zip", trial.archive / "folder")
    assert trial.run("--no-picture").code == 0
    trial.check_complete(1)
    os.utime(files[3])
    trial.archive.joinpath("copy.zip").touch()
    assert trial.run("--no-picture").code == 0
    trial.check_complete(1)
