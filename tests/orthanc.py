"""A real PACS for the tests: Debian's Orthanc on loopback, with DICOMweb, C-FIND, C-GET, C-MOVE and C-STORE."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PROGRAM = shutil.which("Orthanc", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
MISSING = "" if PROGRAM and PLUGIN.is_file() else "Orthanc with DICOMweb is not installed (orthanc, orthanc-dicomweb)"


@dataclass(frozen=True)
class Orthanc:
    """One that runs.

    Parameters
    ----------
    url : str
        Of its own REST interface.
    web, dimse, move : str
        Addresses for `medseg.dicom.pacs.connect`: DICOMweb, DIMSE with C-GET, DIMSE with C-MOVE.
    """

    url: str
    web: str
    dimse: str
    move: str

    def put(self, files: Iterable[Path]) -> None:
        """Store files, past medseg."""
        for path in files:
            self.ask("/instances", path.read_bytes())

    def ask(self, place: str, content: bytes | None = None) -> bytes:
        """Return what its REST interface answers."""
        with urllib.request.urlopen(self.url + place, content, timeout=30) as answer:
            return answer.read()


def free_port() -> int:
    """Return a port of this machine on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@contextmanager
def started(folder: Path, **options) -> Iterator[Orthanc]:
    """Give an empty Orthanc with its files in `folder`, as long as the block lasts; `options` go into its settings.

    It knows medseg by the AE title MEDSEG, at the port of its address `move`. Skip where `MISSING` says why.
    """
    web, dimse, move = (free_port() for _ in range(3))
    settings = {
        "Name": "tests",
        "StorageDirectory": str(folder),
        "IndexDirectory": str(folder),
        "HttpPort": web,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomAet": "ORTHANC",
        "DicomPort": dimse,
        "DicomCheckModalityHost": True,
        "DicomAlwaysAllowEcho": False,
        "DicomAlwaysAllowStore": False,
        "DicomAlwaysAllowFind": False,
        "DicomAlwaysAllowMove": False,
        "DicomAlwaysAllowGet": False,
        "DicomModalities": {"MEDSEG": ["MEDSEG", "127.0.0.1", move]},
        "SyncStorageArea": False,
        "Plugins": [str(PLUGIN)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        **options,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "settings.json").write_text(json.dumps(settings))
    with open(folder / "log.txt", "wb") as log:
        process = subprocess.Popen(
            [PROGRAM, str(folder / "settings.json")],
            stdout=log,
            stderr=log,
            env={**os.environ, "TCP_NODELAY": "1"},  # DCMTK's own: 40 ms for each object without
        )
    here = f"127.0.0.1:{web}"
    address = f"dimse://ORTHANC@127.0.0.1:{dimse}?aet=MEDSEG"
    orthanc = Orthanc(f"http://{here}", f"dicomweb+http://{here}/dicom-web", address, f"{address}&move={move}")
    try:
        _wait(orthanc, process, folder)
        yield orthanc
    finally:
        process.kill()  # it takes seconds to end by itself, and nothing of it is needed
        process.wait()


def _wait(orthanc: Orthanc, process: subprocess.Popen, folder: Path) -> None:
    end = time.monotonic() + 20
    while True:
        try:
            orthanc.ask("/system")
        except OSError:
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError((folder / "log.txt").read_text(errors="replace")[-2000:]) from None
            time.sleep(0.05)
        else:
            return
