"""`muxrec serve`: answer scoring requests over HTTP."""

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from features.errors import InputError


def serve(
    bundle: Annotated[str, typer.Argument(metavar="BUNDLE", help="Bundle directory, or models:/NAME@ALIAS.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one and logs it.")] = 8080,
    name: Annotated[
        str | None, typer.Option(help="Name in URLs; by default the registered name or the directory's.")
    ] = None,
    watch: Annotated[float, typer.Option(help="Seconds between checks for a new version; 0: only on request.")] = 60,
    workers: Annotated[int, typer.Option(help="Requests that are scored at a time; 0: one per core.")] = 0,
    threads: Annotated[int, typer.Option(help="Threads per request.")] = 1,
    max_body: Annotated[int, typer.Option(help="Largest body of a request, in bytes.")] = 2**22,
    max_rows: Annotated[int, typer.Option(help="Largest number of rows, or candidates, of a request.")] = 10_000,
    max_concurrent: Annotated[int, typer.Option(help="Requests that run or wait at a time.")] = 64,
    timeout: Annotated[float, typer.Option(help="Seconds for a request.")] = 10,
    drain: Annotated[float, typer.Option(help="Seconds to keep answering after SIGTERM, while not ready.")] = 2,
    slow: Annotated[float, typer.Option(help="Seconds after which a request is logged as slow.")] = 0.25,
    log_level: Annotated[str, typer.Option(help="info: every request; warning: slow and failed ones.")] = "info",
) -> None:
    """Answer scoring requests over HTTP; logs JSON lines. Set MUXREC_SERVE_TOKEN to require a bearer token."""
    absent = [one for one in ("starlette", "uvicorn", "prometheus_client") if importlib.util.find_spec(one) is None]
    if absent:
        raise InputError("serve needs the server packages", found=f"no {absent[0]}", remedy="pip install '.[server]'")
    from recsys.tracking.model_uri import parse_model_uri, resolve_bundle
    from serving.server.limits import Limits, num_cores
    from serving.server.run import LOG_LEVELS
    from serving.server.run import serve as run

    if log_level not in LOG_LEVELS:
        raise InputError("unknown --log-level", found=repr(log_level), remedy=f"use one of {', '.join(LOG_LEVELS)}")
    limits = Limits(
        max_body_bytes=max_body,
        max_rows=max_rows,
        max_concurrent=max_concurrent,
        timeout_seconds=timeout,
        num_workers=workers or num_cores(),
    )
    uri = parse_model_uri(bundle)
    run(
        lambda current: resolve_bundle(bundle, current=current),
        name if name is not None else uri.name if uri else Path(bundle).absolute().name,
        host=host,
        port=port,
        limits=limits,
        num_threads=threads,
        watch_seconds=watch,
        drain_seconds=drain,
        slow_seconds=slow,
        log_level=log_level,
    )
