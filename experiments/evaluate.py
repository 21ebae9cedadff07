"""What is done with a trained run: metrics, export, and the parity of trainer and scorer from raw rows."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast, get_args

import numpy as np
import polars as pl
import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table

from experiments.compression_facts import compression_facts
from experiments.run_directory import RunDirectory, check_registry
from experiments.text import text_of
from features.addressing import rows_of
from features.encode import encode
from features.errors import InputError
from features.readers import expand, read_chunks
from features.registry import FeatureRegistry
from recsys.collisions import collision_report, distinct_tokens
from recsys.dataset import Split
from recsys.evaluate import predict
from recsys.export import correction_of, export_bundle, probabilities, served
from recsys.metrics import Predictions, calibration_ratio, evaluate
from recsys.segments import Segment, segment_report, token_counts
from recsys.slots import Slots
from recsys.tracking import Tracker
from recsys.tracking_store import shown_uri
from recsys.trainer import EVALUATION_BATCH_SIZE
from serving.bundle import Bundle
from serving.coverage import Coverage, add_coverage, coverage_warnings
from serving.scorer import Scorer
from serving.table import TableDtype

logger = logging.getLogger(__name__)

CORRECTED = "calibration_ratio_corrected"
"""Name of the calibration ratio after the prior correction, which the other metrics go without."""

# Two float32 programs that add in another order differ in their rounding, by a small factor and not more.
ROUNDING_FACTOR = 4.0


class Evaluation(NamedTuple):
    """What `evaluate_run` finds."""

    metrics: dict[str, float]
    collisions: dict[str, Any]
    """The collision report of the training data, as plain values."""
    segments: list[Segment]
    """By how often training saw the value of the feature that was asked for; else none."""


def evaluate_run(path: Path, split: str, data: Path | None = None, by: str | None = None) -> Evaluation:
    """Metrics of a run on a split, and for the feature `by` also by segment.

    Raises `InputError` for an unfinished run, an unknown split or feature, or a dataset of another registry.
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
    features = [] if by is None else [_token_feature(run.registry(), by)]
    counts = token_counts(_training_split(facts, examples).tokens(), features) if features else {}
    predictions = predict(ranker, examples.batches(EVALUATION_BATCH_SIZE))
    segments = segment_report(predictions, examples.tokens(), counts) if counts else []
    metrics = metrics_of(predictions, run.experiment().negative_rate)
    distinct = distinct_tokens(Split(examples.directory, "train").tokens())
    report, _ = collision_report(ranker.embedding.layout, distinct, ranker.embedding.vocabulary)
    return Evaluation(metrics, report.model_dump(), segments)


def _token_feature(registry: FeatureRegistry, name: str) -> str:
    known = [feature.name for feature in registry.token_features]
    if name not in known:
        raise InputError("unknown categorical feature", found=repr(name), remedy=f"use one of {', '.join(known)}")
    return name


def _training_split(facts: Mapping[str, Any], examples: Split) -> Split:
    """The rows that the run was trained on, whichever ones it is evaluated on."""
    train = Split(examples.directory, "train")
    if train.info.digest != facts["dataset_digest"]:
        train = Split(facts["dataset"], "train")
    if train.info.digest != facts["dataset_digest"]:
        remedy = "bring it back, or evaluate without --by"
        raise InputError(f"{train.directory}: expected the data of training", found="other data", remedy=remedy)
    return train


def metrics_of(predictions: Predictions, negative_rate: float) -> dict[str, float]:
    """Every metric of a split as it is, so before the prior correction, and `calibration_ratio_corrected` where one is.

    The latter takes the split's negatives for a share `negative_rate` of all, like the training data's: after the
    correction, each of them counts for 1 / negative_rate.
    """
    metrics = evaluate(*predictions)
    correction = correction_of(negative_rate)
    if correction is not None:
        labels, probabilities, _, weights = predictions
        amounts = np.where(labels == 1, 1.0, 1.0 / negative_rate) * (1.0 if weights is None else weights)
        metrics[CORRECTED] = calibration_ratio(labels, correction.apply(probabilities), weights=amounts)
    return metrics


def segment_table(segments: Sequence[Segment]) -> Table:
    """Metrics by segment for a terminal."""
    title = f"{segments[0].feature}: rows by how often training saw their value"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in (
        "seen in\ntrain",
        "\nrows",
        "label\nrate",
        "\nAUC",
        "\ngAUC",
        "log\nloss",
        "\nECE",
        "calibration\nratio",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for segment in segments:
        figures = ["" if value is None else f"{value:.4f}" for value in segment[3:]]
        table.add_row(segment.seen_in_train, text_of(segment.rows), *figures)
    return table


def collision_table(report: Mapping[str, Any]) -> Table:
    """The collision report for a terminal."""
    title = (
        f"table of {report['num_rows']:,} rows: {report['entries']:,} entries, load {report['load_factor']:.2f}\n"
        f"{report['occupied']:,} rows read, {report['expected_occupied']:,.0f} expected; shares as counted (expected)"
    )
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("\nfeature", overflow="fold")
    for heading in (
        "\ndistinct",
        "\nload",
        "% of\nreads",
        "% shared\ninside",
        "% shared\noutside",
        "same in\nall probes",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in report["features"]:
        shares = [
            f"{100 * row[f'measured_{kind}']:.1f} ({100 * row[f'expected_{kind}']:.1f})" for kind in ("intra", "inter")
        ]
        cells = [text_of(row["distinct"]), f"{row['load']:.3f}", f"{100 * row['share_of_reads']:.1f}", *shares]
        table.add_row(row["feature"], *cells, text_of(row["indistinguishable"]))
    return table


def export_run(
    path: Path,
    out: Path,
    *,
    table_dtype: str | None = None,
    negative_rate: float | None = None,
    overwrite: bool = False,
) -> Bundle:
    """Write a finished run as a bundle; `table_dtype` and `negative_rate` None: those of the run (fp32 if not pruned).

    Raises `InputError` for an unknown table type, an impossible rate, or an `out` that is taken.
    """
    if table_dtype not in (None, *get_args(TableDtype)):
        known = ", ".join(get_args(TableDtype))
        raise InputError("unknown table type", found=repr(table_dtype), remedy=f"use one of {known}")
    run = RunDirectory(path)
    facts, experiment = run.facts(), run.experiment()
    metrics, compression = run.metrics(), experiment.compression
    trained = run.ranker(as_served=False)
    return export_bundle(
        trained,
        run.registry(),
        out,
        model=experiment.model_name,
        table_dtype=cast(TableDtype, table_dtype or (compression.table_dtype if compression else "fp32")),
        metrics={name: values for name, values in metrics.items() if name not in ("perf", "compression")},
        info=run.info(),  # a run may outlive its dataset; the bundle then has no profile of it
        distributions=run.distributions(),
        trained_rows=run.trained_rows(),
        run_id=facts["mlflow_run_id"],
        negative_rate=experiment.negative_rate if negative_rate is None else negative_rate,
        compression=compression_facts(trained, experiment, metrics["compression"]) if compression else None,
        overwrite=overwrite,
    )


def parity_of(
    path: Path, bundle: Path, inputs: Sequence[str], *, tolerance: float = 1e-6, as_served: bool = False
) -> dict[str, Any]:
    """Score raw rows by the trainer's model and by the bundle; logged to the run's MLflow run as `parity/`.

    Without `inputs` the rows are the bundle's golden ones. `as_served`: the trainer's table is rounded to the bundle's
    type first, so that a difference is none of the rounding.

    Both correct for the bundle's share of negatives. The scorer passes when its ids are the trainer's bit for bit, and
    its probabilities either lie within `tolerance` of the trainer's or come as close to the same network in float64 as
    `ROUNDING_FACTOR` times the trainer does.

    Raises `InputError` for files that cannot be read and for a bundle of another registry.
    """
    run, scorer = RunDirectory(path), Scorer(bundle)
    registry = run.registry()
    check_registry(registry, scorer.bundle.registry, str(bundle))
    ranker = run.ranker(as_served=not as_served)
    if as_served:
        ranker = served(ranker, scorer.bundle.manifest.table_dtype).eval()
    correction = scorer.bundle.manifest.prior_correction
    slots = Slots(ranker.embedding.layout, ranker.embedding.vocabulary)
    num_rows, ids_equal = 0, True
    worst, rounding, error = 0.0, 0.0, 0.0
    coverage: dict[str, Coverage] = {}
    for chunk in _raw_chunks(registry, inputs) if inputs else [scorer.bundle.golden.select(_names(registry))]:
        trained = probabilities(ranker, registry, chunk, correction=correction)
        exact = probabilities(ranker, registry, chunk, exact=True, correction=correction)
        encoded = scorer.encode(chunk)
        scores = scorer.score_encoded(encoded)
        coverage = add_coverage(coverage, scorer.coverage(encoded)) if inputs else coverage
        # np.maximum keeps a NaN, which then passes no comparison.
        worst = float(np.maximum(worst, np.abs(trained - scores).max(initial=0.0)))
        rounding = float(np.maximum(rounding, np.abs(trained - exact).max(initial=0.0)))
        error = float(np.maximum(error, np.abs(scores - exact).max(initial=0.0)))
        ids_equal &= _ids_equal(chunk, registry, slots, scorer.bundle)
        num_rows += len(chunk)
    result = {"rows": num_rows, "max_abs_diff": worst, "ids_equal": ids_equal, "tolerance": tolerance}
    result |= {"trainer_rounding": rounding, "scorer_rounding": error}
    result["warnings"] = coverage_warnings(coverage, scorer.bundle) if inputs else []
    result["ok"] = bool(num_rows and ids_equal and (worst <= tolerance or error <= ROUNDING_FACTOR * rounding))
    facts = run.facts()
    if facts["mlflow_run_id"] is not None:
        figures = {"parity/max_abs_diff": worst, "parity/rows": num_rows, "parity/ids_equal": ids_equal}
        try:
            tracker = Tracker.of(facts, run.path / "run.json")
            tracker.log_metrics(figures)
            result["store"] = shown_uri(tracker.uri)
        except InputError as error:  # the result matters more than its record
            logger.warning("parity was not logged to MLflow: %s", error)
    return result


def _names(registry: FeatureRegistry) -> list[str]:
    return [feature.name for feature in registry.features]


def _raw_chunks(registry: FeatureRegistry, inputs: Sequence[str]) -> Iterator[pl.DataFrame]:
    for file in expand(inputs):
        yield from read_chunks(file, _names(registry), csv=registry.csv, chunk_rows=16_384)


def _ids_equal(raw: pl.DataFrame, registry: FeatureRegistry, trained: Slots, served: Bundle) -> bool:
    """Whether torch, under the trainer's layout, and numpy, under the bundle's, read the same rows."""
    for name, tokens in encode(raw, registry).tokens.items():
        ours = trained.rows(torch.from_numpy(tokens.view(np.int64).copy())[None], trained.layout.positions_of(name))
        if not np.array_equal(ours.numpy(), rows_of(served.layout, served.vocabulary, name, tokens)):
            return False
    return True
