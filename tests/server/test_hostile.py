"""Requests that mean harm: each is refused or hung up on, and the server goes on as if nothing had been sent."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import stat
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from conftest import smooth_scan
from hostile import PATIENCE, Watch, head, post, talk, with_limits
from hostile_files import CANARY, FORM, upload
from hostile_rows import ROWS
from serving import served

import medseg
from medseg.server import Settings, settings

LIMITS = with_limits(headers=1.0, pace_every=1.5, files=200, connections_each=48)


@pytest.fixture(scope="module")
def watch(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    store = folder / "store"
    store.mkdir()
    medseg.write(smooth_scan((16, 16, 16)), store / "case.nii.gz")
    (store / "large.nrrd").write_bytes(os.urandom(24 << 20))
    words = ["--max-upload", "2MB", "--max-voxels", "8MB", "--queue", 8, "--datastore", store]
    with served(folder, *words, site=LIMITS) as server:
        yield Watch(server)


def test_there_are_more_than_a_hundred_kinds():
    assert len(ROWS) > 100


@pytest.mark.parametrize("row", ROWS)
def test_it_is_refused_and_leaves_nothing_behind(watch, row):
    make, expected = ROWS[row]
    reply = talk(watch.server.port, make(watch.server.port), shut="then an end" in row)
    assert reply.closed
    assert reply.status in expected, reply.raw[:600]
    assert all(status < 500 for status in reply.statuses), reply.raw[:600]
    assert CANARY.encode() not in reply.raw
    assert str(watch.server.folder).encode() not in reply.raw
    watch.check()


@pytest.mark.parametrize(
    "name",
    ["../../../canary.nii.gz", "/tmp/canary.nii.gz", "..\\..\\canary.nii.gz", "%2e%2e%2fcanary.nii.gz", "\0", ""],
)
def test_a_scan_is_taken_under_a_number_whatever_its_name_is(watch, name):
    body = upload(watch.scan, f"{name}{CANARY}")
    reply = talk(watch.server.port, post("/predict?format=json", watch.server.port, body, FORM))
    assert reply.status == 200 or ("\0" in name and reply.status == 400)
    assert CANARY.encode() not in reply.raw
    assert str(watch.server.folder).encode() not in reply.raw
    watch.check()


@pytest.mark.parametrize("host", ["localhost", "LocalHost.", "127.0.0.1:1", "[::1]", "[::1]:65535", "127.8.8.8"])
def test_every_name_of_this_computer_will_do(watch, host):
    assert talk(watch.server.port, head("GET /health HTTP/1.1", watch.server.port, host=host)).status == 200


@pytest.mark.parametrize(
    ("pieces", "answered"),
    [
        ([], False),
        ([b"G"], False),
        ([b"GET /health HTTP/1.1\r\nX: ", *[b"a"] * 60], False),
        ([b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nGET /health HTTP/1.1\r\nX: ", *[b"a"] * 60], True),
        ([b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100000\r\n\r\n", *[b"a"] * 60], False),
        ([b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n", *[b"1\r\na\r\n"] * 60],
         False),
        ([b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n"], True),
    ],
    ids=["silence", "a letter", "a slow head", "a slow second head", "a slow body", "slow chunks", "a promise"],
)  # fmt: skip
def test_who_dawdles_is_hung_up_on(watch, pieces, answered):
    reply = talk(watch.server.port, *pieces, pause=0.2)
    assert reply.closed
    assert bool(reply.raw) == answered
    assert reply.seconds < 0.2 * 60 + PATIENCE
    watch.check()


def test_who_does_not_take_an_answer_is_hung_up_on(watch):
    with socket.create_connection(("127.0.0.1", watch.server.port)) as connection:
        connection.sendall(head("GET /datastore/image?image=large HTTP/1.1", watch.server.port))
        time.sleep(2 * 1.5 + 1)  # longer than it is given
        connection.settimeout(PATIENCE)
        got = 0
        with pytest.raises((ConnectionError, EOFError)):  # the rest is gone
            while more := connection.recv(1 << 20):
                got += len(more)
            raise EOFError
    assert got < 24 << 20
    watch.check()


def test_a_refused_upload_still_reads_its_answer(watch):
    body = bytes(8 << 20)
    reply = talk(watch.server.port, post("/predict", watch.server.port, body, "Origin: http://evil.example"))
    assert reply.status in {403, 413}
    reply = talk(watch.server.port, post(f"/predict?model={CANARY}", watch.server.port, body[: 1 << 20]))
    assert reply.status == 404
    watch.check()


def test_many_connections_of_one_client_are_too_many_but_harm_nobody_later(watch):
    flood = [socket.create_connection(("127.0.0.1", watch.server.port), PATIENCE) for _ in range(200)]
    ends = []
    for connection in flood:
        with connection:
            try:
                ends.append(connection.recv(1))
            except ConnectionResetError:
                ends.append(b"")
    assert ends == [b""] * 200
    watch.check()


def test_many_requests_in_one_go_are_answered_in_order(watch):
    one = f"GET /health HTTP/1.1\r\nHost: localhost:{watch.server.port}\r\n\r\n".encode()
    reply = talk(watch.server.port, one * 200 + head("GET /jobs/x HTTP/1.1", watch.server.port))
    assert reply.statuses == [200] * 200 + [404]
    watch.check()


def test_a_request_hidden_behind_a_refused_one_is_never_answered(watch):
    hidden = head("GET /models HTTP/1.1", watch.server.port)
    lines = "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n"
    first = f"POST /predict HTTP/1.1\r\nHost: localhost:{watch.server.port}\r\n{lines}\r\n0\r\n\r\n".encode()
    reply = talk(watch.server.port, first + hidden)
    assert reply.closed
    assert reply.statuses == [400]
    watch.check()


@pytest.mark.parametrize(
    "asked", ["bytes=0-0", "bytes=-1", "bytes=5-2", "bytes=99999999999-", "lines=1-2", "bytes=a-b"]
)
def test_parts_of_a_result_are_no_way_to_more(watch, asked):
    wanted = "GET /datastore/image?image=case HTTP/1.1"
    reply = talk(watch.server.port, head(wanted, watch.server.port, f"Range: {asked}"))
    assert reply.status in {200, 206, 400, 416}
    many = "bytes=" + ",".join(f"{n}-{n + 1}" for n in range(0, 3000, 3))
    reply = talk(watch.server.port, head(wanted, watch.server.port, f"Range: {many}"))
    assert reply.status in {200, 206, 400, 416}
    assert len(reply.raw) < 1 << 20
    watch.check()


def test_rubbish_in_every_place_of_a_request_never_breaks_anything(watch):
    import random

    whole = post("/predict?format=nifti", watch.server.port, upload(watch.scan), FORM)
    chance = random.Random(0)

    def spoilt(seed):
        own, data = random.Random(seed), bytearray(whole)
        for _ in range(own.randrange(1, 8)):
            place, count = own.randrange(min(len(data), own.choice([300, 6000]))), own.randrange(5)
            data[place : place + count] = own.randbytes(own.randrange(5))
        return bytes(data)

    def one(seed):
        return talk(watch.server.port, spoilt(seed), shut=True)

    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(one, [chance.randrange(1 << 30) for _ in range(200)]))
    assert all(reply.closed for reply in replies)
    assert not [reply.raw for reply in replies if any(status >= 500 for status in reply.statuses)]
    watch.check()


@pytest.fixture(scope="module")
def secret(tmp_path_factory):
    folder = tmp_path_factory.mktemp("secret")
    token = secrets.token_urlsafe(32)
    (folder / "token").write_text(f"{token}\n")
    with served(folder, "--token-file", folder / "token", site=LIMITS) as server:
        yield Watch(server), token


def test_without_the_token_only_the_door_is_open(secret):
    watch, token = secret
    port = watch.server.port
    wrong = [
        (), ("Authorization: Bearer",), ("Authorization: Bearer  ",), ("Authorization: Bearer x",),
        (f"Authorization: Bearer {token[:-1]}",), (f"Authorization: Bearer {token}x",), (f"Authorization: {token}",),
        (f"Authorization: Basic {token}",), ("Authorization: Bearer " + "a" * 10_000,),
        ("Authorization: Bearer \xe9\xff",), ("Authorization: Bearer " + token[::-1],), ("Cookie: token=" + token,),
        ("Authorization: Bearer x", f"Authorization: Bearer {token}"), (f"X-Token: {token}",),
    ]  # fmt: skip
    for lines in wrong:
        for line in ("GET /models HTTP/1.1", "POST /predict HTTP/1.1", "GET /info/ HTTP/1.1", "GET /jobs/x HTTP/1.1",
                     f"GET /models?token={token} HTTP/1.1", "OPTIONS /models HTTP/1.1", "GET /page/../models HTTP/1.1",
                     "GET //models HTTP/1.1", "GET /page/%2e%2e/models HTTP/1.1", "HEAD /models HTTP/1.1"):  # fmt: skip
            reply = talk(port, head(line, port, *lines))
            assert reply.status in {400, 401, 404}, (line, lines, reply.raw)
            assert b"sha256" not in reply.raw
            assert token.encode() not in reply.raw
    assert b'"queue":null' in talk(port, head("GET /health HTTP/1.1", port)).raw
    assert talk(port, head("GET /models HTTP/1.1", port, f"Authorization: Bearer {token}")).status == 200
    assert token not in watch.server.log()
    watch.check(token=token)


def test_a_token_is_compared_in_a_time_that_tells_nothing(monkeypatch):
    own, seen = Settings(token="s" * 32), []

    def compare(first, second):
        seen.append((first, second))
        return first == second

    monkeypatch.setattr(settings.hmac, "compare_digest", compare)
    assert own.knows_token("s" * 32)
    assert not own.knows_token("é")
    assert seen == [(b"s" * 32, b"s" * 32), ("é".encode(), b"s" * 32)]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "example.org"])
def test_the_network_is_let_in_with_a_token_only(run, host):
    code, _, said = run("serve", "--host", host, "--port", 0)
    assert code == 2
    assert "--token-file" in said


@pytest.mark.skipif(sys.platform == "win32", reason="other signals, other modes")
@pytest.mark.parametrize(
    "ends",
    [
        ["SIGTERM"],
        pytest.param(["SIGKILL", "SIGINT", "SIGKILL", "SIGHUP"], marks=pytest.mark.slow),
    ],
)
def test_what_is_kept_is_private_and_goes_with_the_server_or_when_the_next_one_begins(tmp_path, ends):
    for how in ends:
        with served(tmp_path) as server:
            assert [path.name for path in server.spool()] == [".lock"] * 2, "what the last one left is gone"
            _leave_something(server)
            kept = [path for path in server.spool() if path.name != ".lock"]
            assert len(kept) > 2
            assert {stat.S_IMODE(path.parent.stat().st_mode) for path in kept} == {0o700}
            server.stop(signal.Signals[how])
            left = [path for path in server.spool() if path.name != ".lock"]
            assert bool(left) == (how == "SIGKILL")


def _leave_something(server):
    """Leave results and a session in the spool."""
    with httpx.Client(base_url=server.url, timeout=PATIENCE) as client:
        scan = {"file": (f"{CANARY}.nii.gz", server.scan.read_bytes())}
        job = client.post("/predict", params={"wait": "false"}, files=scan).json()["job"]
        client.put("/session/", files=scan)
        until = time.monotonic() + 4 * PATIENCE
        while client.get(f"/jobs/{job}").json()["state"] != "done":
            assert time.monotonic() < until
            time.sleep(0.05)
