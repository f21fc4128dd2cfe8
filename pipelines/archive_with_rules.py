"""Segment an archive by rules written in Python: which series, by which model; and tell how it goes.

    python pipelines/archive_with_rules.py ARCHIVE -o OUT
    python pipelines/archive_with_rules.py ARCHIVE -o OUT --model spleen.safetensors --workers 2

ARCHIVE is a tree of DICOM in any layout, of NIfTI, a zip, or a list of paths. Copy this file and change RULES: they are
tried in their order, and the first that fits decides. As written: no localizers and reports; of each MR study the T1
series with the thinnest slices; all NIfTI files. Killed at any moment, the same command goes on; a second run does
nothing. OUT/index.html shows the results, OUT/results.csv has the volumes. Patients, studies and series are called by
keyed hashes; nothing printed here names one.

Exit code: 0 all done, 1 some scans failed or are left, 2 nothing could be done. For research use only.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from medseg import MedsegError, zoo
from medseg.archive import Limits, Order, Rule, Rules, Settings, Tally, Watcher, read_report, run

RULES = (  # a rule without a model takes that of --model; see `medseg.archive.Rule` for all that a rule can ask
    Rule(description=("*scout*", "*locali[sz]er*", "*report*", "*screen save*"), skip=True),
    Rule(modality=("MR",), description=("*t1*", "*mprage*"), slices=(10, 1000), per_study="thinnest"),
    Rule(path=("*.nii", "*.nii.gz"), exclude=("*_seg*", "*_mask*")),
)


class Lines(Watcher):
    """Prints a line when all scans are known, and now and then how far it is."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.last = seconds, time.monotonic()

    def begin(self, tally: Tally) -> None:
        """Say what there is to do."""
        print(f"{tally.total} scans that the rules mean: {tally.done} done before, {tally.left} to do", flush=True)

    def step(self, tally: Tally) -> None:
        """Say how far it is, and how long it will take."""
        if time.monotonic() - self.last >= self.seconds:
            self.last = time.monotonic()
            eta = "" if tally.eta is None else f"; {tally.per_hour:.0f} an hour, {tally.eta / 60:.0f} min to go"
            print(f"{tally.done} done, {tally.failed} failed, {tally.left} left{eta}", flush=True)


def main() -> int:
    """Segment the archive, and say in one line what stands in the way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path, help="a folder, a zip or a list of paths")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for results")
    parser.add_argument("--model", default=zoo.DEFAULT, help="by name (`medseg models list`) or file")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, or several: cuda:0,cuda:1")
    parser.add_argument("--workers", type=int, default=1, help="processes on each device")
    options = parser.parse_args()
    named = [rule if rule.model or rule.skip else rule.model_copy(update={"model": options.model}) for rule in RULES]
    order = Order(
        options.output,
        Rules(rule=tuple(named)),
        archive=options.archive,
        settings=Settings(device=options.device),
        limits=Limits(seconds=1800.0),
        workers=max(1, options.workers),
    )
    try:
        return tell(run(order, Lines(10.0)), options.output)
    except MedsegError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def tell(tally: Tally, output: Path) -> int:
    """Print what became of the archive, and return the exit code."""
    report = read_report(output)
    print(f"{tally.done} of {tally.total} scans segmented; {tally.new or 'nothing'} to do in this run")
    for verdict, count in sorted(report.verdicts.items()):
        print(f"  quality check: {count} {verdict}")
    for code, count, sentence in report.reasons:
        print(f"  failed: {count} {code}: {sentence}")
    for reason, count in report.not_meant.items():
        print(f"  not meant: {count} {reason}")
    if tally.note:
        print(tally.note)
    print(f"results: {output / 'index.html'}")
    return int(bool(tally.failed or tally.left))


if __name__ == "__main__":
    sys.exit(main())
