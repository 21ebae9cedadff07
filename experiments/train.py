"""A whole run: train, evaluate, report, export, track; `muxrec train` and nothing else."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import experiments
from experiments.compression_facts import compression_facts, compression_figures
from experiments.config import Experiment
from experiments.evaluate import metrics_of
from experiments.logged_model import log_model
from experiments.process import ResourceMeter, alone_in
from experiments.report.importance import feature_importance
from experiments.report.model_card import model_card
from experiments.report.write import Judged, kept_by_feature, write_report
from experiments.run_directory import RunDirectory
from experiments.serving_cost import serving_cost
from features.errors import InputError
from features.files import write_text
from features.layout import COUNTED
from recsys.collisions import Distinct, collision_report, distinct_tokens, vocabulary_of
from recsys.dataset import Split
from recsys.evaluate import predict
from recsys.export import export_bundle, served
from recsys.ranker import Ranker, build_ranker
from recsys.segments import segment_report, token_counts
from recsys.tracking import Tracker, git_commit, tracking_uri
from recsys.trainer import EVALUATION_BATCH_SIZE, Trainer, new_state, peak_memory_mb
from recsys.training_profile import training_profile
from serving.bundle import Bundle

PATIENCE = 1.0
"""Seconds to wait for another process in the run directory: one that was just killed may still be on its way out."""


class PrunedError(Exception):
    """What an `on_epoch` raises to end a run that is not worth going on with."""


def train_run(
    experiment: Experiment,
    data: Path,
    out: Path,
    *,
    track: bool = True,
    progress: bool = False,
    tags: Mapping[str, str] | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
    prepare: Callable[[RunDirectory, Ranker], dict[str, float]] | None = None,
) -> dict[str, dict[str, float]]:
    """Train in a run directory and return its metrics; a finished run is returned as it is, a cut-off one resumed.

    `prepare` may hold a fresh ranker to a mask before it is trained; what it returns stands in the section
    `compression` of the metrics.
    `tags` are added to the MLflow run; `on_epoch` takes each record of the history, twice where a run is cut off then.
    Raises `InputError` for a directory of another run or with another process at work, a dataset without a validation
    split, and settings that do not fit the data.
    """
    run, train = RunDirectory(out), Split(data, "train")
    if "valid" not in train.info.splits:
        raise InputError(f"{data}: expected a valid split", remedy="prepare the data again with --valid")
    run.check(experiment, train.info, train.registry)
    if run.is_finished:
        return run.metrics()
    # All of train is read for it: only where the table depends on it already, else when the run is reported.
    distinct = distinct_tokens(train.tokens()) if experiment.embedding.kind in COUNTED else None
    vocabulary = None if distinct is None else vocabulary_of(distinct)
    # Built before anything is written or logged: a setting that cannot work leaves nothing behind.
    ranker, table_optimizer = build_ranker(
        train.registry,
        experiment.model_name,
        experiment.network_config(),
        experiment.embedding,
        seed=experiment.seed,
        learning_rate=experiment.trainer.learning_rate,
        vocabulary=vocabulary,
    )
    run.begin(experiment, train.info, train.registry, data, vocabulary)
    with ExitStack() as held:
        held.enter_context(alone_in(out, patience=PATIENCE))
        if run.is_finished:  # by the process that was waited for
            return run.metrics()
        run.clear()
        tracker = _tracker(run, experiment, train, tags or {}) if track else None
        held.enter_context(_ending(tracker))
        if tracker:
            # Also on resuming: the run may have been cut off before, and equal settings may be logged again.
            tracker.log_settings(experiment.model_dump(mode="json"), train.info, train.directory)
        before = prepare(run, ranker) if prepare else {}
        rate_factor = experiment.compression.rate_factor if experiment.compression else 1.0
        table_optimizer.learning_rate *= rate_factor
        trainer = Trainer(
            ranker,
            table_optimizer,
            experiment.trainer.model_copy(update={"learning_rate": experiment.trainer.learning_rate * rate_factor}),
            out,
            seed=experiment.seed,
            l2=experiment.embedding.l2,
            progress=progress,
            on_epoch=_on_epoch(tracker, on_epoch),
        )
        valid = Split(data, "valid")
        is_done = experiment.compression is not None and experiment.compression.start == "as_is"
        state = new_state() if is_done else trainer.fit(train, valid)
        metrics = _finish(run, ranker, train, valid, distinct, state, tracker, before)
    return metrics


def _on_epoch(tracker: Tracker | None, also: Callable[[dict[str, Any]], None] | None) -> Callable[..., None]:
    """Log an epoch with what the process used in it, then hand it on."""
    meter = ResourceMeter()

    def ended(record: dict[str, Any]) -> None:
        if tracker:
            tracker.log_epoch({**record, **meter.used()})
        if also:
            also(record)

    return ended


def _tracker(run: RunDirectory, experiment: Experiment, train: Split, more_tags: Mapping[str, str]) -> Tracker:
    """The MLflow run of a run directory: the one it began with where it was cut off."""
    facts = run.facts()
    if facts["mlflow_run_id"] is not None:
        tracker = Tracker.resume(facts["mlflow_tracking_uri"] or tracking_uri(), facts["mlflow_run_id"])
        for record in run.history():  # what the process held back when it was cut off
            tracker.log_epoch(record)
        return tracker
    tags = {
        "dataset.name": train.info.name,
        "dataset.digest": train.info.digest,
        "registry.fingerprint": train.registry.fingerprint(),
        "seed": str(experiment.seed),
        "stage": "train",
    }
    commit = git_commit(Path(experiments.__path__[0]))
    tags |= {"mlflow.source.git.commit": commit, **more_tags} if commit else more_tags
    # A store of the user's is not written down: its address may hold a password.
    uri = None if os.environ.get("MLFLOW_TRACKING_URI") else tracking_uri()
    tracker = Tracker.start(experiment=train.info.name, name=experiment.name, tags=tags, key=facts["key"])
    run.write_facts({**facts, "mlflow_run_id": tracker.run_id, "mlflow_tracking_uri": uri})
    return tracker


@contextmanager
def _ending(tracker: Tracker | None) -> Iterator[None]:
    """Leave no run as RUNNING in the store, however the block ends."""
    try:
        yield
    except BaseException as error:
        if tracker:
            tracker.finish("KILLED" if isinstance(error, KeyboardInterrupt | PrunedError) else "FAILED")
        raise
    if tracker:
        tracker.finish()


def _finish(
    run: RunDirectory,
    ranker: Ranker,
    train: Split,
    valid: Split,
    distinct: Distinct | None,
    state: dict[str, Any],
    tracker: Tracker | None,
    before: dict[str, float],
) -> dict[str, dict[str, float]]:
    experiment, embedding = run.experiment(), ranker.embedding
    trained, dtype = ranker, experiment.compression.table_dtype if experiment.compression else "fp32"
    ranker = served(trained, dtype)  # what is judged
    splits = [valid, *([Split(train.directory, "test")] if "test" in train.info.splits else [])]
    predictions = {split.name: predict(ranker, split.batches(EVALUATION_BATCH_SIZE)) for split in splits}
    metrics = {name: metrics_of(values, experiment.negative_rate) for name, values in predictions.items()}
    last = splits[-1].name
    counts = token_counts(train.tokens(), [feature.name for feature in train.registry.token_features])
    segments = segment_report(predictions[last], splits[-1].tokens(), counts)
    distinct = distinct or distinct_tokens(train.tokens())
    collisions, usage = collision_report(embedding.layout, distinct, embedding.vocabulary)
    np.save(run.trained_rows_path, usage > 0)
    profile = training_profile(
        train, valid, predictions["valid"], embedding, usage > 0, negative_rate=experiment.negative_rate
    )
    write_text(run.profile_path, profile.model_dump_json())
    importance = feature_importance(ranker, splits[-1])
    run_id = tracker.run_id if tracker else None
    bundle = export_bundle(
        trained,
        train.registry,
        run.bundle,
        model=experiment.model_name,
        table_dtype=dtype,
        metrics=dict(metrics),
        info=train.info,
        distributions=profile,
        trained_rows=usage > 0,
        run_id=run_id,
        negative_rate=experiment.negative_rate,
        compression=None if experiment.compression is None else compression_facts(trained, experiment, before),
        overwrite=True,
    )
    if experiment.compression:
        metrics["compression"] = before | compression_figures(trained, bundle, metrics)
    metrics["perf"] = _performance(state) | serving_cost(run.bundle)
    judged = Judged(last, predictions[last], metrics[last], segments, importance)
    mask = trained.embedding.mask
    kept = kept_by_feature(embedding.layout, mask, distinct, embedding.vocabulary) if mask else []
    write_report(run.report, state["history"], judged, collisions, usage, kept)
    card = model_card(experiment, train.info, train.registry, metrics, judged, collisions, kept)
    write_text(run.report / "model_card.md", card)
    if tracker:
        _log_results(tracker, run, metrics, state, bundle)
    write_text(run.path / "metrics.json", json.dumps(metrics, indent=1))
    return metrics


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


def _log_results(
    tracker: Tracker, run: RunDirectory, metrics: dict[str, dict[str, float]], state: dict[str, Any], bundle: Bundle
) -> None:
    prefixes = {"valid": "val", "test": "test", "perf": "perf", "compression": "compression"}
    step = state["global_step"]
    final = {f"{prefixes[name]}/{key}": value for name, values in metrics.items() for key, value in values.items()}
    tracker.log_metrics(final, step=step)
    tracker.log_files(run.report, "report")
    for name in ("experiment.yaml", "registry.json"):
        tracker.log_file(run.path / name)
    log_model(tracker, bundle)
    metrics["perf"]["tracking_seconds"] = tracker.seconds
    tracker.log_metrics({"perf/tracking_seconds": tracker.seconds}, step=step)
    tracker.finish()  # before metrics.json is there: with that file, nobody takes the run up again
