"""The folder beside a model in which its training lives: settings, prepared cases, checkpoints, logs.

It is what makes a training resumable: the same command finds it and goes on. One run at a time may hold it, or one of
each fold.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from medseg.atomic import check_writable, write_atomic
from medseg.errors import UsageError
from medseg.locks import locked

T = TypeVar("T")

_DAMAGED = "remove that file and give the same command again, or begin anew with --restart"


class Workspace:
    """The folder of one training.

    Parameters
    ----------
    output : Path
        Where the model goes; the folder lies beside it.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self.folder = output.with_name(f"{output.name.removesuffix('.safetensors')}.training")
        self.cases = self.folder / "cases"

    def checkpoint(self, member: int) -> Path:
        """Return the checkpoint of a member."""
        return self.folder / f"member-{member}.checkpoint"

    def weights(self, member: int) -> Path:
        """Return the bundle of a member that is done."""
        return self.folder / f"member-{member}.safetensors"

    def log(self, member: int) -> Path:
        """Return the log of a member."""
        return self.folder / f"member-{member}.csv"

    def scores(self, member: int) -> Path:
        """Return the scores of the cases that were held back from a member."""
        return self.folder / f"member-{member}.scores.json"

    @contextmanager
    def held(self, *, restart: bool, fold: int | None = None) -> Iterator[None]:
        """Hold the folder against other runs, emptied first if asked; a model whose members are not all done may grow.

        Runs of different folds may share it: on several cards, or machines with a common disk that knows locks.

        Raises
        ------
        UsageError
            If the model is there already, or another run holds the folder.
        OutputError
            If it cannot be made.
        """
        if self.output.exists() and not (restart or self._unfinished()):
            raise UsageError(
                f"{self.output}: there is a model already", hint="choose another -o, or train it anew with --restart"
            )
        check_writable(self.folder)
        with ExitStack() as stack:
            stack.enter_context(locked(self.folder / ".lock", shared=fold is not None and not restart))
            if fold is not None:
                stack.enter_context(locked(self.folder / f".lock-{fold}"))
            if restart:
                for path in self.folder.iterdir():
                    if not path.name.startswith(".lock"):
                        shutil.rmtree(path) if path.is_dir() else path.unlink()
            elif fold is None:
                self._sweep()
            check_writable(self.cases)
            yield

    def finishing(self) -> AbstractContextManager[None]:
        """Wait until no other run gathers the members, and hold that against others."""
        return locked(self.folder / ".lock-finish", wait=True)

    def agree(self, settings: dict[str, Any]) -> None:
        """Keep the settings of a first run; refuse a second one whose settings differ.

        They bind once there is a setup; how long it may take, once there is a budget.

        Raises
        ------
        UsageError
            With the first setting that differs.
        """
        path = self.folder / "settings.json"
        asked = json.loads(_json(settings))
        known = self.parsed("settings.json", dict[str, Any])
        if known is None or self.read("setup.json") is None:
            known = asked
        open_yet = {"minutes", "epochs"} if self.read("budget.json") is None else set()
        for name in {**known, **asked}:
            if name not in open_yet and known.get(name) != asked.get(name):
                raise UsageError(
                    f"{self.folder}: a training with another {name} is under way here "
                    f"({_short(known.get(name))}, now {_short(asked.get(name))})",
                    hint="give the same options to go on, begin anew with --restart, or choose another -o",
                )
        write_atomic(path, [_json(asked)])

    def read(self, name: str) -> Any:
        """Return what a JSON file of the folder holds; None if it is not there."""
        path = self.folder / name
        try:
            return json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise UsageError(f"{path}: is damaged", hint=_DAMAGED) from error

    def parsed(self, name: str, parse: Callable[[Any], T]) -> T | None:
        """Return what `parse` makes of a JSON file of the folder; None if it is not there.

        Raises
        ------
        UsageError
            If it is damaged, or of another form.
        """
        content = self.read(name)
        try:
            return None if content is None else parse(content)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise UsageError(f"{self.folder / name}: is damaged, or of another release", hint=_DAMAGED) from error

    def write(self, name: str, content: Any) -> None:
        """Write a JSON file of the folder, whole or not at all."""
        write_atomic(self.folder / name, [_json(content)])

    def tidy(self) -> None:
        """Remove what a finished training no longer needs."""
        shutil.rmtree(self.cases, ignore_errors=True)
        self._sweep()
        for path in self.folder.glob("member-*"):
            if path.suffix in {".checkpoint", ".safetensors"}:
                path.unlink()

    def _sweep(self) -> None:
        """Remove what killed runs have half written; nobody else may be writing."""
        for path in self.folder.rglob(".medseg-*.part"):
            path.unlink()

    def _unfinished(self) -> bool:
        """Return whether some members are done, and others are not: the last one removes their files."""
        return any(self.folder.glob("member-*.safetensors"))


def _json(content: Any) -> bytes:
    return json.dumps(content, indent=1, sort_keys=True, default=str).encode() + b"\n"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
