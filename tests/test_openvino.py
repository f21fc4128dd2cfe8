"""OpenVINO: the same answers as torch, forms that are sound or not used, and nothing that phones home."""

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version

import numpy as np
import pytest
import torch
from conftest import random_bundle, smooth_scan
from torch import nn

import medseg
from medseg import Predictor
from medseg.bundle import Bundle
from medseg.errors import BundleError, DeviceError, UsageError
from medseg.inference import optimised, optimising
from medseg.inference.backends import How, openvino_cpu
from medseg.inference.backends.norms import BlockNorm
from medseg.inference.backends.openvino_cpu import OpenVinoBackend, convert
from medseg.inference.ensemble import Ensemble
from medseg.inference.optimising import make, windows_of
from medseg.kernels import Host
from medseg.prepare import prepare

pytest.importorskip("openvino")
AT_ONCE = How(backend="openvino", threads=1)
WATCHED = """
import os, sys
def watch(event, args):
    if event.startswith("socket.") and event not in {"socket.__new__", "socket.gethostname"}:
        os.write(1, f"network: {event} {args}".encode())
sys.addaudithook(watch)
"""


def noise(bundle, windows=1, seed=0):
    shape = (windows, len(bundle.plan.channels), *bundle.plan.patch)
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def answer(bundle, windows, **options):
    with torch.inference_mode():
        return Ensemble.of(bundle, **options)(torch.from_numpy(windows)).numpy()


def openvino(bundle, **how):
    return optimised.open_form(bundle, How(threads=1, **how), Host(1))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "medseg" / "forms"


@pytest.fixture
def stored(desk, cache):
    """The model, and nothing kept for it."""
    return Bundle.load(desk[0] / "tiny.safetensors")


@pytest.fixture
def kept(desk, stored, cache):
    """The form of it, kept."""
    shutil.copytree(desk[0] / "XDG_CACHE_HOME", cache.parent.parent)
    form, _ = optimised.find(stored)
    return form


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A model, a form of it made in a process of its own, and what that process said and wrote."""
    folder = tmp_path_factory.mktemp("desk")
    random_bundle(seed=3, members=2).save(folder / "tiny.safetensors")
    code = """
    import numpy as np
    from pathlib import Path
    from medseg.bundle import Bundle
    from medseg.inference.optimising import make
    bundle = Bundle.load(Path("tiny.safetensors"))
    noise = list(np.random.default_rng(0).standard_normal((3, 1, 1, 16, 16, 16), np.float32))
    for precision, windows in INT8 + [("float32", [])]:
        make(bundle, precision=precision, threads=1, windows=windows)
    """
    with_nncf = "[('int8', noise)]" if _has("nncf") else "[]"
    return folder, program(folder, code.replace("INT8", with_nncf))


def _has(name):
    try:
        return bool(version(name))
    except ModuleNotFoundError:
        return False


def program(folder, code):
    """Run code where home, cache and temporary folder are new, no CI is known, and name look-ups are told."""
    places = {name: folder / name for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME")}
    for place in places.values():
        place.mkdir(exist_ok=True)
    environment = {"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    environment |= {name: str(place) for name, place in places.items()}
    lines = "\n".join(line.removeprefix("    ") for line in code.splitlines())
    done = subprocess.run(
        [sys.executable, "-c", WATCHED + lines],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_making_a_form_phones_nobody_and_writes_to_the_cache_alone(desk):
    folder, said = desk
    assert "network:" not in said
    assert not files(folder / "HOME")
    assert not files(folder / "TMPDIR")
    written = files(folder / "XDG_CACHE_HOME")
    assert {name.rsplit(".")[-1] for name in written} == {"xml", "bin", "json"}
    assert len(written) == 3
    assert all(name.startswith("medseg/forms/") for name in written)
    assert [name for name in files(folder) if "/" not in name] == ["tiny.safetensors"]


@pytest.mark.skipif(not _has("openvino-telemetry"), reason="there is no telemetry to block")
def test_the_watch_would_have_seen_it(tmp_path):
    said = program(tmp_path, "\nimport openvino, time\ntime.sleep(1)")
    assert "network: socket.getaddrinfo" in said
    assert files(tmp_path / "HOME")


def test_predict_phones_nobody_and_writes_to_output_and_cache_alone(desk, tmp_path):
    shutil.copytree(desk[0] / "XDG_CACHE_HOME", tmp_path / "XDG_CACHE_HOME")
    shutil.copy(desk[0] / "tiny.safetensors", tmp_path)
    medseg.write(smooth_scan((20, 18, 16)), tmp_path / "scan.nii.gz")
    before = files(tmp_path)
    code = """
    from medseg.cli import main
    words = "predict scan.nii.gz -m tiny.safetensors -o out --uncertainty --json -"
    sys.argv = ["medseg", *words.split()]
    main()
    """
    said = program(tmp_path, code)
    assert "network:" not in said
    assert json.loads(said)["device"].startswith(("openvino", "torch"))
    written = [name for name in files(tmp_path) if name not in before]
    assert len(written) == 5
    assert all(name.startswith("out/scan_") for name in written)


def test_a_form_answers_without_torch_and_phones_nobody(desk):
    folder, _ = desk
    before = files(folder)
    windows = noise(random_bundle())
    code = f"""
    sys.modules["torch"] = sys.modules["monai"] = sys.modules["numba"] = None
    import numpy as np
    from pathlib import Path
    from medseg.bundle import Bundle
    from medseg.inference import optimised
    from medseg.inference.backends import How
    from medseg.kernels import Host
    bundle = Bundle.load(Path("tiny.safetensors"))
    backend = optimised.open_form(bundle, How(), Host(1))
    noise = np.random.default_rng(0).standard_normal({windows.shape}, np.float32)
    print(backend.name)
    print(backend(noise).tolist())
    """
    said = program(folder, code)
    name, values = said.splitlines()
    assert name == "openvino, float32, cpu"
    expected = answer(Bundle.load(folder / "tiny.safetensors"), windows)
    np.testing.assert_allclose(np.array(json.loads(values)), expected, atol=1e-4)
    assert files(folder) == before


@pytest.mark.parametrize(
    ("changes", "mirror", "disagreement"),
    [
        ({}, False, False),
        ({"members": 3, "mirror": [0, 2]}, True, True),
        ({"axes": 2, "patch": [24, 20, 1], "members": 2}, False, True),
        ({"patch": [13, 9, 11]}, False, False),
    ],
)
def test_the_answers_are_those_of_torch(changes, mirror, disagreement):
    bundle = random_bundle(**changes)
    windows = noise(bundle, 2)
    how = How(backend="openvino", mirror=mirror, threads=1)
    backend = optimised.open_form(bundle, how, Host(1), disagreement=disagreement)
    expected = answer(bundle, windows, mirror=mirror, disagreement=disagreement)
    found = np.concatenate([backend(windows[number : number + 1]).copy() for number in range(2)])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())
    assert (found[:, :3].argmax(1) == expected[:, :3].argmax(1)).all()


@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        (nn.InstanceNorm3d(6, affine=True), (2, 6, 48, 40, 11)),
        (nn.InstanceNorm3d(6), (1, 6, 1, 2, 1)),
        (nn.InstanceNorm2d(6), (2, 6, 13, 22)),
        (nn.GroupNorm(3, 6), (2, 6, 8, 9, 10)),
        (nn.GroupNorm(1, 6), (1, 6, 7, 7)),
    ],
)
def test_norms_by_blocks_are_those_of_torch(norm, shape):
    torch.manual_seed(0)
    for weights in norm.parameters():
        nn.init.normal_(weights)
    values = torch.randn(shape) * 3 + 5
    with torch.inference_mode():
        torch.testing.assert_close(BlockNorm(norm.eval())(values), norm(values), rtol=0, atol=1e-5)


def test_a_window_with_air_gets_the_answer_of_torch():
    bundle = random_bundle(patch=[64, 64, 64])
    windows = noise(bundle)
    windows[:, :, :40] = -5
    expected = answer(bundle, windows)
    off = {
        exact: np.abs(
            OpenVinoBackend(convert(Ensemble.of(bundle), windows.shape, exact=exact), host=Host(1), threads=1)(windows)
            - expected
        ).max()
        / np.abs(expected).max()
        for exact in (True, False)
    }
    assert off[True] < 2e-5
    assert off[False] > 1e-4  # or the exact means would be in vain


def test_windows_of_any_memory_order_are_answered(stored):
    windows = np.asfortranarray(noise(stored))
    backend = OpenVinoBackend(convert(Ensemble.of(stored), windows.shape), host=Host(1))
    np.testing.assert_allclose(backend(windows), answer(stored, windows), atol=1e-4)
    backend.free()
    np.testing.assert_allclose(backend(windows), answer(stored, windows), atol=1e-4)


def test_bfloat16_is_never_chosen_for_the_user(stored):
    """On a CPU with the units OpenVINO would choose it."""
    assert openvino(stored, backend="openvino")._compiled.get_property("INFERENCE_PRECISION_HINT").to_string() == "f32"


def test_bfloat16_is_refused_where_the_cpu_has_no_units(stored, tmp_path, monkeypatch):
    for flags, there in (("fpu avx2 avx512f", False), ("fpu avx512_bf16", True), ("fpu amx_bf16 amx_tile", True)):
        (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\nprocessor\t: 1\n")
        monkeypatch.setattr(openvino_cpu, "_CPU", tmp_path / "cpuinfo")
        assert openvino_cpu.has_bfloat16() is there
    monkeypatch.setattr(openvino_cpu, "has_bfloat16", lambda: False)
    with pytest.raises(DeviceError, match="no units for bfloat16"):
        openvino(stored, backend="openvino", precision="bfloat16")
    with pytest.raises(DeviceError, match="no units for bfloat16"):
        make(stored, precision="bfloat16", threads=1)
    assert optimised.find(stored) == (None, "")


def test_a_cache_shared_with_a_machine_that_has_bfloat16_is_used_in_float32(stored, kept, monkeypatch):
    optimised.keep(convert(Ensemble.of(stored), (1, 1, 16, 16, 16)), stored, precision="bfloat16")
    for there, precision in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(optimised, "has_bfloat16", lambda there=there: there)
        assert optimised.find(stored)[0].precision == precision
        assert optimised.find(stored, precision="float32")[0].precision == "float32"
        assert optimised.find(stored, precision="int8") == (None, "")


def test_predict_takes_the_form_by_itself(stored, kept):
    scan = smooth_scan((22, 18, 20))
    plain, fast = Predictor(stored, device="cpu", backend="torch"), Predictor(stored, device="cpu")
    assert fast.device_name == "openvino, float32, cpu"
    assert plain.device_name.startswith("torch")
    assert (plain(scan).labels.array == fast(scan).labels.array).mean() > 0.9999


def test_each_question_has_a_form_of_its_own(stored, kept):
    assert optimised.find(stored)[0] == kept
    assert optimised.find(stored, disagreement=True) == (None, "")
    other, _ = make(stored, disagreement=True, threads=1)
    assert optimised.find(stored, disagreement=True)[0] == other
    assert optimised.find(stored)[0] == kept


def _cut(kept):
    path = kept.network.with_suffix(".bin")
    path.write_bytes(path.read_bytes()[:-1])


def _changed(kept):
    data = bytearray(kept.network.read_bytes())
    data[len(data) // 2] ^= 1
    kept.network.write_bytes(data)


def _manifest(text):
    return lambda kept: (kept.network.parent / "network.json").write_text(text)


@pytest.mark.parametrize(
    "harm",
    [
        _cut,
        _changed,
        lambda kept: kept.network.unlink(),
        _manifest(""),
        _manifest("[1]"),
        _manifest('{"format": 2}'),
        _manifest("[" * 10000),
    ],
)
def test_a_damaged_form_is_said_and_not_used(stored, kept, harm):
    harm(kept)
    form, wrong = optimised.find(stored)
    assert form is None
    assert f"is damaged; run `medseg models optimize {stored.file}` again" in wrong
    assert openvino(stored) is None


def test_a_damaged_form_is_replaced(stored, kept):
    _cut(kept)
    assert openvino(stored, backend="openvino")(noise(stored)).shape == (1, 3, 16, 16, 16)
    form, _ = make(stored, threads=1)
    assert optimised.find(stored) == (form, "")


@pytest.mark.parametrize("key", ["medseg", "openvino"])
def test_a_form_of_another_version_is_said_and_not_used(stored, kept, key):
    path = kept.network.parent / "network.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: "0.0.1"}))
    form, wrong = optimised.find(stored)
    assert form is None
    assert "another version" in wrong


def test_a_form_that_could_not_be_written_leaves_the_older_one(stored, kept, cache, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    before = files(cache)
    monkeypatch.setattr(optimised, "canonical_json", full)
    with pytest.raises(OSError, match="No space"):
        make(stored, precision="float32", threads=1)
    assert files(cache) == before
    assert optimised.find(stored) == (kept, "")


def test_a_new_form_replaces_the_older_one_and_removing_leaves_nothing(stored, kept, cache):
    other = optimised.keep(convert(Ensemble.of(random_bundle(seed=9)), (1, 1, 16, 16, 16)), stored, precision="int8")
    assert optimised.find(stored) == (other, "")
    assert other.network != kept.network
    assert len(files(cache)) == 3
    assert optimised.remove(stored) is True
    assert optimised.remove(stored) is False
    assert files(cache) == []


def test_a_form_that_gives_other_answers_is_not_kept(stored, cache, monkeypatch):
    wrong = convert(Ensemble.of(random_bundle(seed=4)), (1, 1, 16, 16, 16))
    monkeypatch.setattr(optimising, "convert", lambda network, shape, **_: wrong)
    with pytest.raises(BundleError, match="float32 form differs from torch"):
        make(stored, threads=1)
    assert not cache.exists()


def test_a_model_that_is_no_file_has_no_form_but_can_be_converted_at_once(cache):
    bundle = random_bundle()
    assert optimised.find(bundle) == (None, "")
    assert openvino(bundle) is None
    assert openvino(bundle, backend="openvino").name == "openvino, float32, cpu"
    with pytest.raises(UsageError, match="not loaded from a file"):
        make(bundle, threads=1)
    assert optimised.remove(bundle) is False
    assert not cache.exists()


@pytest.mark.parametrize("precision", ["int8", "float16"])
def test_what_cannot_be_had_at_once_is_refused(stored, precision):
    with pytest.raises(UsageError, match=f"no {precision} form"):
        openvino(stored, backend="openvino", precision=precision)


def test_without_openvino_one_line_says_what_to_install(stored, kept, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(UsageError, match=r"pip install 'medseg\[cpu\]'"):
        make(stored, threads=1)
    assert optimised.find(stored) == (None, "")
    assert Predictor(stored, device="cpu").device_name.startswith("torch")


def test_windows_of_a_scan_hold_each_voxel_and_nothing_else():
    bundle = random_bundle(patch=[8, 8, 32])
    prepared = prepare(smooth_scan((16, 8, 24)), bundle.plan)
    first, second = windows_of(prepared, bundle.plan)
    assert first.shape == (1, 1, 8, 8, 32)
    whole = np.concatenate([first, second], axis=2)[0]
    np.testing.assert_array_equal(whole[..., 4:28], prepared.array())
    assert not whole[..., :4].any()
    assert not whole[..., 28:].any()
