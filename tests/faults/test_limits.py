"""Studies that hang, eat memory or kill their worker are one failure each; signals stop a run cleanly."""

import signal
import time

import pytest
from trials import trial_in


@pytest.fixture
def trial(tmp_path):
    with trial_in(tmp_path) as one:
        yield one


def codes(trial) -> dict[str, int]:
    found = [row["code"] for row in trial.ledger().values() if row["state"] == "failed"]
    return {code: found.count(code) for code in found}


def test_a_study_that_hangs_is_one_failure(trial):
    trial.scans(8)
    trial.scan("s03/hang.nii.gz")
    trial.break_workers()
    ended = trial.run("--no-picture", "--time-limit", "8s")
    assert (ended.code, ended.err) == (1, "")
    assert codes(trial) == {"TIME_LIMIT": 1}
    trial.check_complete(8, 1)
    assert not trial.processes()


@pytest.mark.slow
def test_studies_that_hang_or_eat_memory_or_kill_their_worker_are_told_apart(trial):
    trial.scans(20)
    for name in ("hang", "deaf", "eat", "die"):
        trial.scan(f"s03/{name}.nii.gz")
        trial.scan(f"s17/{name}.nii.gz")
    trial.break_workers()
    ended = trial.run("--no-picture", "--workers", 2, "--time-limit", "20s", "--memory", "800M")
    assert (ended.code, ended.err) == (1, "")
    assert codes(trial) == {"TIME_LIMIT": 4, "MEMORY_LIMIT": 2, "WORKER_DIED": 2}
    trial.check_complete(20, 8)


def left_of(out: str) -> int:
    """Return how many the message of a run that was stopped says are left."""
    line = next(line for line in out.splitlines() if line.startswith("stopped by a signal; "))
    assert line.endswith("are left: the same command goes on")
    return int(line.split()[4])


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_lets_what_is_under_way_end_and_the_same_command_goes_on(trial, number):
    trial.scans(12)
    trial.break_workers()
    process = trial.start("--no-picture", env={"TRIAL_SLOW": "0.4"})
    trial.wait_for(2, process)
    begun = {place for place, row in trial.ledger().items() if row["state"] == "running"}
    process.send_signal(number)
    out, err = process.communicate(timeout=240)
    assert (process.returncode, err) == (1, "")
    rows = trial.ledger()
    assert {row["state"] for row in rows.values()} == {"done", "waiting"}
    assert begun
    assert {rows[place]["state"] for place in begun} == {"done"}
    assert left_of(out) == trial.states()["waiting"] > 0
    assert len(trial.log()) == trial.states()["done"]
    assert not trial.processes()
    ended = trial.run("--no-picture")
    assert (ended.code, ended.err) == (0, "")
    trial.check_complete(12)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_second_signal_ends_at_once_and_leaves_no_lease(trial, number):
    trial.scans(4)
    trial.scan("a/hang.nii.gz")
    trial.break_workers()
    process = trial.start("--no-picture")
    while not trial.states()["running"]:
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(number)
    time.sleep(0.5)
    assert process.poll() is None  # it waits for the study that hangs
    process.send_signal(number)
    start = time.monotonic()
    out, err = process.communicate(timeout=240)
    assert time.monotonic() - start < 3
    assert (process.returncode, err) == (1, "")
    assert not trial.processes()
    rows = trial.ledger().values()
    assert {row["state"] for row in rows} <= {"done", "waiting"}
    assert not [row for row in rows if row["owner"]]
    assert {row["tries"] for row in rows if row["state"] == "waiting"} == {0}
    assert left_of(out) == trial.states()["waiting"]
    trial.break_workers("")
    assert trial.run("--no-picture").code == 0
    trial.check_complete(5)


def test_a_signal_before_a_worker_is_ready_ends_the_run(trial):
    trial.scans(3)
    process = trial.start("--no-picture")
    while not trial.workers_started():
        time.sleep(0.01)
    time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    start = time.monotonic()
    out, err = process.communicate(timeout=240)
    assert time.monotonic() - start < 3
    assert (process.returncode, err, left_of(out)) == (1, "", 3)
    assert trial.states() == {"waiting": 3}
    assert not trial.processes()
