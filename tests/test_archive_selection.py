"""From volumes, series of a PACS and rules to what is done."""

from pathlib import Path

import pytest

from medseg.archive.index import Volume
from medseg.archive.judging import Verdict
from medseg.archive.naming import Names
from medseg.archive.rules import Rules, Series
from medseg.archive.selection import Model, Selection, Shard
from medseg.archive.task import Settings, Task
from medseg.dicom.pacs import Remote

WHOLE = Shard()


def volume(name, study="s", *, slices=10, step=1.0, kind="dicom", modality="CT", code="", patient="p"):
    about = Series(modality, name, "", slices, (1.0, 1.0, step) if step else None)
    return Volume(1, kind, patient, study, name, about, Verdict(1, code=code, fingerprint=name))


@pytest.fixture
def choose():
    """A function that returns a selection by rules."""

    def make(*rules, shard=WHOLE, **settings):
        found = Rules.model_validate({"rule": [{"model": "m", **rule} for rule in rules]})
        models = {"m": Model(Path("m"), "m", "1", "0")}
        return Selection(
            found, models, Names(b"1" * 32, keep=True), settings=Settings(**settings), output=Path("o"), shard=shard
        )

    return make


def names(planned):
    return sorted(one.item.place.split("/")[2] for one in planned)


def test_the_best_series_of_a_study_is_chosen_and_faults_are_told(choose):
    volumes = [volume("thick", step=5), volume("thin"), volume("long", slices=99, step=2), volume("broken", code="X")]
    volumes += [volume("other", "t", step=5)]
    chosen = choose({"per_study": "thinnest"})
    assert names(chosen.of_volumes(volumes)) == ["broken", "other", "thin"]
    assert chosen.passed == {"another series of the study was chosen": 2}
    assert names(choose({"per_study": "most slices"}).of_volumes(volumes)) == ["broken", "long", "other"]


def test_the_best_series_of_a_pacs_is_chosen_too(choose):
    remotes = [Remote("p", "s", f"{n}", "CT", "", "", n) for n in (5, 50)] + [Remote("p", "t", "7", "CT", "", "", 3)]
    chosen = choose({"per_study": "most slices"})
    assert names(chosen.of_remotes(remotes, Task("", "", "", "", "pacs"))) == ["50", "7"]


def test_objects_that_are_no_scans_are_not_fetched(choose):
    remotes = [Remote("p", "s", kind, kind, "", "", 1) for kind in ("CT", "SEG", "SR", "PR", "RTSTRUCT")]
    chosen = choose({})
    assert names(chosen.of_remotes(remotes, Task("", "", "", "", "pacs"))) == ["CT"]
    assert chosen.passed == {f"{kind} objects": 1 for kind in ("SEG", "SR", "PR", "RTSTRUCT")}


def test_identifiers_that_are_no_text_belong_to_one_shard(choose):
    odd = volume(
        "x", b"M\xfcller".decode("utf-8", "surrogateescape"), patient=b"\xff".decode("utf-8", "surrogateescape")
    )
    held = [len([*choose({}, shard=Shard(number, 3)).of_volumes([odd])]) for number in range(3)]
    assert sorted(held) == [0, 0, 1]


def test_what_is_not_known_of_a_scan_does_not_make_it_skipped(choose):
    unknown = volume("x", slices=None, step=None, kind="scan")
    assert names(choose({"slices": [0, 5], "skip": True}, {}).of_volumes([unknown])) == ["x"]
    assert names(choose({"slices": [0, 20], "skip": True}, {}).of_volumes([volume("x")])) == []


def test_another_key_for_all_that_changes_an_answer(choose):
    def key(rule=None, fingerprint="x", **settings):
        (planned,) = choose(rule or {}, **settings).of_volumes([volume(fingerprint)])
        return planned.item.key

    keys = [
        key(),
        key(fingerprint="y"),
        key({"formats": "nrrd"}),
        key(overlap=0.25),
        key(mirror=True),
        key(repair=True),
    ]
    assert len({*keys}) == len(keys)
    assert key(device="cuda", threads=3, memory=10**9, token="secret") == key()


def test_faults_that_can_be_repaired_are_done_on_demand(choose):
    gap = volume("x", code="GEOM_MISSING_SLICE")
    gap = Volume(1, "dicom", "p", "s", "x", gap.about, Verdict(1, code="GEOM_MISSING_SLICE", repairable=True))
    assert [one.fault is None for repair in (False, True) for one in choose({}, repair=repair).of_volumes([gap])] == [
        False,
        True,
    ]


def test_tokens_are_in_no_task_and_in_no_text():
    settings = Settings(token="secret", store_token="secret")
    assert "secret" not in repr(settings)
    assert not [name for name in Task.__dataclass_fields__ if "token" in name]
