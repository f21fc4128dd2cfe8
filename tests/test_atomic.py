"""Writing: whole, together, or not at all."""

import errno
import os
import stat

import pytest

from medseg.atomic import Outputs, check_writable, write_atomic
from medseg.errors import OutputError


def test_a_file_appears_whole_with_ordinary_permissions(tmp_path):
    path = tmp_path / "a b.nii.gz"
    write_atomic(path, [b"one", b"two"])
    assert path.read_bytes() == b"onetwo"
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask
    assert list(tmp_path.iterdir()) == [path]


def test_while_it_is_written_it_is_hidden_private_and_no_volume(tmp_path):
    path = tmp_path / "a.nii.gz"

    def chunks():
        yield b"one"
        (part,) = tmp_path.iterdir()
        assert part.name.startswith(".")
        assert part.suffix == ".part"
        assert stat.S_IMODE(part.stat().st_mode) == 0o600
        yield b"two"

    write_atomic(path, chunks())
    assert path.read_bytes() == b"onetwo"


def test_files_of_a_set_appear_together_or_not_at_all(tmp_path):
    with pytest.raises(RuntimeError, match="later"), Outputs() as outputs:
        outputs.write(tmp_path / "a", [b"1"])
        assert not (tmp_path / "a").exists()
        raise RuntimeError("later")
    assert not list(tmp_path.iterdir())


def test_an_older_file_stays_when_its_successor_fails(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def chunks():
        yield b"new"
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        write_atomic(path, chunks())
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("call", ["write", "fsync", "replace", "chmod", "read"])
def test_a_failing_disk_leaves_nothing_behind(tmp_path, monkeypatch, call):
    def fail(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    if call == "write":
        monkeypatch.setattr("os.fdopen", fail)
    elif call == "fsync":
        monkeypatch.setattr("os.fsync", fail)
    elif call == "read":
        monkeypatch.setattr("medseg.atomic.digest_of", fail)
    else:
        monkeypatch.setattr(f"pathlib.Path.{call}", fail)
    with pytest.raises(OutputError, match=r"a\.nii.*No space left"), Outputs() as outputs:
        outputs.write(tmp_path / "a.nii", [b"x"])
        outputs.write(tmp_path / "b.nii", [b"x"])
    monkeypatch.undo()
    assert not list(tmp_path.iterdir())


def test_a_disk_that_returns_other_bytes_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr("medseg.atomic.digest_of", lambda path: "0")
    with pytest.raises(OutputError, match="other bytes"):
        write_atomic(tmp_path / "a", [b"x"])
    assert not list(tmp_path.iterdir())


def test_when_the_second_rename_fails_the_first_file_is_taken_back(tmp_path):
    with pytest.raises(OutputError), Outputs() as outputs:
        outputs.write(tmp_path / "a", [b"1"])
        outputs.write(tmp_path / "b", [b"2"])
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / "in the way").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_a_folder_in_the_way_is_named(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        write_atomic(tmp_path / "a", [b"1"])


def test_two_results_with_one_name_are_refused(tmp_path):
    with pytest.raises(OutputError, match="two results"), Outputs() as outputs:
        outputs.write(tmp_path / "a", [b"1"])
        outputs.write(tmp_path / "a", [b"2"])


def test_a_missing_folder_is_made_and_an_impossible_one_refused(tmp_path):
    check_writable(tmp_path / "new" / "deep")
    assert (tmp_path / "new" / "deep").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        check_writable(tmp_path / "file" / "below")


def test_what_a_killed_process_left_is_swept_and_what_is_young_may_stay(tmp_path):
    from medseg.atomic import sweep

    part, other = tmp_path / ".medseg-12.part", tmp_path / "12.part"
    for path in (part, other):
        path.write_bytes(b"half")
    sweep(tmp_path, older=60)
    assert part.exists()
    sweep(tmp_path)
    assert not part.exists()
    assert other.exists()
