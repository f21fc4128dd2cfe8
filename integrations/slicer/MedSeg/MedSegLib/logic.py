"""Segmenting volumes with medseg: what to run, how far it is, what came of it. Knows neither slicer nor qt."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable

from .chain import Command, Done, TroubleError
from .install import Found, checked
from .parameter import Parameter
from .process import Running, Start
from .progress import Lines, Note, Remaining, Step, as_object, parse
from .workspace import new_workspace, remove

_LOG = 200  # lines that are kept


@dataclass(frozen=True)
class Model:
    """A model that the installed medseg knows by name."""

    name: str
    summary: str
    channels: tuple[str, ...]
    labels: tuple[str, ...]
    default: bool


@dataclass(frozen=True)
class Answer:
    """What the installed medseg says of itself."""

    version: str
    models: tuple[Model, ...]


@dataclass(frozen=True)
class Result:
    """What came of one case: a segmentation and the report on it, or what went wrong."""

    key: str
    report: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)  # by format
    problem: str = ""

    @property
    def segmentation(self) -> Path | None:
        """The file that Slicer loads as a segmentation."""
        return self.files.get("seg.nrrd")

    @property
    def verdict(self) -> str:
        """The word of the quality check: ok, check or refuse."""
        verdict = _part(self.report, "qc").get("verdict")
        return verdict if isinstance(verdict, str) else ""

    @property
    def reasons(self) -> list[str]:
        """Why the quality check does not say ok, and what was odd in the scan."""
        found = [reason.get("detail") for reason in _parts(_part(self.report, "qc"), "reasons")]
        warnings = _part(self.report, "scan").get("warnings")
        found += warnings if isinstance(warnings, list) else []
        return [text for text in found if isinstance(text, str)]

    @property
    def sizes(self) -> list[str]:
        """Name and volume of each label."""
        return [
            f"{label.get('name')} {label['volume_ml']:.3g} mL"
            for label in _parts(self.report, "labels")
            if isinstance(label.get("volume_ml"), (int, float))
        ]


@dataclass(frozen=True)
class _Case:
    key: str
    files: tuple[tuple[str, Path], ...]  # channel and file


class Run:
    """One call of medseg for one or several cases, in a folder of its own that `close` removes.

    Parameters
    ----------
    start : function
        Starts a program: `process.Process`, or something else in tests.
    clock : function
        Seconds that only grow.
    parent : Path, optional
        Where to make the folder; default: that for temporary files.

    Examples
    --------
    ``add`` names the files to write, ``begin`` starts, ``tick`` is called again and again until ``finished``.
    """

    def __init__(
        self, start: Start, *, clock: Callable[[], float] = time.monotonic, parent: Path | None = None
    ) -> None:
        self._start = start
        self._clock = clock
        self.folder = new_workspace(parent)
        self._cases: list[_Case] = []
        self._process: Running | None = None
        self._lines = (Lines(), Lines())
        self._remaining = Remaining(clock)
        self._told: dict[str, Result] = {}
        self._formats: tuple[str, ...] = ()
        self.fraction = 0.0
        self.stage = ""
        self.log: list[str] = []
        self.finished = False
        self.cancelled = False

    def add(self, key: str, channels: Sequence[str] = ("",)) -> list[Path]:
        """Return the files into which to write the volumes of a case, one for each channel of the model."""
        stem = f"case_{len(self._cases) + 1:03d}"  # no name of a patient gets into a path
        files = tuple((name, self.folder / f"{stem}_{number:04d}.nrrd") for number, name in enumerate(channels))
        if len(files) == 1:
            files = ((files[0][0], self.folder / f"{stem}.nrrd"),)
        self._cases.append(_Case(key, files))
        return [file for _, file in files]

    def add_file(self, key: str, file: Path) -> None:
        """Take a file that is there already as a case."""
        self._cases.append(_Case(key, (("", file.absolute()),)))

    def begin(
        self,
        medseg: Found,
        environment: Mapping[str, str],
        parameter: Parameter,
        *,
        formats: Sequence[str] = ("seg.nrrd",),
    ) -> None:
        """Start medseg on all cases.

        Raises
        ------
        TroubleError
            If it cannot be started, or not on these cases.
        """
        self._formats = tuple(formats)
        try:
            self._process = self._start(self._command(medseg, parameter), environment, self.folder / "output")
        except OSError as error:
            raise TroubleError(f"{medseg.where} cannot be started: {error}") from error
        self.stage = "starting"

    def tick(self) -> list[Result]:
        """Look what medseg does; return the results that have come since the last call."""
        if self._process is None or self.finished:
            return []
        code = self._process.poll()  # first this, then its output: nothing is missed
        (out, err), (results, messages) = self._process.read(), self._lines
        new = self._results(results.feed(out))
        self._messages(messages.feed(err))
        if code is None:
            return new
        new += self._results(results.end())
        self._messages(messages.end())
        new += [Result(case.key, problem=self._why(code)) for case in self._cases if case.key not in self._told]
        self.finished, self.fraction, self.stage = True, 1.0, "done"
        return new

    @property
    def seconds_left(self) -> float | None:
        """How long it will still take; None while that cannot be known."""
        return None if self.finished else self._remaining.seconds()

    def cancel(self) -> None:
        """End medseg and all that it has started."""
        if not self.finished:
            if self._process is not None:
                self._process.kill()
            self.cancelled = self.finished = True
            self.stage = "cancelled"

    def close(self) -> None:
        """End what still runs, and remove the folder."""
        self.cancel()
        remove(self.folder)

    def _command(self, medseg: Found, parameter: Parameter) -> list[str]:
        several = [case for case in self._cases if len(case.files) > 1]
        if not self._cases or (several and len(self._cases) > 1):
            raise TroubleError("choose one case for a model with several channels, and at least one for any model")
        inputs = (
            [word for name, file in several[0].files for word in ("--channel", f"{name}={file}")]
            if several
            else [str(case.files[0][1]) for case in self._cases]
        )
        output = ["-o", str(self.folder / "results"), "--format", ",".join(self._formats), "--no-picture"]
        return [
            *medseg.words, "predict", *inputs, *output, "--json", "-", "--progress", "json", *parameter.arguments()
        ]  # fmt: skip

    def _results(self, lines: Sequence[str]) -> list[Result]:
        found = []
        for line in lines:
            report = as_object(line)
            path = _part(report, "scan").get("path")
            case = next((each for each in self._cases if path == str(each.files[0][1])), None)
            if case is None or case.key in self._told:
                self._note(line)
                continue
            self._told[case.key] = self._result(case, report)
            found.append(self._told[case.key])
        return found

    def _result(self, case: _Case, report: Mapping[str, Any]) -> Result:
        if "error" in report:
            error = _part(report, "error")
            words = [str(error[name]) for name in ("problem", "hint") if error.get(name)]
            return Result(case.key, report, problem="; ".join(words) or "medseg does not say why")
        named, results = _part(report, "outputs"), (self.folder / "results").resolve()
        files = {kind: Path(named[kind]) for kind in self._formats if isinstance(named.get(kind), str)}
        missing = [kind for kind in self._formats if kind not in files or not _is_in(files[kind], results)]
        if missing:
            return Result(case.key, report, problem=f"medseg has written no {missing[0]}")
        return Result(case.key, report, files)

    def _messages(self, lines: Sequence[str]) -> None:
        for line in lines:
            said = parse(line)
            if isinstance(said, Step):
                self.fraction, self.stage = max(self.fraction, said.fraction), said.text
                self._remaining.update(said.fraction)
            else:
                self._note(said.text if isinstance(said, Note) else line)

    def _note(self, line: str) -> None:
        self.log = [*self.log, line][-_LOG:]

    def _why(self, code: int) -> str:
        errors = [line for line in self.log if line.lower().startswith("error:") and str(self.folder) not in line]
        if errors:  # that name no file of the run: they are about all of it
            return errors[-1][len("error:") :].strip()
        last = next((line.strip() for line in reversed(self.log) if line.strip()), "")
        said = f"; the last it said: {last}" if last else ""
        if code < 0:
            return f"medseg was ended by signal {-code}{' (out of memory?)' if code == -9 else ''}{said}"
        return f"medseg ended with exit code {code} and without a result for this volume{said}"


def ask(medseg: Found) -> Generator[Command, Done, Answer]:
    """Ask medseg for its version and its models. To be driven by a `Chain`."""
    version = (yield Command("asking medseg for its version", (*medseg.words, "--version"))).must(
        f"{medseg.where} does not answer"
    )
    number = checked(version.out)
    listed = (yield Command("asking medseg for its models", (*medseg.words, "models", "list", "--json"))).must(
        f"medseg {number} does not list its models"
    )
    models = [_model(as_object(line)) for line in listed.out.splitlines()]
    return Answer(number, tuple(model for model in models if model is not None))


def _model(said: Mapping[str, Any]) -> Model | None:
    if not isinstance(said.get("name"), str) or "error" in said:
        return None
    channels = tuple(str(name) for name in said.get("channels") or ["scan"])
    labels = tuple(str(label.get("name")) for label in _parts(said, "labels"))
    return Model(said["name"], str(said.get("summary", "")), channels, labels, said.get("default") is True)


def _is_in(file: Path, folder: Path) -> bool:
    return file.resolve().parent == folder and file.is_file()


def _part(report: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = report.get(name)
    return part if isinstance(part, dict) else {}


def _parts(report: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    parts = report.get(name)
    return [part for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
