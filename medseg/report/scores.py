"""The files of an evaluation: all of them or none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medseg.atomic import Outputs
from medseg.evaluation import Evaluation, Pair, Settings, read_pair
from medseg.evaluation.differences import AGREED, KINDS, differences
from medseg.evaluation.result import as_csv, as_record, differences_as_csv
from medseg.report.page import Picture, goodness, page
from medseg.report.picture import planes_of
from medseg.report.record import as_json


def write_scores(folder: Path, evaluation: Evaluation, pairs: Sequence[Pair], *, pictures: int) -> list[Path]:
    """Write `scores.csv`, `scores.json`, `report.html` and, for two sets, `differences.csv`; return their names.

    Parameters
    ----------
    folder : Path
        An existing folder.
    evaluation : Evaluation
        With at least one case.
    pairs : sequence of Pair
        Files of its cases; the worst are read again for their pictures.
    pictures : int
        How many cases the page shows.

    Raises
    ------
    OutputError
        If a file cannot be written; none is then left behind.
    """
    files = {pair.case: pair for pair in pairs}
    metrics = evaluation.settings.metrics
    worst = sorted(evaluation.cases, key=lambda case: goodness(case.scores, metrics))[:pictures]
    shown = [Picture(case, _draw(files[case.name], evaluation.settings)) for case in worst]
    contents = {
        "scores.csv": as_csv(evaluation),
        "scores.json": as_json(as_record(evaluation)),
        "report.html": page(evaluation, shown),
    }
    if evaluation.differences:
        contents["differences.csv"] = differences_as_csv(evaluation)
    with Outputs() as outputs:
        for name, content in contents.items():
            outputs.write(folder / name, [content])
    return [folder / name for name in contents]


def _draw(pair: Pair, settings: Settings) -> bytes:
    found = differences(*read_pair(pair, settings), settings)
    return planes_of(found, seen_in=[kind.name for kind in KINDS if kind != AGREED])
