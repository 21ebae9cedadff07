"""`muxrec score`: raw files to scored parts, without torch."""

import dataclasses
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recsys.cli.options import AllowMissing, BundleUri, Inputs, Json, Overwrite, show, warn

if TYPE_CHECKING:
    from serving.batch.job import ScoringReport

SHOWN_FEATURES = 5


class EngineName(StrEnum):
    """The place where a scoring job runs."""

    LOCAL = "local"
    RAY = "ray"


def score(
    bundle: BundleUri,
    inputs: Inputs,
    out: Annotated[Path, typer.Option(help="Directory of scored parts to write.")],
    keep: Annotated[str, typer.Option(help="Input columns to copy to the output, separated by commas.")] = "",
    limit: Annotated[int | None, typer.Option(help="Most input rows to score, in all.")] = None,
    workers: Annotated[int, typer.Option(help="Processes; they share the files.")] = 1,
    max_rejected: Annotated[float, typer.Option(help="Share of rows that may be rejected; 0.01 is 1 %.")] = 0.0,
    allow_missing: AllowMissing = False,
    overwrite: Overwrite = False,
    engine: Annotated[
        EngineName, typer.Option(help="local, or ray: on the cluster at RAY_ADDRESS.")
    ] = EngineName.LOCAL,
    track: Annotated[bool, typer.Option("--track", help="Log the job to MLflow, in a separate process.")] = False,
    as_json: Json = False,
) -> None:
    """Score raw files into a directory of parquet files.

    Needs no training packages. The same command continues an interrupted job.
    """
    from recsys.tracking.model_uri import resolve_bundle
    from recsys.tracking.scoring_run import log_scoring_run, require_mlflow
    from serving.batch.job import score_files

    if track:
        require_mlflow()
    columns = [name.strip() for name in keep.split(",") if name.strip()]
    report = score_files(
        resolve_bundle(bundle),
        inputs,
        out,
        keep=columns,
        limit=limit,
        workers=workers,
        max_rejected=max_rejected,
        allow_missing=allow_missing,
        overwrite=overwrite,
        engine=_ray_engine(workers) if engine is EngineName.RAY else None,
        progress=not as_json,
    )
    warn(report.warnings)
    values = dataclasses.asdict(report)
    params = {"bundle": bundle, "input": inputs, "keep": columns, "limit": limit}
    params |= {"workers": workers, "engine": engine.value}
    logged = {}
    if track:
        from recsys.tracking.store import shown_uri, tracking_uri

        logged = {"mlflow_run_id": log_scoring_run(values, params), "store": shown_uri(tracking_uri())}
    if as_json:  # lets programs check that scoring imports none of these; people do not need it
        heavy = [name for name in ("torch", "pandas", "mlflow") if name in sys.modules]
        show(True, {**values, **logged, "heavy_modules": heavy})
    else:
        show(False, {**_summary(report), **logged})


def _ray_engine(workers: int) -> Any:
    import importlib.util
    from functools import partial

    from features.errors import InputError

    if importlib.util.find_spec("ray") is None:
        remedy = "pip install '.[ray]', or leave the engine out"
        raise InputError("--engine ray needs Ray", found="no ray", remedy=remedy)
    from serving.batch.ray_engine import score_on_ray

    return partial(score_on_ray, num_workers=workers)


def _summary(report: "ScoringReport") -> dict[str, Any]:
    """The report for a terminal: of the rates by feature, those that differ most from training."""
    values = {"rows scored" if name == "rows" else name: value for name, value in dataclasses.asdict(report).items()}
    del values["warnings"]
    for kind in ("missing", "unseen"):
        rates, known = values.pop(f"{kind}_rates"), values.pop(f"training_{kind}_rates")
        moved = {name: rate for name, rate in rates.items() if rate != known.get(name, 0.0)}
        most = sorted(moved, key=lambda name: -abs(moved[name] - known.get(name, 0.0)))[:SHOWN_FEATURES]
        values[kind] = {
            name: f"{moved[name]:.2%}" + (f", in training {known[name]:.2%}" if name in known else "") for name in most
        }
    return values
