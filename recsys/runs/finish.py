"""The end of a run: evaluate, export, report and log the trained model."""

import json
from typing import NamedTuple

import numpy as np

from features.files import write_text
from recsys.compression.kept import kept_by_feature
from recsys.config import Experiment
from recsys.dataset import Split
from recsys.evaluation.collisions import collision_report
from recsys.evaluation.permutation_importance import feature_importance
from recsys.evaluation.predict import predict
from recsys.evaluation.segments import segment_report
from recsys.export import quantized_copy
from recsys.ranker import Ranker
from recsys.report.model_card import model_card
from recsys.report.write import EvaluatedSplit, write_report
from recsys.runs.evaluate import compression_figures, export_ranker, metrics_of
from recsys.runs.process import peak_memory_mb
from recsys.runs.run_directory import RunDirectory, RunMetrics
from recsys.runs.serving_cost import serving_cost
from recsys.schedule import TrainState
from recsys.tracking.logged_model import log_model
from recsys.tracking.tracker import Tracker
from recsys.trainer import EVALUATION_BATCH_SIZE
from recsys.training_profile import summarize_train, training_profile
from serving.bundle import Bundle
from serving.scorer import Scorer

PREFIXES = {"valid": "val", "test": "test", "perf": "perf", "compression": "compression"}
"""Section of the metrics to the prefix of its names in MLflow."""


class Trained(NamedTuple):
    """A run after its last epoch."""

    run: RunDirectory
    experiment: Experiment
    ranker: Ranker
    train: Split
    valid: Split
    state: TrainState
    before: dict[str, float]
    """Figures of the run that this one was compressed from; empty for others."""


def finish_run(trained: Trained, tracker: Tracker | None, *, report: bool = True) -> RunMetrics:
    """Write the bundle, the report and, as the last file, the metrics of a run; returns the metrics."""
    run, experiment, _, train, valid, state, before = trained
    compression, embedding = experiment.compression, trained.ranker.embedding
    # The served model is evaluated: rows of fewer bits differ from the trained ones.
    quantized = quantized_copy(trained.ranker, compression.table_dtype if compression else "fp32")
    splits = [valid, *([Split(train.directory, "test")] if "test" in train.info.splits else [])]
    predictions = {split.name: predict(quantized.ranker, split.batches(EVALUATION_BATCH_SIZE)) for split in splits}
    metrics = {name: metrics_of(values, experiment.negative_rate) for name, values in predictions.items()}
    rate = experiment.negative_rate
    summary = summarize_train(train, rate)
    distinct = summary.distinct()
    collisions, usage = collision_report(embedding.layout, distinct, embedding.vocabulary)
    np.save(run.trained_rows_path, usage > 0)
    profile = training_profile(summary.features, valid, predictions["valid"], embedding, usage > 0, negative_rate=rate)
    write_text(run.profile_path, profile.model_dump_json())
    bundle = export_ranker(
        run,
        trained.ranker,
        run.bundle,
        {**metrics, "compression": before},
        quantized=quantized,
        run_id=tracker.run_id if tracker else None,
        overwrite=True,
    )
    if compression:
        metrics["compression"] = before | compression_figures(trained.ranker, bundle, metrics)
    metrics["perf"] = _performance(state) | serving_cost(Scorer(bundle))
    if report:
        last = splits[-1].name
        segments = segment_report(predictions[last], splits[-1].tokens(), summary.counts)
        importance = feature_importance(quantized.ranker, splits[-1])
        evaluated = EvaluatedSplit(last, predictions[last], metrics[last], segments, importance)
        mask = embedding.mask
        kept = kept_by_feature(embedding.layout, mask, distinct, embedding.vocabulary) if mask else []
        write_report(run.report, state.history, state.best_epoch, evaluated, collisions, usage, kept)
        card = model_card(experiment, train.info, train.registry, metrics, evaluated, collisions, kept)
        write_text(run.report / "model_card.md", card)
    if tracker:
        _log_results(tracker, run, metrics, bundle)
    write_text(run.path / "metrics.json", json.dumps(metrics, indent=1))
    return metrics


def _performance(state: TrainState) -> dict[str, float]:
    return {
        "samples_per_s": state.examples / max(state.seconds, 1e-9),
        "samples_per_s_with_evaluation": state.examples / max(state.seconds + state.eval_seconds, 1e-9),
        "train_seconds": state.seconds,
        "eval_seconds": state.eval_seconds,
        "epochs": state.epoch,
        "best_epoch": state.best_epoch,
        "peak_memory_mb": peak_memory_mb(),
    }


def mlflow_names(metrics: RunMetrics) -> dict[str, float]:
    """The metrics as MLflow shows them, such as `val/auc`."""
    return {f"{PREFIXES[name]}/{key}": value for name, values in metrics.items() for key, value in values.items()}


def _log_results(tracker: Tracker, run: RunDirectory, metrics: RunMetrics, bundle: Bundle) -> None:
    tracker.log_final(mlflow_names(metrics))
    for path in (run.report, run.path / "experiment.yaml", run.path / "registry.json"):
        if path.exists():  # the report is optional
            tracker.log_file(path)
    log_model(tracker, bundle)
    metrics["perf"]["tracking_seconds"] = tracker.seconds
    tracker.log_final({"perf/tracking_seconds": tracker.seconds})
    tracker.finish()  # before metrics.json is written: once that is there, no command resumes the run
