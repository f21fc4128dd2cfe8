"""`medseg models optimize` and `medseg models export`, as a user types them."""

import json
import re
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from conftest import PLAN, random_bundle, smooth_scan

import medseg
from medseg.bundle import Bundle
from medseg.inference import optimised
from medseg.inference.ensemble import Ensemble


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("medseg.kernels.host.compile_now", lambda: True)  # takes seconds, and has tests of its own
    return tmp_path / "cache"


@pytest.fixture
def model(bundle_file):
    return bundle_file(seed=3, members=2, mirror=[0])


@pytest.fixture
def scans(tmp_path):
    folder = tmp_path / "scans"
    folder.mkdir()
    for seed in range(3):
        medseg.write(smooth_scan((20, 18, 16), seed=seed), folder / f"{seed}.nii.gz")
    return folder


def used(folder):
    """Return what ran the network, from the one report in a folder."""
    (report,) = folder.glob("*.json")
    return json.loads(report.read_text())["device"]


@pytest.mark.skipif(find_spec("openvino") is None, reason="OpenVINO is not installed")
class TestOptimize:
    def test_predict_takes_what_was_made_until_it_is_removed(self, run, model, scans, tmp_path):
        code, out, err = run("models", "optimize", model, "--threads", 1)
        assert code == 0, err
        before, after = (float(text) for text in re.findall(r"([\d.]+) ms per window", out))
        assert before > 0
        assert after > 0
        assert "same label in 100.0000% of the voxels of noise" in out
        results = {}
        for name in ("fast", "plain"):
            words = ("-m", model, "--device", "cpu", "--no-picture", "-o", tmp_path / name)
            code, _, err = run("predict", scans / "0.nii.gz", *words)
            assert code == 0, err
            results[name] = medseg.read_labels(tmp_path / name / "0_seg.nii.gz").array
            run("models", "optimize", model, "--remove")
        assert used(tmp_path / "fast") == "openvino, float32, cpu"
        assert used(tmp_path / "plain").startswith("torch")
        assert (results["fast"] == results["plain"]).mean() > 0.9999

    def test_the_precision_is_remembered(self, run, model):
        code, _, err = run("models", "optimize", model, "--threads", 1, "--precision", "bfloat16")
        bundle = Bundle.load(model)
        if optimised.has_bfloat16():
            assert code == 0, err
            assert optimised.find(bundle)[0].precision == "bfloat16"
        else:
            assert code == 2
            assert "no units for bfloat16" in err

    def test_forms_for_mirrored_windows_and_uncertainty_are_made_when_asked_for(self, run, model):
        assert run("models", "optimize", model, "--threads", 1, "--mirror", "--uncertainty")[0] == 0
        bundle = Bundle.load(model)
        assert optimised.find(bundle, mirror=True, disagreement=True)[0]
        assert optimised.find(bundle)[0] is None

    def test_both_networks_of_a_model_of_two_stages_are_optimised(self, run, tmp_path):
        coarse = random_bundle(seed=1)
        locate = {"plan": {**PLAN, "spacing": [2, 2, 2]}, "margin_mm": 4}
        fine = random_bundle(seed=2, spacing=[1, 1, 1], locate=locate)
        whole = Bundle.of(fine.members, plan=fine.plan, card=fine.card, locator=coarse.members[0])
        whole.save(tmp_path / "two.safetensors")
        code, out, err = run("models", "optimize", tmp_path / "two.safetensors", "--threads", 1)
        assert code == 0, err
        assert out.count("kept in") == 2
        bundle = Bundle.load(tmp_path / "two.safetensors")
        assert optimised.find(bundle)[0] != optimised.find(bundle.stage_that_locates())[0]
        assert "removed" in run("models", "optimize", tmp_path / "two.safetensors", "--remove")[1]
        assert optimised.find(bundle.stage_that_locates()) == (None, "")

    def test_int8_is_scaled_by_scans(self, run, model, scans):
        pytest.importorskip("nncf")
        code, out, err = run(
            "models", "optimize", model, "--threads", 1, "--precision", "int8", "--calibrate", scans, "--calibrate",
            scans / "1.nii.gz",
        )  # fmt: skip
        assert code == 0, err
        assert "voxels of scans" in out
        form, _ = optimised.find(Bundle.load(model))
        assert form.precision == "int8"
        assert "FakeQuantize" in form.network.read_text()

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["--precision", "int8"], "name some with --calibrate"),
            (["--precision", "float16"], "no precision 'float16'"),
            (["--precision", "int8", "--calibrate", "none.nii.gz"], "none.nii.gz"),
        ],
    )
    def test_what_does_not_fit_is_one_line(self, run, model, words, said, cache):
        code, out, err = run("models", "optimize", model, *words)
        assert code == 2
        assert out == ""
        (line,) = err.splitlines()
        assert said in line
        assert not cache.exists()

    def test_without_the_extra_one_line_says_what_to_install(self, run, model, monkeypatch):
        monkeypatch.setitem(sys.modules, "openvino", None)
        code, _, err = run("models", "optimize", model)
        assert code == 2
        assert err == "error: OpenVINO is not installed; pip install 'medseg[cpu]'\n"

    def test_without_nncf_one_line_says_what_to_install(self, run, model, scans, monkeypatch):
        monkeypatch.setitem(sys.modules, "nncf", None)
        code, _, err = run("models", "optimize", model, "--precision", "int8", "--calibrate", scans)
        assert code == 2
        assert err == "error: int8 needs nncf, which is not installed; pip install 'medseg[int8]'\n"

    def test_a_model_that_was_not_trained_on_mirrored_scans_is_refused(self, run, bundle_file):
        code, _, err = run("models", "optimize", bundle_file(), "--mirror")
        assert code == 2
        assert "not trained on mirrored scans" in err

    def test_removing_what_is_not_there_is_no_error(self, run, model):
        assert run("models", "optimize", model, "--remove") == (0, "tiny: there was nothing to remove\n", "")


@pytest.mark.skipif(find_spec("onnxscript") is None, reason="onnxscript is not installed")
class TestExport:
    def test_another_program_gives_the_answers_of_torch_for_any_number_of_windows(self, run, model, tmp_path):
        runtime = pytest.importorskip("onnxruntime")
        code, out, err = run("models", "export", model, "-o", tmp_path / "net.onnx", "--mirror")
        assert code == 0, err
        assert str(tmp_path / "net.onnx") in out
        bundle = Bundle.load(model)
        session = runtime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
        for count in (1, 3):
            windows = np.random.default_rng(count).standard_normal((count, 1, 16, 16, 16), np.float32)
            (found,) = session.run(["logits"], {"windows": windows})
            with torch.inference_mode():
                expected = Ensemble.of(bundle, mirror=True)(torch.from_numpy(windows)).numpy()
            np.testing.assert_allclose(found, expected, atol=1e-4)
        about = session.get_modelmeta().custom_metadata_map
        assert about["sha256"] == bundle.sha256
        assert json.loads(about["medseg"])["card"]["name"] == "tiny"

    def test_a_file_that_cannot_be_written_is_one_line(self, run, model):
        code, _, err = run("models", "export", model, "-o", model / "net.onnx")
        assert code == 2
        assert "cannot be written" in err
        assert err.count("\n") == 1

    def test_without_the_extra_one_line_says_what_to_install(self, run, model, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "onnxscript", None)
        code, _, err = run("models", "export", model, "-o", tmp_path / "net.onnx")
        assert code == 2
        assert err == "error: onnxscript is not installed; pip install 'medseg[onnx]'\n"
        assert not (tmp_path / "net.onnx").exists()
