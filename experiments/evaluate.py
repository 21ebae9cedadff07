"""What is done with a trained run: metrics, export, and the parity of trainer and scorer from raw rows."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table

from experiments.run_directory import RunDirectory, check_registry
from experiments.text import text_of
from features.dataset_info import read_dataset
from features.encode import encode
from features.errors import InputError
from features.hashing import rows_of_tokens
from features.layout import TableLayout
from features.readers import expand, read_chunks
from features.registry import FeatureRegistry
from features.spec import Numeric
from recsys.collisions import collision_report, distinct_tokens
from recsys.dataset import Split
from recsys.evaluate import predict
from recsys.export import export_bundle, probabilities
from recsys.metrics import evaluate
from recsys.slots import rows_of_tokens as torch_rows_of_tokens
from recsys.tracking import Tracker, tracking_uri
from recsys.trainer import EVALUATION_BATCH_SIZE
from serving.bundle import Bundle
from serving.scorer import Scorer

logger = logging.getLogger(__name__)

# Two float32 programs that add in another order differ in their rounding, by a small factor and not more.
ROUNDING_FACTOR = 4.0


def evaluate_run(path: Path, split: str, data: Path | None = None) -> tuple[dict[str, float], dict[str, Any]]:
    """Metrics of a run on a split, and the collision report of its training data as plain values.

    Raises `InputError` for an unfinished run, an unknown split, or a dataset of another registry.
    """
    run = RunDirectory(path)
    ranker = run.ranker()
    facts = run.facts()
    examples = Split(data or facts["dataset"], split)
    check_registry(run.registry(), examples.registry, str(path))
    if data is None and examples.info.digest != facts["dataset_digest"]:
        remedy = "bring it back, or name the data to evaluate on with --data"
        raise InputError(
            f"{examples.directory}: expected the data of training", found="prepared again since", remedy=remedy
        )
    metrics = evaluate(*predict(ranker, examples.batches(EVALUATION_BATCH_SIZE)))
    report, _ = collision_report(ranker.embedding.layout, distinct_tokens(Split(examples.directory, "train").tokens()))
    return metrics, report.model_dump()


def collision_table(report: Mapping[str, Any]) -> Table:
    """The collision report for a terminal."""
    title = (
        f"table of {report['num_rows']:,} rows: {report['entries']:,} entries, load {report['load_factor']:.2f}\n"
        f"{report['occupied']:,} rows read, {report['expected_occupied']:,.0f} expected; shares as counted (expected)"
    )
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("\nfeature", no_wrap=True)
    for heading in ("\ndistinct", "\nload", "% of\nreads", "% shared\ninside", "% shared\noutside", "same in\nprobes"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in report["features"]:
        shares = [
            f"{100 * row[f'measured_{kind}']:.1f} ({100 * row[f'expected_{kind}']:.1f})" for kind in ("intra", "inter")
        ]
        cells = [text_of(row["distinct"]), f"{row['load']:.3f}", f"{100 * row['share_of_reads']:.1f}", *shares]
        table.add_row(row["feature"], *cells, text_of(row["indistinguishable"]))
    return table


def export_run(path: Path, out: Path, *, table_dtype: str = "fp32", overwrite: bool = False) -> Bundle:
    """Write a finished run as a bundle; raises `InputError` for an unknown table type or an `out` that is taken."""
    if table_dtype not in ("fp32", "fp16", "int8"):
        raise InputError("unknown table type", found=repr(table_dtype), remedy="use fp32, fp16 or int8")
    run = RunDirectory(path)
    facts = run.facts()
    try:
        info, _ = read_dataset(facts["dataset"])
    except InputError:
        info = None  # a run may outlive its dataset; the bundle then has no profile of it
    if info is not None and info.digest != facts["dataset_digest"]:
        info = None
    return export_bundle(
        run.ranker(),
        run.registry(),
        out,
        model=run.experiment().model_name,
        table_dtype=table_dtype,
        metrics={name: values for name, values in run.metrics().items() if name != "perf"},
        info=info,
        trained_rows=run.trained_rows(),
        run_id=facts["mlflow_run_id"],
        overwrite=overwrite,
    )


def parity_of(path: Path, bundle: Path, inputs: Sequence[str], *, tolerance: float = 1e-6) -> dict[str, Any]:
    """Score raw rows by the trainer's model and by the bundle; logged to the run's MLflow run as `parity/`.

    The scorer passes when its ids are the trainer's bit for bit, and its probabilities either lie within `tolerance`
    of the trainer's or come as close to the same network in float64 as `ROUNDING_FACTOR` times the trainer does.

    Raises `InputError` for files that cannot be read and for a bundle of another registry.
    """
    run, scorer = RunDirectory(path), Scorer(bundle)
    ranker, registry = run.ranker(), run.registry()
    check_registry(registry, scorer.bundle.registry, str(bundle))
    numeric = [feature.name for feature in registry.features if isinstance(feature, Numeric)]
    names = [feature.name for feature in registry.features]
    num_rows, ids_equal = 0, True
    worst, rounding, error = 0.0, 0.0, 0.0
    for file in expand(inputs):
        for chunk in read_chunks(file, names, numeric=numeric, chunk_rows=16_384):
            trained, served = probabilities(ranker, registry, chunk), scorer.score(chunk)
            exact = probabilities(ranker, registry, chunk, exact=True)
            # np.maximum keeps a NaN, which then passes no comparison.
            worst = float(np.maximum(worst, np.abs(trained - served).max(initial=0.0)))
            rounding = float(np.maximum(rounding, np.abs(trained - exact).max(initial=0.0)))
            error = float(np.maximum(error, np.abs(served - exact).max(initial=0.0)))
            ids_equal &= _ids_equal(chunk, registry, ranker.embedding.layout, scorer.bundle.layout)
            num_rows += len(chunk)
    result = {"rows": num_rows, "max_abs_diff": worst, "ids_equal": ids_equal, "tolerance": tolerance}
    result |= {"trainer_rounding": rounding, "scorer_rounding": error}
    result["ok"] = bool(num_rows and ids_equal and (worst <= tolerance or error <= ROUNDING_FACTOR * rounding))
    facts = run.facts()
    if facts["mlflow_run_id"] is not None:
        figures = {"parity/max_abs_diff": worst, "parity/rows": num_rows, "parity/ids_equal": ids_equal}
        try:
            tracker = Tracker.attach(facts["mlflow_tracking_uri"] or tracking_uri(), facts["mlflow_run_id"])
            tracker.log_metrics(figures)
        except (
            Exception
        ) as error:  # the store's own errors have no common base; the result matters more than its record
            logger.warning("parity was not logged to MLflow: %s", type(error).__name__)
    return result


def _ids_equal(raw: pl.DataFrame, registry: FeatureRegistry, trained: TableLayout, served: TableLayout) -> bool:
    """Whether torch, under the trainer's layout, and numpy, under the bundle's, read the same rows."""
    for name, tokens in encode(raw, registry).tokens.items():
        salts = torch.from_numpy(trained.salts_of(name).view(np.int64).copy())
        ours = torch_rows_of_tokens(torch.from_numpy(tokens.view(np.int64).copy()), salts, trained.num_rows).numpy()
        if not np.array_equal(ours, rows_of_tokens(tokens, served.salts_of(name), served.num_rows)):
            return False
    return True
