"""Where jobs wait: turns, limits, leaving, forgetting; and the folder that is gone when the server is."""

import os
import stat
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread

import pytest

from medseg.errors import UsageError
from medseg.server.desk import CANCELLED, DONE, RUNNING, Cancelled, Desk, Full, Job, Order
from medseg.server.settings import Limits, Settings
from medseg.server.spool import spool


def job(folder: Path, name: str, client: str = "a") -> Job:
    upload, results = folder / f"{name}-upload", folder / name
    upload.mkdir()
    results.mkdir()
    (upload / "scan").write_bytes(b"voxels")
    (results / "seg").write_bytes(b"labels")
    return Job(name, client, Order("m", ("nifti",), {"t1": upload / "scan"}), results)


@pytest.fixture
def desk():
    return Desk(Limits(queue=8, keep=60, patience=0.0))


def test_clients_have_their_turns_one_after_another(desk, tmp_path):
    for name, client in (("a1", "a"), ("a2", "a"), ("a3", "a"), ("b1", "b"), ("c1", "c"), ("b2", "b")):
        desk.submit(job(tmp_path, name, client))
    assert [desk.next().name for _ in range(6)] == ["a1", "b1", "c1", "a2", "b2", "a3"]


def test_the_place_in_the_queue_is_the_number_of_turns_before(desk, tmp_path):
    jobs = [job(tmp_path, name, name[0]) for name in ("a1", "a2", "a3", "b1", "c1", "b2")]
    for each in jobs:
        desk.submit(each)
    places = {each.name: desk.place(each) for each in jobs}
    order = [desk.next().name for _ in jobs]
    assert places == {name: place for place, name in enumerate(order)}


def test_the_queue_is_bounded_for_all_and_for_each(desk, tmp_path):
    for number in range(4):
        desk.submit(job(tmp_path, f"a{number}"))
    with pytest.raises(Full):
        desk.submit(job(tmp_path, "a4"))
    for number in range(4):
        desk.submit(job(tmp_path, f"b{number}", "b"))
    with pytest.raises(Full):
        desk.submit(job(tmp_path, "c0", "c"))
    assert desk.counts() == {"waiting": 8, "running": 0, "kept": 0, "room": 8}


def test_a_waiting_job_is_cancelled_at_once_and_its_upload_is_gone(desk, tmp_path):
    one, two = job(tmp_path, "one"), job(tmp_path, "two")
    desk.submit(one)
    desk.submit(two)
    desk.cancel(one)
    assert one.state == CANCELLED
    assert not (tmp_path / "one-upload").exists()
    assert desk.next() is two


def test_a_running_job_hears_of_it_at_its_next_step(desk, tmp_path):
    one = job(tmp_path, "one")
    desk.submit(one)
    assert desk.next() is one
    one.tell("network", 0.5)
    desk.forget(one)
    assert one.state == RUNNING
    assert desk.find("one") is one
    with pytest.raises(Cancelled):
        one.tell("network", 0.6)


def test_a_job_that_was_forgotten_while_it_ran_leaves_nothing(desk, tmp_path):
    one = job(tmp_path, "one")
    desk.submit(one)
    desk.next()
    desk.forget(one)
    desk.end(one, CANCELLED)
    assert desk.find("one") is None
    assert not one.folder.exists()
    assert desk.counts()["kept"] == 0


def test_a_job_goes_when_the_last_of_those_who_watched_it_has_left(desk, tmp_path):
    one = job(tmp_path, "one")
    desk.submit(one)
    desk.watch(one, 1)
    desk.watch(one, 1)
    desk.watch(one, -1)
    desk.tidy()
    assert one.state == "waiting"
    desk.watch(one, -1)
    time.sleep(0.01)
    desk.tidy()
    assert one.state == CANCELLED


def test_a_job_that_nobody_watched_yet_stays(desk, tmp_path):
    one = job(tmp_path, "one")
    desk.submit(one)
    desk.tidy()
    assert one.state == "waiting"


@pytest.mark.parametrize(("limits", "left"), [({"kept": 2}, 2), ({"spool": 13}, 2), ({"keep": 0.0}, 0)])
def test_what_is_too_much_or_too_old_is_forgotten_oldest_first(tmp_path, limits, left):
    desk = Desk(Limits(**limits))
    for number in range(5):
        desk.submit(job(tmp_path, f"j{number}"))
        desk.end(desk.next(), DONE)
        time.sleep(0.01)
    desk.tidy()
    assert [name for name in ("j0", "j1", "j2", "j3", "j4") if desk.find(name)] == ["j3", "j4"][2 - left :]
    assert sorted(path.name for path in tmp_path.glob("j?")) == ["j3", "j4"][2 - left :]


def test_closing_ends_those_who_wait_for_a_job(desk, tmp_path):
    found = []
    waiting = Thread(target=lambda: found.append(desk.next()))
    waiting.start()
    desk.close()
    waiting.join(10)
    assert found == [None]
    with pytest.raises(Full):
        desk.submit(job(tmp_path, "late"))


def test_the_spool_is_private_and_gone_afterwards(tmp_path):
    with spool(tmp_path) as folder:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        (folder / "deep").mkdir()
        (folder / "deep" / "scan").write_bytes(b"x")
    assert not folder.exists()


def test_the_spool_of_a_server_that_was_killed_goes_at_the_next_start_and_no_other(tmp_path):
    code = "import os, sys; from pathlib import Path; from medseg.server.spool import spool\n"
    code += "with spool(Path(sys.argv[1])) as folder:\n    print(folder, flush=True); os.kill(os.getpid(), 9)"
    killed = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=False)
    left = Path(killed.stdout.strip())
    assert left.is_dir()
    with spool(tmp_path) as living, spool(tmp_path) as second:
        assert not left.exists()
        assert living.is_dir()
        assert second.is_dir()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "scanner.example"])
def test_an_open_address_needs_a_token(host):
    with pytest.raises(UsageError, match="--token-file"):
        Settings(host=host)
    assert Settings(host=host, token="x" * 16).host == host


@pytest.mark.parametrize(
    "wrong",
    [
        {"token": "short"},
        {"certificate": Path("a.pem")},
        {"key": Path("a.pem")},
        {"datastore": Path(os.devnull)},
    ],
)
def test_settings_that_do_not_fit_are_refused(wrong):
    with pytest.raises(UsageError):
        Settings(**wrong)


@pytest.mark.parametrize(
    ("settings", "known", "unknown"),
    [
        ({}, {"localhost", "127.0.0.1", "127.0.0.2", "::1"}, {"evil.example", "10.0.0.1", "", "localhost.evil"}),
        ({"allow_hosts": ("Scanner",)}, {"scanner", "localhost"}, {"scanners"}),
        ({"host": "0.0.0.0", "token": "x" * 16}, {"10.0.0.1", "localhost", "fe80::1"}, {"evil.example"}),
    ],
)
def test_names_of_this_server_are_told_from_others(settings, known, unknown):
    own = Settings(**settings)
    assert {name for name in known | unknown if own.knows_host(name)} == known
