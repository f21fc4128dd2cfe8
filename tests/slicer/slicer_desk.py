"""Shared parts of the tests of the Slicer extension: where it is, processes that are told what to say, and waiting."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from conftest import SAMPLES, smooth_scan

import medseg

ROOT = Path(__file__).parents[2]
EXTENSION = ROOT / "integrations" / "slicer"
SOURCES = sorted([*(EXTENSION / "MedSeg").rglob("*.py"), *(EXTENSION / "MedSegCLI").rglob("*.py")])


class Told:
    """A process that says what it was told to, a piece at each look, and then ends with a code."""

    def __init__(self, code=0, pieces=()):
        self.code, self.pieces, self.killed, self.looks = code, list(pieces), False, 0

    def poll(self):
        self.looks += 1
        return None if self.looks <= len(self.pieces) else self.code

    def read(self):
        piece = self.pieces[self.looks - 1] if self.looks <= len(self.pieces) else (b"", b"")
        return piece if isinstance(piece, tuple) else (b"", piece)

    def kill(self):
        self.killed = True


class Starter:
    """Starts what it was given, one after the other, and notes the commands."""

    def __init__(self, *processes):
        self.processes, self.commands, self.environments = list(processes), [], []

    def __call__(self, command, environment, folder):
        self.commands.append(list(command))
        self.environments.append(dict(environment))
        process = self.processes.pop(0)
        if isinstance(process, Exception):
            raise process
        return process


def until(condition, seconds=120.0):
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def gone(pid):
    """Whether a process has ended; one that nobody has buried yet counts as ended."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] == "Z"


def small_scan(path, seed=0):
    """Write a small scan that a tiny model segments in no time."""
    medseg.write(smooth_scan((16, 16, 16), seed=seed), path)
    return path


def program(folder):
    """Return a program `medseg` that is this medseg."""
    path = folder / "medseg"
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m medseg "$@"\n')
    path.chmod(0o755)
    return path


def sample_as_nrrd(path):
    """Write the sample scan as Slicer would."""
    medseg.write(medseg.read(SAMPLES / "t1_hippocampus.nii.gz"), path)
    return path
