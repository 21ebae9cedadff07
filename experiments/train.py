"""A whole run: train, evaluate, report, export, track; `muxrec train` and nothing else."""

import importlib.metadata
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import experiments
import features
import serving
from experiments.config import Experiment
from experiments.evaluate import metrics_of
from experiments.report import Judged, write_report
from experiments.run_directory import RunDirectory
from features.errors import InputError
from features.files import write_text
from recsys.collisions import Distinct, collision_report, distinct_tokens, vocabulary_of
from recsys.dataset import Split
from recsys.evaluate import predict
from recsys.export import export_bundle
from recsys.ranker import Ranker, build_ranker
from recsys.segments import segment_report, token_counts
from recsys.tracking import Tracker, git_commit, tracking_uri
from recsys.trainer import EVALUATION_BATCH_SIZE, Trainer, peak_memory_mb

SERVING_PACKAGES = ("numpy", "onnxruntime", "polars", "polars-hash", "pydantic", "pyyaml", "rich", "safetensors")


def train_run(
    experiment: Experiment, data: Path, out: Path, *, track: bool = True, progress: bool = False
) -> dict[str, dict[str, float]]:
    """Train in a run directory and return its metrics; a finished run is returned as it is, a cut-off one resumed.

    Raises `InputError` for a directory of another run, a dataset without a validation split, and settings that do
    not fit the data.
    """
    run, train = RunDirectory(out), Split(data, "train")
    if "valid" not in train.info.splits:
        raise InputError(f"{data}: expected a valid split", remedy="prepare the data again with --valid")
    run.check(experiment, train.info, train.registry)
    if run.is_finished:
        return run.metrics()
    # All of train is read for it: only where the table depends on it already, else when the run is reported.
    distinct = None if experiment.embedding.kind == "unified" else distinct_tokens(train.tokens())
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
    facts = run.begin(experiment, train.info, train.registry, data, vocabulary)
    tracker = _tracker(run, facts, experiment, train) if track else None
    with _ending(tracker):
        if tracker:
            # Also on resuming: the run may have been cut off before, and equal settings may be logged again.
            tracker.log_settings(experiment.model_dump(mode="json"), train.info, train.directory)
        trainer = Trainer(
            ranker,
            table_optimizer,
            experiment.trainer,
            out,
            seed=experiment.seed,
            l2=experiment.embedding.l2,
            progress=progress,
            on_epoch=tracker.log_epoch if tracker else None,
        )
        valid = Split(data, "valid")
        state = trainer.fit(train, valid)
        metrics = _finish(run, ranker, train, valid, distinct, state, tracker)
    return metrics


def _tracker(run: RunDirectory, facts: dict[str, Any], experiment: Experiment, train: Split) -> Tracker:
    """The MLflow run of a run directory: the one it began with where it was cut off."""
    if facts["mlflow_run_id"] is not None:
        return Tracker.resume(facts["mlflow_tracking_uri"] or tracking_uri(), facts["mlflow_run_id"])
    tags = {
        "dataset.name": train.info.name,
        "dataset.digest": train.info.digest,
        "registry.fingerprint": train.registry.fingerprint(),
        "seed": str(experiment.seed),
        "stage": "train",
    }
    commit = git_commit(Path(experiments.__path__[0]))
    tags |= {"mlflow.source.git.commit": commit} if commit else {}
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
            tracker.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
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
) -> dict[str, dict[str, float]]:
    experiment, embedding = run.experiment(), ranker.embedding
    splits = [valid, *([Split(train.directory, "test")] if "test" in train.info.splits else [])]
    predictions = {split.name: predict(ranker, split.batches(EVALUATION_BATCH_SIZE)) for split in splits}
    metrics = {name: metrics_of(values, experiment.negative_rate) for name, values in predictions.items()}
    last = splits[-1].name
    counts = token_counts(train.tokens(), [feature.name for feature in train.registry.token_features])
    segments = segment_report(predictions[last], splits[-1].tokens(), counts)
    collisions, usage = collision_report(
        embedding.layout, distinct or distinct_tokens(train.tokens()), embedding.vocabulary
    )
    np.save(run.trained_rows_path, usage > 0)
    metrics["perf"] = _performance(state)
    judged = Judged(last, predictions[last], metrics[last], segments)
    write_report(run.report, state["history"], judged, collisions, usage)
    run_id = tracker.run_id if tracker else None
    bundle = export_bundle(
        ranker,
        train.registry,
        run.bundle,
        model=experiment.model_name,
        metrics={name: values for name, values in metrics.items() if name != "perf"},
        info=train.info,
        trained_rows=usage > 0,
        run_id=run_id,
        negative_rate=experiment.negative_rate,
        overwrite=True,
    )
    if tracker:
        _log_results(tracker, run, metrics, state, bundle.golden)
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
    tracker: Tracker, run: RunDirectory, metrics: dict[str, dict[str, float]], state: dict[str, Any], golden: Any
) -> None:
    prefixes = {"valid": "val", "test": "test", "perf": "perf"}
    step = state["global_step"]
    final = {f"{prefixes[name]}/{key}": value for name, values in metrics.items() for key, value in values.items()}
    tracker.log_metrics(final, step=step)
    tracker.log_files(run.report, "report")
    for name in ("experiment.yaml", "registry.json"):
        tracker.log_file(run.path / name)
    code = [Path(package.__path__[0]) for package in (features, serving)]
    requirements = [f"{package}=={importlib.metadata.version(package)}" for package in SERVING_PACKAGES]
    loader = Path(experiments.__path__[0]) / "bundle_pyfunc.py"
    tracker.log_bundle(run.bundle, loader, code, requirements, golden)
    metrics["perf"]["tracking_seconds"] = tracker.seconds
    tracker.log_metrics({"perf/tracking_seconds": tracker.seconds}, step=step)
