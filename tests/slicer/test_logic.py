"""The logic of the Slicer module: what it runs, what it makes of the output, and that nothing stays behind."""

import json
import os
import stat
import sys
from pathlib import Path

import pytest
from MedSegLib import environment, install, logic, progress, workspace
from MedSegLib.chain import Chain, Command, TroubleError
from MedSegLib.install import Found
from MedSegLib.logic import Run
from MedSegLib.parameter import Parameter
from MedSegLib.process import Process
from slicer_desk import Starter, Told, gone, program, sample_as_nrrd, small_scan, until

MEDSEG = Found(("medseg",), "medseg")


def step(number, of, stage, fraction):
    said = {"event": "progress", "scan": "x", "number": number, "of": of, "stage": stage, "fraction": fraction}
    return (json.dumps(said) + "\n").encode()


def report(run, number=1, verdict="ok", **changes):
    """Return the line of a scan that went well, and write its segmentation."""
    case = run.folder / f"case_{number:03d}.nrrd"
    out = run.folder / "results" / f"case_{number:03d}_seg.seg.nrrd"
    out.parent.mkdir(exist_ok=True)
    out.write_bytes(b"segments")
    said = {
        "medseg": "0.1.0",
        "scan": {"path": str(case), "warnings": ["odd"]},
        "labels": [{"value": 1, "name": "front", "volume_ml": 1.25}, {"value": 2, "name": "flat", "volume_ml": None}],
        "qc": {"verdict": verdict, "reasons": [{"code": "EMPTY", "detail": "back was not found"}]},
        "outputs": {"seg.nrrd": str(out)},
        **changes,
    }
    return (json.dumps(said) + "\n").encode()


def begun(tmp_path, *cases, code=0, clock=None, parameter=None):
    """Return a run with its process and its starter; the process has still to be told what to say."""
    process = Told(code)
    starter = Starter(process)
    run = Run(starter, parent=tmp_path, **({"clock": clock} if clock else {}))
    for case in cases or ("a",):
        run.add(case)
    run.begin(MEDSEG, {"PATH": "x"}, parameter or Parameter())
    return run, process, starter


def ended(run, limit=100):
    results = []
    for _ in range(limit):
        results += run.tick()
        if run.finished:
            return results
    raise AssertionError("it does not end")


def test_the_command_names_files_without_names_of_patients(tmp_path):
    starter = Starter(Told())
    run = Run(starter, parent=tmp_path)
    files = [path for key in ("Doe^Jane", "Roe^Richard") for path in run.add(key)]
    run.begin(MEDSEG, {}, Parameter(model="m", threads=2, overlap=" 0.25 ", mirror=True))
    (command,) = starter.commands
    assert command[:4] == ["medseg", "predict", *map(str, files)][:4]
    assert not [word for word in command if "Doe" in word or "Roe" in word]
    text = " ".join(command)
    for words in ("--format seg.nrrd", "--json -", "--progress json", "--model m", "--threads 2", "--overlap 0.25"):
        assert words in text
    assert "--mirror" in command
    assert "--precision" not in command
    assert stat.S_IMODE(run.folder.stat().st_mode) == 0o700
    assert all(path.parent == run.folder for path in files)
    run.close()
    assert not run.folder.exists()


def test_channels_of_one_case_are_named_and_two_such_cases_are_refused(tmp_path):
    starter = Starter(Told())
    run = Run(starter, parent=tmp_path)
    t1, t2 = run.add("a", ("t1", "t2"))
    run.begin(MEDSEG, {}, Parameter())
    assert starter.commands[0][2:6] == ["--channel", f"t1={t1}", "--channel", f"t2={t2}"]
    two = Run(starter, parent=tmp_path)
    for key in "ab":
        two.add(key, ("t1", "t2"))
    with pytest.raises(TroubleError, match="choose one case"):
        two.begin(MEDSEG, {}, Parameter())
    with pytest.raises(TroubleError, match="at least one"):
        Run(starter, parent=tmp_path).begin(MEDSEG, {}, Parameter())


def test_progress_and_the_time_that_is_left_are_computed_over_all_scans(tmp_path):
    now = [100.0]
    run, process, _ = begun(tmp_path, "a", "b", clock=lambda: now[0])
    pieces = [step(1, 2, "network", fraction) for fraction in (0.0, 0.2, 0.4, 0.6)]
    process.pieces = [*pieces, b""]
    seen = []
    for _ in pieces:
        assert run.tick() == []
        seen.append((run.fraction, run.seconds_left))
        now[0] += 10.0
    assert [fraction for fraction, _ in seen] == [0.0, 0.1, 0.2, 0.3]
    assert seen[0][1] is None  # nothing is known yet
    assert seen[1][1] == pytest.approx(90)  # a tenth took 10 s
    assert seen[3][1] == pytest.approx(70)
    assert run.stage == "scan 1 of 2: network"
    assert progress.in_words(70) == "about 70 s left"
    assert progress.in_words(None) == ""


def test_the_time_left_follows_the_speed_of_late_and_grows_while_nothing_happens():
    now = [0.0]
    left = progress.Remaining(lambda: now[0])
    left.update(0.0)
    for second in range(1, 101):  # a slow start, then ten times as fast
        now[0] = float(second)
        left.update(0.001 * second if second <= 50 else 0.05 + 0.01 * (second - 50))
    assert left.seconds() == pytest.approx((1 - 0.55) / 0.01, rel=0.05)
    now[0] = 150.0
    assert left.seconds() > 60


def test_results_come_one_by_one_and_a_scan_that_fails_does_not_stop_the_next(tmp_path):
    run, process, _ = begun(tmp_path, "a", "b", code=1)
    error = {"scan": {"path": str(run.folder / "case_001.nrrd")}}
    error["error"] = {"code": "SPACING", "problem": "has no spacing", "hint": "export it again"}
    line = f"error: {run.folder}/case_001.nrrd: has no spacing; export it again\n".encode()
    process.pieces = [(json.dumps(error).encode() + b"\n", line), (report(run, 2, "check"), b"")]
    (first,) = run.tick()
    assert (first.key, first.segmentation) == ("a", None)
    assert first.problem == "has no spacing; export it again"
    (second,) = run.tick()
    assert second.segmentation.read_bytes() == b"segments"
    assert (second.verdict, second.reasons) == ("check", ["back was not found", "odd"])
    assert second.sizes == ["front 1.25 mL"]
    assert run.tick() == []
    assert run.finished
    run.close()


def test_lines_that_come_in_pieces_and_in_other_encodings_are_put_together(tmp_path):
    run, process, _ = begun(tmp_path)
    text = report(run, model={"name": "größe"}).replace(b"\\u00f6", "ö".encode())
    noise = "warnung: Größe\n".encode("latin-1") + step(1, 1, "network", 0.5).replace(b"\n", b"\r\n")
    cuts = [(text[i : i + 7], noise[i : i + 7]) for i in range(0, max(len(text), len(noise)), 7)]
    process.pieces = [*cuts[:-1], (cuts[-1][0].rstrip(b"\n"), b"no end of line")]
    (result,) = ended(run)
    assert result.verdict == "ok"
    assert run.log[0] == "warnung: Gr\ufffd\ufffde"
    assert run.log[-1] == "no end of line"


GARBAGE = [
    b"\x00\xff\xfe\n",
    b"{\n",
    b"[1, 2]\n",
    b"null\n",
    b"{}\n",
    b'{"scan": null}\n',
    b'{"scan": {"path": 3}}\n',
    b'{"scan": {"path": "/etc/passwd"}, "outputs": {"seg.nrrd": "/etc/passwd"}}\n',
    b'{"a":' * 100_000 + b"\n",
    b'{"event": "progress"}\n',
    b'{"event": "progress", "number": true, "of": 1, "stage": "x", "fraction": 1}\n',
    b'{"event": "progress", "number": 2, "of": 1, "stage": "x", "fraction": 1}\n',
    b'{"event": "progress", "number": 1, "of": 0, "stage": "x", "fraction": 1}\n',
    b'{"event": "progress", "number": 1, "of": 1, "stage": [], "fraction": 1}\n',
    b'{"event": "progress", "number": 1, "of": 1, "stage": "x", "fraction": NaN}\n',
    b'{"event": "progress", "number": 1, "of": 1, "stage": "x", "fraction": "1"}\n',
    b'{"event": "progress", "number": 1, "of": 1, "stage": "x", "fraction": ' + b"9" * 5000 + b"}\n",
    b'{"event": "note", "text": {}}\n',
    b"x" * (3 << 20),
]


@pytest.mark.parametrize("number", range(len(GARBAGE)))
def test_garbage_on_either_stream_is_kept_as_text_and_changes_nothing(tmp_path, number):
    run, process, _ = begun(tmp_path)
    process.pieces = [(GARBAGE[number], GARBAGE[number]), (b"\n" + report(run), b"")]
    assert run.tick() == []
    assert (run.fraction, run.stage, run.finished) == (0.0, "starting", False)
    (result,) = ended(run)
    assert (result.key, result.verdict, result.problem) == ("a", "ok", "")


def test_progress_never_goes_back_and_fractions_beyond_the_ends_are_clipped(tmp_path):
    run, process, _ = begun(tmp_path)
    process.pieces = [step(1, 1, "a", 0.5), step(1, 1, "b", 0.2), step(1, 1, "c", 7), step(1, 1, "d", -7)]
    seen = []
    for _ in range(4):
        run.tick()
        seen.append(run.fraction)
    assert seen == [0.5, 0.5, 1.0, 1.0]


def test_a_segmentation_outside_the_folder_of_the_run_or_missing_is_not_taken(tmp_path):
    outside = tmp_path / "outside.seg.nrrd"
    outside.write_bytes(b"x")
    for named in (str(outside), None, 3, "results/none.seg.nrrd", str(tmp_path)):
        run, process, _ = begun(tmp_path)
        process.pieces = [(report(run, outputs={"seg.nrrd": named}), b"")]
        (result,) = ended(run)
        assert result.segmentation is None
        assert "no seg.nrrd" in result.problem


@pytest.mark.parametrize(
    ("code", "said", "words"),
    [
        (2, b"error: there is no model 'x'; give a file\n", "there is no model 'x'; give a file"),
        (2, b"Usage: medseg\nError: No such option: --json\n", "No such option: --json"),
        (1, b"Traceback\n  File\nValueError: oh\n\n", "exit code 1 and without a result for this volume; the last it"),
        (0, b"", "exit code 0 and without a result"),
        (-9, b"", "ended by signal 9 (out of memory?)"),
        (-11, b"", "ended by signal 11"),
        (3221225477, b"", "exit code 3221225477"),
    ],
)
def test_a_medseg_that_ends_without_a_result_is_told_to_the_user(tmp_path, code, said, words):
    run, process, _ = begun(tmp_path, "a", "b", code=code)
    process.pieces = [said]
    results = ended(run)
    assert [result.key for result in results] == ["a", "b"]
    assert all(words in result.problem for result in results)


def test_an_error_of_one_scan_is_not_told_as_that_of_another(tmp_path):
    run, process, _ = begun(tmp_path, "a", "b", code=-9)
    error = {"scan": {"path": str(run.folder / "case_001.nrrd")}, "error": {"problem": "is empty", "hint": "h"}}
    line = f"error: {run.folder / 'case_001.nrrd'}: is empty; h\n".encode()
    process.pieces = [(json.dumps(error).encode() + b"\n", line)]
    first, second = ended(run)
    assert first.problem == "is empty; h"
    assert "signal 9" in second.problem


def test_a_program_that_cannot_be_started_is_told(tmp_path):
    run = Run(Starter(OSError("no such file")), parent=tmp_path)
    run.add("a")
    with pytest.raises(TroubleError, match="cannot be started: no such file"):
        run.begin(MEDSEG, {}, Parameter())
    run = Run(Process, parent=tmp_path)
    run.add("a")
    with pytest.raises(TroubleError, match="cannot be started"):
        run.begin(Found((str(tmp_path / "nothing"),), "x"), dict(os.environ), Parameter())


def test_cancel_in_the_middle_ends_the_program_and_all_that_it_has_started(tmp_path):
    script = tmp_path / "family.py"
    script.write_text(
        "import os, subprocess, sys, time, signal\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "if len(sys.argv) > 1 and sys.argv[1] == 'child':\n"
        "    subprocess.Popen([sys.executable, __file__, 'grandchild'])\n"
        "print('pid', os.getpid(), file=sys.stderr, flush=True)\n"
        "if sys.argv[1] == 'predict':\n"
        "    subprocess.Popen([sys.executable, __file__, 'child'])\n"
        "time.sleep(600)\n"
    )
    run = Run(Process, parent=tmp_path)
    run.add("a")
    run.begin(Found((sys.executable, str(script)), "x"), dict(os.environ), Parameter())

    def pids():
        assert run.tick() == []
        return [int(line.split()[1]) for line in run.log if line.startswith("pid")]

    until(lambda: len(pids()) == 3)
    run.cancel()
    assert run.cancelled
    for pid in pids():
        until(lambda pid=pid: gone(pid))
    run.close()
    assert not run.folder.exists()


def test_what_a_program_that_crashed_has_left_running_is_ended_too(tmp_path):
    script = "import subprocess, sys, os; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']);"
    script += "print(p.pid, flush=True); os._exit(3)"
    process = Process([sys.executable, "-c", script], os.environ, tmp_path / "out")
    until(lambda: process.poll() is not None)
    out, err = process.read()
    assert (process.poll(), err) == (3, b"")
    until(lambda: gone(int(out)))
    process.kill()  # of one that has ended: nothing
    assert process.read() == (b"", b"")


def test_a_program_sees_only_the_environment_it_is_given_and_no_keyboard(tmp_path):
    code = "import os, sys; print(sorted(os.environ)); print(repr(sys.stdin.read()))"
    process = Process([sys.executable, "-c", code], {"ONLY": "this"}, tmp_path)
    until(lambda: process.poll() is not None)
    said = process.read()[0].decode()
    assert "ONLY" in said
    assert "HOME" not in said
    assert "''" in said


def test_the_environment_is_without_what_slicer_has_set_for_itself():
    slicer = {
        "SLICER_HOME": "/opt/slicer",
        "PYTHONHOME": "/opt/slicer/lib/Python",
        "PYTHONPATH": "/opt/slicer/bin/Python",
        "LD_LIBRARY_PATH": "/opt/slicer/lib",
        "DYLD_LIBRARY_PATH": "/opt/slicer/lib",
        "QT_PLUGIN_PATH": "/opt/slicer/plugins",
        "ITK_AUTOLOAD_PATH": "/opt/slicer/lib/ITKFactories",
        "SSL_CERT_FILE": "/opt/slicer/share/Slicer-5.8/Slicer.crt",
        "Path": os.pathsep.join(["/opt/slicer/bin", "/usr/bin", "/opt/slicer-own/bin"]),
        "HTTPS_PROXY": "http://proxy:3128",
        "CUDA_VISIBLE_DEVICES": "1",
    }
    kept = environment.cleaned(slicer)
    assert kept["Path"] == os.pathsep.join(["/usr/bin", "/opt/slicer-own/bin"])
    assert (kept["HTTPS_PROXY"], kept["CUDA_VISIBLE_DEVICES"]) == ("http://proxy:3128", "1")
    assert not set(kept) & {"PYTHONHOME", "PYTHONPATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "QT_PLUGIN_PATH"}
    assert not set(kept) & {"ITK_AUTOLOAD_PATH", "SSL_CERT_FILE"}
    assert kept["PYTHONUTF8"] == "1"
    own = environment.cleaned({"SSL_CERT_FILE": "/etc/hospital.pem", "SLICER_HOME": "/opt/slicer"})
    assert own["SSL_CERT_FILE"] == "/etc/hospital.pem"


def test_folders_of_processes_that_are_no_more_are_swept_and_those_that_live_stay(tmp_path):
    done = Process([sys.executable, "-c", "import os; print(os.getpid())"], os.environ, tmp_path / "out")
    until(lambda: done.poll() is not None)
    pid = int(done.read()[0])
    for name in (f"medseg-slicer-{pid}-abc", f"medseg-slicer-{os.getpid()}-abc", "medseg-slicer-x", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "scan.nrrd").write_bytes(b"x")
    folder = workspace.new_workspace(tmp_path)
    names = {path.name for path in tmp_path.iterdir()} - {"out", folder.name}
    assert names == {f"medseg-slicer-{os.getpid()}-abc", "medseg-slicer-x", "other"}


def test_options_survive_being_kept_and_nonsense_becomes_the_default():
    chosen = Parameter(model="m", device="cpu", threads=3, mirror=True, memory="4GB")
    assert Parameter.from_settings(chosen.as_settings()) == chosen
    assert (
        Parameter.from_settings({"threads": "many", "mirror": "perhaps", "device": None, "other": "x"}) == Parameter()
    )


def test_a_chain_goes_on_with_what_was_answered_and_cleans_up_when_cancelled(tmp_path):
    cleaned = []

    def work():
        try:
            first = yield Command("one", ("a",), {"EXTRA": "1"})
            second = yield Command("two", (first.out,))
            return (second.code, second.err)
        finally:
            cleaned.append(True)

    starter = Starter(Told(0, [(b"b\nc", b"")]), Told(3, [(b"", b"bad")]))
    chain = Chain(work(), starter, {"PATH": "p"}, tmp_path)
    assert chain.title == "one"
    lines = []
    while not chain.finished:
        lines += chain.tick()
    assert (starter.commands, chain.result, lines) == ([["a"], ["b\nc"]], (3, "bad"), ["b", "c", "bad"])
    assert starter.environments == [{"PATH": "p", "EXTRA": "1"}, {"PATH": "p"}]
    endless = Told(0, [b""] * 99)
    chain = Chain(work(), Starter(endless), {}, tmp_path)
    chain.tick()
    cleaned.clear()
    chain.cancel()
    assert (endless.killed, cleaned, chain.cancelled, chain.finished) == (True, [True], True, True)
    assert chain.tick() == []


def test_medseg_is_asked_for_version_and_models(tmp_path):
    chain = Chain(logic.ask(Found((sys.executable, "-m", "medseg"), "x")), Process, dict(os.environ), tmp_path)
    until(lambda: chain.tick() is not None and chain.finished)
    assert chain.problem == ""
    (model,) = [model for model in chain.result.models if model.name == "hippocampus-t1"]
    assert model.default
    assert (model.channels, model.labels) == (("t1",), ("anterior", "posterior"))


@pytest.mark.parametrize(
    ("said", "words"), [(b"Python 3.9", "this is not medseg"), (b"medseg 0.0.9", "too old"), (b"", "not medseg")]
)
def test_something_else_than_medseg_is_told_from_it(tmp_path, said, words):
    chain = Chain(logic.ask(MEDSEG), Starter(Told(0, [(said, b"")])), {}, tmp_path)
    while not chain.finished:
        chain.tick()
    assert words in chain.problem


def test_models_that_cannot_be_used_are_not_offered(tmp_path):
    lines = b'{"name": "bad", "error": "damaged"}\nnonsense\n{"name": "good", "channels": ["t1", "t2"]}\n'
    starter = Starter(Told(0, [(b"medseg 1.2.3", b"")]), Told(0, [(lines, b"")]))
    chain = Chain(logic.ask(MEDSEG), starter, {}, tmp_path)
    while not chain.finished:
        chain.tick()
    assert chain.result.version == "1.2.3"
    assert [(model.name, model.channels) for model in chain.result.models] == [("good", ("t1", "t2"))]


def test_real_scans_are_segmented_and_a_bad_one_among_them_is_told(tmp_path, bundle_file):
    run = Run(Process, parent=tmp_path)
    for number, key in enumerate(("a", "bad", "c")):
        (path,) = run.add(key)
        small_scan(path, seed=number)
        if key == "bad":
            path.write_bytes(b"nonsense")
    medseg = install.find({"PATH": os.environ["PATH"], "MEDSEG_EXECUTABLE": str(program(tmp_path))})
    run.begin(medseg, environment.cleaned(os.environ), Parameter(model=str(bundle_file()), device="cpu", threads=1))
    results = {}
    until(lambda: results.update({result.key: result for result in run.tick()}) or run.finished)
    assert list(results) == ["a", "bad", "c"]
    assert [results[key].segmentation is not None for key in results] == [True, False, True]
    assert "case_002" not in results["bad"].problem
    assert results["bad"].problem
    assert results["a"].verdict in ("ok", "check", "refuse")
    assert len(results["a"].sizes) == 2
    run.close()
    assert not Path(run.folder).exists()


def test_the_sample_becomes_segments_with_names_and_codes(tmp_path):
    run = Run(Process, parent=tmp_path)
    (path,) = run.add("head")
    sample_as_nrrd(path)
    run.begin(Found((sys.executable, "-m", "medseg"), "x"), environment.cleaned(os.environ), Parameter(device="cpu"))
    results = []
    until(lambda: results.extend(run.tick()) or run.finished)
    (result,) = results
    assert (result.problem, result.verdict) == ("", "ok")
    head = result.segmentation.read_bytes()[:4000]
    assert b"Segment0_Name:=anterior" in head
    assert b"SCT^5366008^Hippocampus" in head
    run.close()
