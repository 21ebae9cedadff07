"""RunDirectory: the files of one training run and their readers.

experiment.yaml    resolved settings; `muxrec train --config experiment.yaml` repeats the run
run.json           the run's key, dataset and its digest, registry fingerprint, MLflow run
registry.json      the registry with its fitted statistics
vocabulary.safetensors  the distinct tokens of train, for kinds of table that depend on them
target_statistics.safetensors  float columns by value, as in the bundle, of a run with target statistics
lock               held by the process that trains here
log.jsonl          one line per epoch
mask.safetensors   the cells of the table that `muxrec prune` kept
supernet/          the training behind the mask: a log and checkpoints like those of the run; and search.jsonl
profile.json       distributions of features and scores (`serving.bundle.profile`), for the bundle
checkpoint/        state.safetensors (to resume), best.safetensors, trained_rows.npy
metrics.json       {"valid": {...}, "test": {...}, "perf": {...}}; written last: it makes the run finished
report/            figures and tables, as logged to MLflow
bundle/            the model to serve
"""

import json
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from features.addressing import Vocabulary
from features.dataset.info import DatasetInfo, read_dataset
from features.errors import InputError, differences
from features.files import check_readable, temporary_directory_beside, write_text
from features.registry import FeatureRegistry
from features.table_kinds import TABLE_KINDS
from recsys import checkpoint
from recsys.config import Experiment, read_experiment
from recsys.embedding.mask import load_mask
from recsys.embedding.optimizers import TableOptimizer
from recsys.export import quantized_copy
from recsys.ranker import Ranker, build_ranker
from recsys.runs.process import require_finished
from recsys.target_statistics import FittedStatistics
from serving.bundle.manifest import TARGET_STATISTICS
from serving.bundle.profile import Distributions
from serving.bundle.target_statistics import read_target_statistics, write_target_statistics
from serving.bundle.vocabulary import read_vocabulary, write_vocabulary

RunMetrics = dict[str, dict[str, float]]
"""Section, such as "valid" or "perf", to its figures by name."""


class RunDirectory:
    """Paths and contents of a run; every method reads its file when it is called."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.record = self.path / "run.json"
        self.bundle = self.path / "bundle"
        self.report = self.path / "report"
        self.profile_path = self.path / "profile.json"
        self.trained_rows_path = self.path / "checkpoint" / "trained_rows.npy"
        self.vocabulary_path = self.path / "vocabulary.safetensors"
        self.statistics_path = self.path / TARGET_STATISTICS
        self.mask_path = self.path / "mask.safetensors"

    @property
    def is_finished(self) -> bool:
        """True once all files are written."""
        return (self.path / "metrics.json").is_file()

    def check(self, experiment: Experiment, info: DatasetInfo, registry: FeatureRegistry) -> None:
        """Raise `InputError` for a directory that holds another run, with the differences, or other files."""
        if not self.record.is_file():
            if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
                raise InputError(f"{self.path}: expected an empty or new directory", remedy="choose another --out")
            return
        remedy = "choose another --out, or remove this one"
        if self.experiment() != experiment:
            found = differences(self.experiment().model_dump(mode="json"), experiment.model_dump(mode="json"))
            raise InputError(f"{self.path} holds another experiment", found=found[:300], remedy=remedy)
        check_registry(self.registry(), registry, str(self.path))
        if self.run_info()["dataset_digest"] != info.digest:
            raise InputError(f"{self.path} was trained on other data", found=info.digest, remedy=remedy)

    def begin(
        self,
        experiment: Experiment,
        info: DatasetInfo,
        registry: FeatureRegistry,
        data: Path,
        vocabulary: Vocabulary | None = None,
        statistics: FittedStatistics | None = None,
    ) -> None:
        """Create the (checked) directory unless it exists."""
        if self.record.is_file():
            return
        run_info = {
            "key": uuid.uuid4().hex,
            "dataset": str(data.absolute()),
            "dataset_digest": info.digest,
            "registry_fingerprint": registry.fingerprint(),
            "mlflow_run_id": None,
            "mlflow_tracking_uri": None,
            "mlflow_experiment_id": None,
        }
        # Written elsewhere and renamed, so a process that is killed here leaves no directory, or one to resume.
        with temporary_directory_beside(self.path.absolute()) as temporary:
            write_text(temporary / "experiment.yaml", experiment.to_yaml())
            write_text(temporary / "registry.json", registry.to_json())
            if vocabulary is not None:
                write_vocabulary(temporary / self.vocabulary_path.name, vocabulary)
            if statistics is not None:
                write_target_statistics(temporary / self.statistics_path.name, statistics.totals)
            write_text(temporary / "run.json", json.dumps(run_info, indent=1))
            temporary.rename(self.path)

    def remove_temporary_files(self) -> None:
        """Remove what a killed process left half-written: such files and directories have hidden names.

        Call it with the directory locked, as another process may be writing.
        """
        for path in self.path.glob(".*"):
            if path.suffix in (".tmp", ".old"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def run_info(self) -> dict[str, Any]:
        """run.json; raises `InputError` for a directory without one."""
        try:
            return json.loads(self.record.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            check_readable(self.record)
            remedy = "make one with `muxrec train NAME --data DATASET --out RUN`"
            raise InputError(f"{self.path}: expected a run directory", found="no run.json", remedy=remedy) from None

    def update_run_info(self, changes: Mapping[str, Any]) -> None:
        """Change entries of run.json."""
        write_text(self.record, json.dumps({**self.run_info(), **changes}, indent=1))

    def info(self) -> DatasetInfo | None:
        """The dataset that the run was trained on; None if it is missing or was prepared again since."""
        run_info = self.run_info()
        try:
            info, _ = read_dataset(run_info["dataset"])
        except InputError:
            return None
        return info if info.digest == run_info["dataset_digest"] else None

    def experiment(self) -> Experiment:
        """The resolved settings."""
        return read_experiment(self.path / "experiment.yaml")

    def registry(self) -> FeatureRegistry:
        """The registry that the run was trained with."""
        self.run_info()
        return FeatureRegistry.from_json((self.path / "registry.json").read_text(encoding="utf-8"))

    def metrics(self) -> RunMetrics:
        """metrics.json; raises `InputError` for an unfinished run."""
        self.run_info()
        require_finished(self.path)
        return json.loads((self.path / "metrics.json").read_text(encoding="utf-8"))

    def trained_rows(self) -> npt.NDArray[np.bool_] | None:
        """Flags [M] of the rows that training examples read; None for a run of a version that did not count them."""
        return np.load(self.trained_rows_path, allow_pickle=False) if self.trained_rows_path.is_file() else None

    def history(self) -> list[dict[str, Any]]:
        """The records of log.jsonl, one per epoch so far."""
        path = self.path / "log.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        return [json.loads(line) for line in lines]

    def distributions(self) -> Distributions | None:
        """The training profile; None for a run of a version without one."""
        if not self.profile_path.is_file():
            return None
        return Distributions.model_validate_json(self.profile_path.read_bytes())

    def vocabulary(self) -> Vocabulary | None:
        """The distinct tokens of train; None for tables that do not depend on them."""
        if not TABLE_KINDS[self.experiment().embedding.kind].has_own_ranges:
            return None
        with _own_remedy():
            return read_vocabulary(self.vocabulary_path)

    def statistics(self) -> FittedStatistics | None:
        """The target statistics, to evaluate with; None for a run without them."""
        if not self.experiment().target_statistics:
            return None
        names = [feature.name for feature in self.registry().token_features]
        with _own_remedy():
            return FittedStatistics(read_target_statistics(self.statistics_path, names))

    def ranker(self, *, quantized: bool = True) -> Ranker:
        """The trained model at its best weights; `quantized`: a pruned run's table is rounded to its stored type."""
        self.metrics()
        experiment = self.experiment()
        # Weights do not depend on the optimiser's class, and adam needs no kernel library.
        adam = experiment.embedding.model_copy(update={"optimizer": "adam"})
        untrained = experiment.model_copy(update={"embedding": adam})
        ranker, _ = fresh_ranker(untrained, self.registry(), self.vocabulary(), self.statistics())
        tensors, _ = checkpoint.load_state(self.path / "checkpoint" / "best.safetensors")
        ranker.load_state_dict(tensors)
        if experiment.compression is None:
            return ranker.eval()
        if self.mask_path.is_file():
            ranker.embedding.apply_mask(load_mask(self.mask_path))
        return (quantized_copy(ranker, experiment.compression.table_dtype).ranker if quantized else ranker).eval()


@contextmanager
def _own_remedy() -> Iterator[None]:
    """Give the error for a damaged file the remedy of a run directory instead of a bundle's."""
    try:
        yield
    except InputError as error:
        raise InputError(error.expected, found=error.found, remedy="restore the file, or train again") from None


def fresh_ranker(
    experiment: Experiment,
    registry: FeatureRegistry,
    vocabulary: Vocabulary | None,
    statistics: FittedStatistics | None,
) -> tuple[Ranker, TableOptimizer]:
    """An experiment's model before training, and its table's optimiser."""
    return build_ranker(
        registry,
        experiment.model.name,
        experiment.model,
        experiment.embedding,
        seed=experiment.seed,
        learning_rate=experiment.trainer.learning_rate,
        vocabulary=vocabulary,
        statistics=statistics,
    )


def check_registry(expected: FeatureRegistry, found: FeatureRegistry, where: str) -> None:
    """Raise `InputError` with the differences unless two registries encode rows to the same tokens and floats."""
    if expected.fingerprint() != found.fingerprint():
        lines = expected.diff(found) or ["fitted statistics"]
        remedy = "use the dataset that belongs to it, or prepare and train again"
        raise InputError(f"{where}: expected its own registry", found=", ".join(lines[:5]), remedy=remedy)
