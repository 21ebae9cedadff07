"""`muxrec sweep`: trials of a named run over a search space, chosen by Optuna, trained by processes, resumable.

sweep.json       the varied run, the space, the data, MLflow's run of the sweep
study.db         Optuna's study (SQLite); only the sweep's own process writes to it
trials/0007/     an ordinary run directory for each trial
worker-1.log     log of a training process
report/          trials, importance and progress, as logged to MLflow

Trials come from TPE (Bergstra et al., "Algorithms for hyper-parameter optimization", NeurIPS 2011). A trial whose
validation score after an epoch is below the median of the others after the same epoch ends. The first trial is the
named run itself. The next call resumes an interrupted trial from its last checkpoint.
"""

import contextlib
import logging
import os
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, Trial, TrialState
from pydantic import BaseModel, ConfigDict

from features.dataset.info import DatasetInfo, read_dataset
from features.errors import InputError, differences
from features.files import temporary_directory_beside, write_text
from features.line_worker import LineWorker, WorkerError
from features.progress import progress_bar
from recsys.config import Experiment, changeable, flatten
from recsys.evaluation.metrics import METRICS
from recsys.runs.process import locked_directory
from recsys.runs.run_directory import RunDirectory
from recsys.sweep.report import TrialResult, best_of, trial_name, write_sweep_report
from recsys.sweep.search_space import SearchSpace, check_space, with_settings
from recsys.sweep.worker import start_worker
from recsys.tracking.tracker import Tracker

logger = logging.getLogger(__name__)

STUDY = "sweep"
STATES = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
STARTUP_TRIALS = 5
"""Random trials that are not pruned: TPE and the median need them."""
WARMUP_EPOCHS = 2
"""Epochs before a trial may be pruned."""
MAX_CRASHES = 2
"""Crashes of its process after which a trial counts as failed."""
LOCK_TIMEOUT_SECONDS = 20.0
"""Wait for the processes of a killed sweep to end."""

optuna.logging.set_verbosity(optuna.logging.WARNING)


class SweepRecord(BaseModel):
    """Contents of sweep.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    """Finds MLflow's run before its id is recorded."""
    experiment: dict[str, Any]
    """The varied run, resolved."""
    space: dict[str, dict[str, Any]]
    seed: int
    dataset: str
    dataset_digest: str
    mlflow_run_id: str | None = None
    mlflow_tracking_uri: str | None = None
    mlflow_experiment_id: str | None = None


def run_sweep(
    experiment: Experiment,
    space: SearchSpace,
    data: Path,
    out: Path,
    *,
    trials: int,
    workers: int = 1,
    seed: int = 0,
    track: bool = True,
    progress: bool = False,
) -> list[TrialResult]:
    """Train until `trials` trials have ended, as complete, pruned or failed; returns all of them by number.

    Raises `InputError` for a space that does not fit the run, and for a directory of another sweep.
    """
    check_space(space, experiment)
    info, _ = read_dataset(data)
    if "valid" not in info.splits:
        raise InputError(f"{data}: expected a valid split", remedy="prepare the data again with --valid")
    record = _begin(experiment, space, data, info, out, seed)
    with locked_directory(out, timeout_seconds=LOCK_TIMEOUT_SECONDS) as lock:
        return Sweep(out, record, experiment, space, info, trials, lock).run(workers, track=track, progress=progress)


def _begin(
    experiment: Experiment, space: SearchSpace, data: Path, info: DatasetInfo, out: Path, seed: int
) -> SweepRecord:
    """Create the sweep's directory atomically, unless it exists and is of the same sweep."""
    record = SweepRecord(
        key=uuid.uuid4().hex,
        experiment=experiment.model_dump(mode="json"),
        space={key: values.model_dump(mode="json") for key, values in space.items()},
        seed=seed,
        dataset=str(data.absolute()),
        dataset_digest=info.digest,
    )
    path = out / "sweep.json"
    if path.is_file():
        mine = SweepRecord.model_validate_json(path.read_text(encoding="utf-8"))
        names = {"experiment", "space", "seed", "dataset_digest"}
        if found := differences(mine.model_dump(include=names), record.model_dump(include=names)):
            remedy = "give the same command, or choose another --out"
            raise InputError(f"{out} holds another sweep", found=found[:300], remedy=remedy)
        return mine.model_copy(update={"dataset": record.dataset})  # the dataset may have moved
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: expected an empty or new directory", remedy="choose another --out")
    with temporary_directory_beside(out.absolute()) as temporary:
        write_text(temporary / "sweep.json", record.model_dump_json(indent=1))
        (temporary / "trials").mkdir()
        study = optuna.create_study(
            storage=_storage(temporary),
            study_name=STUDY,
            direction="maximize" if METRICS[experiment.trainer.monitor].higher_is_better else "minimize",
        )
        flat = flatten(changeable(experiment))
        named = {key: values.as_parameter(flat[key]) for key, values in space.items()}
        if all(value is not None for value in named.values()):
            study.enqueue_trial(named)
        temporary.rename(out)
    return record


def _storage(directory: Path) -> optuna.storages.RDBStorage:
    return optuna.storages.RDBStorage(f"sqlite:///{(directory / 'study.db').absolute()}")


@dataclass(eq=False)
class Sweep:
    """A running sweep: each thread has a training process; only this process uses the study, under one lock."""

    out: Path
    record: SweepRecord
    experiment: Experiment
    space: SearchSpace
    info: DatasetInfo
    num_trials: int
    lock_descriptor: int
    """Of the directory's lock, which the training processes hold too."""

    def __post_init__(self) -> None:
        pruner = optuna.pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS, n_warmup_steps=WARMUP_EPOCHS)
        self.study = optuna.load_study(study_name=STUDY, storage=_storage(self.out), pruner=pruner)
        self._mutex = threading.RLock()
        self._running: set[LineWorker] = set()
        self._is_stopping = False
        # The directory is locked, so trials that are still RUNNING were interrupted.
        self._interrupted = [trial.number for trial in self.study.get_trials(states=(TrialState.RUNNING,))]

    def run(self, workers: int, *, track: bool, progress: bool) -> list[TrialResult]:
        """Train the missing trials; an interrupt ends the processes and leaves their trials to the next call."""
        tracker = self._tracker() if track else None
        with tracker.ending() if tracker else contextlib.nullcontext():
            with progress_bar("sweep", self.num_trials, enabled=progress) as advance:
                advance(len(self.results()))
                self._train(workers, tracker, advance)
            results = self.results()
            write_sweep_report(self.out / "report", self.study, results, self.experiment)
            if tracker:
                tracker.log_file(self.out / "report")
        return results

    def _train(self, workers: int, tracker: Tracker | None, advance: Callable[..., None]) -> None:
        pool = ThreadPoolExecutor(workers)
        futures = [pool.submit(self._work, number + 1, workers, tracker, advance) for number in range(workers)]
        try:
            for future in as_completed(futures):
                future.result()
        finally:
            self._is_stopping = True
            with self._mutex:
                for process in list(self._running):  # a worker's thread may remove its own meanwhile
                    process.stop()
            pool.shutdown(wait=True)

    def _work(self, number: int, workers: int, tracker: Tracker | None, advance: Callable[..., None]) -> None:
        """Body of a thread: take trials and have them trained until none is left."""
        process: LineWorker | None = None
        log, threads = self.out / f"worker-{number}.log", max(1, len(os.sched_getaffinity(0)) // workers)
        try:
            while (trial := self._next()) is not None:
                process = process or start_worker(log, threads, self.lock_descriptor)
                self._running.add(process)
                try:
                    result = self._trial(trial, process, tracker)
                except WorkerError as death:
                    self._running.discard(process)
                    process.close()
                    process = None
                    if self._is_stopping:
                        return
                    result = self._crashed(trial, death)
                if result:
                    best = best_of(self.results(), self.experiment)
                    if tracker:
                        self._log_trial(tracker, result)
                    leader = f", best {best.score:.4f} (trial {best.number})" if best else ""
                    advance(1, note=f"trial {result.number} {result.state}{leader}")
        finally:
            if process:
                process.close()
                self._running.discard(process)

    def _next(self) -> Trial | None:
        """An interrupted trial, else a new one; None once there are enough."""
        with self._mutex:
            if self._is_stopping:
                return None
            if self._interrupted:
                number = self._interrupted.pop(0)
                self._seed(number)
                return Trial(self.study, self.study.get_trials(deepcopy=False)[number]._trial_id)
            trials = self.study.get_trials(deepcopy=False)
            begun = [trial for trial in trials if trial.state != TrialState.WAITING]
            if len(begun) >= self.num_trials:
                return None
            self._seed(len(begun))
            trial = self.study.ask()
            # All at once, so that an interrupted trial can be resumed.
            for key, values in self.space.items():
                values.suggest(trial, key)
            return trial

    def _seed(self, number: int) -> None:
        """A sampler for one trial: with one worker its choice depends only on the earlier trials and its number.

        So a resumed sweep makes the trials that it would have made, instead of repeating its first ones.
        """
        seed = int(np.random.SeedSequence([self.record.seed, number]).generate_state(1)[0])
        self.study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS)

    def _trial(self, trial: Trial, process: LineWorker, tracker: Tracker | None) -> TrialResult:
        """Have a trial trained, and record its end in the study."""
        with self._mutex:
            settings = {key: values.setting(values.suggest(trial, key)) for key, values in self.space.items()}
        run = self.out / "trials" / f"{trial.number:04d}"
        name = trial_name(self.experiment, trial.number)
        try:
            experiment = with_settings(self.experiment, settings).model_copy(update={"name": name})
        except InputError as error:  # values that do not go together
            return self._end(trial, {"end": "failed", "error": str(error)})
        tags = {"sweep.trial": str(trial.number), "sweep.name": self.experiment.name}
        if tracker:
            tags |= {"mlflow.parentRunId": tracker.run_id, "mlflow.source.name": "muxrec sweep"}
        request = {"experiment": experiment.model_dump(mode="json"), "data": self.record.dataset, "out": str(run)}
        request |= {"track": tracker is not None, "tags": tags, "store": tracker.uri if tracker else None}
        ended = process.ask(request, lambda record: self._prune(trial, record))
        result = self._end(trial, ended)
        # Most of a run directory's bytes: an ended trial is not resumed, and only a complete one is opened again.
        for name in ("state",) if result.state == "complete" else ("state", "best"):
            (run / "checkpoint" / f"{name}.safetensors").unlink(missing_ok=True)
        return result

    def _prune(self, trial: Trial, record: dict[str, Any]) -> bool:
        """Report an epoch to the study; True if the trial should end there."""
        with self._mutex:
            # An interruption right after the report makes the trial report this epoch again.
            if record["epoch"] not in self.study.get_trials(deepcopy=False)[trial.number].intermediate_values:
                trial.report(record[f"valid_{self.experiment.trainer.monitor}"], record["epoch"])
            return bool(trial.should_prune())  # Optuna returns numpy's bool, which is not JSON

    def _crashed(self, trial: Trial, death: WorkerError) -> TrialResult | None:
        """Retry a trial whose process died (None), or fail it after `MAX_CRASHES`."""
        error = f"the training process {death}"
        with self._mutex:
            crashes = trial.user_attrs.get("crashes", 0) + 1
            trial.set_user_attr("crashes", crashes)
            logger.warning("trial %d: %s", trial.number, error)
            if crashes < MAX_CRASHES:
                self._interrupted.append(trial.number)
                return None
        run = RunDirectory(self.out / "trials" / f"{trial.number:04d}")
        with contextlib.suppress(InputError):
            if tracked := Tracker.of(run.record):
                tracked.finish("FAILED")
        return self._end(trial, {"end": "failed", "error": error})

    def _end(self, trial: Trial, ended: dict[str, Any]) -> TrialResult:
        with self._mutex:
            for key in ("metrics", "error"):
                if key in ended:
                    trial.set_user_attr(key, ended[key])
            score = ended["metrics"]["valid"][self.experiment.trainer.monitor] if "metrics" in ended else None
            self.study.tell(trial.number, score, state=STATES[ended["end"]])
            return self._result(self.study.get_trials(deepcopy=False)[trial.number])

    def results(self) -> list[TrialResult]:
        """All trials that ended, by number."""
        return [self._result(trial) for trial in self.study.get_trials(deepcopy=False) if trial.state.is_finished()]

    def _result(self, trial: FrozenTrial) -> TrialResult:
        settings = {key: self.space[key].setting(parameter) for key, parameter in trial.params.items()}
        seen = trial.intermediate_values
        best = max(seen.values(), key=METRICS[self.experiment.trainer.monitor].quality, default=None)
        return TrialResult(
            number=trial.number,
            state=next(name for name, state in STATES.items() if state == trial.state),
            score=trial.value if trial.state == TrialState.COMPLETE else best,
            epochs=len(seen),
            settings=settings,
            run=self.out / "trials" / f"{trial.number:04d}",
            metrics=trial.user_attrs.get("metrics", {}),
            error=trial.user_attrs.get("error"),
        )

    def _tracker(self) -> Tracker:
        """MLflow's run of the sweep; the trials' runs are its children."""
        if tracker := Tracker.of(self.out / "sweep.json"):
            tracker.resume()
        else:
            tags = {"stage": "sweep", "dataset.name": self.info.name, "dataset.digest": self.info.digest}
            name = f"sweep {self.experiment.name}"
            tags["mlflow.note.content"] = f"{name} on {self.info.name}, in {self.out.absolute()}"
            tracker = Tracker.start(experiment=self.info.name, name=name, tags=tags, key=self.record.key)
            params = {"name": name, **{f"space.{key}": str(values) for key, values in self.space.items()}}
            tracker.log_settings(params, self.info, Path(self.record.dataset))
        self.record = self.record.model_copy(update=tracker.run_info())
        write_text(self.out / "sweep.json", self.record.model_dump_json(indent=1))
        return tracker

    def _log_trial(self, tracker: Tracker, result: TrialResult) -> None:
        """Log a trial's end to its run, and the best trial so far to the sweep's run: as tags, which can change."""
        with self._mutex:
            with contextlib.suppress(InputError):
                if tracked := Tracker.of(RunDirectory(result.run).record):
                    tracked.set_tags({"sweep.state": result.state})
            ended = self.results()
            figures = {f"sweep/{name}": float(sum(one.state == name for one in ended)) for name in STATES}
            if best := best_of(ended, self.experiment):
                for split, prefix in (("valid", "val"), ("test", "test")):
                    found = best.metrics.get(split, {})
                    figures |= {f"best/{prefix}_{name}": found[name] for name in METRICS if name in found}
                texts = {f"best.{key}": str(value) for key, value in best.settings.items()}
                tracker.set_tags({"best.trial": str(best.number), **texts})
            tracker.log_metrics(figures, step=len(ended))
