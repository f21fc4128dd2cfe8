"""From volumes and rules to items: what is to be done, what cannot be, and what was not meant."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TypeVar

from medseg.archive.index import Volume
from medseg.archive.ledger import Item
from medseg.archive.naming import Names, fingerprint
from medseg.archive.rules import Rule, Rules, Series
from medseg.archive.task import Outcome, Settings, Task
from medseg.archive.walk import DAMAGED, DICOM
from medseg.dicom.pacs import Remote

RESULTS = "results"
_NO_SCANS = frozenset(
    [
        "SEG",
        "SR",
        "PR",
        "KO",
        "DOC",
        "RTSTRUCT",
        "RTPLAN",
        "RTDOSE",
        "RTRECORD",
        "REG",
        "FID",
        "RWV",
        "ECG",
        "HD",
        "AU",
        "PLAN",
        "M3D",
    ]
)


@dataclass(frozen=True)
class Model:
    """A model by its file."""

    file: Path
    name: str
    version: str
    sha256: str


@dataclass(frozen=True)
class Shard:
    """One of several parts of an archive: `number` from 0 of `count`; whole studies."""

    number: int = 0
    count: int = 1

    def holds(self, study: str) -> bool:
        """Return whether a study belongs to this part."""
        digest = hashlib.sha256(study.encode("utf-8", "surrogateescape")).hexdigest()
        return int(digest[:8], 16) % self.count == self.number

    @property
    def suffix(self) -> str:
        """What names of its files end in."""
        return f"-{self.number + 1}-of-{self.count}" if self.count > 1 else ""


@dataclass(frozen=True)
class Planned:
    """An item, its task, and why it cannot be done, if so; `series` says in the index where its files are."""

    item: Item
    task: Task
    series: int = 0
    fault: Outcome | None = None


@dataclass(frozen=True)
class _Remote:
    """A series of a PACS; it is taken to have as many slices as images."""

    remote: Remote
    about: Series


T = TypeVar("T", Volume, _Remote)


class Selection:
    """Chooses by rules.

    Parameters
    ----------
    rules : Rules
        Each with a model.
    models : mapping
        The models by the words in the rules.
    names : Names
        What patients, studies and series are called.
    settings : Settings
        How is computed.
    output : Path
        Where results go.
    shard : Shard
        Which part of the archive.
    """

    def __init__(
        self, rules: Rules, models: Mapping[str, Model], names: Names, *, settings: Settings, output: Path, shard: Shard
    ) -> None:
        self.rules, self.models, self.names = rules, models, names
        self.settings, self.output, self.shard = settings, output, shard
        self.passed: Counter[str] = Counter()

    def of_volumes(self, volumes: Iterable[Volume]) -> Iterator[Planned]:
        """Yield what is to be done with the volumes of an index, which come study by study."""
        for (patient, study), group in groupby(volumes, key=lambda volume: (volume.patient, volume.study)):
            if self.shard.holds(f"{patient}\0{study}"):
                yield from self._of_study(list(group))

    def of_remotes(self, remotes: Iterable[Remote], task: Task) -> Iterator[Planned]:
        """Yield what is to be done with series of a PACS; `task` says how to fetch them."""
        studies: dict[tuple[str, str], list[tuple[_Remote, Rule]]] = {}
        for remote in remotes:
            if not self.shard.holds(f"{remote.patient}\0{remote.study}"):
                continue
            if remote.modality in _NO_SCANS:
                self.passed[f"{remote.modality} objects"] += 1
                continue
            one = _Remote(remote, Series(remote.modality, remote.description, slices=remote.images))
            if rule := self._rule(one.about):
                studies.setdefault((remote.patient, remote.study), []).append((one, rule))
        for chosen in studies.values():
            for one, rule in self._best(chosen, lambda _: None):
                remote = one.remote
                place = self._place(remote.patient, remote.study, remote.series, 1, rule)
                mark = fingerprint([remote.series, str(remote.images)])
                yield self._planned(place, mark, rule, replace(task, remote=asdict(remote)))

    def _of_study(self, volumes: Sequence[Volume]) -> Iterator[Planned]:
        chosen: list[tuple[Volume, Rule]] = []
        for volume in volumes:
            verdict = volume.verdict
            if verdict.aside:
                self.passed[verdict.aside] += 1
            elif volume.kind == DAMAGED:  # nobody knows which rule it would have fitted
                chosen += [(volume, rule) for rule in self.rules.rule if not rule.skip][:1]
            elif (rule := self._rule(volume.about)) is None:
                continue
            elif verdict.moments > 1:
                self.passed["several volumes at the same positions"] += 1
            else:
                chosen.append((volume, rule))
        for volume, rule in self._best(chosen, self._fault):
            yield self._of_volume(volume, rule)

    def _rule(self, about: Series) -> Rule | None:
        rule = self.rules.choose(about)
        if rule is None or rule.skip:
            self.passed["no rule fits" if rule is None else "skipped by a rule"] += 1
            return None
        return rule

    def _best(self, chosen: Sequence[tuple[T, Rule]], fault: Callable[[T], Outcome | None]) -> Iterator[tuple[T, Rule]]:
        """Yield those that their rule wants of one study; damage is told in any case."""
        for rule in dict.fromkeys(rule for _, rule in chosen):
            some = [volume for volume, other in chosen if other == rule]
            sound = [volume for volume in some if not fault(volume)]
            if rule.per_study != "all" and len(sound) > 1:
                best = min(sound, key=_thinnest if rule.per_study == "thinnest" else _fewest)
                self.passed["another series of the study was chosen"] += len(sound) - 1
                some = [volume for volume in some if volume is best or volume not in sound]
            yield from ((volume, rule) for volume in some)

    def _fault(self, volume: Volume) -> Outcome | None:
        verdict = volume.verdict
        if not verdict.code or (self.settings.repair and verdict.repairable):
            return None
        return Outcome("failed", verdict.code, verdict.problem, verdict.hint)

    def _of_volume(self, volume: Volume, rule: Rule) -> Planned:
        place = self._place(volume.patient, volume.study, volume.name, volume.verdict.number, rule)
        task = Task(place, "", "", "", volume.kind, row=volume.verdict.number, warnings=list(volume.verdict.warnings))
        if volume.kind == DICOM:
            task = replace(task, mark=volume.verdict.fingerprint)
        planned = self._planned(place, volume.verdict.fingerprint, rule, task)
        return replace(planned, series=volume.series_id, fault=self._fault(volume))

    def _place(self, patient: str, study: str, series: str, row: int, rule: Rule) -> str:
        names = [self.names.of("patient", patient), self.names.of("study", study), self.names.of("series", series)]
        names[2] += f"-{row}" if row > 1 else ""
        return "/".join([*names, self.models[rule.model].name])

    def _planned(self, place: str, mark: str, rule: Rule, task: Task) -> Planned:
        model = self.models[rule.model]
        limits = (rule.slices, rule.spacing_mm) if task.kind != DICOM else (None, None)
        given = [mark, model.sha256, rule.formats, limits, self.settings.of_answer, self.settings.picture, task.store]
        key = hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()
        task = replace(
            task,
            place=place,
            folder=str(self.output / RESULTS / place),
            model=str(model.file),
            sha256=model.sha256,
            mark=mark,
            formats=list(rule.formats),
            slices=list(limits[0]) if limits[0] else None,
            spacing_mm=list(limits[1]) if limits[1] else None,
        )
        return Planned(Item(place, key, f"{model.name} {model.version}"), task)


def _thinnest(volume: _Remote | Volume) -> tuple[float, int]:
    return (volume.about.spacing_mm[2] if volume.about.spacing_mm else float("inf"), -(volume.about.slices or 0))


def _fewest(volume: _Remote | Volume) -> tuple[int, float]:
    return (-(volume.about.slices or 0), _thinnest(volume)[0])
