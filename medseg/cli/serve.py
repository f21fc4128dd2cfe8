"""`medseg serve`: models as a service on this computer, for a page in the browser, for programs, and for 3D Slicer."""

from __future__ import annotations

import importlib.util
import logging
import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer

from medseg.cli.options import BACKEND, DEBUG, DEVICE, THREADS
from medseg.errors import UsageError


def serve(
    models: Annotated[
        list[str] | None,
        typer.Option("-m", "--models", metavar="NAME|FILE", help="Models to offer; repeat. Default: all there are."),
    ] = None,
    host: Annotated[str, typer.Option("--host", metavar="H", help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", metavar="N", min=0, max=65535, help="0 for any that is free.")] = 8000,
    token_file: Annotated[
        Path | None, typer.Option("--token-file", metavar="FILE", help="Holds a secret that who asks must know.")
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option("--allow-host", metavar="NAME", help="A further name of this server; repeat.")
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option("--allow-origin", metavar="URL", help="A web page from elsewhere that may ask (CORS); repeat."),
    ] = None,
    datastore: Annotated[
        Path | None, typer.Option("--datastore", metavar="DIR", help="Folder of scans to label, for MONAI Label.")
    ] = None,
    keep: Annotated[str, typer.Option("--keep", metavar="TIME", help="How long results stay: 90s, 15m, 2h.")] = "15m",
    queue: Annotated[int, typer.Option("--queue", metavar="N", min=1, help="Scans that may wait.")] = 32,
    max_upload: Annotated[str, typer.Option("--max-upload", metavar="SIZE", help="Most of one request.")] = "2GB",
    max_voxels: Annotated[
        str, typer.Option("--max-voxels", metavar="SIZE", help="Most of one scan, decompressed.")
    ] = "4GB",
    spool: Annotated[
        Path | None, typer.Option("--spool", metavar="DIR", help="Where scans and results lie for that while.")
    ] = None,
    tls_certificate: Annotated[
        Path | None, typer.Option("--tls-certificate", metavar="FILE", help="For HTTPS, with --tls-key.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option("--tls-key", metavar="FILE", help="Its private key.")] = None,
    device: DEVICE = "auto",
    threads: THREADS = None,
    backend: BACKEND = "auto",
    memory: Annotated[
        str | None, typer.Option("--memory", metavar="SIZE", help="Most that may be held, such as 4GB.")
    ] = None,
    get_viewer: Annotated[
        bool, typer.Option("--get-viewer", help="Fetch niivue from the npm registry, for 3D in the page, and end.")
    ] = False,
    debug: DEBUG = False,
) -> None:
    """Offer models to a page in the browser, to programs, and to 3D Slicer (its MONAI Label module too).

    Only this computer can connect, unless --host says otherwise; that needs --token-file. Scans and results lie in a
    folder that only you can read, for the time of --keep, and are removed when the server ends.

    For research use only; not a medical device.
    """
    missing = [name for name in ("fastapi", "uvicorn", "python_multipart") if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"{missing[0]} is not installed", hint="install it: pip install 'medseg[server]'")
    from medseg.server import Limits, Settings, serve
    from medseg.server.viewer import get_viewer as fetch

    if get_viewer:
        print(f"wrote {fetch()}")
        return
    from medseg.cli.batching import parse_seconds, read_token
    from medseg.inference.memory import parse_bytes

    predictor = {"device": device, "threads": threads, "backend": backend}
    settings = Settings(
        host=host,
        port=port,
        token=read_token(token_file),
        models=tuple(models or ()),
        allow_hosts=tuple(allow_host or ()),
        allow_origins=tuple(allow_origin or ()),
        datastore=datastore,
        spool=spool,
        certificate=tls_certificate,
        key=tls_key,
        predictor=predictor | {"memory": parse_bytes(memory) if memory else None},
        limits=Limits(
            upload=parse_bytes(max_upload), voxels=parse_bytes(max_voxels), queue=queue, keep=parse_seconds(keep)
        ),
    )
    _log(debug=debug)
    serve(settings, ready=lambda address: print(f"medseg answers at {address}/ (Ctrl+C ends it)", flush=True))


def _log(*, debug: bool) -> None:
    """Log what the server says; what other packages say may quote a scan, and is left out without --debug."""
    handler = logging.StreamHandler(sys.stderr)
    if not debug:
        handler.addFilter(logging.Filter("medseg"))
        warnings.simplefilter("ignore")
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING, handlers=[handler])
    logging.getLogger("medseg.server").setLevel(logging.INFO)
