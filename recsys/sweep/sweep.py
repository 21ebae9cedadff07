"""`muxrec sweep`: trials of a named run over a search space, chosen by Optuna, trained by processes, resumable.

sweep.json       the run that is varied, the space, the data, MLflow's run of the sweep
study.db         Optuna's study (SQLite); this process alone writes to it
trials/0007/     an ordinary run directory a trial
worker-1.log     what a training process had to say
report/          trials, importance and progress, as logged to MLflow

Trials come from TPE (Bergstra et al., "Algorithms for hyper-parameter optimization", NeurIPS 2011); one whose
validation score after an epoch is below the median of the others' there ends. The first is the run as it was named.
A trial that was cut off is a trial still: the next call trains it to its end, from its last checkpoint.
"""

import contextlib
import logging
import os
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, Trial, TrialState
from pydantic import BaseModel, ConfigDict

from features.dataset.info import DatasetInfo, read_dataset
from features.errors import InputError, differences
from features.files import temporary_directory_beside, write_text
from features.progress import progress_bar
from recsys.config import Experiment, flatten
from recsys.evaluation.metrics import METRICS
from recsys.runs.process import locked_directory
from recsys.runs.run_directory import RunDirectory
from recsys.sweep.report import Outcome, best_of, trial_name, write_sweep_report
from recsys.sweep.search_space import SearchSpace, check_space, with_settings
from recsys.sweep.worker_process import WorkerError, WorkerProcess
from recsys.tracking.tracker import Tracker

logger = logging.getLogger(__name__)

STUDY = "sweep"
STARTUP_TRIALS = 5
"""Trials that come from the whole space and are not pruned: the others are measured by them."""
WARMUP_EPOCHS = 2
"""Epochs that every trial may have."""
MAX_CRASHES = 2
"""Deaths of its process after which a trial has failed."""
LOCK_TIMEOUT_SECONDS = 20.0
"""Seconds to wait for the processes of a sweep that was killed to end."""

optuna.logging.set_verbosity(optuna.logging.WARNING)


class SweepFacts(BaseModel):
    """What sweep.json holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    """Finds MLflow's run where it is not written down yet."""
    experiment: dict[str, Any]
    """The run that is varied, resolved."""
    space: dict[str, dict[str, Any]]
    """Key to its range."""
    seed: int
    """Of the trials' choice."""
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
) -> list[Outcome]:
    """Train until the study has `trials` trials that ended, however; returns all of them by number.

    Raises `InputError` for a space that the run cannot be varied over, and for a directory of another sweep.
    """
    check_space(space, experiment)
    info, _ = read_dataset(data)
    if "valid" not in info.splits:
        raise InputError(f"{data}: expected a valid split", remedy="prepare the data again with --valid")
    facts = _begin(experiment, space, data, info, out, seed)
    with locked_directory(out, patience=LOCK_TIMEOUT_SECONDS) as lock:
        sweep = Sweep(out, facts, experiment, space, info, trials, lock, track=track)
        return sweep.run(workers, progress=progress)


def _begin(
    experiment: Experiment, space: SearchSpace, data: Path, info: DatasetInfo, out: Path, seed: int
) -> SweepFacts:
    """Make the sweep's directory, whole or not at all, unless it is there and of the same sweep."""
    facts = SweepFacts(
        key=uuid.uuid4().hex,
        experiment=experiment.model_dump(mode="json"),
        space={key: values.model_dump(mode="json") for key, values in space.items()},
        seed=seed,
        dataset=str(data.absolute()),
        dataset_digest=info.digest,
    )
    path = out / "sweep.json"
    if path.is_file():
        mine = SweepFacts.model_validate_json(path.read_text(encoding="utf-8"))
        names = {"experiment", "space", "seed", "dataset_digest"}
        if found := differences(mine.model_dump(include=names), facts.model_dump(include=names)):
            remedy = "give the same command, or choose another --out"
            raise InputError(f"{out} holds another sweep", found=found[:300], remedy=remedy)
        return mine.model_copy(update={"dataset": facts.dataset})  # which may have moved
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: expected an empty or new directory", remedy="choose another --out")
    with temporary_directory_beside(out.absolute()) as temporary:
        write_text(temporary / "sweep.json", facts.model_dump_json(indent=1))
        (temporary / "trials").mkdir()
        study = optuna.create_study(
            storage=_storage(temporary), study_name=STUDY, direction=_direction(experiment), load_if_exists=False
        )
        flat = flatten(facts.experiment)
        named = {key: values.as_parameter(flat[key]) for key, values in space.items()}
        if all(value is not None for value in named.values()):
            study.enqueue_trial(named)
        temporary.rename(out)
    return facts


def _storage(directory: Path) -> optuna.storages.RDBStorage:
    return optuna.storages.RDBStorage(f"sqlite:///{(directory / 'study.db').absolute()}")


def _direction(experiment: Experiment) -> Any:
    return "maximize" if METRICS[experiment.trainer.monitor].higher_is_better else "minimize"


class Sweep:
    """A sweep at work. Its threads have a training process each; the study is this process's alone, under one lock."""

    def __init__(
        self,
        out: Path,
        facts: SweepFacts,
        experiment: Experiment,
        space: SearchSpace,
        info: DatasetInfo,
        trials: int,
        lock: int,
        *,
        track: bool,
    ) -> None:
        self.out, self.facts, self.experiment, self.space, self.info = out, facts, experiment, space, info
        self.num_trials, self.track = trials, track
        self.pruner = optuna.pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS, n_warmup_steps=WARMUP_EPOCHS)
        self.study = optuna.load_study(study_name=STUDY, storage=_storage(out), pruner=self.pruner)
        self._lock_descriptor = lock
        self._mutex = threading.RLock()
        self._running: set[WorkerProcess] = set()
        self._is_stopping = False
        # Nobody else holds the directory: what is still running was cut off.
        self._cut_off = [trial.number for trial in self.study.get_trials(states=(TrialState.RUNNING,))]

    def run(self, workers: int, *, progress: bool) -> list[Outcome]:
        """Train what is missing; an interrupt ends the processes and leaves their trials to the next call."""
        tracker = self._tracker() if self.track else None
        try:
            with progress_bar("sweep", self.num_trials, enabled=progress) as advance:
                advance(len(self.outcomes()))
                self._train(workers, tracker, advance)
            outcomes = self.outcomes()
            write_sweep_report(self.out / "report", self.study, outcomes, self.experiment)
            if tracker:
                tracker.log_files(self.out / "report", "report")
        except BaseException as error:
            if tracker:
                with contextlib.suppress(InputError):  # where the store is what failed
                    tracker.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            raise
        if tracker:
            tracker.finish()
        return outcomes

    def _train(self, workers: int, tracker: Tracker | None, advance: Callable[..., None]) -> None:
        pool = ThreadPoolExecutor(workers)
        futures = [pool.submit(self._work, number + 1, workers, tracker, advance) for number in range(workers)]
        try:
            for future in as_completed(futures):
                future.result()
        finally:
            self._is_stopping = True
            with self._mutex:
                for process in list(self._running):  # a worker's thread may take its own out meanwhile
                    process.stop()
            pool.shutdown(wait=True)

    def _work(self, number: int, workers: int, tracker: Tracker | None, advance: Callable[..., None]) -> None:
        """One thread: take a trial, have it trained, until there is none left."""
        process: WorkerProcess | None = None
        try:
            while (trial := self._next()) is not None:
                process = process or self._start(number, workers)
                try:
                    outcome = self._trial(trial, process, tracker)
                except WorkerError as death:
                    self._running.discard(process)
                    process = None
                    if self._is_stopping:
                        return
                    outcome = self._crashed(trial, death)
                if outcome:
                    self._tell_mlflow(tracker, outcome)
                    advance(1, note=self._note(outcome))
        finally:
            if process:
                process.stop()
                process.wait()
                self._running.discard(process)

    def _start(self, number: int, workers: int) -> WorkerProcess:
        threads = max(1, len(os.sched_getaffinity(0)) // workers)
        process = WorkerProcess(self.out / f"worker-{number}.log", threads, self._lock_descriptor)
        self._running.add(process)
        return process

    def _next(self) -> Trial | None:
        """A trial that was cut off, else a new one; None where there are enough."""
        with self._mutex:
            if self._is_stopping:
                return None
            if self._cut_off:
                number = self._cut_off.pop(0)
                self._seed(number)
                return Trial(self.study, self.study.get_trials(deepcopy=False)[number]._trial_id)
            trials = self.study.get_trials(deepcopy=False)
            begun = [trial for trial in trials if trial.state != TrialState.WAITING]
            if len(begun) >= self.num_trials:
                return None
            self._seed(len(begun))
            trial = self.study.ask()
            # All at once, so that a trial that is cut off later has what it needs to go on.
            for key, values in self.space.items():
                values.suggest(trial, key)
            return trial

    def _seed(self, number: int) -> None:
        """A sampler for one trial: with one worker its choice follows from what is known and its number alone.

        So a sweep that was cut off makes the trials that it would have made, instead of its first ones again.
        """
        seed = int(np.random.SeedSequence([self.facts.seed, number]).generate_state(1)[0])
        self.study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS)

    def _trial(self, trial: Trial, process: WorkerProcess, tracker: Tracker | None) -> Outcome:
        """Have a trial trained and write down how it ended."""
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
        request = {"experiment": experiment.model_dump(mode="json"), "data": self.facts.dataset, "out": str(run)}
        request |= {"track": self.track, "tags": tags, "store": tracker.uri if tracker else None}
        ended = process.train(request, lambda record: self._prune(trial, record))
        outcome = self._end(trial, ended)
        _clear(run, is_complete=outcome.state == "complete")
        return outcome

    def _prune(self, trial: Trial, record: dict[str, Any]) -> bool:
        """Write an epoch down; whether the trial should end there."""
        with self._mutex:
            # Told a second time where the trial was cut off right after the first.
            if record["epoch"] not in self._frozen(trial).intermediate_values:
                trial.report(record[f"valid_{self.experiment.trainer.monitor}"], record["epoch"])
            return bool(trial.should_prune())  # Optuna gives numpy's, which is no JSON

    def _frozen(self, trial: Trial) -> FrozenTrial:
        return self.study.get_trials(deepcopy=False)[trial.number]

    def _crashed(self, trial: Trial, death: WorkerError) -> Outcome | None:
        """Once a trial is tried again when its process died; the second time it has failed."""
        with self._mutex:
            crashes = trial.user_attrs.get("crashes", 0) + 1
            trial.set_user_attr("crashes", crashes)
            logger.warning("trial %d: %s", trial.number, death)
            if crashes < MAX_CRASHES:
                self._cut_off.append(trial.number)
                return None
        run = RunDirectory(self.out / "trials" / f"{trial.number:04d}")
        with contextlib.suppress(InputError):
            if tracked := _run_of_trial(run):
                tracked.finish("FAILED")
        return self._end(trial, {"end": "failed", "error": str(death)})

    def _end(self, trial: Trial, ended: dict[str, Any]) -> Outcome:
        """Write down how a trial ended."""
        states = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
        with self._mutex:
            for key in ("metrics", "error"):
                if key in ended:
                    trial.set_user_attr(key, ended[key])
            score = ended["metrics"]["valid"][self.experiment.trainer.monitor] if "metrics" in ended else None
            self.study.tell(trial.number, score, state=states[ended["end"]])
            return self._outcome(self._frozen(trial))

    def outcomes(self) -> list[Outcome]:
        """All trials that ended, by number."""
        return [self._outcome(trial) for trial in self.study.get_trials(deepcopy=False) if trial.state.is_finished()]

    def _outcome(self, trial: FrozenTrial) -> Outcome:
        names = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
        settings = {key: self.space[key].setting(parameter) for key, parameter in trial.params.items()}
        seen = trial.intermediate_values
        best = max(seen.values(), key=METRICS[self.experiment.trainer.monitor].quality, default=None)
        return Outcome(
            number=trial.number,
            state=names[trial.state],
            score=trial.value if trial.state == TrialState.COMPLETE else best,
            epochs=len(seen),
            settings=settings,
            run=self.out / "trials" / f"{trial.number:04d}",
            metrics=trial.user_attrs.get("metrics", {}),
            error=trial.user_attrs.get("error"),
        )

    def _note(self, outcome: Outcome) -> str:
        best = best_of(self.outcomes(), self.experiment)
        leader = f", best {best.score:.4f} (trial {best.number})" if best else ""
        return f"trial {outcome.number} {outcome.state}{leader}"

    def _tracker(self) -> Tracker:
        """MLflow's run of the sweep; the trials' runs are its children."""
        if self.facts.mlflow_run_id is not None:
            tracker = Tracker.of(self.facts.model_dump(), self.out / "sweep.json").resume()
        else:
            tags = {"stage": "sweep", "dataset.name": self.info.name, "dataset.digest": self.info.digest}
            name = f"sweep {self.experiment.name}"
            tags["mlflow.note.content"] = f"{name} on {self.info.name}, in {self.out.absolute()}"
            tracker = Tracker.start(experiment=self.info.name, name=name, tags=tags, key=self.facts.key)
            params = {"name": name, **{f"space.{key}": str(values) for key, values in self.space.items()}}
            tracker.log_settings(params, self.info, Path(self.facts.dataset))
        self.facts = self.facts.model_copy(update=tracker.run_info())
        write_text(self.out / "sweep.json", self.facts.model_dump_json(indent=1))
        return tracker

    def _tell_mlflow(self, tracker: Tracker | None, outcome: Outcome) -> None:
        """The best trial so far on the sweep's own run, as tags since params cannot change; a trial's end on its."""
        if tracker is None:
            return
        with self._mutex:
            with contextlib.suppress(InputError):
                if tracked := _run_of_trial(RunDirectory(outcome.run)):
                    tracked.set_tags({"sweep.state": outcome.state})
            ended = self.outcomes()
            counts = {name: sum(one.state == name for one in ended) for name in ("complete", "pruned", "failed")}
            figures = {f"sweep/{name}": float(count) for name, count in counts.items()}
            if best := best_of(ended, self.experiment):
                figures |= dict(_best_figures(best))
                texts = {f"best.{key}": str(value) for key, value in best.settings.items()}
                tracker.set_tags({"best.trial": str(best.number), **texts})
            tracker.log_metrics(figures, step=len(ended))


def _run_of_trial(run: RunDirectory) -> Tracker | None:
    """The MLflow run of a trial; None for one that is not tracked."""
    facts = run.run_info()
    return Tracker.of(facts, run.path / "run.json") if facts["mlflow_run_id"] else None


def _best_figures(best: Outcome) -> Iterator[tuple[str, float]]:
    """What the sweep's own run shows of its best trial."""
    for split, prefix in (("valid", "val"), ("test", "test")):
        for name in METRICS:
            if name in best.metrics.get(split, {}):
                yield f"best/{prefix}_{name}", best.metrics[split][name]


def _clear(run: Path, *, is_complete: bool) -> None:
    """Drop what only a run that goes on needs: checkpoints are most of a run directory's bytes."""
    (run / "checkpoint" / "state.safetensors").unlink(missing_ok=True)
    if not is_complete:
        (run / "checkpoint" / "best.safetensors").unlink(missing_ok=True)
