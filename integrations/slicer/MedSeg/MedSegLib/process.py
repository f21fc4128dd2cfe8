"""A program run beside Slicer: its output is read as it comes, and it is ended with all that it started.

Its output goes to two files, not to pipes: nothing blocks, no thread is needed (in Slicer they run only while Python
does), and no buffer can fill up.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Callable, Protocol


class Running(Protocol):
    """What the logic needs of a program that it has started."""

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""

    def read(self) -> tuple[bytes, bytes]:
        """Return what it has written to standard output and standard error since the last call."""

    def kill(self) -> None:
        """End it and all that it has started; return when it has ended."""


Start = Callable[[Sequence[str], Mapping[str, str], Path], Running]


class Process:
    """A program in a session of its own.

    Parameters
    ----------
    command : sequence of str
        The program and its arguments; no shell looks at them.
    environment : mapping
        All of its environment.
    folder : Path
        Where its output is kept.

    Raises
    ------
    OSError
        If it cannot be started.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        files = [folder / "stdout.txt", folder / "stderr.txt"]
        options = (
            {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}
            if os.name == "nt"
            else {"start_new_session": True}
        )
        with open(files[0], "wb") as out, open(files[1], "wb") as err:
            self._child = subprocess.Popen(
                list(command), env=dict(environment), stdin=subprocess.DEVNULL, stdout=out, stderr=err, **options
            )
        self._files = [open(file, "rb") for file in files]  # noqa: SIM115 - closed when it has ended

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""
        if self._child.returncode is None and self._child.poll() is not None:
            self._end_group()  # a program that crashed may have left others behind
        return self._child.returncode

    def read(self) -> tuple[bytes, bytes]:
        """Return what it has written to standard output and standard error since the last call."""
        if self._files[0].closed:
            return b"", b""
        out, err = (file.read() for file in self._files)
        if self._child.returncode is not None:
            for file in self._files:
                file.close()
        return out, err

    def kill(self) -> None:
        """End it and all that it has started."""
        if self._child.poll() is None:
            if os.name == "nt":
                subprocess.run(
                    ["taskkill", "/T", "/F", "/PID", str(self._child.pid)],
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    check=False,
                )
                self._child.kill()
            else:
                self._end_group()
            self._child.wait()
        self.read()  # closes the files

    def _end_group(self) -> None:
        if os.name == "nt":
            return  # without its first process there is no tree to be found
        try:
            os.killpg(self._child.pid, signal.SIGKILL)
        except ProcessLookupError:
            return  # nobody is left
        except PermissionError:
            if self._child.poll() is None:  # macOS says this of a group of which only zombies are left
                raise
