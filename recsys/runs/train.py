"""`muxrec train`: a run from its settings to its metrics.

The life of a run:
1. `check`: the directory is new, empty, or holds this run (same settings, registry and data).
2. A finished run (metrics.json exists) is returned as it is.
3. The model is built, so that settings that cannot work fail before anything is written.
4. `begin`: experiment.yaml, registry.json, run.json and, if there are any, the vocabulary and the target statistics
   appear together, by one rename.
5. The lock is taken; what a killed process left half-written is removed.
6. The MLflow run starts, or resumes where run.json names one; the epochs of log.jsonl are logged again.
7. `muxrec prune` alone: supernet/ is trained and mask.safetensors written; each stage resumes by itself.
8. Training writes log.jsonl and checkpoint/; a killed process resumes at the last state.safetensors.
9. `finish_run` writes trained_rows.npy, profile.json, bundle/ and report/ and logs them; if it is killed, it starts
   over.
10. metrics.json comes last and makes the run finished.
"""

import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from features.errors import InputError
from features.table_kinds import TABLE_KINDS
from recsys.config import Experiment
from recsys.dataset import Split
from recsys.embedding.optimizers import TableOptimizer
from recsys.evaluation.collisions import distinct_tokens, vocabulary_of
from recsys.ranker import Ranker
from recsys.runs.finish import Trained, finish_run
from recsys.runs.process import ResourceMeter, frozen_gc, locked_directory
from recsys.runs.run_directory import RunDirectory, RunMetrics, fresh_ranker
from recsys.schedule import TrainState
from recsys.target_statistics import fit_target_statistics
from recsys.tracking.tracker import Tracker, git_commit
from recsys.trainer import Trainer

LOCK_TIMEOUT_SECONDS = 1.0
"""Wait for another process in the run directory: one that was just killed may still be exiting."""


class StopTrial(Exception):  # noqa: N818  (no error, like optuna's TrialPruned)
    """Raised by `on_epoch` to end an unpromising run."""


def train_run(
    experiment: Experiment,
    data: Path,
    out: Path,
    *,
    track: bool = True,
    progress: bool = False,
    report: bool = True,
    tags: Mapping[str, str] | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
    prepare: Callable[[RunDirectory, Ranker], dict[str, float]] | None = None,
) -> RunMetrics:
    """Train in a run directory and return its metrics; an interrupted run is resumed, a finished one returned as it is.

    `report=False` leaves out report/, which takes a quarter of a short run. `prepare` may apply a mask to the fresh
    ranker; its figures go into the section `compression` of the metrics. `tags` are added to the MLflow run. `on_epoch`
    gets each record of the history, after an interruption perhaps again.
    Raises `InputError` for a directory of another run or in use by another process, a dataset without a validation
    split, and settings that do not fit the data.
    """
    run, train = RunDirectory(out), Split(data, "train")
    if "valid" not in train.info.splits:
        raise InputError(f"{data}: expected a valid split", remedy="prepare the data again with --valid")
    run.check(experiment, train.info, train.registry)
    if run.is_finished:
        return _metrics_of_finished(run, track=track)
    # Reads all of train, so only for tables whose shape depends on it.
    has_own_ranges = TABLE_KINDS[experiment.embedding.kind].has_own_ranges
    vocabulary = vocabulary_of(distinct_tokens(train.tokens())) if has_own_ranges else None
    statistics = fit_target_statistics(train) if experiment.target_statistics else None
    # Built before anything is written or logged, so that settings that cannot work leave nothing behind.
    ranker, table_optimizer = fresh_ranker(experiment, train.registry, vocabulary, statistics)
    run.begin(experiment, train.info, train.registry, data, vocabulary, statistics)
    with ExitStack() as held:
        held.enter_context(locked_directory(out, timeout_seconds=LOCK_TIMEOUT_SECONDS))
        if run.is_finished:  # by the process that held the lock
            return _metrics_of_finished(run, track=track)
        run.remove_temporary_files()
        tracker = _tracker(run, experiment, train, tags or {}) if track else None
        if tracker:
            held.enter_context(tracker.ending(StopTrial))
            # Also on resuming: the run may have been killed before this line, and MLflow accepts equal params again.
            tracker.log_settings(experiment.params(), train.info, train.directory)
            if progress:
                sys.stderr.write(f"MLflow: {tracker.page}\n")
        valid = Split(data, "valid")
        with frozen_gc():
            before = prepare(run, ranker) if prepare else {}
            meter = ResourceMeter()

            def epoch_ended(record: dict[str, Any]) -> None:
                if tracker:
                    tracker.log_epoch({**record, **meter.used()})
                if on_epoch:
                    on_epoch(record)

            options = {"progress": progress, "on_epoch": epoch_ended}
            state = _fit(experiment, out, ranker, table_optimizer, train, valid, **options)
            return finish_run(Trained(run, experiment, ranker, train, valid, state, before), tracker, report=report)


def _metrics_of_finished(run: RunDirectory, *, track: bool) -> RunMetrics:
    """Metrics of a finished run; raises `InputError` if it is not in the store that the command prints."""
    if track:
        Tracker.of(run.record)
    return run.metrics()


def _fit(
    experiment: Experiment,
    out: Path,
    ranker: Ranker,
    table_optimizer: TableOptimizer,
    train: Split,
    valid: Split,
    **options: Any,
) -> TrainState:
    """The trainer's last state; an empty one for a compressed model that is not trained again."""
    compression, settings = experiment.compression, experiment.trainer
    if compression:
        if compression.start == "as_is":
            return TrainState()
        table_optimizer.learning_rate *= compression.rate_factor
        settings = settings.model_copy(update={"learning_rate": settings.learning_rate * compression.rate_factor})
    trainer = Trainer(
        ranker,
        table_optimizer,
        settings,
        out,
        seed=experiment.seed,
        l2=experiment.embedding.l2,
        starts_trained=compression is not None and compression.is_tuned,
        **options,
    )
    return trainer.fit(train, valid)


def _tracker(run: RunDirectory, experiment: Experiment, train: Split, more_tags: Mapping[str, str]) -> Tracker:
    if tracker := Tracker.of(run.record):
        tracker.resume()
    else:
        name = train.info.name
        tags = {
            "dataset.name": name,
            "dataset.digest": train.info.digest,
            "registry.fingerprint": train.registry.fingerprint(),
            "seed": str(experiment.seed),
            "stage": "train",
            "mlflow.note.content": f"{experiment.name} on {name}, in {run.path.absolute()}",
        }
        if commit := git_commit(Path(__file__).parent):
            tags["mlflow.source.git.commit"] = commit
        key = run.run_info()["key"]
        tracker = Tracker.start(experiment=name, name=experiment.name, tags={**tags, **more_tags}, key=key)
    run.update_run_info(tracker.run_info())  # the store may have moved
    for record in run.history():  # epochs that a killed process did not send, or sent to another store
        tracker.log_epoch(record)
    return tracker
