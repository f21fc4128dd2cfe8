"""The house: imports point down, the face is what it says, nothing heavy loads early, nothing can run code."""

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from fnmatch import fnmatchcase
from importlib.metadata import distribution, requires
from pathlib import Path

import pytest

import medseg

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "medseg"
FLOORS = {
    "errors": 0, "progress": 0,
    "atomic": 1, "boxes": 1, "geometry": 1, "kernels": 1, "locks": 1, "networks": 1, "pieces": 1, "strides": 0,
    "gate": 2, "metrics": 2, "plan": 2, "resampling": 2,
    "volume": 3, "bundle": 3,
    "dicom": 4, "postprocess": 4, "prepare": 4, "restore": 4, "zoo": 4,
    "io": 5, "transforms": 5,
    "evaluation": 6, "inference": 6, "qc": 6,
    "report": 7,
    "archive": 8, "server": 8, "training": 8,
    "cli": 9, "__init__": 9, "__main__": 10,
}  # fmt: skip
STRANGERS = {"metrics", "io", "networks", "zoo", "plan"}  # that do not import one another
SOURCES = sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path):
    """Yield (line, module) of every import of medseg in a file, wherever it stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "medseg":
            if node.module == "medseg":
                yield from ((node.lineno, f"medseg.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, node.module
        elif isinstance(node, ast.Import):
            yield from ((node.lineno, a.name) for a in node.names if a.name.split(".")[0] == "medseg")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    own = room_of(path)
    for line, module in imports_of(path):
        other = module.split(".")[1]
        if other in {"__version__", own}:
            continue
        assert FLOORS[other] < FLOORS[own], f"{path}:{line}: {own} imports {other}, which is not below it"
        assert not {own, other} <= STRANGERS or other == "plan", f"{path}:{line}: {own} imports {other}"


def test_every_room_has_a_floor():
    assert {room_of(path) for path in SOURCES} == set(FLOORS)


def test_no_import_hides_behind_type_checking():
    assert not [path for path in SOURCES if "TYPE_CHECKING" in path.read_text()]


def test_monai_lives_in_transforms_alone():
    users = {room_of(path) for path in SOURCES if re.search(r"^\s*(from|import) monai", path.read_text(), re.MULTILINE)}
    assert users == {"transforms"}


def test_the_face_is_what_it_says():
    assert medseg.__all__ == sorted(medseg.__all__)
    for name in medseg.__all__:
        assert getattr(medseg, name).__name__ == name
    assert set(dir(medseg)) == {*medseg.__all__, "__version__"}
    stub = ast.parse((PACKAGE / "__init__.pyi").read_text())
    declared = {
        alias.asname or alias.name for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert declared == set(medseg.__all__)
    with pytest.raises(AttributeError, match="nonsense"):
        medseg.nonsense  # noqa: B018 - the access is the test


def loaded_after(code: str) -> set[str]:
    shown = f"{code}; import sys; print(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", shown], capture_output=True, text=True, check=True).stdout.split())


def test_importing_medseg_loads_nothing_heavy():
    assert not loaded_after("import medseg") & {"torch", "monai", "numpy", "pydantic", "scipy", "PIL"}


def test_the_command_loads_nothing_heavy_before_it_runs():
    assert not loaded_after("import medseg.cli") & {"torch", "monai", "numpy", "pydantic", "scipy", "PIL"}


def test_predicting_needs_no_monai_and_nothing_that_is_too_large_for_a_small_machine():
    blocked = ["monai", "SimpleITK", "numba", "openvino", "matplotlib", "nibabel", "skimage", "cc3d"]
    code = f"import sys; sys.modules.update(dict.fromkeys({blocked})); import medseg; "
    code += "p = medseg.Predictor.load('hippocampus-t1', device='cpu'); "
    code += "import medseg.report.delivery; p(medseg.read('sample_data/t1_hippocampus.nii.gz'))"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_source_can_run_code_from_data_or_reach_the_network(path):
    banned = {
        "pickle",
        "marshal",
        "shelve",
        "yaml",
        "socket",
        "urllib",
        "http",
        "requests",
        "ssl",
        "ftplib",
        "tempfile",
    }
    if path.is_relative_to(PACKAGE / "dicom" / "pacs"):  # connects to the address that the user gives, and only there
        banned -= {"socket", "urllib", "http", "ssl"}
    if path.is_relative_to(PACKAGE / "server"):  # listens, and connects to nothing
        banned -= {"socket", "urllib"}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"eval", "exec", "compile", "__import__"}, f"{path}:{node.lineno}"
        if isinstance(node, ast.Attribute):
            assert not (node.attr == "load" and ast.unparse(node.value) in {"torch", "np"}), f"{path}:{node.lineno}"
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            assert not {module.split(".")[0] for module in modules} & banned, f"{path}:{node.lineno}"
        assert not isinstance(node, ast.Assert), f"{path}:{node.lineno}: asserts belong in tests"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_and_functions_stay_within_their_budget(path):
    text = path.read_text()
    assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            lines = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
            assert lines <= 40, f"{path}:{node.lineno}: {node.name} has {lines} lines"


def test_pipelines_are_flat_short_and_use_the_public_face():
    for path in sorted((ROOT / "pipelines").glob("*.py")):
        assert path.read_text().count("\n") <= 130, path
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "medseg":
                assert not [alias.name for alias in node.names if alias.name.startswith("_")], path
    for path in SOURCES:
        assert "pipelines" not in path.read_text(), path


def test_the_project_names_no_registry_and_no_place_of_ours():
    words = [
        "pypi." + "org", "files.python" + "hosted", "deb.debian" + ".org", "registry.npm" + "js",
        "/work" + "/", "../" + "shared",
    ]  # fmt: skip
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split(
        "\n"
    )
    for name in filter(None, listed):
        path = ROOT / name
        if path.suffix in {".py", ".md", ".toml", ".txt", ".yaml", ".yml", ".cfg", ""} and path.is_file():
            text = path.read_text(errors="replace")
            assert not [word for word in words if word in text], name


def test_every_dependency_is_listed_with_its_licence():
    listing = (ROOT / "docs" / "licences.md").read_text()
    rows = dict(re.findall(r"^\| `([^`]+)` \| ([^|]+?) \|", listing, re.MULTILINE))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = project["dependencies"] + [name for extra in project["optional-dependencies"].values() for name in extra]
    direct = {re.split(r"[<>=!~ \[]", text)[0].lower() for text in named}
    assert direct <= {name.lower() for name in rows}
    oracles = {re.split("[<>=]", text)[0] for text in project["optional-dependencies"]["peers"]}
    allowed = re.compile(r"Apache|MIT|BSD|HPND|PSF|MPL-2\.0|ISC|Zlib|0BSD|Unlicense")
    lesser = set(re.findall(r"^- `([^`]+)`", listing.split("## LGPL", 1)[1], re.MULTILINE))
    for name, licence in rows.items():
        assert allowed.search(licence) or name in lesser | oracles, f"{name}: {licence}"
    for path in SOURCES:
        for name in oracles:
            assert f"import {name.replace('-', '_')}" not in path.read_text(), path


def test_the_listed_licences_cover_all_that_is_installed_with_medseg():
    listed = re.findall(r"`([^`]+)`", (ROOT / "docs" / "licences.md").read_text().lower())
    seen, todo = set(), ["medseg"]
    while todo:
        name = todo.pop()
        for text in requires(name) or []:
            if "extra ==" in text or ("; " in text and not _holds(text.split(";", 1)[1])):
                continue
            other = re.split(r"[<>=!~ \[;(]", text)[0].lower().replace("_", "-")
            if other not in seen:
                seen.add(other)
                todo.append(other)
    for name in seen:
        licence = distribution(name).metadata.get("License-Expression")
        assert any(fnmatchcase(name, pattern) for pattern in listed), f"{name} {licence}"


def _holds(marker: str) -> bool:
    from packaging.markers import Marker

    return Marker(marker.strip()).evaluate()


def test_the_version_is_told_once():
    assert f"## [{medseg.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_modules_can_each_be_imported_first():
    for path in SOURCES:
        if path.name != "__main__.py":
            parts = path.relative_to(ROOT).with_suffix("").parts
            importlib.import_module(".".join(part for part in parts if part != "__init__"))
