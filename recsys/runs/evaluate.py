"""Metrics and export of a trained run: `muxrec evaluate` and `muxrec export`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast, get_args

import numpy as np

from features.errors import InputError
from recsys.config import Compression
from recsys.dataset import Split
from recsys.embedding.mask import Mask
from recsys.evaluation.collisions import collision_report, distinct_tokens
from recsys.evaluation.metrics import CORRECTED, calibration_ratio, evaluate
from recsys.evaluation.predict import predict
from recsys.evaluation.predictions import Predictions
from recsys.evaluation.segments import Segment, segment_report, token_counts
from recsys.export import correction_of, export_bundle
from recsys.ranker import Ranker
from recsys.runs.run_directory import RunDirectory, RunMetrics, check_registry
from recsys.trainer import EVALUATION_BATCH_SIZE
from serving.bundle import Bundle
from serving.bundle.quantize import TableDtype


class Evaluation(NamedTuple):
    """Result of `evaluate_run`."""

    metrics: dict[str, float]
    collisions: dict[str, Any]
    """The collision report of the training data, as plain values."""
    segments: list[Segment]
    """Metrics by how often training saw the feature's value; empty if no feature was given."""


def evaluate_run(path: Path, split: str, data: Path | None = None, by: str | None = None) -> Evaluation:
    """Metrics of a run on a split, also by segment of the feature `by`.

    Raises `InputError` for an unfinished run, an unknown split or feature, or a dataset of another registry.
    """
    run = RunDirectory(path)
    ranker = run.ranker()
    run_info = run.run_info()
    examples = Split(data or run_info["dataset"], split)
    check_registry(run.registry(), examples.registry, str(path))
    if data is None and examples.info.digest != run_info["dataset_digest"]:
        remedy = "restore it, or name the data to evaluate on with --data"
        raise InputError(
            f"{examples.directory}: expected the data of training", found="prepared again since", remedy=remedy
        )
    known = [feature.name for feature in run.registry().token_features]
    if by not in (None, *known):
        raise InputError("unknown categorical feature", found=repr(by), remedy=f"use one of {', '.join(known)}")
    counts = token_counts(_training_split(run_info, examples).tokens(), [by]) if by else {}
    predictions = predict(ranker, examples.batches(EVALUATION_BATCH_SIZE))
    segments = segment_report(predictions, examples.tokens(), counts) if counts else []
    metrics = metrics_of(predictions, run.experiment().negative_rate)
    distinct = distinct_tokens(Split(examples.directory, "train").tokens())
    report, _ = collision_report(ranker.embedding.layout, distinct, ranker.embedding.vocabulary)
    return Evaluation(metrics, report.model_dump(), segments)


def _training_split(run_info: Mapping[str, Any], examples: Split) -> Split:
    train = Split(examples.directory, "train")
    if train.info.digest != run_info["dataset_digest"]:
        train = Split(run_info["dataset"], "train")
    if train.info.digest != run_info["dataset_digest"]:
        remedy = "restore it, or evaluate without --by"
        raise InputError(f"{train.directory}: expected the data of training", found="other data", remedy=remedy)
    return train


def metrics_of(predictions: Predictions, negative_rate: float) -> dict[str, float]:
    """Every metric of a split before the prior correction, and `calibration_ratio_corrected` if there is a correction.

    The latter assumes that the split kept a share `negative_rate` of its negatives, as the training data did: after the
    correction, each of them counts for 1 / negative_rate.
    """
    metrics = evaluate(predictions)
    correction = correction_of(negative_rate)
    if correction is not None:
        labels, probabilities, _, weights = predictions
        amounts = np.where(labels == 1, 1.0, 1.0 / negative_rate) * (1.0 if weights is None else weights)
        metrics[CORRECTED] = calibration_ratio(Predictions(labels, correction.apply(probabilities), weights=amounts))
    return metrics


def export_run(
    path: Path,
    out: Path,
    *,
    table_dtype: str | None = None,
    negative_rate: float | None = None,
    overwrite: bool = False,
) -> Bundle:
    """Write a finished run as a bundle; `table_dtype` and `negative_rate` default to the run's (fp32 if not pruned).

    Raises `InputError` for an unknown table type, an impossible rate, or an `out` that exists.
    """
    if table_dtype not in (None, *get_args(TableDtype)):
        known = ", ".join(get_args(TableDtype))
        raise InputError("unknown table type", found=repr(table_dtype), remedy=f"use one of {known}")
    run = RunDirectory(path)
    metrics, run_id = run.metrics(), run.run_info()["mlflow_run_id"]
    options = {"table_dtype": table_dtype, "negative_rate": negative_rate, "run_id": run_id, "overwrite": overwrite}
    return export_ranker(run, run.ranker(quantized=False), out, metrics, **options)


def export_ranker(
    run: RunDirectory,
    ranker: Ranker,
    out: Path,
    metrics: RunMetrics,
    *,
    table_dtype: str | None = None,
    negative_rate: float | None = None,
    **options: Any,
) -> Bundle:
    """`export_run` of a run's model in memory; `options` are those of `export_bundle`."""
    experiment, compression = run.experiment(), run.experiment().compression
    return export_bundle(
        ranker,
        run.registry(),
        out,
        model=experiment.model.name,
        table_dtype=cast(TableDtype, table_dtype or (compression.table_dtype if compression else "fp32")),
        metrics={name: values for name, values in metrics.items() if name not in ("perf", "compression")},
        info=run.info(),  # None after the dataset was removed: the bundle then has no profile
        distributions=run.distributions(),
        trained_rows=run.trained_rows(),
        negative_rate=experiment.negative_rate if negative_rate is None else negative_rate,
        compression=compression_record(ranker, compression, metrics["compression"]) if compression else None,
        **options,
    )


def compression_figures(ranker: Ranker, bundle: Bundle, metrics: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Bytes of the embedding files, kept rows and cells of the table, and AUC and log loss after compression."""
    mask = ranker.embedding.mask or Mask.full(ranker.embedding.layout)
    figures = {
        "bytes_after": float(bundle.manifest.table_bytes),
        "rows_kept": float(mask.num_rows_kept),
        "cells_kept": float(mask.num_cells),
    }
    for split in [name for name in ("valid", "test") if name in metrics]:
        figures |= {f"{split}_{name}_after": metrics[split][name] for name in ("auc", "logloss")}
    return figures


def compression_record(ranker: Ranker, compression: Compression, before: Mapping[str, float]) -> dict[str, Any]:
    """Method, budget, kept rows, and the kept columns per value by view and feature."""
    layout = ranker.embedding.layout
    mask = ranker.embedding.mask or Mask.full(layout)
    columns: dict[str, dict[str, int]] = {view: {} for view in layout.views}
    for slot, width in zip(layout.slots, mask.slot_widths.tolist(), strict=True):
        columns[slot.view][slot.feature] = columns[slot.view].get(slot.feature, 0) + width
    settings = compression.model_dump(mode="json")
    return {**settings, "columns_kept": columns, "rows_kept": mask.num_rows_kept, "before": dict(before)}
