"""medseg is found, or put into an environment of its own; Slicer's Python is never changed."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from MedSegLib import install
from MedSegLib.chain import Chain, TroubleError
from MedSegLib.environment import data_folder
from MedSegLib.install import Wish
from MedSegLib.process import Process
from slicer_desk import Starter, Told, program, until

PYTHON = "/usr/bin/python3.12"


class Computer:
    """Answers programs as a computer would: `answers` by words that occur in the command, or made up ones."""

    def __init__(self, **answers):
        self.answers, self.commands, self.environments = answers, [], []

    def __call__(self, command, environment, folder):
        text = " ".join(command)
        self.commands.append(text)
        self.environments.append(dict(environment))
        code, out = next((answer for word, answer in self.answers.items() if word in text), self.usual(text))
        if code == 0 and ("-m venv" in text or "uv venv" in text):
            python = install._python_of(Path(command[-1]))
            python.parent.mkdir(parents=True)
            python.write_text("python")
        if code == 0 and "--target" in text:
            uv = Path(command[command.index("--target") + 1]) / "bin" / "uv"
            uv.parent.mkdir(parents=True)
            uv.write_text("uv")
        return Told(code, [(out.encode(), b"" if code == 0 else b"it says why\n")])

    @staticmethod
    def usual(text):
        if "ensurepip" in text:
            return 0, "python 3.12\n"
        return 0, "medseg 0.1.0\n" if "--version" in text else ""

    def ran(self, words):
        return [text for text in self.commands if words in text]


def has(**programs):
    names = {name.replace("_", "-").replace("python3-", "python3."): path for name, path in programs.items()}
    return names.get


def installed(folder, computer, **wishes):
    wish = Wish(**{"platform": "linux", "torch": "default", "which": has(python3_12=PYTHON), **wishes})
    chain = Chain(install.install(folder, wish), computer, {}, folder / "output")
    titles = [chain.title]
    while not chain.finished:
        chain.tick()
        titles.append(chain.title)
    return chain, list(dict.fromkeys(titles))


def environments(folder):
    return sorted(path.name for path in folder.glob("env-*"))


def test_an_environment_is_made_and_counts_when_medseg_has_answered(tmp_path):
    computer = Computer()
    chain, titles = installed(tmp_path, computer, source="medseg[cpu]==0.1.0")
    assert chain.problem == ""
    assert titles == [
        "asking python3.12 for its version",
        "making an environment with Python 3.12",
        "checking the environment",
        "installing medseg[cpu]==0.1.0",
        "checking medseg",
    ]
    (name,) = environments(tmp_path)
    found = install.find({"PATH": ""}, folder=tmp_path)
    assert found == chain.result
    assert found.words == (str(install._python_of(tmp_path / name)), "-P", "-m", "medseg")
    assert json.loads((tmp_path / "installed.json").read_text())["version"] == "medseg 0.1.0"
    assert computer.commands[-2].endswith("-m pip --no-input --disable-pip-version-check install medseg[cpu]==0.1.0")


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ({"install medseg": (1, "")}, "medseg could not be installed (exit code 1)\nit says why"),
        ({"--version": (1, "")}, "medseg does not answer"),
        ({"--version": (0, "medseg 0.0.3")}, "too old"),
        ({"--version": (0, "something else")}, "this is not medseg"),
        ({"ensurepip": (0, "python 3.9")}, "no Python of 3.11 to 3.13 was found, and none could be fetched"),
    ],
)
def test_when_a_step_fails_nothing_half_made_stays_and_the_old_one_goes_on_working(tmp_path, answers, words):
    old = installed(tmp_path, Computer())[0].result
    (name,) = environments(tmp_path)
    answers = {"uv venv": (1, ""), **answers}
    chain, _ = installed(tmp_path, Computer(**answers))
    assert words in chain.problem
    assert environments(tmp_path) == [name]
    assert install.find({}, folder=tmp_path) == old


def test_a_new_one_replaces_the_old_one(tmp_path):
    first = installed(tmp_path, Computer())[0].result
    second = installed(tmp_path, Computer())[0].result
    assert first != second
    assert install.find({}, folder=tmp_path) == second
    assert len(environments(tmp_path)) == 1


@pytest.mark.parametrize("looks", range(10))
def test_cancelled_at_any_step_nothing_half_made_stays(tmp_path, looks):
    starter = Computer()
    chain = Chain(install.install(tmp_path, Wish(platform="linux", torch="default", which=has(python3_12=PYTHON))),
                  starter, {}, tmp_path / "output")  # fmt: skip
    for _ in range(looks):
        chain.tick()
    assert not chain.finished
    chain.cancel()
    assert chain.cancelled
    assert environments(tmp_path) == []
    assert install.find({"PATH": ""}, folder=tmp_path) is None


def test_what_another_start_of_slicer_left_half_made_is_swept(tmp_path):
    done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    (tmp_path / f"env-{int(done.stdout)}-1").mkdir()
    (tmp_path / f"env-{os.getppid()}-1").mkdir()  # of a Slicer that still runs
    installed(tmp_path, Computer())
    names = environments(tmp_path)
    assert f"env-{int(done.stdout)}-1" not in names
    assert f"env-{os.getppid()}-1" in names


def test_pythons_of_the_computer_are_tried_before_slicers_own(tmp_path):
    which = has(python3_13="/a/python3.13", python3_11="/a/python3.11", python3="/a/python3")
    computer = Computer(**{"/a/": (1, "")})
    chain, _ = installed(tmp_path, computer, which=which, slicer_python="/slicer/bin/PythonSlicer")
    assert chain.problem == ""
    order = [text.split()[0] for text in computer.ran("ensurepip")][:4]
    assert order == ["/a/python3.13", "/a/python3.11", "/a/python3", "/slicer/bin/PythonSlicer"]
    assert not computer.ran("site-packages")
    assert not [text for text in computer.ran("PythonSlicer -m pip") if "--target" not in text]


def test_a_python_that_makes_environments_that_do_not_work_is_passed_over(tmp_path):
    class Broken(Computer):
        def __call__(self, command, environment, folder):
            made_by_slicer = self.commands and "PythonSlicer -m venv" in self.commands[-1]
            process = super().__call__(command, environment, folder)
            return Told(1, [b"libpython is missing"]) if made_by_slicer else process

    computer = Broken()
    chain, _ = installed(tmp_path, computer, which=has(), slicer_python="/slicer/bin/PythonSlicer")
    assert chain.problem == ""
    assert computer.ran("uv venv --seed --python 3.12")
    fetched = computer.ran("--target")
    assert len(fetched) == 1
    assert f"--target {tmp_path / 'uv'} uv" in fetched[0]
    settings = computer.environments[computer.commands.index(computer.ran("uv venv")[0])]
    assert settings["UV_PYTHON_INSTALL_DIR"] == str(tmp_path / "python")


def test_without_any_python_and_without_uv_it_says_what_to_do(tmp_path):
    chain, _ = installed(tmp_path, Computer(), which=has())
    assert "install such a Python and try again" in chain.problem


@pytest.mark.parametrize(
    ("platform", "torch", "card", "backend"),
    [
        ("linux", "auto", False, "cpu"),
        ("linux", "auto", True, None),
        ("linux", "cpu", True, "cpu"),
        ("linux", "default", False, None),
        ("win32", "auto", False, None),
        ("win32", "auto", True, "auto"),
        ("win32", "cpu", True, None),
        ("darwin", "auto", False, None),
        ("darwin", "cpu", False, None),
    ],
)
def test_the_build_of_torch_fits_card_and_platform(tmp_path, platform, torch, card, backend):
    programs = {"python3_12": PYTHON, "uv": "/usr/bin/uv"}
    computer = Computer(**{"nvidia-smi": (0, "GPU 0: NVIDIA" if card else "No devices were found")})
    chain, _ = installed(
        tmp_path, computer, platform=platform, torch=torch, which=has(nvidia_smi="/n/nvidia-smi", **programs)
    )
    assert chain.problem == ""
    ran = computer.ran("--torch-backend")
    assert len(ran) == (backend is not None)
    if backend:
        assert f"--torch-backend {backend} torch" in ran[0]
        assert computer.commands.index(ran[0]) < computer.commands.index(computer.ran("pip --no-input")[-1])


def test_without_the_driver_no_card_is_looked_for(tmp_path):
    computer = Computer()
    installed(tmp_path, computer, torch="auto", which=has(python3_12=PYTHON, uv="/usr/bin/uv"))
    assert not computer.ran("nvidia-smi")
    assert computer.ran("--torch-backend cpu")


def test_the_medseg_that_is_named_comes_first_and_one_on_the_path_last(tmp_path):
    own = program(tmp_path)
    assert install.find({"PATH": ""}, folder=tmp_path / "none") is None
    assert install.find({"PATH": str(tmp_path)}, folder=tmp_path / "none").words == (str(own),)
    made = installed(tmp_path / "data", Computer())[0].result
    assert install.find({"PATH": str(tmp_path)}, folder=tmp_path / "data") == made
    settings = {"PATH": "", "MEDSEG_EXECUTABLE": str(own)}
    assert install.find(settings, folder=tmp_path / "data").words == (str(own),)
    assert install.find(settings, named=f" {own} ", folder=tmp_path / "data").words == (str(own),)
    with pytest.raises(TroubleError, match="there is no such program"):
        install.find({"PATH": ""}, named=str(tmp_path / "nothing"))


@pytest.mark.parametrize(
    "text", ["", "nonsense", "[]", '{"environment": "../elsewhere"}', '{"environment": "env-1-1"}']
)
def test_a_pointer_that_points_to_nothing_is_no_medseg(tmp_path, text):
    (tmp_path / "installed.json").write_text(text)
    assert install.find({"PATH": ""}, folder=tmp_path) is None


def test_the_folder_is_the_users_own_on_every_platform():
    home = {"HOME": "/home/x", "USERPROFILE": "/users/x"}
    assert data_folder(home, platform="linux") == Path("/home/x/.local/share/medseg/slicer")
    assert data_folder({**home, "XDG_DATA_HOME": "/d"}, platform="linux") == Path("/d/medseg/slicer")
    assert data_folder(home, platform="darwin") == Path("/home/x/Library/Application Support/medseg/slicer")
    assert data_folder(home, platform="win32") == Path("/users/x/AppData/Local/medseg/slicer")
    assert data_folder({**home, "LOCALAPPDATA": "/l"}, platform="win32") == Path("/l/medseg/slicer")


def test_a_program_that_cannot_be_run_counts_as_failed(tmp_path):
    chain = Chain(install.install(tmp_path, Wish(platform="linux", which=has(python3_12="x"))),
                  Starter(*[OSError("not there")] * 9), {}, tmp_path / "output")  # fmt: skip
    assert chain.finished
    assert "install such a Python" in chain.problem


def wheel(folder):
    """Return a wheel of a medseg that only tells its version."""
    code = b"print('medseg 9.8.7')\n"
    facts = "medseg-9.8.7.dist-info"
    files = {
        "medseg/__init__.py": b"",
        "medseg/__main__.py": code,
        f"{facts}/METADATA": b"Metadata-Version: 2.1\nName: medseg\nVersion: 9.8.7\n",
        f"{facts}/WHEEL": b"Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    rows = [
        f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b'=').decode()},{len(data)}"
        for name, data in files.items()
    ]
    files[f"{facts}/RECORD"] = "\n".join([*rows, f"{facts}/RECORD,,", ""]).encode()
    path = folder / "medseg-9.8.7-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def test_a_real_environment_is_made_from_a_wheel_and_answers(tmp_path):
    wish = Wish(str(wheel(tmp_path)), torch="default", which=lambda name: sys.executable if name == "python3" else None)
    folder = tmp_path / "user data"
    settings = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"PIP_NO_INDEX": "1"}
    chain = Chain(install.install(folder, wish), Process, settings, tmp_path / "output")
    until(lambda: chain.tick() is not None and chain.finished)
    assert chain.problem == ""
    found = install.find({"PATH": ""}, folder=folder)
    words = [*found.words, "--version"]
    said = subprocess.run(words, capture_output=True, text=True, check=True, env=settings).stdout
    assert said == "medseg 9.8.7\n"
    assert list(folder.glob("env-*")) == [Path(found.where)]
