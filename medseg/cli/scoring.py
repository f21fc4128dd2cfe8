"""The steps of `medseg evaluate`: settings from options, scores of files, the table on the screen."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Literal

from medseg.cli.progress import Display
from medseg.errors import GeometryError, UsageError, explain
from medseg.evaluation import (
    Case,
    Evaluation,
    Failure,
    Mean,
    Pair,
    Pairing,
    Settings,
    Summary,
    Wanted,
    choose_metrics,
    compare,
    complete,
    evaluate_pair,
    summarise,
)
from medseg.progress import Progress

Run = tuple[list[Case], list[Failure]]

_COLUMNS = ("dice", "hd95", "assd", "nsd")  # of the table on the screen, of those that were computed


def as_settings(
    labels: str, tolerance: str, metrics: str, surface: Literal["voxels", "elements"], *, resample: bool
) -> Settings:
    """Return settings from the words of the command line.

    Raises
    ------
    UsageError
        If a label, tolerance or metric makes no sense.
    """
    general, single = 2.0, dict[str, float]()
    for part in tolerance.split(","):
        name, equals, number = part.rpartition("=")
        value = _positive(number)
        if equals:
            single[name.strip()] = value
        else:
            general = value
    wanted = tuple(Wanted.parse(part) for part in labels.split(",") if part.strip())
    return Settings(choose_metrics(metrics.split(",")), wanted, general, single, surface, resample)


def score_files(pairing: Pairing, settings: Settings, display: Display, done: int, *, debug: bool) -> Run:
    """Return the scores of each pair, and the cases that failed; a bad pair does not stop the rest."""
    cases: list[Case] = []
    failures: list[Failure] = []

    def fail(case: str, reason: str) -> None:
        failures.append(Failure(case, reason))
        display.say(f"error: {case}: {reason}", sys.stderr)

    for name, reason in pairing.ambiguous:
        fail(name, reason)
    for number, pair in enumerate(pairing.pairs):
        try:
            case = _score(pair, settings, display, display.of(pair.prediction, done + number))
            _check_alike(case, cases)
            cases.append(case)
        except Exception as error:  # a bug met by one case is said and counted, and the next cases still get done
            if debug:
                raise
            _, problem, hint = explain(error)
            fail(pair.case, f"{problem}; {hint}")
    return cases, failures


def assemble(places: Sequence[str], settings: Settings, pairings: Sequence[Pairing], runs: Sequence[Run]) -> Evaluation:
    """Return all that came of the first set, and the differences of the second from it where there is one."""
    cases = complete(runs[0][0], settings.metrics)
    known = {score.name for case in cases for score in case.scores}
    if known and (unknown := [name for name in settings.tolerances if name not in known]):
        raise UsageError(f"--tolerance names {unknown[0]!r}", hint=f"the labels are: {', '.join(sorted(known))}")
    second, failed_second = runs[1] if len(runs) > 1 else ([], [])
    return Evaluation(
        places[0],
        places[1],
        settings,
        tuple(cases),
        tuple(summarise(cases, settings.metrics)),
        (*runs[0][1], *(Failure(f"{places[2]}, {failed.case}", failed.reason) for failed in failed_second)),
        tuple(str(path) for pairing in pairings for path in pairing.only_predictions),
        tuple(dict.fromkeys(str(path) for pairing in pairings for path in pairing.only_references)),
        places[2],
        tuple(compare(cases, second, settings.metrics) if second else ()),
    )


def table(evaluation: Evaluation) -> str:
    """Return the summary as lines of text."""
    metrics = [metric for metric in evaluation.settings.metrics if metric.name in _COLUMNS]
    metrics = metrics or [metric for metric in evaluation.settings.metrics if metric.better][:4]
    head = ["label", "n", "missed", "spurious", "undefined"]
    head += [f"{metric.title} {metric.shown_unit(physical=evaluation.physical)}".strip() for metric in metrics]
    rows = []
    for summary in evaluation.summaries:
        counts = (summary.n, summary.missed, summary.spurious, summary.undefined)
        rows.append([summary.name, *map(str, counts), *(_mean(summary, metric.name) for metric in metrics)])
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    form = "  ".join([f"{{:<{widths[0]}}}", *(f"{{:>{width}}}" for width in widths[1:])])
    lines = [form.format(*row) for row in [head, *rows]]
    count = len(evaluation.cases)
    title = (
        f"{count} case{'' if count == 1 else 's'}; mean [95 % interval] of the defined | mean with misses as the worst"
    )
    return "\n".join([title, *lines, *_difference_lines(evaluation)])


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (value > 0 and math.isfinite(value)):
        raise UsageError(f"tolerance {text!r}", hint="give mm, such as 2, or 2,liver=3 for single labels")
    return value


def _score(pair: Pair, settings: Settings, display: Display, progress: Progress) -> Case:
    case, warnings = evaluate_pair(pair, settings, progress=progress)
    for warning in warnings:
        display.say(f"warning: {warning}", sys.stderr)
    return case


def _check_alike(case: Case, earlier: Sequence[Case]) -> None:
    """Refuse to mix mm with pixels in one table."""
    if earlier and earlier[0].physical != case.physical:
        what = "a size in mm" if case.physical else "no size in mm"
        raise GeometryError(f"it has {what}, unlike the cases before", hint="evaluate it on its own")


def _mean(summary: Summary, metric: str) -> str:
    spread = summary.metrics[metric]
    text = _interval(spread.defined)
    misses = summary.missed + summary.spurious
    return f"{text} | {spread.with_misses.mean:.3g}" if misses and spread.defined.n < spread.with_misses.n else text


def _interval(mean: Mean) -> str:
    if not math.isfinite(mean.mean):
        return "-"
    return f"{mean.mean:.3g}" + (f" [{mean.low:.3g}, {mean.high:.3g}]" if math.isfinite(mean.low) else "")


def _difference_lines(evaluation: Evaluation) -> list[str]:
    if not evaluation.differences:
        return []
    shown = [found for found in evaluation.differences if found.metric in _COLUMNS] or evaluation.differences
    lines = [f"{evaluation.compared_with} minus {evaluation.prediction}, case by case:"]
    lines += [
        f"  {found.name} {found.metric}: {_interval(found.difference)} in {found.difference.n} cases, "
        f"higher in {found.higher}, lower in {found.lower}, p = {found.p:.2g} (Wilcoxon)"
        for found in shown
    ]
    return lines
