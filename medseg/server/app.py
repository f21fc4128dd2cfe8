"""The application: routes, and one way in which all of them fail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp

from medseg import __version__
from medseg.errors import UsageError
from medseg.server import api, monai_label, page
from medseg.server.answers import Rejected
from medseg.server.guard import Guard
from medseg.server.service import Service

_ABOUT = "Medical image segmentation. For research use only; not a medical device."
_CLOSING = 5.0  # seconds for jobs to stop


def build(service: Service) -> ASGIApp:
    """Return the application of a service."""

    @asynccontextmanager
    async def living(_: FastAPI) -> AsyncIterator[None]:
        service.crew.start()
        tidy = asyncio.create_task(service.tidy())
        try:
            yield
        finally:
            tidy.cancel()
            with suppress(asyncio.CancelledError):
                await tidy
            service.desk.close()
            await asyncio.to_thread(service.crew.join, _CLOSING)

    app = FastAPI(
        title="medseg", version=__version__, description=_ABOUT, docs_url=None, redoc_url=None, lifespan=living
    )
    app.include_router(api.routes(service))
    app.include_router(monai_label.routes(service))
    app.include_router(page.routes(service, app))
    app.add_exception_handler(Rejected, _rejected)
    app.add_exception_handler(UsageError, _unusable)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _by_status)
    app.add_exception_handler(ClientDisconnect, _left)
    app.add_exception_handler(FileNotFoundError, _gone)
    return Guard(app, service.settings)


async def _rejected(_: Request, error: Exception) -> Response:
    if not isinstance(error, Rejected):
        raise error
    return error.answer()


async def _unusable(_: Request, error: Exception) -> Response:
    if not isinstance(error, UsageError):
        raise error
    return Rejected(400, "USAGE", error.problem, error.hint).answer()


async def _invalid(_: Request, error: Exception) -> Response:
    """Name the parameters that are wrong, without what was sent."""
    if not isinstance(error, RequestValidationError):
        raise error
    names = {
        "a parameter that is not known" if each["type"] == "extra_forbidden" else str(each["loc"][-1])
        for each in error.errors()
    }
    return Rejected(400, "PARAMETER", f"not as it should be: {', '.join(sorted(names))}", "see /docs").answer()


async def _gone(_: Request, _error: Exception) -> Response:
    """Tell that a file is not there any more: its job was forgotten while it was asked for."""
    return Rejected(404, "JOB", "it is not kept any more", "send the scan again").answer()


async def _left(_: Request, _error: Exception) -> Response:
    """Answer nobody: the client went before its request was over."""
    return Response(status_code=499)


async def _by_status(_: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    problem = {404: "there is nothing here", 405: "not in this way"}.get(error.status_code, "the request is not right")
    return Rejected(error.status_code, "REQUEST", problem, "see /docs", headers=error.headers).answer()
