"""Prepare and train from Python: the same runs, files and numbers as `muxrec prepare` and `muxrec train`.

    from recsys import infer_registry, prepare, train

    registry = infer_registry("clicks.parquet")
    dataset = prepare(registry, "clicks.parquet", "work/dataset")
    run = train("final_mlp", data=dataset, trainer={"epochs": 3})
    run.metrics["test"]["auc"]

docs/python.md goes through it step by step. torch is imported by `train` and `Run`, not with this module.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import yaml

from features.dataset.info import DatasetInfo, read_dataset
from features.dataset.prepare import prepare as prepare_dataset
from features.errors import InputError
from features.registry import FeatureRegistry

if TYPE_CHECKING:
    from recsys.config import Experiment
    from recsys.runs.evaluate import Evaluation
    from serving.bundle.bundle import Bundle
    from serving.scorer import Scorer

RUNS_FOLDER = Path("work", "runs")
"""Folder, below the working directory, of the run directories that `train` names itself."""


class Dataset(NamedTuple):
    """A dataset directory, and what its `dataset.json` says."""

    path: Path
    info: DatasetInfo
    """Rows, label rates and missing values of each split."""


def prepare(
    registry: FeatureRegistry,
    rows: Any,
    out: str | Path,
    *,
    holdout: float = 0.1,
    overwrite: bool = False,
    progress: bool = False,
) -> Dataset:
    """Encode raw rows and write them to the dataset directory `out`, as `muxrec prepare` does.

    `rows`: a polars or pandas frame, anything with an Arrow C stream, the path or glob of files, a list of these paths;
    or a mapping from "train", "valid" and "test" to any of them. Without validation or test rows, a share `holdout` of
    the training rows is held out for each, by position. Raises `InputError` as `features.dataset.prepare` does.
    """
    splits = rows if isinstance(rows, Mapping) else {"train": rows}
    sources = {split: [source] if isinstance(source, str | Path) else source for split, source in splits.items()}
    info = prepare_dataset(registry, sources, out, holdout=holdout, overwrite=overwrite, progress=progress)
    return Dataset(Path(out), info)


def train(
    experiment: "str | Experiment",
    /,
    *,
    data: "str | Path | Dataset",
    out: str | Path | None = None,
    track: bool = True,
    progress: bool = False,
    **settings: Any,
) -> "Run":
    """Train a model and return the finished run; equal to `muxrec train` with the same settings, bit for bit.

    `experiment` is the name of a model, or an Experiment such as `experiments.frappe.frappe()`; the settings of
    "final_mlp" follow the size of the data (docs/recipe.md). `settings` change it: `seed=2`, `trainer={"epochs": 3}`,
    or `**{"trainer.epochs": 3}`; a `model` with a `name` replaces the whole model.

    `out` is the run directory. Without it the run goes to `work/runs/NAME-DIGEST`, where the digest is of the settings
    and the data. In both cases the same call again resumes a run that was cut off, and returns a finished one as it is.
    `track` logs the run to MLflow (docs/tracking.md); `progress` shows a bar on standard error.

    Raises `InputError` for an unknown setting (naming the closest), settings that do not fit the data, and an `out`
    that holds another run.
    """
    from recsys.runs.process import prepare_for_training, require_training

    require_training("torch")
    prepare_for_training()  # before torch is loaded
    from recsys.runs.train import train_run

    path = data.path if isinstance(data, Dataset) else Path(data)
    info, registry = read_dataset(path)
    changed = resolve_experiment(experiment, settings, (info, registry))
    if out is None:
        digest = hashlib.sha256((changed.to_yaml() + info.digest).encode()).hexdigest()[:8]
        out = RUNS_FOLDER / f"{changed.name}-{digest}"
    train_run(changed, path, Path(out), track=track, progress=progress)
    return Run(out)


def resolve_experiment(
    experiment: "str | Experiment",
    settings: Mapping[str, Any],
    dataset: tuple[DatasetInfo, FeatureRegistry] | None = None,
) -> "Experiment":
    """The experiment that `train` runs, on a dataset if one is given; raises `InputError` for an unknown setting.

    >>> resolve_experiment("mlp", {"model": {"hidden": (8,)}, "trainer.epochs": 3}).trainer.epochs
    3
    """
    from recsys.config import default_run, flatten, variant, with_overrides
    from recsys.recipe import for_data

    base = default_run(_known_model(experiment)) if isinstance(experiment, str) else experiment
    changes = dict(settings)
    model = changes.get("model")
    if isinstance(model, Mapping) and "name" in model:
        base = variant(base, base.name, model={"name": _known_model(model["name"])})
        changes["model"] = {key: value for key, value in model.items() if key != "name"}
    if dataset is not None:
        base = for_data(base, *dataset)
    return with_overrides(base, [f"{key}={_yaml_of(value)}" for key, value in flatten(changes).items()])


def _known_model(name: str) -> str:
    from recsys.models import MODELS

    if name not in MODELS:
        remedy = f"use one of {', '.join(MODELS)}, or give an Experiment"
        raise InputError("unknown model", found=repr(name), remedy=remedy)
    return name


def _yaml_of(value: Any) -> str:
    """A setting as `muxrec train KEY=VALUE` takes it."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, tuple):
        value = list(value)
    try:
        return yaml.safe_dump(value)
    except yaml.YAMLError:
        raise InputError("a setting is a number, a text, a flag, or a list of these", found=repr(value)[:80]) from None


class Run:
    """A finished training run: its settings, its metrics, its bundle.

    `train` returns one; `Run("work/runs/first")` opens the directory of any finished run, also one of `muxrec train`.
    Raises `InputError` for a directory that is no run, or whose run is not finished.
    """

    def __init__(self, path: str | Path) -> None:
        from recsys.runs.run_directory import RunDirectory

        self._directory = RunDirectory(path)
        self.metrics = self._directory.metrics()
        """Section, such as "valid", "test" or "perf", to the name and value of its figures."""

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @property
    def path(self) -> Path:
        """The run directory; docs/formats.md lists its files."""
        return self._directory.path

    @property
    def bundle(self) -> Path:
        """The bundle that the end of training wrote."""
        return self._directory.bundle

    @property
    def experiment(self) -> "Experiment":
        """The resolved settings."""
        return self._directory.experiment()

    @property
    def history(self) -> list[dict[str, Any]]:
        """One record per epoch: training loss, validation metrics, learning rate."""
        return self._directory.history()

    def scorer(self, *, num_threads: int | None = None) -> "Scorer":
        """A scorer of raw rows with the run's bundle; `num_threads` as in `Scorer`."""
        from serving.scorer import Scorer

        return Scorer(self.bundle, num_threads=num_threads)

    def evaluate(
        self, split: str = "test", *, by: str | None = None, data: "str | Path | Dataset | None" = None
    ) -> "Evaluation":
        """Metrics on a split and the collision report, as `muxrec evaluate` gives them.

        `by` is a categorical feature whose segments (by how often training saw the value) are evaluated too. `data` is
        another dataset of the same registry. Raises `InputError` for an unknown split or feature.
        """
        from recsys.runs.evaluate import evaluate_run

        path = data.path if isinstance(data, Dataset) else data
        return evaluate_run(self.path, split, None if path is None else Path(path), by)

    def export(
        self,
        out: str | Path,
        *,
        table_dtype: str | None = None,
        negative_rate: float | None = None,
        overwrite: bool = False,
    ) -> "Bundle":
        """Write the run as a bundle, with rows of another type such as "int8", as `muxrec export` does.

        `negative_rate` is the share of the negatives that the data kept, where the run does not say so itself. Raises
        `InputError` for an unknown type, an impossible rate, or an `out` that exists already.
        """
        from recsys.runs.evaluate import export_run

        return export_run(
            self.path, Path(out), table_dtype=table_dtype, negative_rate=negative_rate, overwrite=overwrite
        )
