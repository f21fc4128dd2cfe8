"""One HTML page of an archive run: counts, failures and volumes of all results, and the results one page at a time.

It lies in the output folder and is opened from disk: nothing is fetched but the pictures beside it. Without scripts it
shows all but the results themselves. The page's own script and style are named by their hashes, and no other may run.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from string import ascii_letters, digits

from medseg import __version__
from medseg.report.cohort import Result
from medseg.report.cohort_style import SCRIPT, STYLE
from medseg.report.cohort_volumes import MOST_VALUES, VERDICTS, Spread, figure

_KINDS = ("failed", "refuse", "check", "ok", "waiting")  # those that need eyes first
_OPEN_PLOTS = 12
_EXAMPLES = 3  # of a failure
_DIGITS = 4  # of a volume that is embedded; results.csv has nine
_PLAIN = frozenset((ascii_letters + digits + "-._~").encode())
_NO_SCRIPT = "Without scripts this page shows no single results; <a href='results.csv'>results.csv</a> has them all."
_FILTERS = "Results that need eyes come first: failed, then refused, then to check. Arrow keys turn pages, / searches."


@dataclass
class _Model:
    count: int = 0
    labels: defaultdict[str, Spread] = field(default_factory=lambda: defaultdict(Spread))


@dataclass
class _Failure:
    problem: str
    count: int = 0
    examples: list[str] = field(default_factory=list)


class _Tally:
    """What the page says of all results, and those results that it holds: in memory that does not grow with them."""

    def __init__(self, most: int) -> None:
        self.kinds: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.models: defaultdict[str, _Model] = defaultdict(_Model)
        self.failures: dict[str, _Failure] = {}
        self.kept: dict[str, list[str]] = {kind: [] for kind in _KINDS}
        self._free = most

    def add(self, result: Result) -> None:
        """Count a result, and keep it if there is room or a less urgent one to put out."""
        kind = _kind(result)
        self.kinds[kind] += 1
        self.reasons.update(result.reasons)
        model = self.models[result.model]
        model.count += 1
        for label, volume in result.volumes.items():
            spread = model.labels[label]
            if volume is not None and math.isfinite(volume) and kind in VERDICTS:
                spread.add(volume, kind)
        if kind == "failed":
            self._add_failure(result)
        if self._free or self._put_out(kind):
            self._free -= 1
            self.kept[kind].append(self._row(result, kind))

    @property
    def count(self) -> int:
        """How many results there are."""
        return self.kinds.total()

    def embedded(self) -> str:
        """Return what the script reads, as JSON that cannot end its element."""
        rows = ",".join(row for kind in _KINDS for row in self.kept[kind])
        models = _json([[name, list(model.labels)] for name, model in self.models.items()])
        head = f'"kinds":{_json(_KINDS)},"models":{models},"reasons":{_json(list(self.reasons))}'
        return f'{{{head},"rows":[{rows}]}}'.replace("<", "\\u003c")

    def _add_failure(self, result: Result) -> None:
        failure = self.failures.setdefault(_code(result), _Failure(result.problem))
        failure.count += 1
        if len(failure.examples) < _EXAMPLES:
            failure.examples.append(result.series)

    def _put_out(self, kind: str) -> bool:
        for other in reversed(_KINDS[_KINDS.index(kind) + 1 :]):
            if self.kept[other]:
                self.kept[other].pop()
                self._free += 1
                return True
        return False

    def _row(self, result: Result, kind: str) -> str:
        labels, codes = (list(names) for names in (self.models[result.model].labels, self.reasons))
        volumes = [_short(result.volumes.get(label)) for label in labels] if result.volumes else []
        pictures = [_address(name) for name in (result.folder, result.picture, result.thumbnail)]
        return _json(
            [
                *(result.patient, result.study, result.series, list(self.models).index(result.model)),
                *(_KINDS.index(kind), [codes.index(code) for code in result.reasons]),
                *(_code(result) if kind == "failed" else "", result.problem),
                *(volumes, round(result.seconds, 1) if math.isfinite(result.seconds) else 0, *pictures),
            ]
        )


def cohort_page(results: Iterable[Result], *, title: str, notes: Sequence[str] = (), most: int = 20000) -> bytes:
    """Return the page as UTF-8; it belongs into the folder to which the folders of the results are relative.

    Parameters
    ----------
    results : iterable of Result
        Gone through once.
    title : str
        Of the page.
    notes : sequence of str
        A paragraph each, under the title.
    most : int
        How many results the page holds: with more, those that need eyes first. Counts and volumes are of all.
    """
    tally = _Tally(most)
    for result in results:
        tally.add(result)
    paragraphs = [f"<p>{escape(note)}</p>" for note in notes]
    if tally.count > most:
        paragraphs.append(
            f"<p class='warn'>This page holds {most:,} of {tally.count:,} results, those that need eyes first; "
            "<a href='results.csv'>results.csv</a> has them all. Counts and volumes are of all.</p>"
        )
    body = [
        f"<header><h1 dir='auto'>{escape(title)}</h1>",
        *paragraphs,
        _tiles(tally),
        f"<noscript><p class='warn'>{_NO_SCRIPT}</p></noscript></header><main>",
        _failures(tally.failures),
        _volumes(tally.models),
        _browser(tally),
        f"</main><footer class='dim'>medseg {__version__}. For research use only. Not a medical device.</footer>",
        f'<script type="application/json" id="data">{tally.embedded()}</script><script>{SCRIPT}</script>',
    ]
    html = f'<!doctype html>\n<html lang="en"><head>{_head(title)}</head><body>\n'
    return (html + "\n".join(body) + "\n</body></html>\n").encode("utf-8", "backslashreplace")


def _head(title: str) -> str:
    policy = (
        f"default-src 'none'; img-src 'self' file:; style-src {_hash(STYLE)}; script-src {_hash(SCRIPT)}; "
        "base-uri 'none'; form-action 'none'"
    )
    return (
        f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width"><meta name="referrer" content="no-referrer">'
        f"<title>{escape(title)}</title><style>{STYLE}</style>"
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _kind(result: Result) -> str:
    """Return state and verdict as one word; what is done without a known verdict needs eyes."""
    if result.state != "done":
        return "failed" if result.state == "failed" else "waiting"
    return result.verdict if result.verdict in VERDICTS else "check"


def _code(result: Result) -> str:
    return result.code or "UNKNOWN"


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _short(volume: float | None) -> float | None:
    return float(f"{volume:.{_DIGITS}g}") if volume is not None and math.isfinite(volume) else None


def _address(path: str) -> str:
    """Return a relative path as a part of an address, whatever letters and bytes it is made of."""
    return "/".join(
        "".join(chr(byte) if byte in _PLAIN else f"%{byte:02X}" for byte in os.fsencode(name))
        for name in path.split("/")
    )


def _tiles(tally: _Tally) -> str:
    """Return the counts; each is a link that filters the results."""
    done = sum(tally.kinds[verdict] for verdict in VERDICTS)
    counts = [("done", done, "state=done"), ("failed", tally.kinds["failed"], "state=failed")]
    counts.append(("waiting", tally.kinds["waiting"], "state=waiting"))
    counts += [(verdict, tally.kinds[verdict], f"verdict={verdict}") for verdict in VERDICTS]
    items = "".join(
        f'<li class="{name}"><a href="#{address}"><b>{count:,}</b> {name}</a></li>' for name, count, address in counts
    )
    return f'<ul class="tiles" aria-label="Counts">{items}</ul>'


def _failures(failures: Mapping[str, _Failure]) -> str:
    if not failures:
        return ""
    order = sorted(failures.items(), key=lambda item: (-item[1].count, item[0]))
    rows = "".join(
        f'<tr><td><a href="#code={_address(code)}">{escape(code)}</a></td><td>{failure.count:,}</td>'
        f'<td dir="auto">{escape(failure.problem)}</td>'
        f"<td>{' '.join(f'<code>{escape(name)}</code>' for name in failure.examples)}</td></tr>"
        for code, failure in order
    )
    head = "".join(f'<th scope="col">{name}</th>' for name in ("reason", "scans", "for example", "series"))
    return (
        f"<details open><summary><h2>Failures by reason</h2></summary><div class='wide'>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div></details>"
    )


def _volumes(models: Mapping[str, _Model]) -> str:
    """Return how the volumes of each label are spread, the first dozen of each model in sight."""
    parts, sampled = [], False
    for name, model in models.items():
        spreads = {label: spread for label, spread in model.labels.items() if spread.count or spread.absent}
        if not spreads:
            continue
        figures = [figure(label, spread) for label, spread in spreads.items()]
        parts.append(f"<h3 dir='auto'>{escape(name)}</h3><div class='plots'>{''.join(figures[:_OPEN_PLOTS])}</div>")
        if rest := figures[_OPEN_PLOTS:]:
            parts.append(
                f"<details><summary>{len(rest)} more labels</summary><div class='plots'>{''.join(rest)}</div></details>"
            )
        sampled = sampled or any(spread.sampled for spread in spreads.values())
    if not parts:
        return ""
    key = "".join(f'<span class="{verdict}">{verdict}</span>' for verdict in VERDICTS)
    note = f" Shapes are drawn from {MOST_VALUES:,} values of each label and verdict." if sampled else ""
    return (
        "<details open><summary><h2>Volumes</h2></summary>"
        f'<p class="key dim">{key} Height: number of scans.{note}</p>{"".join(parts)}</details>'
    )


def _browser(tally: _Tally) -> str:
    """Return the filters and the empty place of the results; the script fills and shows it."""
    done = sum(tally.kinds[verdict] for verdict in VERDICTS)
    states = {"done": done, "failed": tally.kinds["failed"], "waiting": tally.kinds["waiting"]}
    verdicts = {verdict: tally.kinds[verdict] for verdict in VERDICTS}
    codes = {code: failure.count for code, failure in tally.failures.items()}
    models = {name: model.count for name, model in tally.models.items()} if len(tally.models) > 1 else {}
    selects = [
        _select("state", "State", states),
        _select("verdict", "Verdict", verdicts),
        _select("model", "Model", models),
        _select("reason", "QC reason", dict(sorted(tally.reasons.items()))),
        _select("code", "Failure", dict(sorted(codes.items()))),
        _sorting(dict.fromkeys(label for model in tally.models.values() for label in model.labels)),
    ]
    pager = (
        '<nav class="pager" aria-label="{}"><button type="button" data-turn="-1">&larr; previous</button>'
        '<span class="where"></span><button type="button" data-turn="1">next &rarr;</button></nav>'
    )
    return (
        '<section id="results" hidden><h2>Results</h2>'
        f'<p class="dim">{_FILTERS}</p>'
        '<form id="filters" role="search" aria-label="Filter the results">'
        '<label>Part of a name<input name="q" type="search" autocomplete="off"></label>'
        f'{"".join(selects)}<button type="reset">Show all</button></form>'
        f'<div class="bar"><p id="found" aria-live="polite"></p>{pager.format("Pages")}</div>'
        f'<div id="cards"></div>{pager.format("Pages, again")}</section>'
    )


def _select(name: str, title: str, counts: Mapping[str, int]) -> str:
    if not counts:
        return ""
    options = "".join(
        f'<option value="{escape(value)}">{escape(value)} ({count:,})</option>' for value, count in counts.items()
    )
    return f'<label>{title}<select name="{name}"><option value="">all</option>{options}</select></label>'


def _sorting(labels: Iterable[str]) -> str:
    volumes = "".join(f'<option value="volume:{escape(label)}">{escape(label)}</option>' for label in labels)
    return (
        '<label>Order<select name="sort"><option value="">needs eyes first</option>'
        '<option value="series">series</option>'
        f'<optgroup label="volume">{volumes}</optgroup></select></label>'
        '<label class="tick"><input type="checkbox" name="down" value="1">descending</label>'
    )
