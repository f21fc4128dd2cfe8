"""One HTML page of an evaluation: self-contained, without scripts, readable with many cases and labels."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from medseg import __version__
from medseg.evaluation import Case, Evaluation, Mean, Metric, Score, Summary
from medseg.evaluation.differences import KINDS
from medseg.report.plots import Strip, strips

_SHOWN = ("dice", "nsd", "hd95", "assd")  # metrics that get a plot, of those that were computed
_MOST_ROWS = 3000  # in the table of all scores; scores.csv has them all
_MOST_LABELS = 8  # of a case under its picture
_NONE = "&ndash;"
_KEY = (
    "Dot: a case. Box: quartiles and median. Diamond and line: mean and its 95 % interval. ✕: missed or spurious "
    "structures, which have no distance and are not among the dots of distances. With very many cases only those far "
    "from the box are drawn as dots."
)
_MEANS = (
    "Mean with its 95 % bootstrap interval over the cases in which it is defined; below it, where structures were "
    "missed or spurious, the mean in which each of them counts as the worst there is: the image diagonal for a "
    "distance. A ratio of a missed structure is 0 in the first mean already. Undefined: in neither prediction nor "
    "reference, in no mean."
)
_PAIRED = (
    "Second minus first, in the same cases; missed and spurious structures count as the worst. Not corrected for "
    "looking at several labels and metrics."
)

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1d22; --dim: #666c78; --paper: #fff; --line: #d9dce3; --box: #dbe6f7;
  --dot: #2f6fc4; --mean: #b3261e; --warn: #fff4d6; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e9ec; --dim: #9aa0ac; --paper: #15161a; --line: #33363f;
  --box: #26344c; --dot: #79acf0; --mean: #ff8a80; --warn: #3b3213; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2rem auto;
  max-width: 1240px; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; display: block; overflow-x: auto; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top;
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
.dim, small { color: var(--dim); } .miss { fill: var(--mean); color: var(--mean); }
.warn { background: var(--warn); padding: .6rem 1rem; border-radius: 6px; margin: .6rem 0; }
svg { max-width: 100%; height: auto; font-size: 13px; fill: var(--ink); display: block; margin: 1rem 0; }
svg .title { font-weight: 600; } svg .grid { stroke: var(--line); } svg .tick { fill: var(--dim); font-size: 12px; }
svg .dot { fill: var(--dot); fill-opacity: .55; } svg .box { fill: var(--box); fill-opacity: .55; stroke: var(--dot); }
svg .median { stroke: var(--dot); stroke-width: 2; } svg .interval { stroke: var(--mean); stroke-width: 2; }
svg .mean, svg .miss { fill: var(--mean); }
.case { margin: 1.2rem 0; } .case img { max-width: 100%; background: #121214; border-radius: 6px; padding: 8px; }
.key span { display: inline-block; width: .8em; height: .8em; margin: 0 .4em 0 1.2em; border-radius: 2px; }
"""


@dataclass(frozen=True)
class Picture:
    """A case that is shown, with the PNG of where it differs."""

    case: Case
    png: bytes


def page(evaluation: Evaluation, pictures: Sequence[Picture]) -> bytes:
    """Return the page as UTF-8.

    Parameters
    ----------
    evaluation : Evaluation
        With at least one case.
    pictures : sequence of Picture
        Worst case first.
    """
    labels, cases = len(evaluation.summaries), len(evaluation.cases)
    title = f"Evaluation of {_many(cases, 'case')}, {_many(labels, 'label')}"
    body = [
        f"<h1>{title}</h1>",
        _introduction(evaluation),
        *_warnings(evaluation),
        "<h2>Summary</h2>",
        _summary(evaluation),
        "<h2>Distributions</h2>",
        _note(_KEY),
        *(_plot(evaluation, metric) for metric in _plotted(evaluation)),
        *_comparison(evaluation),
        *_pictures(evaluation, pictures),
        "<h2>All scores</h2>",
        _scores(evaluation),
        _note(f"medseg {__version__}. For research use only. Not a medical device."),
    ]
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>'
    html = f'<!doctype html>\n<html lang="en"><head>{head}<style>{_STYLE}</style></head><body>\n'
    return (html + "\n".join(body) + "\n</body></html>\n").encode("utf-8", "backslashreplace")


def _introduction(evaluation: Evaluation) -> str:
    settings = evaluation.settings
    unit = "mm" if evaluation.physical else "px"
    special = "".join(f", {escape(name)} {mm:g} {unit}" for name, mm in settings.tolerances.items())
    return (
        f"<p>Prediction <b>{escape(evaluation.prediction)}</b>, reference <b>{escape(evaluation.reference)}</b>. "
        f"Tolerance {settings.tolerance:g} {unit}{special}; surfaces by {settings.surface}.</p>"
    )


def _note(text: str) -> str:
    return f'<p class="dim">{text}</p>'


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    cells = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{cells}</tr>{body}</table>"


def _warnings(evaluation: Evaluation) -> list[str]:
    """Return what a reader must know before any number."""
    resampled = [case.name for case in evaluation.cases if case.resampled]
    parts = [
        ("could not be evaluated", [f"{failure.case}: {failure.reason}" for failure in evaluation.failures]),
        ("without a prediction, not evaluated", evaluation.only_references),
        ("without a reference, not evaluated", evaluation.only_predictions),
        ("resampled onto the grid of the reference", resampled),
    ]
    return [
        f'<details class="warn"><summary>{_many(len(items), "case")} {what}</summary>'
        f"<ul>{''.join(f'<li>{escape(item)}</li>' for item in items)}</ul></details>"
        for what, items in parts
        if items
    ]


def _summary(evaluation: Evaluation) -> str:
    metrics = _plotted(evaluation) or evaluation.settings.metrics
    rows = [
        [escape(found.name), found.n, found.missed, found.spurious, found.undefined]
        + [_mean_cell(found, metric) for metric in metrics]
        for found in evaluation.summaries
    ]
    titles = [escape(_title(metric, evaluation)) for metric in metrics]
    return _table(["label", "n", "missed", "spurious", "undefined", *titles], rows) + _note(_MEANS)


def _mean_cell(summary: Summary, metric: Metric) -> str:
    spread = summary.metrics[metric.name]
    cell = _interval(spread.defined)
    if metric.worst == "diagonal" and summary.missed + summary.spurious:
        cell += f'<br><span class="miss">with misses {_interval(spread.with_misses)}</span>'
    return cell


def _interval(mean: Mean) -> str:
    if not math.isfinite(mean.mean):
        return _NONE
    ends = f"<br><small>[{mean.low:.3g}, {mean.high:.3g}]</small>" if math.isfinite(mean.low) else ""
    return f"{mean.mean:.3g}{ends}"


def _plotted(evaluation: Evaluation) -> tuple[Metric, ...]:
    extra = [metric for metric in evaluation.settings.metrics if not metric.by_default]
    return (*(metric for metric in evaluation.settings.metrics if metric.name in _SHOWN), *extra)


def _plot(evaluation: Evaluation, metric: Metric) -> str:
    rows = []
    for place, summary in enumerate(evaluation.summaries):
        values = [(case.scores[place].values[metric.name], case.name) for case in evaluation.cases]
        shown = [(value, name) for value, name in values if math.isfinite(value)]
        spread = summary.metrics[metric.name]
        mean = (spread.defined.mean, spread.defined.low, spread.defined.high)
        misses = summary.missed + summary.spurious
        names = [name for _, name in shown]
        rows.append(Strip(summary.name, [value for value, _ in shown], names, spread.quartiles, mean, misses))
    least = min((value for row in rows for value in row.values), default=0.0)
    limits = (0.0 if least < 0.5 else min(least, 0.9), 1.0) if metric.better == "more" else None
    return strips(metric.title, metric.shown_unit(physical=evaluation.physical), rows, limits=limits)


def _comparison(evaluation: Evaluation) -> list[str]:
    if not evaluation.differences:
        return []
    metrics = {metric.name: metric for metric in evaluation.settings.metrics}
    rows = []
    for found in evaluation.differences:
        mean = found.difference
        rows.append(
            (
                escape(found.name),
                escape(_title(metrics[found.metric], evaluation)),
                mean.n,
                _shown(found.first),
                _shown(found.second),
                _interval(mean),
                f"{found.higher} / {found.lower}",
                f"{found.p:.2g}" if math.isfinite(found.p) else _NONE,
            )
        )
    head = ("label", "metric", "n", "first", "second", "difference", "higher / lower", "p (Wilcoxon)")
    return [f"<h2>Compared with {escape(evaluation.compared_with)}</h2>", _table(head, rows), _note(_PAIRED)]


def _pictures(evaluation: Evaluation, pictures: Sequence[Picture]) -> list[str]:
    if not pictures:
        return []
    key = "".join(f'<span style="background: rgb{kind.rgb}"></span>{kind.name}' for kind in KINDS)
    parts = ["<h2>Worst cases first</h2>", f'<p class="key">{key}</p>']
    for picture in pictures:
        data = base64.b64encode(picture.png).decode()
        alt = f"Where {picture.case.name} differs"
        parts.append(
            f'<div class="case"><b>{escape(picture.case.name)}</b> {_case_line(evaluation, picture.case)}<br>'
            f'<img alt="{escape(alt)}" src="data:image/png;base64,{data}"></div>'
        )
    return parts


def _case_line(evaluation: Evaluation, case: Case) -> str:
    """Return the scores of a case in a line: its worst labels."""
    metrics = _plotted(evaluation)[:3]
    order = sorted(case.scores, key=lambda score: goodness([score], evaluation.settings.metrics))
    known = [score for score in order if score.state != "undefined"]
    lines = [
        f"{escape(score.name)} {_state(score)}"
        + ", ".join(f"{escape(metric.title)} {_shown(score.values[metric.name])}" for metric in metrics)
        for score in known[:_MOST_LABELS]
    ]
    more = f" and {len(known) - _MOST_LABELS} more labels" if len(known) > _MOST_LABELS else ""
    return f'<span class="dim">{"; ".join(lines)}{more}</span>'


def goodness(scores: Sequence[Score], metrics: Sequence[Metric]) -> tuple[int, float]:
    """Return what puts labels and cases in order, worst first: misses, then the first metric that can be better."""
    misses = sum(score.state in {"missed", "spurious"} for score in scores)
    metric = next((metric for metric in metrics if metric.better in {"more", "less"}), None)
    values = [score.values[metric.name] for score in scores] if metric else []
    finite = [value for value in values if math.isfinite(value)]
    mean = sum(finite) / len(finite) if finite else math.inf
    return -misses, mean if metric is None or metric.better == "more" or not finite else -mean


def _state(score: Score) -> str:
    return "" if score.state == "ok" else f'<span class="miss">{score.state}</span> '


def _scores(evaluation: Evaluation) -> str:
    metrics = evaluation.settings.metrics
    scores = [score for case in evaluation.cases for score in case.scores]
    rows = [
        [
            escape(score.case),
            escape(score.name),
            score.state,
            *(_shown(score.values[metric.name]) for metric in metrics),
        ]
        for score in scores[:_MOST_ROWS]
    ]
    head = ["case", "label", "state", *(escape(_title(metric, evaluation)) for metric in metrics)]
    note = (
        _note(f"The first {_MOST_ROWS} of {len(scores)} rows; scores.csv has all.") if len(scores) > _MOST_ROWS else ""
    )
    return f"{note}<details><summary>{_many(len(rows), 'row')}</summary>{_table(head, rows)}</details>"


def _title(metric: Metric, evaluation: Evaluation) -> str:
    unit = metric.shown_unit(physical=evaluation.physical)
    return f"{metric.title} ({unit})" if unit else metric.title


def _shown(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else _NONE


def _many(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
