"""An answer of several parts, as the MONAI Label client reads it: one named `params`, and one with a file."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from typing import Any

from starlette.background import BackgroundTask
from starlette.responses import Response


def multipart(params: Mapping[str, Any], name: str, content: bytes, *, background: BackgroundTask | None) -> Response:
    """Return `multipart/form-data` with params as JSON, and one file.

    Parameters
    ----------
    params : mapping
        What is told beside the file.
    name : str
        Of the file; the client stores it under this name, and tells its format by the suffix.
    content : bytes
        Of the file.
    background : BackgroundTask, optional
        What is done afterwards.
    """
    boundary = secrets.token_hex(16)
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="params"\r\nContent-Type: application/json\r\n\r\n'
        f"{json.dumps(dict(params))}\r\n"
        f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    )
    body = head.encode() + content + f"\r\n--{boundary}--\r\n".encode()
    return Response(body, media_type=f"multipart/form-data; boundary={boundary}", background=background)
