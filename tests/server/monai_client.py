"""The client of MONAI Label as its authors ship it, run in the Python of the judges; and what its Slicer module does.

Run as a program it is the other side of the pipe: it loads the client from its file, and calls what it is told to.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

SLICER = "monailabel/plugins/slicer/MONAILabel/MONAILabelLib/client.py"  # under the prefix of the environment


class Refused(Exception):
    """What the client raised; `status` is that of HTTP, where the client tells it."""

    def __init__(self, kind: str, message: str, status: int | None) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind, self.status = kind, status


class Original:
    """`MONAILabelClient`: every method is called in the other process.

    Parameters
    ----------
    bin_folder : Path
        Of the environment of the judges.
    url : str
        Of the server.
    folder : Path
        For the files that the client writes.
    client_id : str, optional
        Who asks.
    """

    def __init__(self, bin_folder: Path, url: str, folder: Path, *, client_id=None, file=None, **environment) -> None:
        folder.mkdir(exist_ok=True)
        words = [bin_folder / "python", "-W", "ignore", __file__, file or shipped(bin_folder), url, folder]
        self._process = subprocess.Popen(
            [*map(str, words), json.dumps(client_id)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, **environment},
        )  # fmt: skip

    def __getattr__(self, name: str):
        def call(*words, **options):
            self._process.stdin.write(json.dumps([name, words, options]) + "\n")
            self._process.stdin.flush()
            told = json.loads(self._process.stdout.readline())
            if "error" in told:
                raise Refused(*told["error"])
            return told["result"]

        return call

    def close(self) -> None:
        """Let the other process end."""
        self._process.communicate(timeout=60)


class Module:
    """What `MONAILabel.py`, the Slicer module, does with the client, without Slicer.

    Parameters
    ----------
    client : Original
        Speaks with the server.
    """

    def __init__(self, client: Original, password: str = "") -> None:
        self._client, self._password = client, password
        self._token = None
        self.sample: dict = {}
        self.info = self.client.info()

    @property
    def client(self) -> Original:
        """The client, with a token where the server asks for one."""
        if self._client.auth_enabled():
            if self._token:
                self._client.update_auth(self._token)
            if not self._token or not self._client.auth_valid_token():
                self._token = self._client.auth_token("user-xyz", self._password)
                self._client.update_auth(self._token)
        return self._client

    def load(self, volume: Path, name: str) -> None:
        """Begin with a volume of the scene."""
        self.volume, self.sample = volume, {"id": name, "session": True}

    def upload(self) -> None:
        """Press 'Upload Volume'."""
        self.client.upload_image(str(self.volume), self.sample["id"])
        self.sample["session"] = False

    def session(self) -> str | None:
        """Return the session of the volume; a new one where there was none."""
        if not self.sample.get("session"):
            return None
        known = self.sample.get("session_id")
        if not known or not self.client.get_session(known):
            self.sample["session_id"] = self.client.create_session(str(self.volume))["session_id"]
        return self.sample["session_id"]

    def segment(self, model: str) -> tuple[Path, list[str]]:
        """Press 'Run'; return the file, and the names that its voxel values 1, 2, ... get."""
        session = self.session()
        asked = {"result_extension": ".nrrd", "result_dtype": "uint8"}
        file, params = self.client.infer(model, self.sample["id"], asked, session_id=session)
        labels = (params or {}).get("label_names") or self.info["models"][model]["labels"]
        if isinstance(labels, dict):
            labels = [name for name, _ in sorted(labels.items(), key=lambda item: item[1])]
        return Path(file), [label for label in labels if label != "background"]

    def submit(self, label: Path, segments: list[str]) -> dict:
        """Press 'Submit Label'."""
        if self.sample.get("session"):
            self.upload()
        told = [{"name": name, "idx": number} for number, name in enumerate(segments, start=1)]
        return self.client.save_label(self.sample["id"], str(label), params={"label_info": told})


def shipped(bin_folder: Path) -> Path:
    """Return the file of the client that the Slicer module uses."""
    return bin_folder.parent / SLICER


@contextmanager
def connecting(folder: Path) -> Iterator[Callable[..., Original]]:
    """Give a function that starts a client of a server, or skip the test where there is none."""
    import pytest  # not there in the Python of the judges

    named = os.environ.get("MEDSEG_JUDGES")
    if not named:
        pytest.skip("MEDSEG_JUDGES names no folder of outside judges")
    if not shipped(Path(named)).is_file():
        pytest.skip("monailabel is not in MEDSEG_JUDGES: pip install --no-deps -r tests/judges-alone.txt")
    started: list[Original] = []

    def start(url: str, name: str = "client", **options) -> Original:
        started.append(Original(Path(named), url, folder / name, **options))
        return started[-1]

    yield start
    for client in started:
        client.close()


def _serve(file: str, url: str, folder: str, client_id: str) -> None:
    spec = importlib.util.spec_from_file_location("client", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    token = None
    for line in sys.stdin:
        name, words, options = json.loads(line)
        client = module.MONAILabelClient(url, tmpdir=folder, client_id=json.loads(client_id))  # as the module does
        try:
            if name == "update_auth":
                token = words[0]
            client.update_auth(token)
            told = {"result": getattr(client, name)(*words, **options)}
        except Exception as error:  # noqa: BLE001 - whatever it is, the test is told
            message, status = getattr(error, "msg", None) or str(error), getattr(error, "status_code", None)
            told = {"error": [type(error).__name__, message, status]}
        sys.stdout.write(json.dumps(told) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _serve(*sys.argv[1:])
