"""What the audit log tells: who asked, what was done with which model and parameters, and what came of it."""

from __future__ import annotations

import getpass
import hashlib
import os
from datetime import UTC, datetime
from typing import Any

from medseg import __version__
from medseg.archive.naming import Names
from medseg.archive.rules import Rules
from medseg.archive.selection import Shard
from medseg.archive.task import Outcome, Settings, Task


class Events:
    """Lines of the audit log, without any identifier.

    Parameters
    ----------
    names : Names
        By which items are called.
    rules, settings, shard : Rules, Settings, Shard
        Of the run.
    """

    def __init__(self, names: Names, rules: Rules, settings: Settings, shard: Shard) -> None:
        self._names, self._settings, self._shard = names, settings, shard
        self._rules = hashlib.sha256(rules.model_dump_json().encode()).hexdigest()
        self._actor = _actor()

    def of_run(self, what: str, **data: Any) -> dict[str, Any]:
        """Return the line of a run that begins or ends."""
        part = f"{self._shard.number + 1}/{self._shard.count}"
        return {**self._head(what), "rules": self._rules, "shard": part, **data}

    def of_item(self, task: Task, outcome: Outcome) -> dict[str, Any]:
        """Return the line of an item that is finished."""
        files = outcome.result.get("files", {})
        return {
            **self._head("item"),
            "item": self._names.in_log(task.place),
            "images": len(task.files),
            "inputs": self._names.of("inputs", task.mark),
            "model": task.sha256,
            "parameters": self._settings.of_answer,
            "device": outcome.result.get("device", ""),
            "state": outcome.state,
            "code": outcome.code,
            "verdict": outcome.result.get("verdict", ""),
            "outputs": {kind: entry[3] for kind, entry in files.items()},
            "stored": outcome.result.get("stored", []),
        }

    def _head(self, what: str) -> dict[str, Any]:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        return {"time": now, "event": what, "actor": self._actor, "medseg": __version__}


def _actor() -> str:
    """Return who runs this; a container may have no name for its user."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"user {os.getuid()}"
