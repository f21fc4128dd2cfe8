"""`medseg predict`: scans in, label maps, pictures and reports out."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from medseg.cli.options import BACKEND, DEBUG, DEVICE, MIRROR, OVERLAP, PRECISION, REPAIR, SERIES, SUV, THREADS, VOLUME
from medseg.cli.progress import ESTIMATING, Display, Style, shown
from medseg.errors import explain
from medseg.progress import PREDICTING
from medseg.report.job import Job

Report = dict[str, Any]


def predict(
    scans: Annotated[
        list[Path] | None,
        typer.Argument(metavar="INPUT...", help="Scans; folders of scans; a DICOM folder, file or zip archive."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="OUT", help="Folder; for one scan also a name such as mask.nii.gz."),
    ] = None,
    formats: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="LIST",
            help="nifti, nrrd, mha, seg.nrrd; of DICOM also dicom-seg, dicom-labelmap, rtstruct, sr, sc (commas"
            " between). Default: nifti; of DICOM nifti,dicom-seg.",
        ),
    ] = None,
    model: Annotated[
        str, typer.Option("-m", "--model", metavar="NAME|FILE", help="Model by name (`medseg models list`) or file.")
    ] = "hippocampus-t1",
    channel: Annotated[
        list[str] | None,
        typer.Option("--channel", metavar="NAME=FILE", help="File of one channel, for a model with several; repeat."),
    ] = None,
    volume: VOLUME = None,
    series: SERIES = None,
    repair: REPAIR = False,
    suv: SUV = False,
    device: DEVICE = "auto",
    threads: THREADS = None,
    backend: BACKEND = "auto",
    precision: PRECISION = None,
    overlap: OVERLAP = None,
    mirror: MIRROR = False,
    memory: Annotated[
        str | None, typer.Option("--memory", metavar="SIZE", help="Most that may be held, such as 4GB; else refuse.")
    ] = None,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Only say how much time and memory it would take.")
    ] = False,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Also write the probability of background and each label.")
    ] = False,
    uncertainty: Annotated[
        bool, typer.Option("--uncertainty", help="Also write maps of entropy, and of members' disagreement.")
    ] = False,
    picture: Annotated[bool, typer.Option("--picture/--no-picture", help="Write a picture of the result.")] = True,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail a scan whose result the quality check refuses.")
    ] = False,
    json_to: Annotated[
        str | None, typer.Option("--json", metavar="FILE|-", help="A line of JSON for each scan; - is standard output.")
    ] = None,
    progress: Annotated[Style, typer.Option("--progress", help="How to show progress, on stderr.")] = Style.auto,
    debug: DEBUG = False,
) -> None:
    """Segment scans: a label map on the scan's own grid, a picture and a report for each.

    Reads NIfTI (.nii, .nii.gz), NRRD, MHA and DICOM, and for 2D models PNG, JPEG, TIFF and GIF. Writes beside the
    scan under its name with _seg, or to OUT. The report holds volumes in mL and the verdict of the quality check: ok,
    check or refuse.

    Exit code: 0 all done, 1 some scans failed, 2 nothing could be done.

    For research use only; not a medical device.
    """
    began = time.perf_counter() - time.process_time()  # of the process, which has computed in one thread so far
    from medseg.atomic import check_writable, write_atomic
    from medseg.bundle import Bundle
    from medseg.cli.inputs import Options, find_jobs
    from medseg.report.job import check_distinct
    from medseg.zoo import find

    bundle = Bundle.load(find(model))
    asked = tuple(formats.split(",")) if formats else ()
    several = len(bundle.members) > 1 or mirror
    maps = (("uncertainty", "disagreement") if several else ("uncertainty",)) if uncertainty else ()
    wanted = Options(output, asked, picture, probabilities, volume, series, repair, suv, maps)
    jobs = find_jobs(scans or [], channel or [], bundle.plan, wanted)
    check_distinct(jobs)
    for folder in () if estimate else sorted({target.parent for job in jobs for target in job.targets.values()}):
        check_writable(folder)

    from medseg.inference import Predictor  # torch takes a second to import; wrong arguments must not wait for it
    from medseg.inference.memory import parse_bytes
    from medseg.report.delivery import deliver
    from medseg.report.forecast import foresee

    predictor = Predictor(
        bundle,
        device=device,
        threads=threads,
        backend=backend,
        precision=precision,
        overlap=overlap,
        mirror=mirror,
        memory=parse_bytes(memory) if memory else None,
    )
    work = partial(foresee, start=time.perf_counter() - began) if estimate else partial(deliver, strict=strict)
    with shown(progress, len(jobs), ESTIMATING if estimate else PREDICTING) as display:
        lines = [*_reports(jobs, partial(work, predictor=predictor), display, as_json=json_to == "-", debug=debug)]
    if json_to and json_to != "-":
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        write_atomic(Path(json_to), [text.encode("utf-8", "backslashreplace")])
    if failed := sum("error" in line for line in lines):
        raise typer.Exit(2 if failed == len(jobs) else 1)


def _reports(
    jobs: Sequence[Job], work: Callable[..., Report], display: Display, *, as_json: bool, debug: bool
) -> Iterator[Report]:
    """Yield the report of each scan, and tell it; one that fails does not stop the next ones."""
    said: set[str] = set()
    for number, job in enumerate(jobs):
        try:
            report = work(job, progress=display.of(job.scan[0], number))
        except Exception as error:  # a bug met by one scan is said and counted, and the next scans still get done
            if debug:
                raise
            report = _failure(job.scan[0], error)
        _tell(report, display, as_json=as_json)
        for note in [note for note in report.get("notes", []) if note not in said]:
            display.note(note)
            said.add(note)
        yield report


def _tell(report: Report, display: Display, *, as_json: bool) -> None:
    """Say what came of one scan: results on standard output (a line of JSON if asked for), all else on stderr."""
    if "error" in report:
        display.say(_error_line(report), sys.stderr)
    else:
        for line in _warning_lines(report):
            display.say(line, sys.stderr)
        display.say(_result_lines(report), sys.stderr if as_json else sys.stdout)
    if as_json:
        display.say(json.dumps(report, ensure_ascii=False), sys.stdout)


def _failure(path: Path, error: Exception) -> Report:
    """Return the line of JSON for a scan that could not be done."""
    code, problem, hint = explain(error)
    problem = problem.removeprefix(f"{path}: ")
    return {"scan": {"path": str(path)}, "error": {"code": code, "problem": problem, "hint": hint}}


def _error_line(report: Report) -> str:
    error = report["error"]
    return f"error: {report['scan']['path']}: {error['problem']}; {error['hint']}"


def _warning_lines(report: Report) -> list[str]:
    return [f"warning: {report['scan']['path']}: {warning}" for warning in report["scan"]["warnings"]]


def _result_lines(report: Report) -> str:
    if "estimate" in report:
        from medseg.report.forecast import in_lines

        return "\n".join([report["scan"]["path"], *(f"  {line}" for line in in_lines(report["estimate"]))])
    from medseg.report.record import size_line

    lines = [report["scan"]["path"], *(f"  {size_line(label)}" for label in report["labels"])]
    lines.append(f"  quality check: {report['qc']['verdict']}")
    lines += [f"    {reason['code']}: {reason['detail']}" for reason in report["qc"]["reasons"]]
    lines += [f"  wrote {path}" for path in report["outputs"].values()]
    return "\n".join(lines)
