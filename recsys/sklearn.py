"""MuxClassifier: a run as an estimator of scikit-learn, for pipelines, cross-validation and grid search.

Needs the extra `sklearn`; `fit` needs the training packages too. docs/python.md shows it in use.

n rows, k columns.
"""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
import polars as pl

from features.dataset.info import read_dataset
from features.errors import InputError
from features.files import temporary_directory_beside
from features.infer import infer_registry
from features.io.frames import frame_of, is_frame, is_pandas
from features.registry import FeatureRegistry
from recsys.api import prepare, resolve_experiment
from recsys.runs.process import prepare_for_training, require_training
from serving.bundle.bundle import Bundle
from serving.scorer import Scorer

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.utils import check_random_state
    from sklearn.utils.multiclass import check_classification_targets, type_of_target
    from sklearn.utils.validation import (
        _check_sample_weight,
        assert_all_finite,
        check_consistent_length,
        check_is_fitted,
        column_or_1d,
        validate_data,
    )
except ModuleNotFoundError:
    raise ImportError("recsys.sklearn needs scikit-learn; found none; pip install '.[sklearn]'") from None

if TYPE_CHECKING:
    from recsys.config import Experiment

LABEL, WEIGHT = "label", "weight"
"""Columns that `fit` adds to the rows, where a given registry does not name them otherwise."""


class MuxClassifier(ClassifierMixin, BaseEstimator):
    """A binary classifier on frames of categories, lists and numbers, trained as `recsys.train` does, without MLflow.

        classifier = MuxClassifier("final_mlp", trainer={"epochs": 3}, random_state=1)
        classifier.fit(rows, clicks).predict_proba(more_rows)[:, 1]

    `model` is the name of a model, a mapping of its `name` and settings, or an Experiment. `settings` are those of
    `train`: `trainer={...}`, or dotted keys as in `GridSearchCV(..., {"trainer.learning_rate": [0.001, 0.01]})`.
    `registry` describes the columns; None drafts one from the rows. Without an `eval_set` the share
    `validation_fraction` of the rows of each class is held out to decide when training stops. `random_state` sets the
    seed of the weights, the order and that share; None leaves the seed of the settings, which is 1.

    Attributes after `fit`: `classes_`, the two labels, of which the second is the positive one; `n_features_in_`, and
    `feature_names_in_` of a frame; `registry_`, with its fitted statistics; `unused_columns_`, the columns that are no
    feature of it; `metrics_` of the held-out rows.

    A fitted estimator holds its bundle as bytes, so it can be pickled. The bundle is checked when it is loaded, and
    neither that nor `predict` needs torch.
    """

    n_features_in_: int

    def __init__(
        self,
        model: "str | Mapping[str, Any] | Experiment" = "final_mlp",
        *,
        registry: FeatureRegistry | None = None,
        validation_fraction: float = 0.1,
        random_state: Any = None,
        **settings: Any,
    ) -> None:
        self.model = model
        self.registry = registry
        self.validation_fraction = validation_fraction
        self.random_state = random_state
        self._settings = settings

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Every parameter, with the settings that were given."""
        return {**super().get_params(deep), **self._settings}

    def set_params(self, **params: Any) -> Self:
        """Change parameters; what is no parameter of the constructor is a setting, which `fit` checks."""
        own = super().get_params(deep=False)
        for name, value in params.items():
            if name in own:
                setattr(self, name, value)
            else:
                self._settings.pop(name, None)  # the last one set is the last one applied
                self._settings[name] = value
        return self

    def fit(self, X: Any, y: Any, *, eval_set: Any = None, sample_weight: Any = None) -> Self:
        """Train on rows [n, k] (a pandas or polars frame, an Arrow table, an array) with labels [n] of two values.

        `eval_set` is a pair of such rows and labels; its score decides when training stops. `sample_weight` [n] weights
        the loss and the metrics. Raises `ValueError` for rows or labels that cannot be used, `InputError` among them.
        """
        X = self._checked(X, reset=True)
        y = _checked_labels(y, X)
        weights = None
        if sample_weight is not None:
            weights = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
        self.classes_ = np.unique(y if weights is None else y[weights > 0])
        if len(self.classes_) != 2:
            found, remedy = f"{len(self.classes_)} class", "give rows of both, with a weight above 0"
            raise InputError("expected labels of two classes", found=found, remedy=remedy)
        registry = self._registry_for(X, has_weights=weights is not None)
        rows = self._labelled(X, y, weights, registry)
        if weights is not None:
            rows = rows.filter(weights > 0)
        seed = 1 if self.random_state is None else self.random_state
        if not isinstance(seed, int | np.integer):
            seed = check_random_state(seed).randint(2**31 - 1)
        seed = int(seed)
        if eval_set is None:
            is_valid, is_train = _split(rows[registry.label].to_numpy(), self.validation_fraction, seed)
            splits = {"train": rows.filter(is_train), "valid": rows.filter(is_valid)}
        else:
            others, labels = eval_set[0] if len(eval_set) == 1 else eval_set
            others = self._checked(others, reset=False)
            ones = None if weights is None else np.ones(len(labels))
            splits = {"train": rows, "valid": self._labelled(others, _checked_labels(labels, others), ones, registry)}
        self._train(registry, splits, {} if self.random_state is None else {"seed": seed})
        return self

    def predict_proba(self, X: Any) -> npt.NDArray[np.float64]:
        """Probabilities [n, 2] of the classes, in the order of `classes_`."""
        check_is_fitted(self)
        positive = self._scorer.score(self._frame(self._checked(X, reset=False), self.registry_))
        return np.column_stack([1 - positive, positive])

    def predict(self, X: Any) -> npt.NDArray[Any]:
        """The likelier class [n] of each row."""
        positions = self.predict_proba(X).argmax(axis=1)  # before `classes_`: it says what is not fitted
        return self.classes_[positions]

    def export(self, out: str | Path) -> Bundle:
        """Write the bundle to a new directory, for `muxrec score` and `serve`; raises `InputError` if `out` exists."""
        check_is_fitted(self)
        out = Path(out).absolute()
        if out.exists():
            raise InputError(f"{out} exists", remedy="choose another directory")
        with temporary_directory_beside(out) as temporary:
            _write(self._files, temporary)
            temporary.rename(out)
        return Bundle.open(out)

    def __sklearn_tags__(self) -> Any:
        """Two classes; missing values, texts and categories are accepted."""
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        tags.input_tags.allow_nan = tags.input_tags.categorical = tags.input_tags.string = True
        return tags

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_scorer"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "_files" in state:
            self._scorer = _scorer_of(self._files)

    def _checked(self, X: Any, *, reset: bool) -> Any:
        """X as it is if a frame, else as an array; its columns are remembered, or compared with those of `fit`."""
        if is_frame(X):
            return validate_data(self, X, reset=reset, skip_check_array=True)
        return validate_data(self, X, reset=reset, dtype=None, ensure_all_finite="allow-nan")

    def _frame(self, X: Any, registry: FeatureRegistry | None) -> pl.DataFrame:
        """Rows [n, k] in polars, under the names that the columns had in `fit`; x0, x1, ... where they had none."""
        names = list(getattr(self, "feature_names_in_", (f"x{number}" for number in range(self.n_features_in_))))
        if isinstance(X, np.ndarray):
            columns = [column.tolist() if X.dtype == object else column for column in X.T]
            return pl.DataFrame([pl.Series(*named, strict=False) for named in zip(names, columns, strict=True)])
        if is_pandas(X):
            X = X.reset_index(drop=True).set_axis(names, axis=1)  # the index holds no features
        frame = frame_of(X, registry.features if registry else (), None).clone()
        frame.columns = names
        return frame

    def _registry_for(self, X: Any, *, has_weights: bool) -> FeatureRegistry:
        """The registry that was given, or a draft, for labels of 0 and 1 and perhaps weights."""
        registry = self.registry
        if registry is None:
            frame = self._frame(X, None)
            if LABEL in frame.columns:
                raise InputError(f"expected no column {LABEL!r} among the features", found="one", remedy="rename it")
            # The draft leaves out a column that gives the label away. Here the caller chose the columns, so it is shown
            # a label that no column can give away.
            registry = infer_registry(frame.with_columns(pl.lit(0).alias(LABEL)), label=LABEL)
        weight = (registry.weight or WEIGHT) if has_weights else registry.weight
        return registry.with_settings(label_rule=None, weight=weight)

    def _labelled(
        self, X: Any, y: npt.NDArray[Any], weights: npt.NDArray[np.float64] | None, registry: FeatureRegistry
    ) -> pl.DataFrame:
        """The rows [n] with their labels as 0 and 1, and their weights where there are any."""
        if (unknown := ~np.isin(y, self.classes_)).any():
            raise InputError("eval_set: expected the labels of fit", found=repr(y[unknown].tolist()[0]))
        added = [pl.Series(registry.label, (y == self.classes_[1]).astype(np.uint8))]
        if weights is not None and registry.weight is not None:
            added.append(pl.Series(registry.weight, weights))
        return self._frame(X, registry).with_columns(added)

    def _train(
        self, registry: FeatureRegistry, splits: Mapping[str, pl.DataFrame], settings: Mapping[str, Any]
    ) -> None:
        """Prepare and train in a temporary directory; keep the bundle."""
        experiment, settings = self.model, {**self._settings, **settings}
        if isinstance(experiment, Mapping):
            settings = {"model": experiment, **settings}
            experiment = str(experiment.get("name"))
        require_training("torch")
        prepare_for_training()
        from recsys.runs.train import train_run

        with TemporaryDirectory(prefix="muxrec-", ignore_cleanup_errors=True) as folder:
            run = Path(folder, "run")
            dataset = prepare(registry, splits, Path(folder, "dataset"))
            experiment = resolve_experiment(experiment, settings, read_dataset(dataset.path))
            metrics = train_run(experiment, dataset.path, run, track=False, report=False)
            self._files = {file.name: file.read_bytes() for file in sorted((run / "bundle").iterdir())}
        self._scorer = _scorer_of(self._files)
        self.registry_ = self._scorer.registry
        self.unused_columns_ = list(dataset.info.unknown_columns)
        self.metrics_ = metrics["valid"]


def _checked_labels(y: Any, X: Any) -> npt.NDArray[Any]:
    y = column_or_1d(y, warn=True)
    check_consistent_length(X, y)
    assert_all_finite(y, input_name="y")
    check_classification_targets(y)
    if (kind := type_of_target(y, input_name="y")) != "binary":
        raise ValueError(f"Only binary classification is supported. The type of the target is {kind}.")
    return y


def _split(
    codes: npt.NDArray[np.uint8], share: float, seed: int
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Flags [n] of the rows that are held out and of those that are trained on: at least one of each class in both."""
    if not 0 < share < 1:
        raise InputError("validation_fraction must be between 0 and 1", found=str(share), remedy="0.1 is usual")
    random = np.random.default_rng(seed)
    is_valid, is_train = np.zeros(len(codes), dtype=np.bool_), np.ones(len(codes), dtype=np.bool_)
    for code in (0, 1):
        rows = random.permutation(np.flatnonzero(codes == code))
        held_out = rows[: max(1, round(share * len(rows)))]
        is_valid[held_out] = True
        is_train[held_out] = len(held_out) == len(rows)
    return is_valid, is_train


def _write(files: Mapping[str, bytes], folder: Path) -> None:
    for name, content in files.items():
        if Path(name).name != name:
            raise InputError("expected the name of a bundle's file", found=repr(name), remedy="fit the estimator again")
        (folder / name).write_bytes(content)


def _scorer_of(files: Mapping[str, bytes]) -> Scorer:
    """A scorer of a bundle in memory, with every check of `Bundle.open`."""
    with TemporaryDirectory(prefix="muxrec-", ignore_cleanup_errors=True) as folder:
        _write(files, Path(folder))
        return Scorer(folder)  # keeps the table open: its file needs no name any more
