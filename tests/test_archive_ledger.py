"""Ledger, audit log, names and rules: what a run keeps of itself, and by what it chooses."""

import json
import subprocess
import sys
import time

import pytest

from medseg.archive import audit, owner, read_rules
from medseg.archive.ledger import DONE, FAILED, RUNNING, WAITING, Item, Ledger
from medseg.archive.naming import Names, own_names
from medseg.archive.rules import Series
from medseg.errors import OutputError, UsageError

EVENT = {"event": "item"}


@pytest.fixture
def ledger(tmp_path):
    found = Ledger(tmp_path / "ledger.sqlite", owner.own())
    yield found
    found.close()


def done(place="p/s/x/m", key="k"):
    return Item(place, key, "m 1", DONE, seconds={"read": 1.0}, finished=time.time(), result={"verdict": "ok"})


def test_an_item_is_claimed_once(ledger):
    ledger.enter([Item("p/s/x/m", "k", "m 1")], "archive")
    assert ledger.claim("p/s/x/m", "k") == 1
    assert ledger.claim("p/s/x/m", "k") is None
    ledger.finish(done(), EVENT)
    assert ledger.claim("p/s/x/m", "k") is None
    assert ledger.get("p/s/x/m").result == {"verdict": "ok"}


def test_the_same_key_stays_done_and_another_one_is_to_do(ledger):
    ledger.enter([Item("p/s/x/m", "k", "m 1")], "archive")
    ledger.claim("p/s/x/m", "k")
    ledger.finish(done(), EVENT)
    ledger.enter([Item("p/s/x/m", "k", "m 1")], "archive")
    assert ledger.counts() == {DONE: 1}
    ledger.enter([Item("p/s/x/m", "other", "m 2")], "archive")
    assert ledger.counts() == {WAITING: 1}
    assert ledger.claim("p/s/x/m", "k") is None
    assert ledger.claim("p/s/x/m", "other") == 1


def test_an_item_of_a_dead_process_is_to_be_had_at_once(tmp_path):
    child = subprocess.run(
        [sys.executable, "-c", "from medseg.archive.owner import own; print(own())"],
        capture_output=True,
        text=True,
        check=True,
    )
    dead, living = child.stdout.strip(), owner.own()
    assert owner.gone(dead)
    assert not owner.gone(living)
    ledger = Ledger(tmp_path / "ledger.sqlite", dead)
    ledger.enter([Item("p/s/x/m", "k", "m 1")], "archive")
    assert ledger.claim("p/s/x/m", "k") == 1
    other = Ledger(tmp_path / "ledger.sqlite", living)
    assert other.claim("p/s/x/m", "k") == 2
    ledger.finish(done(), EVENT)  # the dead one's word counts no more
    assert other.counts() == {RUNNING: 1}
    assert [*other.audit_lines()] == []
    ledger.close()
    other.close()


def test_an_item_of_another_computer_is_to_be_had_when_its_lease_is_over(tmp_path, monkeypatch):
    far = "far|boot|1|1"
    first, second = (Ledger(tmp_path / "ledger.sqlite", name) for name in (far, owner.own()))
    first.enter([Item("p/s/x/m", "k", "m 1")], "archive")
    first.claim("p/s/x/m", "k")
    assert second.claim("p/s/x/m", "k") is None
    later = time.time() + 2 * owner.LEASE
    monkeypatch.setattr(time, "time", lambda: later)
    assert second.claim("p/s/x/m", "k") == 2
    first.close()
    second.close()


def test_a_number_that_another_process_has_now_is_not_the_same_process():
    name, boot, number, began = owner.own().split("|")
    assert owner.gone("|".join([name, boot, number, str(int(began) + 1)]))
    assert owner.gone(f"{name}|an earlier start|{number}|{began}")
    assert not owner.gone(f"elsewhere|{boot}|{number}|{began}")


def test_what_failed_waits_again_by_reason(ledger):
    for number, code in enumerate(("A", "A", "B")):
        place = f"p/s/{number}/m"
        ledger.enter([Item(place, "k", "m 1")], "archive")
        ledger.claim(place, "k")
        ledger.finish(Item(place, "k", "m 1", FAILED, code=code, problem=f"is {code}"), EVENT)
    assert ledger.reasons() == [("A", 2, "is A"), ("B", 1, "is B")]
    assert ledger.retry(["A", "C"]) == 2
    assert ledger.counts() == {FAILED: 1, WAITING: 2}
    assert ledger.retry(None) == 1


def test_a_file_that_is_no_ledger_is_one_clear_error(tmp_path):
    (tmp_path / "ledger.sqlite").write_bytes(b"rubbish" * 1000)
    with pytest.raises(OutputError, match="ledger cannot be used"):
        Ledger(tmp_path / "ledger.sqlite", owner.own())


def written(ledger, path):
    audit.copy(ledger.audit_lines, path)
    return path.read_text().splitlines()


def test_the_audit_log_grows_and_holds_together(ledger, tmp_path):
    path = tmp_path / "audit.jsonl"
    for number in range(3):
        ledger.note({"event": f"e{number}"})
    assert len(written(ledger, path)) == 3
    ledger.note({"event": "e3"})
    lines = written(ledger, path)
    assert [json.loads(line)["event"] for line in lines] == ["e0", "e1", "e2", "e3"]
    assert audit.check(path) == (4, "")
    assert written(ledger, path) == lines


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda lines: [*lines[:1], lines[1].replace("e1", "e9"), *lines[2:]], (1, "line 2 was changed")),
        (lambda lines: [lines[0], *lines[2:]], (1, "line 2 does not follow the one before it")),
        (lambda lines: [lines[1], lines[0], *lines[2:]], (0, "line 1 does not follow the one before it")),
        (lambda lines: [*lines[:2], "{}", *lines[2:]], (2, "line 3 is no line of the log")),
        (lambda lines: [*lines[:2], "no json", *lines[2:]], (2, "line 3 is no line of the log")),
    ],
)
def test_a_change_of_the_audit_log_shows(ledger, tmp_path, change, where):
    path = tmp_path / "audit.jsonl"
    for number in range(4):
        ledger.note({"event": f"e{number}"})
    path.write_text("\n".join(change(written(ledger, path))) + "\n")
    assert audit.check(path) == where


def test_a_line_that_a_kill_cut_off_is_completed(ledger, tmp_path):
    path = tmp_path / "audit.jsonl"
    for number in range(3):
        ledger.note({"event": f"e{number}"})
    whole = "\n".join(written(ledger, path)) + "\n"
    for length in (0, 1, len(whole) // 2, whole.index("\n"), whole.index("\n") + 1, len(whole) - 1):
        path.write_text(whole[:length])
        written(ledger, path)
        assert path.read_text() == whole


def test_a_log_that_is_another_one_is_left_as_it_is(ledger, tmp_path):
    path = tmp_path / "audit.jsonl"
    ledger.note({"event": "e0"})
    for content in ("rubbish\n", '{"number":1,"event":"mine"}\n', "half a line of another"):
        path.write_text(content)
        with pytest.raises(OutputError, match="is not what medseg wrote"):
            audit.copy(ledger.audit_lines, path)
        assert path.read_text() == content


def test_names_are_the_same_for_one_key_and_tell_nothing_for_another():
    one, other = Names(b"1" * 32), Names(b"2" * 32)
    assert one.of("patient", "Doe") == Names(b"1" * 32).of("patient", "Doe")
    assert (
        len({one.of("patient", "Doe"), one.of("study", "Doe"), one.of("patient", "Do"), other.of("patient", "Doe")})
        == 4
    )
    assert one.mark != other.mark


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "a\\b", "nul\0", "Ärzte", "a b", "x" * 300, "\udcff"])
def test_a_kept_name_is_one_folder_and_no_other_name_is_the_same(name):
    names = Names(b"1" * 32, keep=True)
    found = names.of("patient", name)
    assert found not in {".", "..", ""}
    assert not set(found) & set("/\\\0 ")
    assert len(found) < 120
    assert found != names.of("patient", name + "_")
    assert names.of("patient", "1.2.840") == "1.2.840"


def test_the_key_is_made_once_and_is_its_owners_alone(tmp_path):
    path = tmp_path / "config" / "key"
    first = own_names(path)
    assert own_names(path) == first
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)
    with pytest.raises(UsageError, match="others can read"):
        own_names(path)
    path.write_text("short")
    with pytest.raises(UsageError, match="is no key"):
        own_names(path)
    assert not [found for found in path.parent.iterdir() if found != path]


RULES = """
[[rule]]
modality = "CT"
description = ["*thorax*", "*chest*"]
exclude = "*scout*"
slices = [20, 500]
spacing_mm = [0.5, 3]
per_study = "thinnest"
model = "lung"

[[rule]]
modality = ["MR", "CT"]
formats = ["nifti"]
"""


@pytest.fixture
def rules(tmp_path):
    def write(text):
        path = tmp_path / "rules.toml"
        path.write_text(text)
        return path

    return write


def test_the_first_rule_that_fits_wins(rules):
    found = read_rules(rules(RULES), model="other", formats=("nrrd",))

    def model(*about, **more):
        rule = found.choose(Series(*about, **more))
        return rule and rule.model

    assert model("CT", "Thorax 1.0", slices=100, spacing_mm=(1, 1, 1)) == "lung"
    assert model("CT", "CHEST routine", slices=100, spacing_mm=(1, 1, 1)) == "lung"
    assert model("CT", "Thorax", slices=100, spacing_mm=(1, 1, 5)) == "other"
    assert model("CT", "Thorax", slices=5, spacing_mm=(1, 1, 1)) == "other"
    assert model("CT", "thorax SCOUT", slices=100, spacing_mm=(1, 1, 1)) == "other"
    assert model("CT", "Thorax") == "lung"  # until it is read
    assert model("US", "Thorax") is None
    assert [rule.formats for rule in found.rule] == [("nrrd",), ("nifti",)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[rule]]\nmodalty = 'CT'", "rule.1.modalty: Extra inputs"),
        ("[[rule]]\nslices = [1, 2, 3]", "rule.1.slices"),
        ("[[rule]]\nper_study = 'best'", "rule.1.per_study"),
        ("x = ", "is not TOML"),
        ("", "rule: Field required"),
        ("rule = []", "rule"),
        ("[[rule]]\nmodality = 3", "rule.1.modality"),
    ],
)
def test_a_wrong_rule_is_named(rules, text, said):
    with pytest.raises(UsageError) as caught:
        read_rules(rules(text), model="m")
    assert said in str(caught.value)


def test_every_rule_needs_a_model(rules):
    with pytest.raises(UsageError, match="no model was named"):
        read_rules(rules(RULES))
    assert read_rules(rules("[[rule]]\nskip = true\n[[rule]]\nmodel = 'm'")).rule[1].model == "m"
    with pytest.raises(UsageError, match="no model was named"):
        read_rules(None)
    with pytest.raises(UsageError, match="cannot be read"):
        read_rules(rules(RULES).parent / "none.toml")
