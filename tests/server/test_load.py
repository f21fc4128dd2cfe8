"""Many clients at once, for long: nobody starves, who leaves is forgotten, and the server does not grow."""

from __future__ import annotations

import itertools
import socket
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from conftest import smooth_scan
from hostile import PATIENCE, head, post, with_limits
from hostile_files import FORM, upload
from serving import served

import medseg

STEP = 0.4  # seconds that the slow network takes for a window
SLOWLY = f"""
import time
from medseg.networks.unet import UNet
forward = UNet.forward
def slowly(self, x):
    time.sleep({STEP})
    return forward(self, x)
UNet.forward = slowly
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    site = with_limits(patience=0.5) + SLOWLY
    with served(tmp_path_factory.mktemp("load"), "--queue", 40, "--keep", "3s", site=site) as server:
        yield server


@pytest.fixture
def ask(server):
    with httpx.Client(base_url=server.url, timeout=PATIENCE) as client:
        yield client
        until(lambda: counts(client) == (0, 0))
        until(lambda: not files(server))


def until(true, seconds=4 * PATIENCE):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def counts(ask):
    queue = ask.get("/health").json()["queue"]
    return queue["waiting"], queue["running"]


def files(server):
    return [path for path in server.spool() if path.name != ".lock"]


def submit(ask, scan, client="", **said):
    answer = ask.post("/predict", params={"wait": "false", "client": client, **said}, files={"file": ("s", scan)})
    return answer if answer.status_code != 202 else answer.json()["job"]


def state(ask, job):
    answer = ask.get(f"/jobs/{job}")
    return answer.json()["state"] if answer.status_code == 200 else "forgotten"


def drop(ask, jobs):
    for job in jobs:
        assert ask.delete(f"/jobs/{job}").status_code in {204, 404}


@pytest.fixture(scope="module")
def scan(server):
    return server.scan.read_bytes()


@pytest.fixture(scope="module")
def long_scan(server):
    path = server.folder / "long.nii.gz"
    medseg.write(smooth_scan((16, 16, 800)), path)
    return path.read_bytes()


def test_a_client_of_many_scans_does_not_keep_another_one_waiting(ask, scan):
    many = [submit(ask, scan, "many") for _ in range(12)]
    one = submit(ask, scan, "one")
    assert ask.get(f"/jobs/{one}").json()["before"] <= 1
    until(lambda: state(ask, one) == "done")
    assert sum(state(ask, job) in {"done", "forgotten"} for job in many) <= 5
    drop(ask, many)


def test_a_full_queue_says_when_to_come_back_and_has_room_again_later(ask, scan):
    jobs = []
    for name in ("a", "b", "c"):
        jobs += list(
            itertools.takewhile(lambda job: isinstance(job, str), (submit(ask, scan, name) for _ in range(60)))
        )
    full = submit(ask, scan, "d")
    assert (full.status_code, full.json()["error"]["code"]) == (429, "BUSY")
    assert int(full.headers["retry-after"]) > 0
    assert counts(ask)[0] in range(36, 41)
    drop(ask, jobs)
    until(lambda: counts(ask) == (0, 0))
    drop(ask, [submit(ask, scan, "d")])


def test_one_client_cannot_fill_the_queue(ask, scan):
    jobs = list(itertools.takewhile(lambda job: isinstance(job, str), (submit(ask, scan, "a") for _ in range(60))))
    assert len(jobs) <= 24
    other = submit(ask, scan, "b")
    assert isinstance(other, str)
    drop(ask, [*jobs, other])


@pytest.mark.parametrize("busy", [0, 6], ids=["while it runs", "while it waits"])
def test_who_hangs_up_gives_the_place_back(server, ask, scan, long_scan, busy):
    others = [submit(ask, long_scan, "others") for _ in range(busy)]
    until(lambda: counts(ask)[1] == min(busy, 2))
    waiting, running = counts(ask)
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(post("/predict?client=me", server.port, upload(long_scan), FORM))
        until(lambda: sum(counts(ask)) == waiting + running + 1)
    until(lambda: sum(counts(ask)) == waiting + running)
    drop(ask, others)


def test_who_hangs_up_while_sending_leaves_nothing(server, ask, scan):
    whole = post("/predict", server.port, upload(scan), FORM)
    before = len(files(server))
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(whole[:-500])
        until(lambda: len(files(server)) > before)
    until(lambda: len(files(server)) == before)
    assert counts(ask) == (0, 0)


def test_a_job_that_all_who_watched_it_have_left_is_cancelled(server, ask, long_scan):
    job = submit(ask, long_scan)
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(head(f"GET /jobs/{job}/events HTTP/1.1", server.port))
        got = b""
        while b"event: progress" not in got:
            got += connection.recv(4096)
    until(lambda: state(ask, job) in {"cancelled", "forgotten"})


def test_a_job_is_cancelled_in_the_middle_of_the_network(ask, long_scan):
    job = submit(ask, long_scan)
    until(lambda: ask.get(f"/jobs/{job}").json()["stage"] == "network")
    start = time.monotonic()
    drop(ask, [job])
    until(lambda: counts(ask) == (0, 0))
    assert time.monotonic() - start < 50 * STEP, "that is a part of the windows only"


def test_results_go_when_their_time_is_over(server, ask, scan):
    job = submit(ask, scan)
    until(lambda: state(ask, job) == "done")
    assert files(server)
    time.sleep(3.5)
    until(lambda: not files(server))
    assert ask.get(f"/jobs/{job}").status_code == 404


def one_round(ask, scan, number):
    """Ask in one of five ways; return the statuses."""
    match number % 5:
        case 0:
            return [ask.post("/predict", files={"file": ("s.nii.gz", scan)}).status_code]
        case 1:
            return [ask.post("/predict", params={"format": "json"}, content=scan).status_code]
        case 2:
            return [ask.post("/infer/tiny", files={"file": ("s.nii.gz", scan), "params": (None, "{}")}).status_code]
        case 3:
            return [ask.post("/predict", content=b"rubbish").status_code, ask.get("/jobs/x").status_code]
        case _:
            job = submit(ask, scan)
            until(lambda: state(ask, job) == "done")
            result = ask.get(f"/jobs/{job}/results/zip")
            return [result.status_code, ask.delete(f"/jobs/{job}").status_code]


def held(process):
    """Return megabytes, open files and threads of a process."""
    place = Path("/proc", str(process.pid))
    status = dict(line.split(":", 1) for line in (place / "status").read_text().splitlines())
    return int(status["VmRSS"].split()[0]) / 1024, len(list((place / "fd").iterdir())), int(status["Threads"])


@pytest.mark.skipif(sys.platform != "linux", reason="what a process holds is read from /proc")
@pytest.mark.parametrize("seconds", [10, pytest.param(120, marks=pytest.mark.slow)])
def test_eight_clients_for_long_are_answered_and_the_server_does_not_grow(tmp_path, seconds):
    tally, seen, end = Counter(), [], time.monotonic() + seconds
    with served(tmp_path, "--queue", 64) as server:
        scan = server.scan.read_bytes()

        def client(number):
            with httpx.Client(base_url=server.url, timeout=4 * PATIENCE) as ask:
                for turn in itertools.count(number):
                    if time.monotonic() > end:
                        return
                    tally.update(one_round(ask, scan, turn))

        def watcher():
            while time.monotonic() < end:
                seen.append((sum(tally.values()), *held(server.process)))
                time.sleep(0.25)

        watching = threading.Thread(target=watcher)
        for number in range(5):  # what is loaded once is loaded
            with httpx.Client(base_url=server.url, timeout=4 * PATIENCE) as ask:
                one_round(ask, scan, number)
        before, end = held(server.process), time.monotonic() + seconds
        watching.start()
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(client, range(8)))
        watching.join()
        until(lambda: held(server.process)[1] <= before[1] + 3)  # or files stay open
        after = held(server.process)
        with httpx.Client(base_url=server.url, timeout=PATIENCE) as ask:
            until(lambda: counts(ask) == (0, 0))
        assert not files(server)
    assert set(tally) == {200, 204, 404, 422}, tally
    assert after[2] <= before[2] + 40, "threads: no more than the pools may have"
    later = np.array(seen[len(seen) // 3 :])
    growth = np.polyfit(later[:, 0], later[:, 1], 1)[0] * 100
    assert growth < (1.0 if seconds > 60 else 8.0), "MB more for every hundred answers"
    assert after[0] - before[0] < 200, "MB more in all"
