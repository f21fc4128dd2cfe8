"""Every error that medseg raises on purpose, as one family.

MedsegError
├── ScanError         a scan cannot be read, or must not be trusted (ValueError)
├── GeometryError     grids that cannot be related to one another (ValueError)
├── ShapeMismatch     arrays that should have the same shape (ValueError)
├── PlanError         a plan that contradicts itself or the scan (ValueError)
├── BundleError       a model file that is damaged, hostile or unknown (ValueError)
├── UsageError        arguments that do not fit together (ValueError)
├── Refused           a result that the quality check refuses, for a strict user (ValueError)
├── TrainingError     a training that cannot go on (RuntimeError)
├── DeviceError       a device that is not there (RuntimeError)
├── MemoryLimit       work that does not fit into the memory it may take (RuntimeError)
├── PacsError         a PACS that cannot be asked, or does not do what it was asked (ConnectionError)
└── OutputError       a result that cannot be written (OSError)
"""


class MedsegError(Exception):
    """Base of the family: one line that says what was found, where, and what to do next.

    Parameters
    ----------
    problem : str
        What was found and where (file, axis, tag), without a full stop.
    hint : str
        What to do next, without a full stop.
    """

    def __init__(self, problem: str, *, hint: str) -> None:
        super().__init__(f"{problem}; {hint}")
        self.problem = problem
        self.hint = hint


class ScanError(MedsegError, ValueError):
    """A scan that cannot be read or must not be trusted; `code` is a stable word for the reason."""

    def __init__(self, problem: str, *, hint: str, code: str) -> None:
        super().__init__(problem, hint=hint)
        self.code = code


class GeometryError(MedsegError, ValueError):
    """Voxel grids that are impossible or cannot be related to one another."""


class ShapeMismatch(MedsegError, ValueError):
    """Arrays that should have the same shape and do not."""


class PlanError(MedsegError, ValueError):
    """A plan that contradicts itself, or does not fit the scan it is asked to prepare."""


class BundleError(MedsegError, ValueError):
    """A model file that is damaged, hostile, or of an unknown format."""


class UsageError(MedsegError, ValueError):
    """Arguments that do not fit together."""


class Refused(MedsegError, ValueError):
    """A result that the quality check refuses, where the user asked to be strict."""


class TrainingError(MedsegError, RuntimeError):
    """A training that cannot go on."""


class DeviceError(MedsegError, RuntimeError):
    """A computing device that this machine does not have."""


class MemoryLimit(MedsegError, RuntimeError):
    """Work that does not fit into the memory that it may take."""


class PacsError(MedsegError, ConnectionError):
    """A PACS that cannot be asked, or does not do what it was asked."""


class OutputError(MedsegError, OSError):
    """A result that could not be written; nothing half-written is left behind."""


def explain(error: Exception) -> tuple[str, str, str]:
    """Return a stable code, what went wrong, and what to do next: for one of many scans, while the others go on."""
    if isinstance(error, MedsegError):
        problem, hint = error.problem, error.hint
    elif isinstance(error, MemoryError):
        problem, hint = "there is not enough memory", "close other programs, or crop the scan"
    else:
        problem = f"unexpected {type(error).__name__}"  # its text may quote the patient's data
        hint = "run again with --debug and report it"
    return error.code if isinstance(error, ScanError) else type(error).__name__, problem, hint
