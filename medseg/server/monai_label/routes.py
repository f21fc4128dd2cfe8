"""The routes: paths, parameters and answers are those of MONAI Label 0.8."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import parse_qs

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.background import BackgroundTask

from medseg import __version__
from medseg.atomic import digest_of
from medseg.bundle import Bundle
from medseg.io import suffix_of
from medseg.server.answers import Rejected, of_job
from medseg.server.api import client_of
from medseg.server.desk import DONE, Job, Order
from medseg.server.intake import Sent
from medseg.server.monai_label.answer import multipart
from medseg.server.monai_label.sessions import Session, Sessions
from medseg.server.monai_label.store import FINAL, Datastore, said
from medseg.server.service import Service
from medseg.server.spool import remove

_DESCRIPTION = "medseg: for research use only; not a medical device"
_STRATEGY = "first"
_NAME = 200  # characters of a name that a client gives to a scan
_AGAIN = "send the scan again; in 3D Slicer press 'Upload Volume', or load the volume again"


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

    def scan(self, image: str, session_id: str, client: str) -> tuple[Path, Session | None]:
        """Return the file of a scan that this client sent before, or of the folder of scans.

        Raises
        ------
        Rejected
            If there is none of this name.
        """
        session = self.sessions.find(session_id) if session_id else self.uploads.find(f"{client} {image}")
        if session:
            return session.path, session
        if session_id or self.datastore is None:
            raise Rejected(404, "IMAGE", "there is no such scan or session, or not any more", _AGAIN)
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
    async def token(request: Request) -> dict[str, str | None]:
        """Give the token to a client that sends it as its password; nothing where none is needed."""
        form = parse_qs((await _body(request, 4096)).decode("utf-8", "replace"))
        password = form.get("password", [""])[0]
        if not service.settings.token:
            return {"access_token": None, "token_type": None}
        if not service.settings.knows_token(password):
            raise Rejected(401, "TOKEN", "the password is not the token of this server", "any user name will do")
        return {"access_token": password, "token_type": "bearer"}

    @router.get("/auth/token/valid")
    async def valid() -> dict[str, Any]:
        """Answer only those who sent a token that is right."""
        return {"username": "user"}


def _add_info(router: APIRouter, shared: MonaiLabel) -> None:
    @router.get("/info/")
    async def info() -> dict[str, Any]:
        """Tell which models there are, of those that take one scan: the module can send no more."""
        shelf, store = shared.service.shelf, shared.datastore
        cards = [card for card in map(shelf.card, shelf.names) if len(card.plan.channels) == 1]
        tags = await asyncio.to_thread(store.labels) if store else {}
        return {
            "name": "medseg",
            "description": _DESCRIPTION,
            "version": __version__,
            "labels": list(dict.fromkeys(label.name for card in cards for label in card.plan.labels)),
            "models": {card.card.name: _model_info(card) for card in cards},
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
        if found is None:
            return {}
        name, path = found  # by the checksum 3D Slicer sees that a file of this name, fetched before, is another one
        return {"id": name, "name": path.name, "checksum": f"SHA256:{await asyncio.to_thread(digest_of, path)}"}

    @router.api_route("/train/{rest:path}", methods=["GET", "POST", "DELETE"], include_in_schema=False)
    async def train(rest: str) -> Response:  # noqa: ARG001 - whatever it is
        """Tell that nothing is trained here."""
        raise Rejected(404, "TRAIN", "nothing is trained here", "use `medseg train`")


def _model_info(bundle: Bundle) -> dict[str, Any]:
    return {
        "type": "segmentation",
        "labels": label_names([label.name for label in bundle.plan.labels]),
        "dimension": bundle.plan.axes,
        "description": bundle.card.summary,
        "config": {},
    }


def _add_sessions(router: APIRouter, shared: MonaiLabel) -> None:
    @router.put("/session/")
    async def create(request: Request, expiry: Annotated[int, Query(ge=0)] = 0) -> dict[str, Any]:
        """Keep a scan for a while: `expiry` seconds after it was last asked for, or as long as the server keeps any."""
        sent = await shared.service.receive(request)
        path = shared.service.only_file(sent)
        session = await asyncio.to_thread(shared.sessions.add, secrets.token_urlsafe(16), path, keep=expiry)
        return {"session_id": session.name, "session_info": _session_info(session)}

    @router.get("/session/{name}")
    async def find(name: str) -> dict[str, Any]:
        """Tell whether a scan is still there."""
        session = shared.sessions.find(name)
        if session is None:
            raise Rejected(404, "SESSION", "there is no such session, or not any more", _AGAIN)
        return _session_info(session)

    @router.delete("/session/{name}")
    async def drop(name: str) -> dict[str, Any]:
        """Forget a scan."""
        if not await asyncio.to_thread(shared.sessions.drop, name):
            raise Rejected(404, "SESSION", "there is no such session, or not any more", "nothing is to be done")
        return {"name": name}


def _add_datastore(router: APIRouter, shared: MonaiLabel) -> None:
    @router.get("/datastore/")
    async def scans(output: Literal["stats", "all"] = "stats") -> dict[str, Any]:
        """Count scans, or list them with their labels."""
        return await asyncio.to_thread(_listing, shared.store(), whole=output == "all")

    @router.put("/datastore/")
    @router.put("/datastore/image")
    async def upload(request: Request, image: Annotated[str, Query(min_length=1, max_length=_NAME)]) -> dict[str, str]:
        """Keep a scan under the name that the client gives: in the folder of scans; without one, for a while."""
        service, store = shared.service, shared.datastore
        sent = await service.receive(request)
        path, client = service.only_file(sent), _client(request, _params(sent))
        if store is None:
            await asyncio.to_thread(shared.uploads.add, f"{client} {image}", path)
            return {"image": image}
        try:
            await asyncio.to_thread(store.add, image, path)
        finally:
            service.drop(sent)
        return {"image": image}

    @router.put("/datastore/label")
    async def save(request: Request, image: str, tag: str = FINAL) -> dict[str, str]:
        """Keep a label map that a person drew."""
        sent = await shared.service.receive(request)
        try:
            store, file = shared.store(), shared.service.only_file(sent)
            await asyncio.to_thread(store.save, image, tag or FINAL, file, _params(sent))
        finally:
            shared.service.drop(sent)
        return {"image": image, "label": image}

    _add_downloads(router, shared)


def _add_downloads(router: APIRouter, shared: MonaiLabel) -> None:
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


def _listing(store: Datastore, *, whole: bool) -> dict[str, Any]:
    found = store.labels()
    if not whole:
        return {"total": len(found), "completed": sum(FINAL in tags for tags in found.values())}
    objects = {
        name: {"labels": {tag: {"ext": suffix_of(path), "info": store.about(path)} for tag, path in tags.items()}}
        for name, tags in found.items()
    }
    return {"name": "medseg", "objects": objects}


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
        sent = await service.receive(request)  # first of all: a client that is answered while it sends sees a reset
        session: Session | None = None
        try:
            name, client = service.model(model), _client(request, _params(sent))
            sent.files.pop("label", None)  # scribbles: no model here looks at them
            if sent.files:
                files = service.files_for(sent, name)
            else:
                service.drop(sent)
                path, session = await asyncio.to_thread(shared.scan, image, session_id, client)
                files = service.one_channel(name, path)
        except Rejected:
            service.drop(sent)
            raise
        formats = ("dicom-seg",) if output == "dicom_seg" else ("nifti",)
        order = Order(name, formats, files, keep_files=not sent.files, numbered=True)
        if session:
            shared.sessions.use(session, 1)
        try:
            job = service.submit(order, client)
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
        media = "application/dicom" if output == "dicom_seg" else "application/octet-stream"
        return FileResponse(path, media_type=media, filename=name, background=forget)
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


def _session_info(session: Session) -> dict[str, Any]:
    return {"name": session.name, "expiry": int(session.keep)}


def _params(sent: Sent) -> dict[str, Any]:
    """Return what a client says beside its files, or refuse it; then they are removed."""
    try:
        return said(sent.fields.get("params") or "{}")
    except ValueError:
        remove(sent.folder)
        raise Rejected(400, "PARAMS", "params is no JSON that can be taken", "send a flat object") from None


def _client(request: Request, params: Mapping[str, Any]) -> str:
    """Return whose request it is."""
    return client_of(request, str(params.get("client_id") or ""))


async def _body(request: Request, most: int) -> bytes:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            raise Rejected(413, "TOO_LARGE", "the form is too long", f"at most {most} bytes are taken")
    return body
