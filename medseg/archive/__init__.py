"""Archives: `run` segments all that an `Order` names, through crashes, and tells of each scan what became of it."""

from medseg.archive.batch import Order, Watcher, run
from medseg.archive.foreman import Limits
from medseg.archive.report import read_report
from medseg.archive.rules import Rule, Rules, read_rules
from medseg.archive.runner import Tally
from medseg.archive.selection import Shard
from medseg.archive.task import Settings

__all__ = [
    "Limits",
    "Order",
    "Rule",
    "Rules",
    "Settings",
    "Shard",
    "Tally",
    "Watcher",
    "read_report",
    "read_rules",
    "run",
]
