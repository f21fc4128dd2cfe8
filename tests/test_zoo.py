"""The zoo: models by name, the shipped one and one's own."""

import pytest
from conftest import random_bundle

from medseg import zoo
from medseg.bundle import Bundle
from medseg.errors import BundleError


@pytest.fixture
def store(tmp_path, monkeypatch):
    folder = tmp_path / "store"
    monkeypatch.setenv("MEDSEG_ZOO", str(folder))
    return folder


def test_the_shipped_model_is_known_by_name(store):
    assert Bundle.load(zoo.find(zoo.DEFAULT)).card.name == zoo.DEFAULT


def test_an_added_model_is_known_by_its_own_name(store, bundle_file):
    path = bundle_file("some file.safetensors")
    assert zoo.add(path) == "tiny"
    assert zoo.find("tiny") == store / "tiny.safetensors"
    assert zoo.models()["tiny"].read_bytes() == path.read_bytes()


def test_a_damaged_model_is_not_added(store, tmp_path):
    (tmp_path / "bad.safetensors").write_bytes(b"nonsense")
    with pytest.raises(BundleError):
        zoo.add(tmp_path / "bad.safetensors")
    assert not store.exists()


def test_a_file_is_found_by_its_path(store, bundle_file):
    path = bundle_file()
    assert zoo.find(path) == path
    assert zoo.find(str(path)) == path


def test_an_unknown_name_is_answered_with_the_known_ones(store):
    with pytest.raises(BundleError, match=zoo.DEFAULT):
        zoo.find("liver")


def test_without_a_variable_the_store_is_the_users_own(monkeypatch):
    monkeypatch.delenv("MEDSEG_ZOO", raising=False)
    assert "medseg" in zoo.store().parts


def test_a_model_of_the_store_hides_a_shipped_one_of_its_name(store, tmp_path):
    bundle = random_bundle()
    card = bundle.card.model_copy(update={"name": zoo.DEFAULT})
    Bundle(bundle.header.model_copy(update={"card": card}), bundle.members).save(tmp_path / "a.safetensors")
    zoo.add(tmp_path / "a.safetensors")
    assert zoo.find(zoo.DEFAULT).parent == store
