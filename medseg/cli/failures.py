"""What a command says of one scan or case that failed, while the others go on."""

from __future__ import annotations

from medseg.errors import MedsegError, ScanError


def explain(error: Exception) -> tuple[str, str, str]:
    """Return a stable code, what went wrong, and what to do next."""
    if isinstance(error, MedsegError):
        problem, hint = error.problem, error.hint
    elif isinstance(error, MemoryError):
        problem, hint = "there is not enough memory", "close other programs, or crop the scan"
    else:
        problem = f"unexpected {type(error).__name__}"  # its text may quote the patient's data
        hint = "run again with --debug and report it"
    return error.code if isinstance(error, ScanError) else type(error).__name__, problem, hint
