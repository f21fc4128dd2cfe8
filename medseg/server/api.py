"""The routes of medseg's own: models, scans in, jobs with progress, results out."""

from __future__ import annotations

import asyncio
import secrets
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.background import BackgroundTask

from medseg import __version__
from medseg.bundle import Bundle
from medseg.report.viewing import Kept
from medseg.server.answers import Rejected, of_job
from medseg.server.desk import DONE, WAITING, Job, Order
from medseg.server.guard import bearer
from medseg.server.service import Service, parse_formats

_MEDIA = {".gz": "application/gzip", ".dcm": "application/dicom", ".png": "image/png", ".json": "application/json"}
_LOOK, _BEAT = 0.1, 10.0  # seconds between two looks at a job, and between two events at most
_FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"file": {"type": "string", "format": "binary"}},
                    "required": ["file"],
                }
            },
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}


class LabelInfo(BaseModel):
    """One label of a model."""

    value: int
    name: str
    rgb: tuple[int, int, int]
    code: str | None


class ModelInfo(BaseModel):
    """One model."""

    name: str
    version: str
    summary: str
    sha256: str
    channels: list[str]
    axes: int
    labels: list[LabelInfo]
    loaded: bool


class Health(BaseModel):
    """Whether the server is there, and how much it has to do; the latter only for those who know the token."""

    status: Literal["ok"] = "ok"
    version: str = __version__
    queue: dict[str, int] | None = None


class ErrorInfo(BaseModel):
    """What went wrong: a stable code, one sentence, and what to do next."""

    code: str
    problem: str
    hint: str


class JobInfo(BaseModel):
    """How far a job has come; with its report when it is done."""

    job: str
    state: Literal["waiting", "running", "done", "failed", "cancelled"]
    before: int
    stage: str
    fraction: float
    results: dict[str, str]
    report: dict[str, Any] | None
    error: ErrorInfo | None


class Ask(BaseModel):
    """What may be said of a scan that is sent."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field("", description="by name; the first one when left out")
    format: str = Field("", description="nifti (when left out), nrrd, mha, seg.nrrd, dicom-seg, ..., or json")
    wait: bool = Field(default=True, description="false: answer at once with a job to ask about")
    client: str = Field("", description="whose it is, where several ask from one address")
    series: str = Field("", description="which DICOM series, as `medseg predict --series`")
    volume: int | None = Field(None, ge=0, lt=1 << 31, description="which volume of several, counted from 0")
    repair: bool = Field(default=False, description="interpolate over missing DICOM slices")
    suv: bool = Field(default=False, description="PET as standardised uptake values")

    def choice(self) -> dict[str, Any]:
        """Return what `medseg.read` takes."""
        given = {"series": self.series or None, "repair": self.repair or None, "suv": self.suv or None}
        return {name: value for name, value in {**given, "volume": self.volume}.items() if value is not None}


def routes(service: Service) -> APIRouter:
    """Return the routes."""
    router = APIRouter()
    _add_models(router, service)
    _add_predict(router, service)
    _add_jobs(router, service)
    _add_planes(router, service)
    return router


def _add_models(router: APIRouter, service: Service) -> None:
    @router.get("/health", tags=["server"])
    async def health(request: Request) -> Health:
        """Tell that the server is there."""
        known = not service.settings.token or service.settings.knows_token(bearer(request.headers))
        return Health(queue=service.desk.counts() if known else None)

    @router.get("/models", tags=["server"])
    async def models() -> list[ModelInfo]:
        """Return the models."""
        return [describe(service.shelf.card(name), loaded=name in service.shelf.loaded) for name in service.shelf.names]


def _add_predict(router: APIRouter, service: Service) -> None:
    @router.post(
        "/predict", tags=["scans"], openapi_extra=_FORM, response_model=None, responses={202: {"model": JobInfo}}
    )
    async def predict(request: Request, ask: Annotated[Ask, Query()]) -> Response:
        """Segment a scan: NIfTI, NRRD, MetaImage, a picture, zipped DICOM, or several DICOM files as parts of one name.

        The answer is the label map; the report for format=json; a zip archive of all for several formats. With
        wait=false it is a job to ask about. A client that hangs up cancels what it waits for.
        """
        name = service.model(ask.model)
        formats, with_json = parse_formats(ask.format)
        choice = ask.choice()
        sent = await service.receive(request)
        order = Order(name, formats, service.files_for(sent, name), choice, planes=not ask.wait)
        job = service.submit(order, client_of(request, ask.client))
        if not ask.wait:
            return JSONResponse(info(job, service).model_dump(), 202, {"location": f"/jobs/{job.name}"})
        if not await service.finish(job, request):
            return Response(status_code=499)
        forget = BackgroundTask(service.desk.forget, job)
        if job.state != DONE:
            service.desk.forget(job)
            raise of_job(job)
        if ask.format.strip(",") == "json":
            return JSONResponse(job.report, headers=_verdict(job), background=forget)
        kind = "zip" if len(formats) > 1 or with_json else formats[0]
        return await _file(job, kind, background=forget)


def _add_jobs(router: APIRouter, service: Service) -> None:
    @router.get("/jobs/{job}", tags=["jobs"])
    async def ask(job: str) -> JobInfo:
        """Tell how far a job has come."""
        return info(find(job, service), service)

    @router.get("/jobs/{job}/events", tags=["jobs"])
    async def events(job: str) -> StreamingResponse:
        """Tell each step as it is made (server-sent events); a job that all who listened have left is cancelled."""
        return StreamingResponse(
            _events(find(job, service), service), media_type="text/event-stream", headers={"x-accel-buffering": "no"}
        )

    @router.delete("/jobs/{job}", tags=["jobs"])
    async def drop(job: str) -> Response:
        """Cancel a job, and forget its results."""
        await asyncio.to_thread(service.desk.forget, find(job, service))
        return Response(status_code=204)

    @router.get("/jobs/{job}/results/{kind}", tags=["jobs"])
    async def result(job: str, kind: str) -> Response:
        """Return one result: a format that was asked for, 'picture', 'report', or 'zip' for all."""
        return await _file(done(job, service), kind)


def _add_planes(router: APIRouter, service: Service) -> None:
    @router.get("/jobs/{job}/planes", tags=["jobs"])
    async def planes(job: str) -> dict[str, Any]:
        """Return which planes can be looked at."""
        return (await _kept(done(job, service))).about

    @router.get("/jobs/{job}/planes/{view}/{at}", tags=["jobs"])
    async def plane(
        job: str,
        view: str,
        at: int,
        hidden: Annotated[list[str] | None, Query(description="name of a label to leave out; repeat")] = None,
        bare: Annotated[bool, Query(description="leave out all labels")] = False,  # noqa: FBT002 - a parameter of HTTP
    ) -> Response:
        """Return a picture of one plane, with the labels that are not hidden."""
        kept = await _kept(done(job, service))
        names = [label["name"] for label in kept.about["labels"]] if bare else hidden or ()
        png = await asyncio.to_thread(kept.png, view, at, hidden=names)
        return Response(png, media_type="image/png")

    @router.get("/jobs/{job}/solid/{which}", tags=["jobs"])
    async def solid(job: str, which: str) -> Response:
        """Return the 'scan' in grey levels, or its 'labels' counted from 1 in their order: NIfTI, for 3D."""
        kept = await _kept(done(job, service))
        path = await asyncio.to_thread(kept.solid, which)
        return FileResponse(path, media_type="application/gzip", filename=path.name)


def find(name: str, service: Service) -> Job:
    """Return a job.

    Raises
    ------
    Rejected
        If it is not known, or not any more.
    """
    job = service.desk.find(name)
    if job is None:
        raise Rejected(404, "JOB", "there is no such job", "results are kept for a while only; send the scan again")
    return job


def done(name: str, service: Service) -> Job:
    """Return a job that has results.

    Raises
    ------
    Rejected
        If it has none.
    """
    job = find(name, service)
    if not job.ended:
        raise Rejected(409, "RUNNING", "the job is not done yet", "wait for it: GET /jobs/{job}/events")
    if job.state != DONE:
        raise of_job(job)
    return job


def info(job: Job, service: Service) -> JobInfo:
    """Return what may be told of a job."""
    results = {kind: f"/jobs/{job.name}/results/{kind}" for kind in job.results}
    return JobInfo(
        job=job.name,
        state=job.state,
        before=service.desk.place(job) if job.state == WAITING else 0,
        stage=job.stage,
        fraction=round(job.fraction, 4),
        results=results if job.state == DONE else {},
        report=job.report if job.state == DONE else None,
        error=ErrorInfo(**of_job(job).error) if job.ended and job.state != DONE else None,
    )


def describe(bundle: Bundle, *, loaded: bool) -> ModelInfo:
    """Return what may be told of a model."""
    return ModelInfo(
        name=bundle.card.name,
        version=bundle.card.version,
        summary=bundle.card.summary,
        sha256=bundle.sha256,
        channels=[channel.name for channel in bundle.plan.channels],
        axes=bundle.plan.axes,
        labels=[
            LabelInfo(
                value=label.value,
                name=label.name,
                rgb=label.rgb,
                code=f"{label.code.scheme} {label.code.value} {label.code.meaning}" if label.code else None,
            )
            for label in bundle.plan.labels
        ],
        loaded=loaded,
    )


def client_of(request: Request, named: str) -> str:
    """Return whose request it is, so that all clients have their turn."""
    return f"{request.client.host if request.client else ''} {named[:64]}"


async def _events(job: Job, service: Service) -> AsyncIterator[str]:
    service.desk.watch(job, 1)
    try:
        said, silent = "", 0.0
        while True:
            text = info(job, service).model_dump_json()
            if text != said or silent > _BEAT:
                yield f"event: {'end' if job.ended else 'progress'}\ndata: {text}\n\n"
                said, silent = text, 0.0
            if job.ended or service.desk.closed:
                return
            await asyncio.sleep(_LOOK)
            silent += _LOOK
    finally:
        service.desk.watch(job, -1)


async def _file(job: Job, kind: str, *, background: BackgroundTask | None = None) -> FileResponse:
    if kind == "zip":
        path = job.folder / "segmentation.zip"
        if not path.exists():
            await asyncio.to_thread(_pack, job, path)
    elif kind in job.results:
        path = job.results[kind]
    else:
        raise Rejected(404, "RESULT", "there is no such result", f"there are: {', '.join([*job.results, 'zip'])}")
    media = _MEDIA.get(path.suffix, "application/octet-stream")
    status = await asyncio.to_thread(path.stat)  # an answer that has begun cannot tell any more that it is gone
    return FileResponse(
        path,
        media_type=media,
        filename=path.name,
        headers=_verdict(job),
        background=background,
        stat_result=status,
    )


def _pack(job: Job, path: Path) -> None:
    """Write an archive of all results, which is there as a whole or not at all: others may ask for it meanwhile."""
    part = path.with_name(f".{secrets.token_hex(8)}.part")
    with zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:
        for file in job.results.values():
            archive.write(file, file.name)
    part.replace(path)


def _verdict(job: Job) -> dict[str, str]:
    return {"x-medseg-verdict": job.report["qc"]["verdict"]}


async def _kept(job: Job) -> Kept:
    if not job.order.planes:
        raise Rejected(404, "PLANES", "no planes were kept of this job", "send the scan with wait=false")
    return await asyncio.to_thread(Kept, job.folder)
