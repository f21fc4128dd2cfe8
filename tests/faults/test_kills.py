"""A run that is killed at any moment, or whose workers are, ends complete and exact."""

import os
import random
import signal
import subprocess
import time
from contextlib import suppress

import pytest
from trials import assert_all_same, trial_in, visible

STUDIES, KILLS, CHAINS = 50, 100, 4


@pytest.fixture
def trial(tmp_path):
    with trial_in(tmp_path) as one:
        yield one


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A trial with 50 studies, an unbroken run of it in the folder `clean`, and the seconds that it took."""
    with trial_in(tmp_path_factory.mktemp("kills")) as one:
        one.scans(STUDIES, dicom=10)
        clean = one.folder / "clean"
        ended = one.run("--no-picture", out=clean)
        assert ended.code == 0
        one.check_complete(STUDIES, out=clean)
        yield one, clean, ended.seconds


def check_no_process_is_left(trial, seconds=20):
    until = time.monotonic() + seconds
    while trial.processes():
        assert time.monotonic() < until, "processes outlive the run that started them"
        time.sleep(0.05)


def killed(trial, process, seconds: float, *, with_workers: bool) -> bool:
    """Kill a run after some seconds; return whether it had not ended by itself."""
    try:
        process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.kill(process.pid, signal.SIGKILL)
        for number in trial.workers() if with_workers else ():
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        process.communicate()
        return True
    return False


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(CHAINS))
def test_a_run_that_is_killed_at_random_moments_ends_as_one_that_never_was(whole, seed):
    trial, clean, seconds = whole
    chance, kills, number, seen = random.Random(seed), 0, 0, {}
    out = trial.folder / f"out{seed}-0"
    while True:
        process = trial.start("--no-picture", out=out, index=out.with_suffix(".sqlite"))
        if kills == KILLS // CHAINS:
            out_text, err_text = process.communicate(timeout=600)
            break
        if killed(trial, process, chance.uniform(0, seconds), with_workers=chance.random() < 0.3):
            kills += 1
            if chance.random() < 0.5:  # else the next run meets workers that are about to die
                check_no_process_is_left(trial)
        else:
            assert process.returncode == 0
            trial.check_complete(STUDIES, out=out)
            number += 1
            out, seen = trial.folder / f"out{seed}-{number}", {}
        assert_all_same(out, clean, seen)
    assert (process.returncode, err_text) == (0, ""), out_text
    trial.check_complete(STUDIES, out=out)
    assert_all_same(out, clean)
    assert len(visible(out)) == len(visible(clean))
    check_no_process_is_left(trial)


@pytest.mark.slow
def test_workers_that_are_killed_twenty_times_lose_nothing_and_blame_nobody(whole):
    trial, clean, _ = whole
    trial.break_workers()
    chance, kills, number = random.Random(7), 0, 0
    while kills < 20:
        out = trial.folder / f"workers{number}"
        process, last = trial.start("--no-picture", out=out, env={"TRIAL_SLOW": "0.2"}), set()
        while process.poll() is None:
            workers = set(trial.workers()) - last
            if not workers or kills == 20:
                time.sleep(0.02)
                continue
            if chance.random() < 0.75:  # as it works; else as it starts
                before = trial.states(out)["done"]
                while process.poll() is None and trial.states(out)["done"] == before:
                    time.sleep(0.01)
            time.sleep(chance.uniform(0, 0.4))
            for worker in workers & set(trial.workers()):
                os.kill(worker, signal.SIGKILL)
                kills += 1
            last |= workers
        assert process.communicate()[1] == ""
        assert process.returncode == 0
        trial.check_complete(STUDIES, out=out)
        assert_all_same(out, clean)
        number += 1


def test_a_lease_is_taken_over_at_once_and_workers_die_with_their_run(trial):
    trial.scans(6)
    trial.break_workers()
    process = trial.start("--no-picture", env={"TRIAL_SLOW": "0.5"})
    trial.wait_for(1, process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert trial.states()["running"]
    ended = trial.run("--no-picture", timeout=240)  # a lease of another computer would hold for five minutes
    assert (ended.code, ended.err) == (0, "")
    assert ended.seconds < 150
    trial.check_complete(6)
    check_no_process_is_left(trial, 60)


def test_a_worker_that_is_deaf_dies_with_its_run(trial):
    trial.scan("deaf.nii.gz")
    trial.break_workers()
    process = trial.start("--no-picture")
    while not trial.states()["running"]:
        time.sleep(0.05)
    time.sleep(0.5)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    check_no_process_is_left(trial, 60)
