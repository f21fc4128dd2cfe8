"""The page in a browser: drop a scan, watch, look, download; and the documentation of the routes.

The files are those of the folder `page_files`, read once when the server begins; a request only names one of them.
"""

from __future__ import annotations

import html
from importlib import resources
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.responses import HTMLResponse, Response

from medseg.report.job import DICOM_FORMATS, FORMATS
from medseg.server.answers import Rejected
from medseg.server.service import Service
from medseg.server.viewer import viewer_file

_MEDIA = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_GROUPS = {
    "server": "The server",
    "scans": "Scans in, results out",
    "jobs": "Jobs: progress, results, planes",
    "MONAI Label": "MONAI Label, as its module for 3D Slicer asks",
}
_EXAMPLE = """\
curl -F file=@scan.nii.gz -o labels.nii.gz {server}/predict
curl -F file=@scan.nii.gz '{server}/predict?format=seg.nrrd,json' -o results.zip
curl -F file=@scan.nii.gz '{server}/predict?wait=false'"""


def routes(service: Service, app: FastAPI) -> APIRouter:
    """Return the routes."""
    router = APIRouter(include_in_schema=False)
    folder = resources.files("medseg.server") / "page_files"
    files = {each.name: each.read_bytes() for each in folder.iterdir() if _suffix(each.name) in _MEDIA}
    viewer = viewer_file()
    if viewer:
        files["niivue.js"] = viewer.read_bytes()

    @router.get("/")
    async def page() -> Response:
        """Return the page."""
        return Response(files["index.html"], media_type="text/html; charset=utf-8")

    @router.get("/page/{name}")
    async def part(name: str) -> Response:
        """Return a file of the page."""
        if name not in files:
            raise Rejected(404, "REQUEST", "there is nothing here", "see /")
        media = f"{_MEDIA[_suffix(name)]}; charset=utf-8"
        return Response(files[name], media_type=media, headers={"cache-control": "no-cache"})

    @router.get("/page-settings")
    async def settings() -> dict[str, Any]:
        """Tell the page what there is."""
        limits = service.settings.limits
        return {
            "viewer": viewer is not None,
            "formats": list(FORMATS),
            "dicom_formats": list(DICOM_FORMATS),
            "upload": limits.upload,
            "files": limits.files,
            "keep": limits.keep,
        }

    @router.get("/docs")
    async def docs() -> HTMLResponse:
        """Return the documentation of the routes, made from /openapi.json, without anything from elsewhere."""
        return HTMLResponse(_documentation(app.openapi(), token=bool(service.settings.token)))

    return router


def _suffix(name: str) -> str:
    return name[name.rfind(".") :]


def _documentation(schema: dict[str, Any], *, token: bool) -> str:
    parts: dict[str, list[str]] = {}
    for path, methods in schema["paths"].items():
        for method, about in methods.items():
            parts.setdefault(about.get("tags", [""])[0], []).append(_route(method, path, about))
    groups = [name for name in _GROUPS if name in parts] + [name for name in parts if name not in _GROUPS]
    body = "".join(f"<section><h2>{html.escape(_GROUPS.get(g, g))}</h2>{''.join(parts[g])}</section>" for g in groups)
    asked = "Send the token with each request: <code>Authorization: Bearer TOKEN</code>. " if token else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>medseg: routes</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" '
        'content="light dark"><link rel="icon" href="/page/icon.svg"><link rel="stylesheet" href="/page/page.css">'
        '</head><body class="docs"><header><h1><a href="/">medseg</a> routes</h1><p class="notice">For research use '
        f"only. Not a medical device.</p></header><main><p>{asked}An error is answered as <code>"
        '{"error": {"code", "problem", "hint"}}</code>. The same for programs: <a href="/openapi.json">/openapi.json'
        f"</a>.</p><pre>{html.escape(_EXAMPLE.format(server='http://127.0.0.1:8000'))}</pre>{body}</main></body></html>"
    )


def _route(method: str, path: str, about: dict[str, Any]) -> str:
    rows = "".join(_parameter(each) for each in about.get("parameters", []) if each["in"] != "path")
    kinds = about.get("requestBody", {}).get("content", {})
    body = f"<p>Body: {', '.join(f'<code>{html.escape(kind)}</code>' for kind in kinds)}</p>" if kinds else ""
    head = '<tr><th scope="col">parameter</th><th scope="col">what</th></tr>'
    words = "".join(f"<p>{html.escape(each)}</p>" for each in about.get("description", "").split("\n\n") if each)
    table = f'<div class="wide"><table><thead>{head}</thead><tbody>{rows}</tbody></table></div>' if rows else ""
    return (
        f'<article class="route"><h3><code>{method.upper()} {html.escape(path)}</code></h3>'
        f"{words}{body}{table}</article>"
    )


def _parameter(about: dict[str, Any]) -> str:
    schema = about.get("schema", {})
    kinds = [schema.get("type")] if "type" in schema else [each.get("type") for each in schema.get("anyOf", [])]
    kind = " or ".join(each for each in kinds if each and each != "null")
    default = f", {_as_written(schema['default'])} when left out" if schema.get("default") not in (None, "") else ""
    words = about.get("description") or schema.get("description") or ""
    return (
        f"<tr><td><code>{html.escape(about['name'])}</code></td>"
        f"<td>{html.escape(kind + default)}{': ' + html.escape(words) if words else ''}</td></tr>"
    )


def _as_written(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
