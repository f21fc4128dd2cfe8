"""The log of a training run: what a killed run leaves behind, and how it goes on."""

import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medseg.errors import OutputError, UsageError
from medseg.training import log as log_module
from medseg.training.log import Log, Row, read_log

LABELS = ("front", "back, left")
HEADER = 'step,epoch,rate,loss,dice,dice front,"dice back, left",seconds,idle\n'


def row(step, *, seconds=None):
    """Return a row that depends on the step alone, with validation at every fifth."""
    loss = float(np.float32(1 / (step + 1)))
    plain = Row(step, step / 4, 2e-3 * 0.9**step, loss, seconds=seconds or step * 0.1, idle=0.25)
    if step % 5:
        return plain
    return replace(plain, dice=0.7, labels={"front": 0.8, "back, left": 0.6})


def written(path, steps, **how):
    with Log(path, LABELS) as log:
        for step in steps:
            log.append(row(step, **how))
    return path


def test_the_file_is_what_a_person_would_write(tmp_path):
    path = written(tmp_path / "log.csv", [4, 5])
    assert path.read_text() == (
        HEADER + "4,1,0.0013122,0.200000003,,,,0.4,0.25\n5,1.25,0.00118098,0.166666672,0.7,0.8,0.6,0.5,0.25\n"
    )


def test_what_was_appended_can_be_read_before_the_log_is_closed(tmp_path):
    with Log(tmp_path / "log.csv", LABELS) as log:
        for count in range(1, 4):
            log.append(row(count))
            assert [found.step for found in read_log(log.path)] == list(range(1, count + 1))


def test_what_is_read_back_is_what_was_measured(tmp_path):
    first, second = read_log(written(tmp_path / "log.csv", [4, 5]))
    assert replace(second, loss=0) == replace(row(5), loss=0, rate=0.00118098)
    assert np.float32(second.loss) == np.float32(1 / 6)
    assert (first.step, first.epoch, first.seconds, first.idle) == (4, 1, 0.4, 0.25)
    assert math.isnan(first.dice)
    assert math.isnan(first.labels["front"])


def test_every_float_of_32_bits_survives(tmp_path):
    rng = np.random.default_rng(0)
    losses = rng.integers(0, 2**32, 3000, np.uint32).view(np.float32)
    with Log(tmp_path / "log.csv", ()) as log:
        for step, loss in enumerate(losses, start=1):
            log.append(Row(step, 0, 0, float(loss)))
    found = np.array([found.loss for found in read_log(log.path)], np.float32)
    np.testing.assert_array_equal(found, losses)
    with Log(tmp_path / "log.csv", ()) as log:
        log.append(Row(1, 0, 0, math.inf))
    assert read_log(log.path)[0].loss == math.inf


def test_the_labels_of_a_row_may_be_in_any_order_and_some_may_be_missing(tmp_path):
    with Log(tmp_path / "log.csv", ("a", "b", "c")) as log:
        log.append(Row(1, 1, 1, 1, 0.5, {"c": 0.25, "a": 0.75}))
    labels = read_log(log.path)[0].labels
    assert (labels["a"], labels["c"]) == (0.75, 0.25)
    assert math.isnan(labels["b"])


@pytest.mark.parametrize("name", ['a "b"', "a\nb", "a\r\nb", "Milz ö", "dice dice", " "])
def test_a_label_may_have_any_name(tmp_path, name):
    path = tmp_path / "log.csv"
    with Log(path, (name,)) as log:
        log.append(Row(1, 1, 1, 1, labels={name: 0.5}))
    with Log.resume(path, 1) as log:
        assert log.labels == (name,)
        log.append(Row(2, 1, 1, 1, labels={name: 0.25}))
    assert [found.labels[name] for found in read_log(path)] == [0.5, 0.25]


def test_a_resumed_log_is_that_of_an_unbroken_run_byte_for_byte(tmp_path):
    whole = written(tmp_path / "whole.csv", range(1, 21)).read_bytes()
    path = written(tmp_path / "log.csv", range(1, 15))
    with open(path, "ab") as file:
        file.write(b"15,3.7")  # killed within a line, long after the checkpoint of step 10
    with Log.resume(path, 10) as log:
        for step in range(11, 21):
            log.append(row(step))
    assert path.read_bytes() == whole


def test_the_columns_of_the_clock_stand_last(tmp_path):
    slow, fast = (
        written(tmp_path / name, range(1, 8), seconds=seconds).read_text().splitlines()
        for name, seconds in (("slow.csv", 9.0), ("fast.csv", 1.0))
    )
    assert slow != fast
    assert [line.rsplit(",", 2)[0] for line in slow] == [line.rsplit(",", 2)[0] for line in fast]


def test_a_cut_at_any_byte_costs_the_torn_line_alone(tmp_path):
    path = written(tmp_path / "log.csv", range(1, 7))
    content = path.read_bytes()
    for length in range(len(HEADER), len(content) + 1):
        path.write_bytes(content[:length])
        whole = content[:length].count(b"\n") - 1
        assert [found.step for found in read_log(path)] == list(range(1, whole + 1))
        if length % 7 and length < len(content):  # resuming waits for the disk
            continue
        with Log.resume(path, 100) as log:
            log.append(row(50))
        assert [found.step for found in read_log(path)] == [*range(1, whole + 1), 50]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_run_that_is_killed_loses_no_row_that_it_has_told(tmp_path):
    path = tmp_path / "log.csv"
    code = f"""
import itertools, pathlib, runpy
module = runpy.run_path({log_module.__file__!r})  # alone: the package would load torch
log = module["Log"](pathlib.Path({str(path)!r}), ["front"])
for step in itertools.count(1):
    log.append(module["Row"](step, 0, 0, 1 / step))
    print(step, flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        for _ in range(200):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        told = 200 + len(process.stdout.read().splitlines())
    steps = [found.step for found in read_log(path)]
    assert steps == list(range(1, len(steps) + 1))
    assert told <= len(steps) <= told + 1
    with Log.resume(path, 150) as log:
        log.append(row(151))
    assert [found.step for found in read_log(path)] == list(range(1, 152))


def test_resuming_leaves_no_other_file_behind(tmp_path):
    Log.resume(written(tmp_path / "log.csv", range(5)), 3).close()
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]


def test_a_new_log_replaces_an_old_one(tmp_path):
    path = written(tmp_path / "log.csv", range(1, 9))
    written(path, [1])
    assert [found.step for found in read_log(path)] == [1]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "line 0 .* the columns are none"),
        (b"torn", "line 0 "),
        (b"case,label,name\na,1,front\n", "line 1 .* the columns are case, label, name"),
        (HEADER.replace("idle", "id").encode(), "line 1 .* the columns are step, epoch"),
        (HEADER.encode() + b"1,1,1,1,,,,1,\n2,1,1\n3,1,1,1,,,,1,\n", "line 3 .* 3 cells for 9 columns"),
        (HEADER.encode() + b"1,1,1,x,,,,1,\n", "line 2 .* could not convert"),
        (HEADER.encode() + b"1.5,1,1,1,,,,1,\n", "line 2 .* invalid literal"),
        (HEADER.encode() + b"2,1,1,1,,,,1,\n1,1,1,1,,,,1,\n", "line 3 .* step 1 comes after step 2"),
        (HEADER.encode() + b"\n\n", "line 2 .* 0 cells"),
        (HEADER.encode() + b'1,"1,1,1,,,,1,\n', "line 2 .* unexpected end"),
        (b"\x89PNG\r\n\x1a\n\x00\xff", "no log of a training"),
        (b"\x00" * 64 + b"\n", "line 1 "),
    ],
)
def test_what_is_no_log_is_refused_with_the_line_and_left_as_it_is(tmp_path, content, problem):
    path = tmp_path / "log.csv"
    path.write_bytes(content)
    for attempt in (read_log, lambda path: Log.resume(path, 1)):
        with pytest.raises(UsageError, match=problem):
            attempt(path)
    assert path.read_bytes() == content


def test_a_missing_log_and_a_folder_are_refused(tmp_path):
    for path, reason in ((tmp_path / "none.csv", "No such file"), (tmp_path, "directory")):
        with pytest.raises(UsageError, match=f"cannot be read: .*{reason}"):
            read_log(path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no disk that is always full")
def test_a_full_disk_is_said(tmp_path, monkeypatch):
    with Log(tmp_path / "log.csv", ()) as log:
        log.append(row(1))
        full = os.open("/dev/full", os.O_WRONLY)
        try:
            monkeypatch.setattr(log, "_handle", full)
            with pytest.raises(OutputError, match=r"log\.csv: cannot be written: No space left"):
                log.append(row(2))
        finally:
            monkeypatch.undo()
            os.close(full)


def test_half_a_line_on_a_disk_that_fills_up_is_an_error(tmp_path, monkeypatch):
    with Log(tmp_path / "log.csv", ()) as log:
        monkeypatch.setattr(os, "write", lambda handle, line: len(line) - 3)
        with pytest.raises(OutputError, match="No space left"):
            log.append(row(1))


def test_a_folder_that_is_not_there_is_said(tmp_path):
    with pytest.raises(OutputError, match="No such file"):
        Log(tmp_path / "none" / "log.csv", ())
