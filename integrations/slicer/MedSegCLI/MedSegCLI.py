#!/usr/bin/env python-real
"""The command line module of medseg for 3D Slicer: it only starts the program medseg, and hands on what it says."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

HERE = Path(__file__).resolve()
for _folder in (HERE.parents[1] / "MedSeg", *(up / "qt-scripted-modules" for up in HERE.parents[1:3])):
    if (_folder / "MedSegLib").is_dir():  # in the sources; beside cli-modules, where Slicer installs it
        sys.path.insert(0, str(_folder))
        break

from MedSegLib import install  # noqa: E402 - found by the lines above
from MedSegLib.chain import TroubleError  # noqa: E402
from MedSegLib.environment import cleaned  # noqa: E402
from MedSegLib.logic import Result, Run  # noqa: E402
from MedSegLib.parameter import BACKENDS, DEVICES, Parameter  # noqa: E402
from MedSegLib.process import Process  # noqa: E402

FORMATS = {".nrrd": "nrrd", ".nii": "nifti", ".nii.gz": "nifti", ".mha": "mha"}


def main() -> int:
    """Run the module; 0 if there is a result."""
    words = sys.argv[1:]
    if "--xml" in words:
        sys.stdout.write(HERE.with_suffix(".xml").read_text(encoding="utf-8"))
        return 0
    asked = _parser().parse_args(words)
    for name in ("SIGTERM", "SIGINT", "SIGBREAK"):  # Slicer's Cancel: end medseg too
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _stop)
    run = Run(Process)
    try:
        _hand_over(_segment(run, asked), asked)
    except (OSError, TroubleError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        for line in run.log:
            print(line, file=sys.stderr)
        run.close()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="MedSegCLI", description="Segment a volume with medseg.", allow_abbrev=False)
    parser.add_argument("inputVolume", type=Path)
    parser.add_argument("outputLabelMap", type=Path)
    parser.add_argument("--segmentation", type=Path)
    parser.add_argument("--report", type=Path)
    parser.add_argument("--model", default=Parameter.model)
    parser.add_argument("--device", choices=DEVICES, default="auto")
    parser.add_argument("--backend", choices=BACKENDS, default="auto")
    parser.add_argument("--threads", type=int, default=0)
    for name in ("precision", "overlap", "memory", "medseg"):
        parser.add_argument(f"--{name}", default="")
    for name in ("mirror", "strict"):
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--returnparameterfile", type=Path)
    parser.add_argument("--processinformationaddress", help="taken, and of no use to a program of its own")
    return parser


def _stop(number: int, _frame: Any) -> None:
    raise SystemExit(128 + number)


def _segment(run: Run, asked: argparse.Namespace) -> Result:
    environment = cleaned(os.environ)
    medseg = install.find(environment, named=asked.medseg)
    if medseg is None:
        raise TroubleError("medseg is not installed; open the module MedSeg and press 'Install or update'")
    kind = _format(asked.outputLabelMap)
    run.add_file("scan", asked.inputVolume)
    names = ("model", "device", "backend", "precision", "threads", "overlap", "memory", "mirror", "strict")
    parameter = Parameter(**{name: getattr(asked, name) for name in names})
    run.begin(medseg, environment, parameter, formats=("seg.nrrd", kind))
    _say("<filter-start><filter-name>medseg</filter-name><filter-comment>segmenting</filter-comment></filter-start>")
    began, results, said = time.monotonic(), [], ("", -1.0)
    while not run.finished:
        results += run.tick()
        if (run.stage, round(run.fraction, 3)) != said:
            said = (run.stage, round(run.fraction, 3))
            _say(f"<filter-comment>{escape(run.stage)}</filter-comment>")
            _say(f"<filter-progress>{said[1]:.3f}</filter-progress>")
        if not run.finished:
            time.sleep(0.05)
    seconds = time.monotonic() - began
    _say(f"<filter-end><filter-name>medseg</filter-name><filter-time>{seconds:.1f}</filter-time></filter-end>")
    if results[0].problem:
        raise TroubleError(results[0].problem)
    return results[0]


def _format(path: Path) -> str:
    name = path.name.lower()
    kinds = [kind for suffix, kind in FORMATS.items() if name.endswith(suffix) and not name.endswith(".seg.nrrd")]
    if not kinds:
        raise TroubleError(f"{path.name}: a label map is written as {', '.join(FORMATS)}")
    return kinds[0]


def _hand_over(result: Result, asked: argparse.Namespace) -> None:
    """Put the results where they were asked for."""
    shutil.copyfile(result.files[_format(asked.outputLabelMap)], asked.outputLabelMap)
    if asked.segmentation:
        shutil.copyfile(result.files["seg.nrrd"], asked.segmentation)
    if asked.report:
        report = {name: value for name, value in result.report.items() if name != "outputs"}
        asked.report.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if asked.returnparameterfile:
        told = {"verdict": result.verdict, "reasons": "; ".join(result.reasons), "sizes": ", ".join(result.sizes)}
        lines = (f"{name} = {' '.join(text.split())}\n" for name, text in told.items())
        asked.returnparameterfile.write_text("".join(lines), encoding="utf-8")


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
