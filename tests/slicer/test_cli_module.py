"""The command line module: what Slicer reads of it, and what it does with the real medseg."""

import json
import logging
import os
import signal
import subprocess
import sys
import xml.etree.ElementTree as ET

import ctk_cli
import pytest
from MedSegLib.parameter import BACKENDS, DEVICES, Parameter
from slicer_desk import EXTENSION, gone, program, small_scan, until

import medseg

SCRIPT = EXTENSION / "MedSegCLI" / "MedSegCLI.py"
XML = SCRIPT.with_suffix(".xml")


@pytest.fixture
def module(tmp_path, bundle_file):
    """A function that runs the module on a small scan with a tiny model; returns what `subprocess.run` does."""
    scan = small_scan(tmp_path / "in_vtkMRMLScalarVolumeNodeB.nrrd")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    settings = {
        **os.environ,
        "MEDSEG_EXECUTABLE": str(program(tmp_path)),
        "TMPDIR": str(temporary),
        "PYTHONHOME": "",  # what Slicer sets must not reach medseg
        "LD_LIBRARY_PATH": "/nowhere",
    }

    def call(*words, output="out_vtkMRMLLabelMapVolumeNodeB.nrrd", source=scan):
        command = [sys.executable, str(SCRIPT), "--model", str(bundle_file()), "--device", "cpu", "--threads", "1"]
        command += [*map(str, words), str(source), str(tmp_path / output)]
        done = subprocess.run(command, env=settings, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert list(temporary.iterdir()) == []  # nothing stays
        return done

    return call


def test_it_describes_itself():
    said = subprocess.run([sys.executable, str(SCRIPT), "--xml"], capture_output=True, check=True).stdout
    assert said.startswith(b"<?xml")
    assert said.decode().replace("\r\n", "\n") == XML.read_text(encoding="utf-8")


def test_a_parser_of_such_descriptions_reads_it(caplog):
    with caplog.at_level(logging.WARNING):
        module = ctk_cli.CLIModule(str(XML))
    arguments, options, outputs = module.classifyParameters()
    assert [(each.name, each.typ, each.channel) for each in arguments] == [
        ("inputVolume", "image", "input"),
        ("outputLabelMap", "image", "output"),
    ]
    assert [each.name for each in outputs] == ["verdict", "reasons", "sizes"]
    assert {each.longflag for each in options} == {f"--{each.name}" for each in options}
    flagless = [
        f"Parameter {each.name} cannot be passed (missing one of flag, longflag, or index)!" for each in outputs
    ]
    assert [record.getMessage() for record in caplog.records] == flagless  # as every such output


def test_description_script_and_options_of_medseg_say_the_same():
    root = ET.parse(XML).getroot()
    named = {each.findtext("name"): each for each in root.iter() if each.findtext("name")}
    script = SCRIPT.read_text(encoding="utf-8")
    help_text = subprocess.run(
        [sys.executable, str(SCRIPT), "--help"], capture_output=True, text=True, check=True
    ).stdout
    for name, each in named.items():
        if each.findtext("longflag"):
            assert f"--{name}" in help_text
        assert name in script
    assert tuple(each.text for each in named["device"].iter("element")) == DEVICES
    assert tuple(each.text for each in named["backend"].iter("element")) == BACKENDS
    assert named["model"].findtext("default") == Parameter.model
    assert root.findtext("version") == medseg.__version__


def test_a_label_map_a_segmentation_a_report_and_values_come_out_and_progress_is_told(module, tmp_path):
    done = module(
        "--segmentation", tmp_path / "s.seg.nrrd", "--report", tmp_path / "r.json",
        "--returnparameterfile", tmp_path / "r.params", "--processinformationaddress", "0x1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    labels = medseg.read_labels(tmp_path / "out_vtkMRMLLabelMapVolumeNodeB.nrrd")
    segments = medseg.read_labels(tmp_path / "s.seg.nrrd")
    assert (labels.array == segments.array).all()
    assert labels.geometry.same_as(medseg.read(tmp_path / "in_vtkMRMLScalarVolumeNodeB.nrrd").geometry)
    assert [label.name for label in segments.labels] == ["front", "back"]
    report = json.loads((tmp_path / "r.json").read_text())
    values = dict(line.split(" = ", 1) for line in (tmp_path / "r.params").read_text().splitlines())
    assert values["verdict"] == report["qc"]["verdict"]
    assert "the model does not say what it was trained on" in values["reasons"]
    assert values["sizes"].startswith("front ")
    assert "outputs" not in report  # those files are gone
    assert_tells_progress_as_slicer_reads_it(done.stdout.splitlines())


def assert_tells_progress_as_slicer_reads_it(lines):
    assert lines[0].startswith("<filter-start><filter-name>medseg</filter-name>")
    assert lines[-1].startswith("<filter-end>")
    found = [float(ET.fromstring(line).text) for line in lines if line.startswith("<filter-progress>")]
    assert found == sorted(found)
    assert found[-1] == 1
    assert len(found) > 3
    for line in lines:
        ET.fromstring(line)


@pytest.mark.slow
@pytest.mark.parametrize("output", ["o.nii.gz", "o.nii", "o.mha"])
def test_the_suffix_says_the_format(module, tmp_path, output):
    done = module(output=output)
    assert done.returncode == 0, done.stderr
    assert medseg.read_labels(tmp_path / output).array.any()


@pytest.mark.parametrize(
    ("words", "options", "said"),
    [
        (("--model", "nonsense"), {}, "there is no model"),
        (("--medseg", "/no/such/program"), {}, "there is no such program"),
        ((), {"output": "o.png"}, "a label map is written as"),
        pytest.param((), {"source": "none.nrrd"}, "does not exist", marks=pytest.mark.slow),
        pytest.param(("--overlap", "7"), {}, "overlap", marks=pytest.mark.slow),
        pytest.param((), {"output": "none/o.nrrd"}, "No such file", marks=pytest.mark.slow),
    ],
)
def test_what_goes_wrong_is_one_line_and_exit_code_1(module, words, options, said):
    done = module(*words, **options)
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert any(said in line for line in errors), done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(os.name == "nt", reason="Windows ends a process without asking it")
def test_ended_by_slicer_it_ends_medseg_too_and_leaves_nothing(tmp_path):
    script = tmp_path / "medseg"
    script.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid.part\nmv {tmp_path}/pid.part {tmp_path}/pid\nsleep 600\n")
    script.chmod(0o755)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    settings = {**os.environ, "MEDSEG_EXECUTABLE": str(script), "TMPDIR": str(temporary)}
    scan = small_scan(tmp_path / "a.nrrd")
    running = subprocess.Popen([sys.executable, str(SCRIPT), str(scan), str(tmp_path / "o.nrrd")], env=settings)
    until((tmp_path / "pid").exists)
    running.send_signal(signal.SIGTERM)
    assert running.wait(timeout=120) == 128 + signal.SIGTERM
    until(lambda: gone(int((tmp_path / "pid").read_text())))
    assert list(temporary.iterdir()) == []
    assert not (tmp_path / "o.nrrd").exists()


def test_installed_beside_the_scripted_module_it_finds_what_it_needs(tmp_path):
    for name, source in (("cli-modules", "MedSegCLI"), ("qt-scripted-modules", "MedSeg")):
        (tmp_path / "lib" / name).mkdir(parents=True)
        for path in (EXTENSION / source).rglob("*.*"):
            if path.suffix in (".py", ".xml"):
                target = tmp_path / "lib" / name / path.relative_to(EXTENSION / source)
                target.parent.mkdir(exist_ok=True)
                target.write_bytes(path.read_bytes())
    for folder in ("cli-modules", "cli-modules/Release"):  # the second: a build on Windows
        script = tmp_path / "lib" / folder / "MedSegCLI.py"
        script.parent.mkdir(exist_ok=True)
        script.write_bytes(SCRIPT.read_bytes())
        script.with_suffix(".xml").write_bytes(XML.read_bytes())
        done = subprocess.run([sys.executable, str(script), "--xml"], capture_output=True, check=True, cwd=tmp_path)
        assert done.stdout.startswith(b"<?xml")
