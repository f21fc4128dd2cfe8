"""Runs on one output folder: at the same time, one after another, and after someone touched what was there."""

import os
import shutil
from collections import Counter

import pytest
from trials import assert_all_same, trial_in, visible


@pytest.fixture
def trial(tmp_path):
    with trial_in(tmp_path) as one:
        yield one


def together(trial, count: int, *words, **places) -> list[tuple[int, str, str]]:
    """Start some runs at once; return how each ended."""
    processes = [trial.start("--no-picture", *words, **places) for _ in range(count)]
    ended = []
    for process in processes:
        out, err = process.communicate(timeout=600)
        ended.append((process.returncode, out, err))
    return ended


@pytest.mark.slow
def test_two_runs_at_once_share_the_work_and_do_nothing_twice(trial):
    trial.scans(6, dicom=1)
    assert trial.run("--no-picture", out=trial.folder / "clean").code == 0
    for number in range(8):
        places = {"out": trial.folder / f"out{number}", "index": trial.folder / f"{number}.sqlite"}
        for code, _, err in together(trial, 2, **places):
            assert (code, err) == (0, "")
        trial.check_complete(6, out=places["out"])
        assert Counter(line["item"] for line in trial.log(places["out"])).most_common(1)[0][1] == 1
        assert_all_same(places["out"], trial.folder / "clean")


@pytest.mark.slow
def test_three_runs_at_once_with_slow_studies_share_them(trial):
    trial.scans(12)
    trial.break_workers()
    trial.env["TRIAL_SLOW"] = "0.3"
    ended = together(trial, 3)
    assert [(code, err) for code, _, err in ended] == [(0, "")] * 3
    trial.check_complete(12)
    assert trial.workers_started() == 3


@pytest.mark.slow
def test_a_run_takes_over_what_another_one_leaves(trial):
    trial.scans(10)
    trial.break_workers()
    one = trial.start("--no-picture", env={"TRIAL_SLOW": "0.5"})
    trial.wait_for(1, one)
    two = trial.start("--no-picture", env={"TRIAL_SLOW": "0.2"})
    trial.wait_for(3, two)
    one.kill()
    one.communicate()
    _, err = two.communicate(timeout=240)
    assert (two.returncode, err) == (0, "")
    trial.check_complete(10)


def stamps(trial) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in visible(trial.out)}


def test_a_second_run_does_nothing_and_says_so(trial):
    trial.scans(5, dicom=1)
    assert trial.run().code == 0
    before, log, started = stamps(trial), (trial.out / "audit.jsonl").read_bytes(), trial.workers_started()
    ended = trial.run()
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith("5 of 5 scans segmented; nothing was left to do\n")
    assert stamps(trial) == before
    assert (trial.out / "audit.jsonl").read_bytes() == log
    assert trial.workers_started() == started
    trial.check_complete(5)


def test_results_that_were_damaged_are_noticed_and_made_anew(trial):
    trial.scans(6, dicom=1)
    assert trial.run("--no-picture", out=trial.folder / "clean").code == 0
    shutil.copytree(trial.folder / "clean", trial.out, copy_function=shutil.copy2)
    slices = next(path for path in visible(trial.out) if path.suffix == ".dcm")
    files = [path for path in visible(trial.out) if path.name == "seg.nii.gz" and path.parent != slices.parent]
    files[0].unlink()
    files[1].write_bytes(b"")
    os.truncate(files[2], 100)
    files[3].write_bytes(files[3].read_bytes()[:-1] + b"x")
    slices.unlink()
    os.utime(files[4])  # as after a copy: looked at, and found to be sound
    untouched = stamps(trial)[str(files[4])]
    ended = trial.run("--no-picture")
    assert (ended.code, ended.err) == (0, "")
    assert_all_same(trial.out, trial.folder / "clean")
    assert len(visible(trial.out)) == len(visible(trial.folder / "clean"))
    assert stamps(trial)[str(files[4])] == untouched
    assert trial.states() == {"done": 6}


@pytest.mark.slow
def test_damage_that_keeps_size_and_time_is_found_by_verify(trial):
    trial.scans(2)
    assert trial.run("--no-picture").code == 0
    file = next(path for path in visible(trial.out) if path.name == "seg.nii.gz")
    whole, status = file.read_bytes(), file.stat()
    file.write_bytes(whole[:-20] + bytes(20))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert "nothing was left to do" in trial.run("--no-picture").out
    assert file.read_bytes() != whole
    assert trial.run("--no-picture", "--verify").code == 0
    assert file.read_bytes() == whole


@pytest.mark.parametrize("name", ["index", "ledger"])
def test_an_index_or_ledger_of_garbage_is_told_in_one_line(trial, name):
    trial.scans(1)
    path = trial.index if name == "index" else trial.out / ".medseg" / "ledger.sqlite"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"garbage " * 4000)
    ended = trial.run("--no-picture")
    assert ended.code == 2
    assert len(ended.err.splitlines()) == 1, ended.err
    assert ended.err.startswith(f"error: {path}: ")
    assert not trial.workers_started()


@pytest.mark.slow
def test_a_ledger_whose_log_was_cut_off_goes_on_with_what_it_holds(trial):
    trial.scans(6)
    trial.break_workers()
    process = trial.start("--no-picture", env={"TRIAL_SLOW": "0.3"})
    trial.wait_for(3, process)
    process.kill()
    process.communicate()
    wal = trial.out / ".medseg" / "ledger.sqlite-wal"
    assert wal.stat().st_size > 10_000
    os.truncate(wal, wal.stat().st_size - 6000)
    ended = trial.run("--no-picture")
    assert (ended.code, ended.err) == (0, "")
    trial.check_complete(6)
