"""Plans and bundles: data that is refused as soon as it is not exactly what it should be."""

import json
import pickle
import zipfile

import numpy as np
import pytest
import safetensors.numpy
from conftest import CARD, PLAN, random_bundle
from safetensors import safe_open

from medseg.bundle import Bundle, canonical_json
from medseg.errors import BundleError, PlanError
from medseg.inference import load_network
from medseg.plan import Plan


def changed(path, *, tensors=None, header=None, metadata=None):
    """Write a copy of a bundle with other tensors, another header or other metadata keys."""
    with safe_open(path, "numpy") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dictionary
        content = json.loads(file.metadata()["medseg"])
    content.update(header or {})
    written = {"medseg": json.dumps(content)} if metadata is None else metadata
    copy = path.with_name("copy.safetensors")
    copy.write_bytes(safetensors.numpy.save({**found, **(tensors or {})}, written))
    return copy


def refused(path, *words):
    with pytest.raises(BundleError) as caught:
        Bundle.load(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    for word in words:
        assert word in message, message


def test_a_bundle_returns_as_it_was_saved(bundle_file):
    path = bundle_file(members=2)
    bundle = Bundle.load(path)
    original = random_bundle(members=2)
    assert bundle.header == original.header
    for one, two in zip(bundle.members, original.members, strict=True):
        assert one.keys() == two.keys()
        assert all(np.array_equal(one[name], two[name]) for name in one)
    assert len(bundle.sha256) == 64


def test_the_same_model_is_the_same_bytes(bundle_file):
    one, two = bundle_file("a.safetensors"), bundle_file("b.safetensors")
    assert one.read_bytes() == two.read_bytes()
    assert Bundle.load(one).sha256 == Bundle.load(two).sha256


def test_the_header_has_one_key_with_sorted_json(bundle_file):
    with safe_open(bundle_file(), "numpy") as file:
        metadata = file.metadata()
    assert set(metadata) == {"medseg"}
    content = json.loads(metadata["medseg"])
    assert metadata["medseg"] == json.dumps(content, sort_keys=True, separators=(",", ":"))


def test_half_precision_weights_are_loaded(tmp_path):
    bundle = random_bundle()
    half = tuple({name: array.astype(np.float16) for name, array in member.items()} for member in bundle.members)
    Bundle(bundle.header, half).save(tmp_path / "half.safetensors")
    loaded = Bundle.load(tmp_path / "half.safetensors")
    assert loaded.members[0]["head.weight"].dtype == np.float16
    assert next(load_network(loaded).parameters()).dtype.is_floating_point


@pytest.mark.parametrize("share", [0.0, 0.001, 0.05, 0.5, 0.999])
def test_truncated_bundles_are_refused(bundle_file, share):
    path = bundle_file()
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    refused(path)


def test_random_damage_to_the_header_is_refused_or_harmless(bundle_file):
    path = bundle_file()
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[rng.integers(0, 2500)] = rng.integers(0, 256)
        path.write_bytes(damaged)
        try:
            Bundle.load(path)
        except BundleError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(bundle_file, value):
    refused(changed(bundle_file(), tensors={"0.head.bias": np.full(3, value, np.float32)}), "0.head.bias", "NaN")


def test_a_pickle_is_refused_and_its_code_does_not_run(tmp_path):
    class Canary:
        def __reduce__(self):
            return (open, (str(tmp_path / "canary"), "w"))

    path = tmp_path / "model.safetensors"
    path.write_bytes(pickle.dumps(Canary()))
    refused(path, "pickle")
    assert not (tmp_path / "canary").exists()


def test_a_zip_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.pkl", b"x")
    refused(path, "zip")


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_format_version_is_refused_with_both_versions(bundle_file, version):
    refused(changed(bundle_file(), header={"format": version}), repr(version), "version 1")


@pytest.mark.parametrize(
    "header",
    [
        {"hello": 1},
        {"plan": {**PLAN, "postprocessing": "import os"}},
        {"plan": {**PLAN, "network": {"architecture": "unet", "_target_": "os.system"}}},
        {"card": {**CARD.model_dump(), "pickle": "x"}},
        {"card": {**CARD.model_dump(), "name": "../../etc/passwd"}},
        {"members": 0},
    ],
)
def test_unknown_keys_and_impossible_values_are_refused(bundle_file, header):
    refused(changed(bundle_file(), header=header))


@pytest.mark.parametrize(
    "metadata", [{}, {"medseg": "{}", "more": "x"}, {"medseg": "[" * 100000}, {"medseg": "nonsense"}]
)
def test_metadata_of_any_other_form_is_refused(bundle_file, metadata):
    refused(changed(bundle_file(), metadata=metadata))


@pytest.mark.parametrize("name", ["head.weight", "1.head.weight", "0.", "x.head.weight"])
def test_tensors_of_no_member_are_refused(bundle_file, name):
    refused(changed(bundle_file(), tensors={name: np.zeros(3, np.float32)}), "unknown tensor")


def test_weights_of_another_type_are_refused(bundle_file):
    refused(changed(bundle_file(), tensors={"0.head.bias": np.zeros(3, np.float64)}), "F64")


def test_a_member_without_weights_is_refused(bundle_file):
    refused(changed(bundle_file(), header={"members": 2}), "lacks the weights")


@pytest.mark.parametrize(
    "tensors", [{"0.more.weight": np.zeros(3, np.float32)}, {"0.head.bias": np.zeros(5, np.float32)}]
)
def test_weights_that_do_not_fit_the_network_are_refused_in_one_line(bundle_file, tensors):
    bundle = Bundle.load(changed(bundle_file(), tensors=tensors))
    with pytest.raises(BundleError, match="do not fit") as caught:
        load_network(bundle)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "network", [{"architecture": "nonsense"}, {"architecture": "unet", "options": {"nonsense": 1}}]
)
def test_a_network_that_medseg_does_not_know_is_refused(bundle_file, network):
    bundle = Bundle.load(changed(bundle_file(), header={"plan": {**PLAN, "network": network}}))
    with pytest.raises(BundleError, match="nonsense"):
        load_network(bundle)


def test_a_patch_that_does_not_fit_the_network_is_refused(bundle_file):
    bundle = Bundle.load(changed(bundle_file(), header={"plan": {**PLAN, "patch": [2, 1, 2]}}))
    with pytest.raises(BundleError, match="one voxel at stride"):
        load_network(bundle)


def test_a_missing_file_is_one_line(tmp_path):
    refused(tmp_path / "none.safetensors", "does not exist")
    refused(tmp_path, "cannot be read")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"axes": 4}, "axes"),
        ({"labels": []}, "labels"),
        ({"labels": [{"value": 0, "name": "x"}]}, "value"),
        ({"labels": [{"value": 1, "name": "x"}, {"value": 1, "name": "y"}]}, "share"),
        ({"overlap": 1.0}, "overlap"),
        ({"patch": [0, 8, 8]}, "patch"),
        ({"axes": 2}, "patch"),
        ({"spacing": [0, 1, 1]}, "positive"),
        ({"spacing": [float("nan"), 1, 1]}, "spacing"),
        ({"largest_component": ["liver"]}, "liver"),
        ({"orientation": "RRS"}, "orientation"),
        ({"channels": [{"name": "t1", "intensity": {"kind": "code"}}]}, "kind"),
        (
            {
                "channels": [
                    {"name": "t1", "intensity": {"kind": "window", "low": 1, "high": 0, "mean": 0, "deviation": 0}}
                ]
            },
            "deviation",
        ),
        ({"nonsense": 1}, "nonsense"),
    ],
)
def test_a_plan_that_contradicts_itself_is_refused_with_the_place(change, word):
    with pytest.raises(PlanError, match=word) as caught:
        Plan.parse({**PLAN, **change})
    assert "\n" not in str(caught.value)


def test_a_plan_cannot_be_changed_and_returns_from_json_as_it_was():
    plan = Plan.parse(PLAN)
    with pytest.raises(ValueError, match="frozen"):
        plan.axes = 2
    assert Plan.parse(json.loads(canonical_json(plan))) == plan
