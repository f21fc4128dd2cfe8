"""The routes: paths, parameters and answers are those of MONAI Label 0.8."""

from __future__ import annotations

import asyncio
import json
import secrets
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.background import BackgroundTask

from medseg import __version__
from medseg.server.answers import Rejected, of_job
from medseg.server.api import client_of
from medseg.server.desk import DONE, Job, Order
from medseg.server.monai_label.answer import multipart
from medseg.server.monai_label.store import FINAL, Datastore, Session, Sessions
from medseg.server.service import Service

_DESCRIPTION = "medseg: for research use only; not a medical device"
_STRATEGY = "first"


class MonaiLabel:
    """What these routes share.

    Parameters
    ----------
    service : Service
        Models and jobs.
    """

    def __init__(self, service: Service) -> None:
        self.service = service
        self.sessions = Sessions(service.settings.limits)
        self.uploads = Sessions(service.settings.limits)
        folder = service.settings.datastore
        self.datastore = Datastore(folder, service.settings.limits) if folder else None

    def store(self) -> Datastore:
        """Return the folder of scans.

        Raises
        ------
        Rejected
            If none was given.
        """
        if self.datastore is None:
            raise Rejected(404, "DATASTORE", "the server has no folder of scans", "start it with --datastore DIR")
        return self.datastore

    def scan(self, image: str, session_id: str) -> tuple[Path, Session | None]:
        """Return the file of a scan that was sent before, or of the folder of scans.

        Raises
        ------
        Rejected
            If there is none of this name.
        """
        session = self.sessions.find(session_id) if session_id else self.uploads.find(image)
        if session:
            return session.path, session
        if session_id or self.datastore is None:
            raise Rejected(404, "IMAGE", "there is no such scan or session, or not any more", "send it again")
        return self.datastore.scan(image), None


def routes(service: Service) -> APIRouter:
    """Return the routes."""
    router = APIRouter(tags=["MONAI Label"])
    shared = MonaiLabel(service)
    service.tidied += [shared.sessions.tidy, shared.uploads.tidy]
    _add_auth(router, service)
    _add_info(router, shared)
    _add_sessions(router, shared)
    _add_datastore(router, shared)
    _add_infer(router, shared)
    return router


def _add_auth(router: APIRouter, service: Service) -> None:
    @router.get("/auth/")
    async def auth() -> dict[str, Any]:
        """Tell whether a token is needed."""
        return {"enabled": bool(service.settings.token)}

    @router.post("/auth/token")
    async def token(request: Request) -> dict[str, str]:
        """Give the token to a client that sends it as its password."""
        form = parse_qs((await _body(request, 4096)).decode("utf-8", "replace"))
        password = form.get("password", [""])[0]
        if service.settings.token and not service.settings.knows_token(password):
            raise Rejected(401, "TOKEN", "the password is not the token of this server", "any user name will do")
        return {"access_token": password, "token_type": "bearer"}

    @router.get("/auth/token/valid")
    async def valid() -> dict[str, Any]:
        """Answer only those who sent a token that is right."""
        return {"username": "user"}


def _add_info(router: APIRouter, shared: MonaiLabel) -> None:
    @router.get("/info/")
    async def info() -> dict[str, Any]:
        """Tell which models there are."""
        shelf, store = shared.service.shelf, shared.datastore
        cards = [shelf.card(name) for name in shelf.names]
        tags = await asyncio.to_thread(store.labels) if store else {}
        return {
            "name": "medseg",
            "description": _DESCRIPTION,
            "version": __version__,
            "labels": list(dict.fromkeys(label.name for card in cards for label in card.plan.labels)),
            "models": {
                card.card.name: {
                    "type": "segmentation",
                    "labels": label_names([label.name for label in card.plan.labels]),
                    "dimension": card.plan.axes,
                    "description": card.card.summary,
                    "config": {},
                }
                for card in cards
            },
            "trainers": {},
            "strategies": {_STRATEGY: {"description": "the first scan without a label map"}} if store else {},
            "scoring": {},
            "train_stats": {},
            "datastore": {"total": len(tags), "completed": sum(FINAL in each for each in tags.values())},
        }

    @router.post("/activelearning/{strategy}")
    async def next_scan(strategy: str) -> dict[str, Any]:
        """Name the next scan to label; nothing when there is none."""
        if strategy != _STRATEGY:
            raise Rejected(404, "STRATEGY", "there is no such strategy", f"there is: {_STRATEGY}")
        found = await asyncio.to_thread(shared.datastore.first_without_label) if shared.datastore else None
        return {"id": found[0], "name": found[1].name} if found else {}

    @router.api_route("/train/{rest:path}", methods=["GET", "POST", "DELETE"])
    async def train(rest: str) -> Response:  # noqa: ARG001 - whatever it is
        """Tell that nothing is trained here."""
        raise Rejected(404, "TRAIN", "nothing is trained here", "use `medseg train`")


def _add_sessions(router: APIRouter, shared: MonaiLabel) -> None:
    @router.put("/session/")
    async def create(request: Request) -> dict[str, Any]:
        """Keep a scan for a while."""
        sent = await shared.service.receive(request)
        path = shared.service.only_file(sent)
        session = shared.sessions.add(secrets.token_urlsafe(16), path)
        return {"session_id": session.name, "session_info": _session_info(session, shared)}

    @router.get("/session/{name}")
    async def find(name: str) -> dict[str, Any]:
        """Tell whether a scan is still there."""
        session = shared.sessions.find(name)
        if session is None:
            raise Rejected(404, "SESSION", "there is no such session, or not any more", "send the scan again")
        return _session_info(session, shared)

    @router.delete("/session/{name}")
    async def drop(name: str) -> dict[str, Any]:
        """Forget a scan."""
        if not await asyncio.to_thread(shared.sessions.drop, name):
            raise Rejected(404, "SESSION", "there is no such session, or not any more", "nothing is to be done")
        return {"name": name}


def _add_datastore(router: APIRouter, shared: MonaiLabel) -> None:
    @router.get("/datastore/")
    async def scans(output: str = "all") -> dict[str, Any]:
        """List scans and their labels."""
        store = shared.store()
        found = await asyncio.to_thread(store.labels)
        if output == "stats":
            return {"total": len(found), "completed": sum(FINAL in tags for tags in found.values())}
        objects = {
            name: {"labels": {tag: {"ext": ".nii.gz", "info": store.about(path)} for tag, path in tags.items()}}
            for name, tags in found.items()
        }
        return {"name": "medseg", "objects": objects}

    @router.put("/datastore/")
    async def upload(request: Request, image: str) -> dict[str, str]:
        """Keep a scan for a while, under the name that the client gives."""
        path = shared.service.only_file(await shared.service.receive(request))
        shared.uploads.add(image[:200], path)
        return {"image": image}

    @router.get("/datastore/image")
    async def image(image: str) -> FileResponse:
        """Return a scan of the folder."""
        path = await asyncio.to_thread(shared.store().scan, image)
        return FileResponse(path, media_type="application/octet-stream", filename=path.name)

    @router.get("/datastore/label")
    async def label(label: str, tag: str = FINAL) -> FileResponse:
        """Return a label map."""
        path = (await asyncio.to_thread(shared.store().labels)).get(label, {}).get(tag)
        if path is None:
            raise Rejected(404, "LABEL", "there is no such label map", "see GET /datastore/?output=all")
        return FileResponse(path, media_type="application/octet-stream", filename=path.name)

    @router.put("/datastore/label")
    async def save(request: Request, image: str, tag: str = FINAL) -> dict[str, str]:
        """Keep a label map that a person drew."""
        store = shared.store()
        sent = await shared.service.receive(request)
        try:
            file = shared.service.only_file(sent)
            await asyncio.to_thread(store.save, image, tag or FINAL, file, _params(sent.fields.get("params", "{}")))
        finally:
            shared.service.drop(sent)
        return {"image": image, "label": image}


def _add_infer(router: APIRouter, shared: MonaiLabel) -> None:
    @router.post("/infer/{model}", response_model=None)
    async def infer(
        request: Request,
        model: str,
        image: str = "",
        session_id: str = "",
        output: Literal["", "image", "json", "all", "dicom_seg"] = "",
    ) -> Response:
        """Segment a scan that is sent along, or was before, or lies in the folder."""
        service = shared.service
        name = service.model(model)
        sent = await service.receive(request)
        said = _params(sent.fields.get("params", "{}"))
        sent.files.pop("label", None)  # scribbles: no model here looks at them
        session: Session | None = None
        try:
            if sent.files:
                files = service.files_for(sent, name)
            else:
                service.drop(sent)
                path, session = await asyncio.to_thread(shared.scan, image, session_id)
                files = service.one_channel(name, path)
        except Rejected:
            service.drop(sent)
            raise
        formats = ("dicom-seg",) if output == "dicom_seg" else ("nifti",)
        order = Order(name, formats, files, keep_files=not sent.files, numbered=True)
        if session:
            shared.sessions.use(session, 1)
        try:
            job = service.submit(order, client_of(request, str(said.get("client_id", ""))))
            if not await service.finish(job, request):
                return Response(status_code=499)
        finally:
            if session:
                shared.sessions.use(session, -1)
        if job.state != DONE:
            service.desk.forget(job)
            raise of_job(job)
        return await _answer(job, output, formats[0], service)


async def _answer(job: Job, output: str, kind: str, service: Service) -> Response:
    forget = BackgroundTask(service.desk.forget, job)
    told = result_params(job)
    if output == "json":
        return JSONResponse(told, background=forget)
    path = job.results[kind]
    name = f"medseg-{job.name[:8]}{'.dcm' if kind == 'dicom-seg' else '.nii.gz'}"
    if output in {"image", "dicom_seg"}:
        return FileResponse(path, media_type="application/octet-stream", filename=name, background=forget)
    content = await asyncio.to_thread(path.read_bytes)
    return multipart(told, name, content, background=forget)


def result_params(job: Job) -> dict[str, Any]:
    """Return what is told beside a label map: the numbers of the labels in it, volumes, and the verdict."""
    names = [label["name"] for label in job.report["labels"]]
    return {
        "label_names": label_names(names),
        "volumes_ml": {label["name"]: label["volume_ml"] for label in job.report["labels"]},
        "qc": job.report["qc"],
        "latencies": job.report["seconds"],
    }


def label_names(names: list[str]) -> dict[str, int]:
    """Return the number that each label has in an answer: they are counted from 1."""
    return {name: number for number, name in enumerate(names, start=1)}


def _session_info(session: Session, shared: MonaiLabel) -> dict[str, Any]:
    return {"name": session.name, "expiry": int(shared.service.settings.limits.keep)}


def _params(text: str) -> dict[str, Any]:
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        raise Rejected(400, "PARAMS", "params is no JSON", "send an object") from None
    return said if isinstance(said, dict) else {}


async def _body(request: Request, most: int) -> bytes:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            raise Rejected(413, "TOO_LARGE", "the form is too long", f"at most {most} bytes are taken")
    return body
