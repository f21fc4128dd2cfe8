"""`medseg batch`: an archive or a PACS in; results, a ledger, a table and a page out; through crashes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medseg.cli.options import BACKEND, DEBUG, MIRROR, OVERLAP, PRECISION, REPAIR, SUV
from medseg.cli.progress import Style


def batch(
    archive: Annotated[
        Path | None,
        typer.Argument(metavar="ARCHIVE", help="A folder of DICOM, NIfTI, NRRD or MHA; a zip; a list of paths."),
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="OUT", help="Folder for results.")] = None,
    model: Annotated[str, typer.Option("-m", "--model", metavar="NAME|FILE", help="Model by name or file.")] = "",
    rules: Annotated[
        Path | None, typer.Option("--rules", metavar="FILE.toml", help="Which series, and by which model.")
    ] = None,
    formats: Annotated[
        str | None, typer.Option("--format", metavar="LIST", help="As for `medseg predict`, commas between.")
    ] = None,
    pacs: Annotated[
        str, typer.Option("--pacs", metavar="URL", help="Instead of ARCHIVE: dicomweb+http(s)://... or dimse://...")
    ] = "",
    modality: Annotated[
        list[str] | None, typer.Option("--modality", metavar="CODE", help="Of series in the PACS; repeat.")
    ] = None,
    date: Annotated[str, typer.Option("--date", metavar="FROM-TO", help="Of studies in the PACS: YYYYMMDD.")] = "",
    description: Annotated[
        str, typer.Option("--description", metavar="PATTERN", help="Of series in the PACS, such as '*thorax*'.")
    ] = "",
    store: Annotated[bool, typer.Option("--store", help="Store DICOM results in the PACS.")] = False,
    store_to: Annotated[str, typer.Option("--store-to", metavar="URL", help="Store them in another PACS.")] = "",
    token_file: Annotated[
        Path | None, typer.Option("--token-file", metavar="FILE", help="Holds the bearer token of the PACS (DICOMweb).")
    ] = None,
    store_token_file: Annotated[
        Path | None, typer.Option("--store-token-file", metavar="FILE", help="Likewise, of that of --store-to.")
    ] = None,
    repair: REPAIR = False,
    suv: SUV = False,
    device: Annotated[
        str, typer.Option("--device", metavar="D,...", help="As for `medseg predict`; a worker for each.")
    ] = "auto",
    workers: Annotated[int, typer.Option("--workers", metavar="N", min=1, help="Processes on each device.")] = 1,
    threads: Annotated[int | None, typer.Option("--threads", metavar="N", min=1, help="CPU threads of each.")] = None,
    backend: BACKEND = "auto",
    precision: PRECISION = None,
    overlap: OVERLAP = None,
    mirror: MIRROR = False,
    memory: Annotated[str | None, typer.Option("--memory", metavar="SIZE", help="Most that a worker may hold.")] = None,
    time_limit: Annotated[
        str, typer.Option("--time-limit", metavar="TIME", help="For one scan, such as 90s, 30m, 2h.")
    ] = "1h",
    picture: Annotated[bool, typer.Option("--picture/--no-picture", help="Draw pictures and thumbnails.")] = True,
    keep_names: Annotated[
        bool, typer.Option("--keep-names", help="Name folders by identifiers, not by keyed hashes of them.")
    ] = False,
    key_file: Annotated[
        Path | None, typer.Option("--key-file", metavar="FILE", help="Key of the hashes; default: the user's own.")
    ] = None,
    index: Annotated[
        Path | None, typer.Option("--index", metavar="FILE", help="Index of the archive; default: in the cache.")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare the sha256 of all results of earlier runs.")
    ] = False,
    shard: Annotated[
        str, typer.Option("--shard", metavar="I/N", help="Only part I (from 1) of N, for arrays of jobs.")
    ] = "1/1",
    engine: Annotated[
        str, typer.Option("--engine", metavar="E", help="local; ray; or ray:ADDRESS of a cluster.")
    ] = "local",
    progress: Annotated[Style, typer.Option("--progress", help="How to show progress, on stderr.")] = Style.auto,
    debug: DEBUG = False,
) -> None:
    """Segment an archive: every series that the rules mean, each with label map, DICOM SEG, report and picture.

    Killed at any moment, the same command goes on; what is done is not done again. What fails is put aside with its
    reason and does not stop the rest: see `medseg status OUT` and `medseg retry OUT`. Writes results.csv, index.html
    and audit.jsonl into OUT.

    Exit code: 0 all done, 1 some failed or are left, 2 nothing could be done or written.

    For research use only; not a medical device.
    """
    from medseg.archive import Limits, Order, Settings, read_rules, run
    from medseg.cli.batching import Asked, check_words, parse_seconds, parse_shard, read_token, watched
    from medseg.inference.memory import parse_bytes

    asked = Asked(pacs, modality or (), date, description, store, store_to, token_file, store_token_file)
    folder = check_words(archive, output, engine, asked)
    settings = Settings(
        device=device,
        threads=threads,
        backend=backend,
        precision=precision,
        overlap=overlap,
        mirror=mirror,
        memory=parse_bytes(memory) if memory else None,
        repair=repair,
        suv=suv,
        picture=picture,
        token=read_token(token_file),
        store_token=read_token(asked.file_of_store_token),
    )
    order = Order(
        folder,
        read_rules(rules, model=model, formats=formats.split(",") if formats else ()),
        archive=archive,
        pacs=pacs,
        query=asked.query,
        store=store_to or (pacs if store else ""),
        settings=settings,
        limits=Limits(parse_seconds(time_limit), settings.memory),
        workers=workers,
        shard=parse_shard(shard),
        index=index,
        key_file=key_file,
        keep_names=keep_names,
        verify=verify,
        ray=None if engine == "local" else engine.partition(":")[2],
        debug=debug,
    )
    with watched(progress) as watcher:
        raise typer.Exit(watcher.tell(run(order, watcher), folder))
