"""The command `medseg serve`: what does not fit is one line, and it ends as it is told to."""

import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from conftest import random_bundle, smooth_scan
from serving import served

import medseg


def run(folder, *words):
    """Run the command to its end; return its exit code and what it said on stderr."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "medseg", "serve", *map(str, words)],
        capture_output=True, text=True, env=environment, cwd=folder, timeout=240, check=False,
    )  # fmt: skip
    assert not done.stdout
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--host", "0.0.0.0"], "--token-file"),
        (["--host", "nowhere.invalid", "--token-file", "token"], "cannot listen at nowhere.invalid"),
        (["--token-file", "missing"], "holds no token"),
        (["--token-file", "short"], "shorter than 16"),
        (["--models", "nobody"], "there is no model 'nobody'"),
        (["--device", "cuda:77"], "cuda:77"),
        (["--datastore", "missing"], "is no folder"),
        (["--tls-certificate", "token"], "--tls-key"),
        (["--tls-certificate", "token", "--tls-key", "token"], "--tls-certificate or --tls-key cannot be used"),
        (["--keep", "soon"], "is no time"),
        (["--max-upload", "much"], "much"),
    ],
)
def test_what_does_not_fit_is_one_line(tmp_path, words, said):
    (tmp_path / "token").write_text("x" * 32)
    (tmp_path / "short").write_text("x" * 8)
    random_bundle().save(tmp_path / "tiny.safetensors")
    model = [] if "--models" in words else ["--models", "tiny.safetensors"]
    code, err = run(tmp_path, "--port", 0, *model, *words)
    assert code == 2
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    assert said in line


def test_a_port_that_is_taken_is_said(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        code, err = run(tmp_path, "--port", other.getsockname()[1])
    assert code == 2
    assert "choose another --port" in err


def test_without_the_extra_one_line_says_what_to_install(tmp_path):
    (tmp_path / "site").mkdir()
    code = (
        "import importlib.util as u; f = u.find_spec\nu.find_spec = lambda n, *a: None if n == 'fastapi' else f(n, *a)"
    )
    (tmp_path / "site" / "sitecustomize.py").write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(
        [sys.executable, "-m", "medseg", "serve"], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 2
    assert done.stderr == "error: fastapi is not installed; install it: pip install 'medseg[server]'\n"


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_when_told_to_and_leaves_nothing(tmp_path, how):
    with served(tmp_path) as server:
        begun = httpx.post(f"{server.url}/predict?wait=false", files={"file": server.scan.read_bytes()}, timeout=60)
        assert begun.status_code == 202
        code = server.stop(how)
        assert code in {0, 130, -how}
        assert "Traceback" not in server.log()
        assert not [path for path in server.spool() if path.name != ".lock" or path.parent.name != "serve"]


SLOW = """
import time
from medseg.networks.unet import UNet
forward = UNet.forward
def slowly(self, x):
    time.sleep(0.4)
    return forward(self, x)
UNet.forward = slowly
"""


def test_who_waits_is_told_that_the_server_ends(tmp_path):
    with served(tmp_path, site=SLOW) as server, ThreadPoolExecutor() as pool:
        medseg.write(smooth_scan((16, 16, 1600)), tmp_path / "long.nii.gz")
        files = {"file": (tmp_path / "long.nii.gz").read_bytes()}
        waiting = pool.submit(httpx.post, f"{server.url}/predict", files=files, timeout=240)
        while not httpx.get(f"{server.url}/health", timeout=60).json()["queue"]["running"]:
            assert not waiting.done()
        server.stop()
        answer = waiting.result()
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "ENDING")


def test_what_it_keeps_is_for_this_user_alone(tmp_path):
    with served(tmp_path) as server:
        httpx.post(f"{server.url}/predict?wait=false", files={"file": server.scan.read_bytes()}, timeout=60)
        folders = [path for path in (server.folder / "XDG_CACHE_HOME/medseg/serve").iterdir() if path.is_dir()]
        assert [oct(path.stat().st_mode & 0o777) for path in folders] == ["0o700"]
