"""The index of an archive: every layout, every kind of file, only what changed is looked into again."""

import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import smooth_scan
from phantoms import body, series, store

import medseg
from medseg.archive.index import opened
from medseg.archive.judging import pack
from medseg.archive.walk import DAMAGED, DICOM, SCAN, roots_of
from medseg.dicom.elements import read_elements
from medseg.errors import OutputError, UsageError


@pytest.fixture
def look(tmp_path):
    """A function that brings the index of an archive up to date; returns files looked into and its volumes."""

    def call(archive: Path, without: Path = Path("nowhere")):
        base, roots = roots_of(archive)
        with opened(tmp_path / "index.sqlite", base) as index:
            looked = index.refresh(roots, without, lambda files: None)
            volumes = list(index.volumes())
            return looked, [(volume, index.parts(volume.series_id)) for volume in volumes]

    return call


@pytest.fixture
def archive(tmp_path):
    folder = tmp_path / "archive"
    folder.mkdir()
    return folder


def small(uid: str, **tags):
    return series(body((12, 10, 6)), uid=uid, **tags)


def test_series_are_told_apart_in_one_flat_folder_without_suffixes(archive, look):
    for number in range(3):
        store(small(f"1.2.{number}", PatientID=f"P{number}"), archive / "x", suffix="")
        for path in (archive / "x").iterdir():
            path.rename(archive / f"{number}-{path.name}")
    looked, found = look(archive)
    assert looked == 18
    assert [(volume.kind, volume.patient, volume.verdict.slices, len(parts)) for volume, parts in found] == [
        (DICOM, f"P{number}", 6, 6) for number in range(3)
    ]
    assert found[0][0].about.spacing_mm == pytest.approx((0.9, 0.8, 2.5))


def test_a_series_that_lies_in_two_folders_is_one(archive, look):
    store(small("1.2.3"), archive / "a")
    (archive / "b").mkdir()
    for path in sorted((archive / "a").iterdir())[:3]:
        path.rename(archive / "b" / path.name)
    _, found = look(archive)
    assert [(volume.verdict.slices, volume.verdict.code, len(parts)) for volume, parts in found] == [(6, "", 6)]


@pytest.mark.parametrize(("many", "stored"), [(2, 3 * 6 + 5), (10_000, 5)])
def test_headers_of_a_folder_wait_in_memory_and_those_of_a_scattered_series_in_the_index(
    archive, tmp_path, monkeypatch, many, stored
):
    monkeypatch.setattr("medseg.archive.index._MANY", many)  # files of a folder whose headers wait in memory
    reads, packs = [], []
    monkeypatch.setattr("medseg.archive.judging.read_elements", lambda part: reads.append(part) or read_elements(part))
    monkeypatch.setattr("medseg.archive.index.pack", lambda elements: packs.append(elements) or pack(elements))
    for number in range(3):
        store(small(f"1.2.{number}"), archive / str(number))
    for number, slices in enumerate(small("1.2.3")):
        store([slices], archive / f"alone{number}")
    base, roots = roots_of(archive)
    with opened(tmp_path / "index.sqlite", base) as index:
        index.refresh(roots, Path("nowhere"), lambda files: None)
        assert [(volume.verdict.slices, volume.verdict.code) for volume in index.volumes()] == [(6, "")] * 4
        assert index._db.execute("SELECT COUNT(*) FROM file WHERE head IS NOT NULL").fetchone() == (0,)
    assert len(packs) == stored
    assert len(reads) == 1  # again: of the slice that seemed to be a series


def test_only_what_is_new_or_changed_is_looked_into(archive, look):
    for number in range(3):
        store(small(f"1.2.{number}"), archive / str(number))
    assert look(archive)[0] == 18
    assert look(archive)[0] == 0
    os.utime(archive / "1" / "IM0000.dcm", (1, 1))
    looked, found = look(archive)
    assert (looked, len(found)) == (1, 3)


def test_a_slice_that_comes_later_changes_the_fingerprint_of_its_series_alone(archive, look):
    for number in range(2):
        store(small(f"1.2.{number}"), archive / str(number))
    last = archive / "0" / "IM0005.dcm"
    last.rename(archive.parent / "kept")
    before = {volume.name: volume.verdict.fingerprint for volume, _ in look(archive)[1]}
    (archive.parent / "kept").rename(last)
    after = {volume.name: volume.verdict.fingerprint for volume, _ in look(archive)[1]}
    assert before.keys() == after.keys()
    assert sum(before[name] != after[name] for name in before) == 1


def test_what_is_removed_is_forgotten(archive, look):
    for number in range(2):
        store(small(f"1.2.{number}"), archive / str(number))
    look(archive)
    shutil.rmtree(archive / "0")
    (archive / "1" / "IM0000.dcm").unlink()
    _, found = look(archive)
    assert [len(parts) for _, parts in found] == [5]


def test_an_archive_that_was_moved_into_the_same_place_has_the_same_fingerprints(archive, look):
    store(small("1.2.1"), archive / "a")
    medseg.write(smooth_scan((8, 8, 8)), archive / "scan.nii.gz")
    before = [volume.verdict.fingerprint for volume, _ in look(archive)[1]]
    shutil.copytree(archive, archive.parent / "copy")
    shutil.rmtree(archive)
    shutil.move(archive.parent / "copy", archive)
    assert [volume.verdict.fingerprint for volume, _ in look(archive)[1]] == before


def test_zip_archives_hold_series_too(archive, look):
    folder = store(small("1.2.1"), archive.parent / "a")
    with zipfile.ZipFile(archive / "study.zip", "w") as file:
        for path in folder.iterdir():
            file.write(path, f"in/it/{path.name}")
        file.writestr("readme.txt", "no scan")
    looked, found = look(archive)
    assert (looked, len(found), len(found[0][1])) == (1, 1, 6)
    assert {part.path for part in found[0][1]} == {archive / "study.zip"}
    assert look(archive)[0] == 0


def test_a_damaged_zip_archive_is_told(archive, look):
    (archive / "a").mkdir()
    (archive / "a" / "study.zip").write_bytes(b"PK\x03\x04" + b"x" * 500 + b"PK\x05\x06" + bytes(18))
    _, found = look(archive)
    assert [(volume.kind, volume.verdict.code) for volume, _ in found] in (
        [(DAMAGED, "ARCHIVE")],
        [],  # where zipfile takes it for an empty archive
    )


def test_a_dicomdir_is_not_followed_and_its_files_are_found(archive, look):
    from pydicom.fileset import FileSet

    files = FileSet()
    for dataset in small("1.2.1"):
        files.add(dataset)
    files.write(archive)
    files._stage["t"].cleanup()
    _, found = look(archive)
    assert [(volume.verdict.slices, len(parts)) for volume, parts in found] == [(6, 6)]


def test_bids_says_in_names_whose_a_scan_is(archive, look):
    for subject in ("01", "02"):
        for kind in ("T1w", "bold"):
            folder = archive / f"sub-{subject}" / "ses-a" / ("func" if kind == "bold" else "anat")
            folder.mkdir(parents=True)
            medseg.write(smooth_scan((8, 8, 8)), folder / f"sub-{subject}_ses-a_{kind}.nii.gz")
    derived = archive / "derivatives" / "x"
    derived.mkdir(parents=True)
    medseg.write(smooth_scan((8, 8, 8)), derived / "sub-01_T1w.nii.gz")
    medseg.write(smooth_scan((8, 8, 8)), archive / "sub-01" / "ses-a" / "anat" / "sub-01_T1w_seg.nii.gz")
    _, found = look(archive)
    assert {(volume.kind, volume.patient, volume.study) for volume, _ in found} == {
        (SCAN, f"sub-{subject}", f"sub-{subject}/ses-a") for subject in ("01", "02")
    }
    assert sorted(volume.about.modality for volume, _ in found) == ["MR"] * 4


def test_a_list_names_scans_and_folders(archive, look):
    store(small("1.2.1"), archive / "a")
    medseg.write(smooth_scan((8, 8, 8)), archive / "b.nii.gz")
    medseg.write(smooth_scan((8, 8, 8)), archive / "c.nii.gz")
    listed = archive / "list.csv"
    listed.write_text("path,age\na,30\nb.nii.gz,40\n")
    _, found = look(listed)
    assert sorted(volume.kind for volume, _ in found) == [DICOM, SCAN]
    listed.write_text("a\nnot there\n")
    with pytest.raises(UsageError, match="line 2 names what does not exist"):
        look(listed)


def test_the_output_folder_inside_an_archive_is_none_of_it(archive, look):
    medseg.write(smooth_scan((8, 8, 8)), archive / "b.nii.gz")
    (archive / "out").mkdir()
    medseg.write(smooth_scan((8, 8, 8)), archive / "out" / "c.nii.gz")
    assert len(look(archive, archive / "out")[1]) == 1


def test_a_damaged_file_among_slices_condemns_the_only_series_of_its_folder(archive, look):
    store(small("1.2.1"), archive / "a")
    store(small("1.2.2"), archive / "b")
    (archive / "a" / "IM0003.dcm").write_bytes(bytes(128) + b"DICM" + b"\x02\x00\x10\x00" + b"\xff" * 40)
    _, found = look(archive)
    codes = {volume.name[-3:]: volume.verdict.code for volume, _ in found}
    assert sorted(codes.values()) == ["", "DICOM_DAMAGED"]


def test_a_damaged_file_among_several_series_warns_of_each(archive, look):
    store(small("1.2.1"), archive / "a")
    for path in store(small("1.2.2"), archive / "b").iterdir():
        path.rename(archive / "a" / f"other-{path.name}")
    (archive / "a" / "broken.dcm").write_bytes(bytes(128) + b"DICM" + b"\x02\x00\x10\x00" + b"\xff" * 40)
    _, found = look(archive)
    assert [(volume.verdict.code, volume.verdict.warnings) for volume, _ in found] == [
        ("", ["1 files beside it cannot be read"])
    ] * 2


def test_folders_of_nothing_but_damage_are_accounted_for(archive, look):
    for name, content in (("a", b""), ("b", bytes(128) + b"DICM" + b"\x02\x00\x10\x00" + b"\xff" * 40)):
        (archive / name).mkdir()
        (archive / name / "1.dcm").write_bytes(content)
    (archive / "notes.txt").write_text("nothing")
    (archive / ".hidden").write_bytes(b"")
    _, found = look(archive)
    assert [(volume.kind, volume.verdict.code) for volume, _ in found] == [
        (DAMAGED, "FILES_LOST"),
        (DAMAGED, "DICOM_DAMAGED"),
    ]
    store(small("1.2.1"), archive / "a")
    _, found = look(archive)
    assert sorted(volume.kind for volume, _ in found) == [DAMAGED, DICOM]


def test_faults_of_geometry_are_known_before_anything_is_read(archive, look):
    gap = store(small("1.2.1"), archive / "gap", shuffled=False)
    (gap / "IM0003.dcm").unlink()
    scout = small("1.2.2")
    for dataset in scout:
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    store(scout, archive / "scout")
    found = {parts[0].path.parent.name: volume.verdict for volume, parts in look(archive)[1]}
    assert (found["gap"].code, found["gap"].repairable) == ("GEOM_MISSING_SLICE", True)
    assert found["scout"].aside == "localizers"


def test_loops_of_links_pipes_and_links_to_nowhere_stop_nobody(archive, look):
    store(small("1.2.1"), archive / "a")
    (archive / "a" / "loop").symlink_to(archive)
    (archive / "a" / "gone.dcm").symlink_to(archive / "nowhere")
    os.mkfifo(archive / "a" / "pipe.dcm")
    _, found = look(archive)
    assert [(volume.verdict.slices, volume.verdict.warnings) for volume, _ in found] == [
        (6, ["1 files beside it cannot be read"])
    ]


def test_names_that_are_no_text_are_kept(archive, look):
    folder = Path(os.fsdecode(os.fsencode(archive) + b"/\xff\xfe"))
    store(small("1.2.1"), folder)
    _, found = look(archive)
    assert all(part.path.exists() for part in found[0][1])


def test_an_index_that_is_none_is_one_clear_error(archive, look, tmp_path):
    (tmp_path / "index.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(OutputError, match="index cannot be used"):
        look(archive)


def test_an_index_that_was_broken_off_goes_on(archive, tmp_path, monkeypatch):
    for number in range(3):
        store(small(f"1.2.{number}"), archive / str(number))
    base, roots = roots_of(archive)
    monkeypatch.setattr("medseg.archive.index._OFTEN", 0)
    seen = []

    def stop(files):
        seen.append(files)
        if len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), opened(tmp_path / "index.sqlite", base) as index:
        index.refresh(roots, Path("nowhere"), stop)
    with opened(tmp_path / "index.sqlite", base) as index:
        assert index.refresh(roots, Path("nowhere"), lambda files: None) < 18
        assert [volume.verdict.slices for volume in index.volumes()] == [6, 6, 6]


def test_a_volume_is_read_as_it_was_judged_or_not_at_all(archive, look):
    from medseg.archive.judging import read_volume
    from medseg.errors import ScanError

    folder = store(small("1.2.1"), archive / "a")
    volume, parts = look(archive)[1][0]
    read = read_volume(parts, 1, volume.verdict.fingerprint)
    assert np.array_equal(read.array, medseg.read(folder).array)
    with pytest.raises(ScanError, match="changed since") as caught:
        read_volume(parts[:-1], 1, volume.verdict.fingerprint)
    assert caught.value.code == "CHANGED"


def test_what_was_one_series_never_becomes_the_number_of_another(archive, look):
    for name in ("a", "b"):
        medseg.write(smooth_scan((8, 8, 8)), archive / f"{name}.nii.gz")
    before = {volume.name: volume.series_id for volume, _ in look(archive)[1]}
    (archive / "b.nii.gz").rename(archive / "c.nii.gz")
    after = {volume.name: volume.series_id for volume, _ in look(archive)[1]}
    assert after["a.nii.gz"] == before["a.nii.gz"]
    assert after["c.nii.gz"] not in before.values()


def test_a_file_that_was_replaced_after_it_was_listed_is_not_read(archive, look):
    from medseg.archive.judging import read_file
    from medseg.errors import ScanError

    path = archive / "a.nii.gz"
    medseg.write(smooth_scan((8, 8, 8)), path)
    volume, _ = look(archive)[1][0]
    assert read_file(path, volume.verdict.fingerprint).geometry.shape == (8, 8, 8)
    medseg.write(smooth_scan((8, 8, 8), seed=1), path)
    for there in (True, False):
        if not there:
            path.unlink()
        with pytest.raises(ScanError, match="changed since"):
            read_file(path, volume.verdict.fingerprint)


def test_an_archive_that_is_broken_off_in_a_folder_forgets_the_folder(archive, tmp_path, monkeypatch):
    folder = store(small("1.2.1"), tmp_path / "a")
    with zipfile.ZipFile(archive / "study.zip", "w") as file:
        for path in folder.iterdir():
            file.write(path, path.name)
    base, roots = roots_of(archive)
    added = []

    def stop(*words, **more):
        added.append(words)
        if len(added) == 4:
            raise KeyboardInterrupt
        return add(*words, **more)

    with opened(tmp_path / "index.sqlite", base) as index:
        add = index._add
        monkeypatch.setattr(index, "_add", stop)
        with pytest.raises(KeyboardInterrupt):
            index.refresh(roots, Path("nowhere"), lambda files: None)
    with opened(tmp_path / "index.sqlite", base) as index:
        assert index.refresh(roots, Path("nowhere"), lambda files: None) == 1
        assert [volume.verdict.slices for volume in index.volumes()] == [6]


def test_a_fault_of_the_disk_is_not_remembered(archive, look, monkeypatch):
    store(small("1.2.1"), archive / "a", shuffled=False)
    real = open

    def sick(path, *words, **more):
        if str(path).endswith("IM0005.dcm"):
            raise OSError(5, "Input/output error")
        return real(path, *words, **more)

    monkeypatch.setattr("medseg.archive.walk.open", sick, raising=False)
    assert [volume.verdict.slices for volume, _ in look(archive)[1]] == [5]
    monkeypatch.undo()
    looked, found = look(archive)
    assert (looked, [(volume.verdict.slices, volume.verdict.warnings) for volume, _ in found]) == (1, [(6, [])])


def test_a_header_that_was_corrected_is_another_input(archive, look):
    datasets = small("1.2.1", SeriesDescription="wrong one")
    folder = store(datasets, archive / "a")
    ((before, _),) = look(archive)[1]
    for dataset in datasets:
        dataset.PixelSpacing, dataset.SeriesDescription = [1.6, 1.8], "right one"
    store(datasets, folder)
    ((after, _),) = look(archive)[1]
    assert before.verdict.fingerprint != after.verdict.fingerprint
    assert (before.about.description, after.about.description) == ("wrong one", "right one")


def test_subjects_of_two_data_sets_are_two_patients(archive, look):
    for name in ("one", "two"):
        folder = archive / name / "sub-01" / "anat"
        folder.mkdir(parents=True)
        medseg.write(smooth_scan((8, 8, 8)), folder / "sub-01_T1w.nii.gz")
    assert len({volume.patient for volume, _ in look(archive)[1]}) == 2


@pytest.mark.parametrize(
    ("name", "text", "count"),
    [
        ("l.txt", "Smith, John.nii.gz\n# a remark\n\nb.nii.gz\n", 2),
        ("l.csv", '"Smith, John.nii.gz",3\nb.nii.gz,4\n', 2),
        ("l.csv", "\ufefffile\nb.nii.gz\n", 1),
        ("l.txt", "\ufeffb.nii.gz\n", 1),
        ("l.tsv", "b.nii.gz\t5\n", 1),
    ],
)
def test_lists_lose_nothing(archive, look, name, text, count):
    for scan in ("Smith, John", "b"):
        medseg.write(smooth_scan((8, 8, 8)), archive / f"{scan}.nii.gz")
    (archive / name).write_text(text)
    assert len(look(archive / name)[1]) == count
    (archive / name).write_text("mistaken.nii.gz\n" + text)
    with pytest.raises(UsageError, match="line 1 names what does not exist"):
        look(archive / name)


def test_nifti_headers_tell_slices_and_spacing(archive, look):
    medseg.write(smooth_scan((8, 9, 7), spacing=(1, 3, 0.5)), archive / "a.nii.gz")
    volume, _ = look(archive)[1][0]
    assert (volume.about.slices, volume.about.spacing_mm) == (9, pytest.approx((0.5, 1, 3)))


def test_results_of_an_earlier_run_are_no_scans(archive, look):
    (archive / "old" / ".medseg").mkdir(parents=True)
    (archive / "old" / "results").mkdir()
    medseg.write(smooth_scan((8, 8, 8)), archive / "old" / "results" / "seg.nii.gz")
    assert look(archive)[1] == []
