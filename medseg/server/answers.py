"""How a server says what went wrong: a status, a stable code, one sentence, and what to do next; nothing of its own."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.responses import JSONResponse

from medseg.server.desk import CANCELLED, Job

_STATUS = {"MEMORY": 413, "TOO_LARGE": 413, "RATIO": 413, "MemoryLimit": 413, "MemoryError": 413}
_OURS = {"BundleError", "DeviceError", "OutputError"}


class Rejected(Exception):
    """A request that is not answered as it was meant.

    Parameters
    ----------
    status : int
        Of HTTP.
    code, problem, hint : str
        A stable word, what was wrong, and what to do.
    headers : mapping
        Of the answer.
    """

    def __init__(
        self, status: int, code: str, problem: str, hint: str, *, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(code)
        self.status, self.headers = status, dict(headers or {})
        self.error = {"code": code, "problem": problem, "hint": hint}

    def answer(self) -> JSONResponse:
        """Return what is sent."""
        return JSONResponse({"error": self.error}, self.status, self.headers)


def of_job(job: Job) -> Rejected:
    """Return the answer for a job without results."""
    if job.state == CANCELLED:
        return Rejected(409, "CANCELLED", "the job was cancelled", "send the scan again")
    error = job.error
    status = _STATUS.get(error["code"], 422)
    if error["code"] in _OURS or error["problem"].startswith("unexpected "):
        return Rejected(500, "INTERNAL", "the server could not do it", "ask who runs it to look into its log")
    return Rejected(status, error["code"], error["problem"], error["hint"])
