"""Checking a data set before anything is learned from it: every case opened once, all that is wrong named at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from medseg.plan import Label
from medseg.progress import Progress, silent
from medseg.training.check import comparison
from medseg.training.check.inspection import Portrait, inspect, scene_of
from medseg.training.check.suspicion import Misfit, Scene, misfits
from medseg.training.dataset import Dataset, Finding
from medseg.training.planning.survey import CaseFacts, Survey


@dataclass(frozen=True, eq=False)
class Checked:
    """A data set as it was found.

    Parameters
    ----------
    dataset : Dataset
        Of the sound cases; its channels and labels are known, and cases of one image are in one group.
    survey : Survey
        What they look like.
    findings : tuple of Finding
        What is wrong or odd, errors first.
    """

    dataset: Dataset
    survey: Survey
    findings: tuple[Finding, ...]


def check(dataset: Dataset, *, fix: bool = False, progress: Progress = silent) -> Checked:
    """Return a data set with its sound cases, what they look like, and all that is wrong or odd.

    Parameters
    ----------
    dataset : Dataset
        As a layout was read.
    fix : bool
        Whether a reference may lie off its scan's grid by rounding noise (0.1 voxel).
    progress : callable
        Told of the stage 'check'.

    Notes
    -----
    Codes of errors, beside those of the readers and of the layout: GRID and GRID_ROUNDING (image and label on two
    grids), CHANNELS, DIMENSIONS, PHYSICAL (a case unlike the others), UNKNOWN_VALUE, NOT_LABELS, LOSSY and TABLE
    (values that are no labels, or other ones), IGNORED (nothing drawn), NEVER (a label that no case has), CONSTANT
    (an image of one value), OTHER_LABEL and SWAPPED (another scan's label). Warnings: EMPTY, FULL, DUPLICATE, MISFIT,
    SPACING, HEADER, GROUP, FEW.
    """
    portraits: dict[str, Portrait] = {}
    present: set[int] = set()
    findings = [*dataset.findings]
    for number, case in enumerate(dataset.cases):
        progress("check", number / len(dataset.cases))
        seen = inspect(case, dataset, seed=number, fix=fix)
        findings += seen.findings
        present |= {*seen.values}
        if seen.portrait:
            portraits[case.name] = seen.portrait
    findings += comparison.odd_ones_out(_sound(portraits, findings), dataset.channels)
    labels = dataset.labels or comparison.named_labels(_sound(portraits, findings))
    findings += comparison.other_tables(_sound(portraits, findings), labels, declared=bool(dataset.labels))
    findings += comparison.label_extremes(_sound(portraits, findings), labels, present, dataset)
    findings += comparison.shared_labels(_sound(portraits, findings))
    findings += _about_fit(_sound(portraits, findings), dataset, fix=fix)
    sound = _sound(portraits, findings)
    cases, doubles = comparison.duplicates([case for case in dataset.cases if case.name in sound], sound)
    findings += [*doubles, *comparison.far_spacings(sound), *comparison.header_oddities(sound)]
    findings += comparison.about_the_set(dataset, cases)
    progress("check", 1.0)
    return Checked(
        replace(
            dataset,
            cases=tuple(cases),
            channels=dataset.channels or comparison.channel_names(sound),
            labels=labels,
            findings=(),
        ),
        Survey(tuple(_with_volumes(one, labels) for one in sound.values())),
        tuple(sorted(findings, key=lambda finding: finding.severity)),
    )


def _sound(portraits: dict[str, Portrait], findings: Sequence[Finding]) -> dict[str, Portrait]:
    """Return the portraits of the cases without an error."""
    wrong = {finding.case for finding in findings if finding.severity == "error"}
    return {name: one for name, one in portraits.items() if name not in wrong}


def _about_fit(portraits: dict[str, Portrait], dataset: Dataset, *, fix: bool) -> list[Finding]:
    """Return the cases whose labels do not follow their images, and those that have swapped theirs."""
    names, seen = [*portraits], [*portraits.values()]
    cases = {case.name: case for case in dataset.cases}

    def reopen(place: int) -> Scene:
        return scene_of(cases[names[place]], dataset, fix=fix)

    def exchangeable(one: int, other: int) -> bool:
        a, b = seen[one], seen[other]
        return a.facts.shape == b.facts.shape and a.image_digest != b.image_digest

    return [_told(misfit, names) for misfit in misfits([one.trace for one in seen], exchangeable, reopen)]


def _told(misfit: Misfit, names: Sequence[str]) -> Finding:
    name = names[misfit.place]
    if misfit.partner is not None:
        other = names[misfit.partner]
        detail = f"its label seems to be that of {other}, and the other way round: exchanged, both follow their images"
        return Finding("error", "SWAPPED", name, f"{detail}; compare them, and exchange the files")
    detail = (
        f"the label does not follow the image: agreement {misfit.agreement:.2f}, the median is {misfit.usual:.2f} "
        f"({misfit.deviations:.1f} deviations); is it of another scan, shifted or flipped?"
    )
    return Finding("warning", "MISFIT", name, detail)


def _with_volumes(one: Portrait, labels: Sequence[Label]) -> CaseFacts:
    volumes = {
        label.name: sum(one.counts.get(atom, 0) for atom in label.atoms) * one.voxel_ml for label in labels
    }  # of voxels without a size, thousands
    return replace(one.facts, volumes_ml=volumes)
