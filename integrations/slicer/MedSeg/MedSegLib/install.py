"""medseg in an environment of its own: found, or made. Slicer's Python is never changed.

An environment is made in a new folder, and counts from the moment at which a small file names it: after it has
answered. Whatever happens before, what was there goes on working, and what is half made is removed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from .chain import Command, Done, TroubleError
from .environment import data_folder
from .progress import as_object
from .workspace import remove, sweep

OLDEST_MEDSEG = (0, 1)
PYTHONS = ((3, 13), (3, 12), (3, 11))  # that medseg is tested with, the one to be preferred first
TORCH = ("auto", "cpu", "default")  # CPU build where no NVIDIA card is found; CPU build; what the package index gives
_POINTER = "installed.json"
_PREFIX = "env-"
_PROBE = "import ctypes, ensurepip, ssl, sys, venv; print('python %d.%d' % sys.version_info[:2])"
_PIP = ("-m", "pip", "--no-input", "--disable-pip-version-check")

Steps = Generator[Command, Done, "Found"]


@dataclass(frozen=True)
class Found:
    """A medseg on this computer."""

    words: tuple[str, ...]  # the command that runs it
    where: str


@dataclass(frozen=True)
class Wish:
    """What is to be installed, and with what."""

    source: str = "medseg"  # a package name with or without extras and version, a wheel, a folder
    torch: str = "auto"
    slicer_python: str = ""  # PythonSlicer: used if it is new enough, and to fetch uv; "" if there is none
    platform: str = sys.platform
    which: Callable[[str], str | None] = shutil.which


def which(name: str, environment: Mapping[str, str]) -> str | None:
    """Return where a program is on the PATH of an environment."""
    return shutil.which(name, path=environment.get("PATH", ""))


def find(environment: Mapping[str, str], *, named: str = "", folder: Path | None = None) -> Found | None:
    """Return the medseg to use: the one named, that of MEDSEG_EXECUTABLE, the installed one, or one on PATH.

    Raises
    ------
    TroubleError
        If one is named that is not there.
    """
    asked = named.strip() or environment.get("MEDSEG_EXECUTABLE", "")
    if asked:
        path = which(asked, environment)
        if path is None:
            raise TroubleError(f"{asked}: there is no such program; name the file medseg, or nothing")
        return Found((path,), path)
    python = _installed(folder or data_folder(environment))
    if python is not None:
        return Found(_run(python), str(python.parent.parent))
    path = which("medseg", environment)
    return Found((path,), path) if path else None


def install(folder: Path, wish: Wish) -> Steps:
    """Make an environment with medseg in it; return where it is. To be driven by a `Chain`."""
    folder.mkdir(parents=True, exist_ok=True)
    current = _installed(folder)
    keep = (current.parent.parent.name,) if current else ()
    sweep(folder, _PREFIX, keep=keep)
    target = _new_name(folder)
    try:
        python = yield from _make_environment(folder, target, wish)
        yield from _put_torch(folder, python, wish)
        pip = (str(python), *_PIP, "install", wish.source)
        (yield Command(f"installing {wish.source}", pip)).must(f"{wish.source} could not be installed")
        words = _run(python)
        version = (yield Command("checking medseg", (*words, "--version"))).must("medseg does not answer")
        checked(version.out)
        _write_pointer(folder, target, wish.source, version.out.strip())
    finally:
        if _installed(folder) != _python_of(target):
            remove(target)
    for old in folder.glob(f"{_PREFIX}*"):
        if old.name in keep:
            remove(old)
    return Found(words, str(target))


def checked(said: str) -> str:
    """Return the version from what `medseg --version` prints.

    Raises
    ------
    TroubleError
        If it is none, or too old.
    """
    match = re.search(r"^medseg (\d{1,6})\.(\d{1,6})(\S*)", said, re.MULTILINE)
    if match is None:
        raise TroubleError(f"this is not medseg: asked for its version, it says {said.strip()[:200]!r}")
    if (int(match[1]), int(match[2])) < OLDEST_MEDSEG:
        least = ".".join(map(str, OLDEST_MEDSEG))
        raise TroubleError(f"medseg {match[1]}.{match[2]} is too old; install {least} or newer")
    return match[0].split(" ", 1)[1]


def _make_environment(folder: Path, target: Path, wish: Wish) -> Generator[Command, Done, Path]:
    for words in _candidates(wish):
        probe = yield Command(f"asking {Path(words[0]).name} for its version", (*words, "-c", _PROBE))
        version = re.search(r"^python (\d+)\.(\d+)$", probe.out.strip(), re.MULTILINE)
        if probe.code != 0 or version is None or (int(version[1]), int(version[2])) not in PYTHONS:
            continue
        made = yield Command(
            f"making an environment with Python {version[1]}.{version[2]}", (*words, "-m", "venv", str(target))
        )
        python = _python_of(target)
        answer = yield Command("checking the environment", (str(python), "-c", _PROBE))
        if made.code == 0 and answer.code == 0:
            return python
        remove(target)  # a Python that cannot run outside its own application: the next one
    uv = yield from _fetch_uv(folder, wish)
    newest = ".".join(map(str, PYTHONS[1]))
    settings = {"UV_PYTHON_INSTALL_DIR": str(folder / "python"), "UV_NO_CONFIG": "1"}
    made = yield Command(f"fetching Python {newest}", (uv, "venv", "--seed", "--python", newest, str(target)), settings)
    made.must(f"no Python of {_range()} was found, and none could be fetched; install one and try again")
    return _python_of(target)


def _candidates(wish: Wish) -> list[tuple[str, ...]]:
    """Return the Pythons to try. Slicer's own comes after those of the computer, which outlive an update of Slicer."""
    found = []
    for major, minor in PYTHONS:
        found.append((wish.which(f"python{major}.{minor}"),))
        if wish.platform == "win32":
            found.append((wish.which("py"), f"-{major}.{minor}"))
    found += [(wish.which("python3"),), (wish.which("python"),), (wish.slicer_python,)]
    return [words for words in found if words[0]]


def _put_torch(folder: Path, python: Path, wish: Wish) -> Generator[Command, Done, None]:
    """Install the build of torch that fits, where pip alone would choose another."""
    card = yield from _has_card(wish)
    cpu = wish.torch == "cpu" or (wish.torch == "auto" and not card)
    given = {"linux": not cpu, "win32": cpu}.get(wish.platform, True)  # Linux gets CUDA by default, Windows does not
    if given or wish.torch == "default":
        return
    uv = yield from _fetch_uv(folder, wish)
    words = (uv, "pip", "install", "--python", str(python), "--torch-backend", "cpu" if cpu else "auto", "torch")
    title = f"installing PyTorch, {'CPU' if cpu else 'CUDA'} build"
    done = yield Command(title, words, {"UV_NO_CONFIG": "1"})
    done.must("that build of PyTorch could not be had; choose 'default' as the build, and try again")


def _has_card(wish: Wish) -> Generator[Command, Done, bool]:
    """Say whether there is an NVIDIA card with a driver."""
    program = wish.which("nvidia-smi")
    if wish.torch != "auto" or not program:
        return False
    answer = yield Command("looking for an NVIDIA card", (program, "-L"))
    return answer.code == 0 and "GPU " in answer.out


def _fetch_uv(folder: Path, wish: Wish) -> Generator[Command, Done, str]:
    """Return the program uv: one on PATH, or one put into a folder of its own."""
    own = folder / "uv"
    on_path = wish.which("uv")
    if on_path:
        return on_path
    pythons = [words for words in _candidates(wish) if words[0]]
    for words in [] if _uv_in(own) else pythons:
        done = yield Command("fetching uv", (*words, *_PIP, "install", "--upgrade", "--target", str(own), "uv"))
        if done.code == 0:
            break
    found = _uv_in(own)
    if found is None:
        remove(own)
        raise TroubleError(f"neither a Python of {_range()} nor uv could be had; install such a Python and try again")
    return found


def _uv_in(folder: Path) -> str | None:
    return next((str(path) for name in ("uv", "uv.exe") if (path := folder / "bin" / name).exists()), None)


def _range() -> str:
    return " to ".join(".".join(map(str, version)) for version in (PYTHONS[-1], PYTHONS[0]))


def _new_name(folder: Path) -> Path:
    number = 1
    while (folder / f"{_PREFIX}{os.getpid()}-{number}").exists():
        number += 1
    return folder / f"{_PREFIX}{os.getpid()}-{number}"


def _python_of(target: Path) -> Path:
    return target / "Scripts" / "python.exe" if os.name == "nt" else target / "bin" / "python"


def _run(python: Path) -> tuple[str, ...]:
    return (str(python), "-P", "-m", "medseg")  # -P: not some other medseg in the folder where Slicer was started


def _write_pointer(folder: Path, target: Path, source: str, version: str) -> None:
    text = json.dumps({"environment": target.name, "source": source, "version": version})
    part = folder / f".{_POINTER}.{os.getpid()}.part"
    part.write_text(text, encoding="utf-8")
    os.replace(part, folder / _POINTER)


def _installed(folder: Path) -> Path | None:
    """Return the Python of the environment that counts."""
    try:
        text = (folder / _POINTER).read_text(encoding="utf-8")
    except OSError:
        return None
    name = as_object(text).get("environment")
    if not isinstance(name, str) or not re.fullmatch(r"env-\d+-\d+", name):
        return None
    python = _python_of(folder / name)
    return python if python.exists() else None
