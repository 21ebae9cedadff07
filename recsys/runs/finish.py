"""The end of a run: evaluate, export, report and log what was trained."""

import json
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from features.files import write_text
from recsys.compression.kept import kept_by_feature
from recsys.dataset import Split
from recsys.evaluation.collisions import Distinct, collision_report, distinct_tokens
from recsys.evaluation.permutation_importance import feature_importance
from recsys.evaluation.predict import predict
from recsys.evaluation.predictions import Predictions
from recsys.evaluation.segments import segment_report, token_counts
from recsys.export import export_bundle, quantized_copy
from recsys.ranker import Ranker
from recsys.report.model_card import model_card
from recsys.report.write import EvaluatedSplit, write_report
from recsys.runs.compression_facts import compression_facts, compression_figures
from recsys.runs.evaluate import metrics_of
from recsys.runs.run_directory import RunDirectory
from recsys.runs.serving_cost import serving_cost
from recsys.tracking.logged_model import log_model
from recsys.tracking.tracker import Tracker
from recsys.trainer import EVALUATION_BATCH_SIZE, peak_memory_mb
from recsys.training_profile import training_profile
from serving.bundle.bundle import Bundle

Metrics = dict[str, dict[str, float]]
"""Section, such as "valid" or "perf", to the name and value of its figures."""
PREFIXES = {"valid": "val", "test": "test", "perf": "perf", "compression": "compression"}
"""Section to the group of names that it has in MLflow."""


class Trained(NamedTuple):
    """What training leaves behind."""

    run: RunDirectory
    ranker: Ranker
    train: Split
    valid: Split
    distinct: Distinct | None
    """Tokens of `train`, where they were counted before it."""
    state: dict[str, Any]
    """The trainer's."""
    before: dict[str, float]
    """Figures of the run that this one was compressed from."""


def finish_run(trained: Trained, tracker: Tracker | None) -> Metrics:
    """Write the bundle, the report and, as the last file, the metrics of a run, which are returned."""
    run, train, state = trained.run, trained.train, trained.state
    experiment = run.experiment()
    # What is judged is what will be served: rows of fewer bits are not those that were trained.
    ranker = quantized_copy(trained.ranker, experiment.compression.table_dtype if experiment.compression else "fp32")
    splits = [trained.valid, *([Split(train.directory, "test")] if "test" in train.info.splits else [])]
    predictions = {split.name: predict(ranker, split.batches(EVALUATION_BATCH_SIZE)) for split in splits}
    metrics = {name: metrics_of(values, experiment.negative_rate) for name, values in predictions.items()}
    last = splits[-1].name
    counts = token_counts(train.tokens(), [feature.name for feature in train.registry.token_features])
    segments = segment_report(predictions[last], splits[-1].tokens(), counts)
    importance = feature_importance(ranker, splits[-1])
    judged = EvaluatedSplit(last, predictions[last], metrics[last], segments, importance)

    distinct = trained.distinct or distinct_tokens(train.tokens())
    embedding = trained.ranker.embedding
    collisions, usage = collision_report(embedding.layout, distinct, embedding.vocabulary)
    bundle = _export(trained, metrics, predictions["valid"], usage > 0, tracker)
    if experiment.compression:
        metrics["compression"] = trained.before | compression_figures(trained.ranker, bundle, metrics)
    metrics["perf"] = _performance(state) | serving_cost(run.bundle)

    mask = embedding.mask
    kept = kept_by_feature(embedding.layout, mask, distinct, embedding.vocabulary) if mask else []
    write_report(run.report, state["history"], state["best_epoch"], judged, collisions, usage, kept)
    card = model_card(experiment, train.info, train.registry, metrics, judged, collisions, kept)
    write_text(run.report / "model_card.md", card)
    if tracker:
        _log_results(tracker, run, metrics, bundle)
    write_text(run.path / "metrics.json", json.dumps(metrics, indent=1))
    return metrics


def _export(
    trained: Trained,
    metrics: Metrics,
    valid: Predictions,
    starts_trained: npt.NDArray[np.bool_],
    tracker: Tracker | None,
) -> Bundle:
    """The run's bundle, with what later inputs are compared with; `starts_trained` [M] flags the rows that were
    read."""
    run, train, ranker = trained.run, trained.train, trained.ranker
    experiment = run.experiment()
    compression = experiment.compression
    np.save(run.trained_rows_path, starts_trained)
    profile = training_profile(
        train, trained.valid, valid, ranker.embedding, starts_trained, negative_rate=experiment.negative_rate
    )
    write_text(run.profile_path, profile.model_dump_json())
    return export_bundle(
        ranker,
        train.registry,
        run.bundle,
        model=experiment.model_name,
        table_dtype=compression.table_dtype if compression else "fp32",
        metrics=dict(metrics),
        info=train.info,
        distributions=profile,
        trained_rows=starts_trained,
        run_id=tracker.run_id if tracker else None,
        negative_rate=experiment.negative_rate,
        compression=compression_facts(ranker, experiment, trained.before) if compression else None,
        overwrite=True,
    )


def _performance(state: dict[str, Any]) -> dict[str, float]:
    return {
        "samples_per_s": state["examples"] / max(state["seconds"], 1e-9),
        "samples_per_s_with_evaluation": state["examples"] / max(state["seconds"] + state["eval_seconds"], 1e-9),
        "train_seconds": state["seconds"],
        "eval_seconds": state["eval_seconds"],
        "epochs": state["epoch"],
        "best_epoch": state["best_epoch"],
        "peak_memory_mb": peak_memory_mb(),
    }


def _log_results(tracker: Tracker, run: RunDirectory, metrics: Metrics, bundle: Bundle) -> None:
    final = {f"{PREFIXES[name]}/{key}": value for name, values in metrics.items() for key, value in values.items()}
    tracker.log_final(final)
    tracker.log_files(run.report, "report")
    for name in ("experiment.yaml", "registry.json"):
        tracker.log_file(run.path / name)
    log_model(tracker, bundle)
    metrics["perf"]["tracking_seconds"] = tracker.seconds
    tracker.log_final({"perf/tracking_seconds": tracker.seconds})
    tracker.finish()  # before metrics.json is there: with that file, nobody takes the run up again
