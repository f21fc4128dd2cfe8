"""Watch a PACS: every few minutes segment the CT and MR series that came, and store the results back as DICOM SEG.

    python pipelines/pacs_loop.py dicomweb+http://127.0.0.1:8042/dicom-web -o OUT --model liver.safetensors
    python pipelines/pacs_loop.py "dimse://ORTHANC@127.0.0.1:4242?aet=MEDSEG" -o OUT --days 2 --modality MR --every 300

A ledger in OUT knows what is done: each round does only what is new, also after a restart, and a fault of one series
is kept with its reason (`medseg status OUT`, `medseg retry OUT`). OUT has a page, a table and an audit log, too.

A series that is still arriving looks like a whole one, and nothing in the images tells: so each round asks twice,
--settle seconds apart, and leaves for later what grew in between. A series that grows after that is segmented again,
and a second SEG stored; choose --settle longer than your scanners pause. Where the PACS does not tell how many images
a series has, this cannot be seen at all. A PACS that is down for a while is a line, and the next round tries again.

SIGTERM and Ctrl-C end it cleanly: what is under way is finished, a second one ends at once. The results carry no
clinical approval: for research use only, on a PACS where research results may be stored.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path

from medseg import MedsegError, zoo
from medseg.archive import Order, Rule, Rules, Settings, run
from medseg.dicom.pacs import Query, Remote, connect
from medseg.errors import OutputError, PacsError


@dataclass(frozen=True)
class Settled(Query):
    """A query for those series alone that have as many images as they had before."""

    before: dict[str, int | None] = field(default_factory=dict)

    def matches(self, remote: Remote) -> bool:
        """Return whether a series is meant, was there before, and has not grown."""
        there = remote.series in self.before
        return super().matches(remote) and there and self.before[remote.series] == remote.images


def main() -> int:
    """Go round until somebody says stop."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pacs", help="dicomweb+http://..., dicomweb+https://... or dimse://TITLE@HOST:PORT?aet=OWN")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for results and the ledger")
    parser.add_argument("--model", default=zoo.DEFAULT, help="by name (`medseg models list`) or file")
    parser.add_argument("--modality", action="append", help="CT and MR when left out; repeat for several")
    parser.add_argument("--description", default="", help="pattern of the series description, such as '*thorax*'")
    parser.add_argument("--days", type=int, default=1, help="how far back studies may lie; 0 for those of today")
    parser.add_argument("--token-file", type=Path, help="holds the bearer token of a DICOMweb PACS")
    parser.add_argument("--every", type=float, default=120.0, metavar="SECONDS", help="between two rounds")
    parser.add_argument("--settle", type=float, default=30.0, metavar="SECONDS", help="in which no image may come")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--once", action="store_true", help="one round, and no more")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    try:
        token = options.token_file.read_text("ascii").strip() if options.token_file else ""
        return watch(options, token)
    except (MedsegError, OSError, UnicodeDecodeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def stop(number: int, frame: object) -> None:  # noqa: ARG001 - the system's form
    """End while nothing is under way; while something is, `run` has handlers of its own, which let it finish."""
    print("stopped", flush=True)
    sys.exit(0)


def watch(options: argparse.Namespace, token: str) -> int:
    """Go round; return the exit code: 0, or with --once 1 where some series failed."""
    while True:
        began = time.monotonic()
        try:
            failed, stopped = go_round(options, token)
        except (PacsError, OutputError) as error:  # the PACS may come back, the disk may be freed
            if options.once:
                raise
            print(f"error: {error}", file=sys.stderr, flush=True)
            failed, stopped = 0, False
        if options.once or stopped:
            return int(options.once and failed > 0)
        time.sleep(max(1.0, options.every - (time.monotonic() - began)))


def go_round(options: argparse.Namespace, token: str) -> tuple[int, bool]:
    """Segment and store what is new; return how many failed, and whether somebody said stop."""
    first = date.today() - timedelta(days=options.days)  # noqa: DTZ011 - the PACS has local dates
    asked = (tuple(options.modality or ("CT", "MR")), (f"{first:%Y%m%d}", ""), options.description)
    before = {remote.series: remote.images for remote in connect(options.pacs, token=token).find(Query(*asked))}
    time.sleep(options.settle)
    order = Order(
        options.output,
        Rules(rule=(Rule(model=options.model, formats=("nifti", "dicom-seg")),)),
        pacs=options.pacs,
        query=Settled(*asked, before),
        store=options.pacs,
        settings=Settings(device=options.device, token=token, store_token=token),
    )
    tally = run(order)
    waiting = len(before) - tally.total
    later = f"; {waiting} still arriving" if waiting > 0 else ""
    print(f"{tally.new} new, {tally.done} done, {tally.failed} failed, {tally.left} left{later}", flush=True)
    if tally.note:
        print(tally.note, flush=True)
    return tally.failed, bool(tally.note)


if __name__ == "__main__":
    sys.exit(main())
