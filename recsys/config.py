"""Experiment: all settings of a run, validated, with every default filled in, readable and writable as YAML."""

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationError,
    create_model,
    model_validator,
)

from features.errors import InputError
from features.files import check_readable
from features.registry import describe_validation_error
from recsys.compression import COMPRESSORS, Budget, Compressor, InitFrom
from recsys.embedding.table import EmbeddingConfig
from recsys.models import MODELS
from recsys.models.base import Model
from recsys.trainer import TrainerConfig
from serving.bundle.quantize import TableDtype


class Compression(BaseModel):
    """Settings of `muxrec prune`.

    >>> Compression.model_validate({"method": "magnitude", "target_bytes": 1000}).settings.model_dump()["rows_a_value"]
    32.0
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str
    target_bytes: int = Field(ge=1)
    """Budget for the bundle's embedding files: table and vocabulary."""
    table_dtype: TableDtype = "int4"
    """Type of the stored rows; the run is evaluated with it."""
    start: InitFrom
    """Initial weights of the last training; the method's own choice by default."""
    learning_rate_share: float = Field(default=0.1, gt=0)
    """Initial learning rates of `finetune`, as a share of the run's."""
    settings: SerializeAsAny[Compressor.Config]

    @model_validator(mode="before")
    @classmethod
    def _resolve_settings(cls, values: Any) -> Any:
        method = values.get("method") if isinstance(values, dict) else None
        if method not in COMPRESSORS:
            known = ", ".join(COMPRESSORS)
            raise InputError("unknown method of compression", found=repr(method), remedy=f"use one of {known}")
        kind = COMPRESSORS[method]
        try:
            settings = kind.Config.model_validate(values.get("settings") or {})
        except ValidationError as error:
            raise InputError(f"compression {method}: {describe_validation_error(error, kind.Config)}") from None
        start = kind.start
        if (kind.replaces_table or kind.has_one_start) and values.get("start", start) != start:
            found, remedy = f"compression.start={values['start']}", "leave compression.start out"
            raise InputError(f"{method} begins its last training in only one way", found=found, remedy=remedy)
        return {"start": start, **values, "settings": settings}

    @property
    def is_tuned(self) -> bool:
        """True if the last training begins with trained weights."""
        return self.start == "finetune" and not self.compressor().replaces_table

    @property
    def rate_factor(self) -> float:
        """Learning rates of the last training over the run's."""
        return self.learning_rate_share if self.is_tuned else 1.0

    def compressor(self) -> Compressor:
        """The method, with its budget."""
        return COMPRESSORS[self.method](self.settings, Budget(self.target_bytes, self.table_dtype))


class _Named(BaseModel):
    # The fields have their docstrings already; for a class without a source, pydantic would search every frame's.
    model_config = ConfigDict(use_attribute_docstrings=False)

    name: str


if TYPE_CHECKING:

    class ModelSettings(Model.Config, _Named):
        """A model's own Config, and its name."""

else:
    # `_Named` comes last among the bases, so `name` is the first field that is written.
    _SETTINGS = tuple(
        create_model(name, __base__=(model.Config, _Named), name=Literal[name]) for name, model in MODELS.items()
    )
    ModelSettings = Annotated[Union[_SETTINGS], Field(discriminator="name")]  # noqa: UP007


class Experiment(BaseModel):
    """One combination of model, embedding and training; named runs are functions that return one.

    >>> Experiment.model_validate({"name": "small", "model": {"name": "mlp", "hidden": [8]}}).model
    mlp(name='mlp', hidden=(8,), dropout=0.2, batch_norm=True)
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """Name of the run, and of its MLflow run."""
    seed: int = Field(default=1, ge=0, lt=2**63)
    """Seed of the initial weights, the order of the examples and the dropout."""
    model: ModelSettings
    """The network: `name`, one of MODELS, and that model's own settings."""
    embedding: EmbeddingConfig = EmbeddingConfig()
    trainer: TrainerConfig = TrainerConfig()
    negative_rate: float = Field(default=1.0, gt=0, le=1)
    """Share of the negatives that the data kept; the bundle corrects its probabilities to the original share."""
    target_statistics: bool = Field(default=False, exclude_if=lambda value: not value)
    """True to give the network, for each token feature, how often its value was positive; not written if False."""
    compression: Compression | None = Field(default=None, exclude_if=lambda value: value is None)
    """Compression of a run that `muxrec prune` made from another; not written for other runs."""

    def params(self) -> dict[str, Any]:
        """Every setting, for MLflow; a compression method's own as one text, without those at their defaults.

        A page that compares runs has room for few, and experiment.yaml has all.
        """
        document = self.model_dump(mode="json")
        if self.compression is not None:
            settings = self.compression.settings
            defaults = type(settings)().model_dump(mode="json")
            own = {key: value for key, value in settings.model_dump(mode="json").items() if value != defaults[key]}
            document["compression"]["settings"] = json.dumps(own)
        return document

    def to_yaml(self) -> str:
        """Every setting; `read_experiment` reads it back to an equal experiment."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def read_experiment(path: Path) -> Experiment:
    """Read an experiment file; raises `InputError` that names the file and the key."""
    return validated(read_yaml(path, "an experiment file"), str(path))


def read_yaml(path: Path, expected: str) -> Any:
    """A YAML file as plain values; raises `InputError` that says what kind of file was expected."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        check_readable(path)
        found = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{path}: expected {expected}", found=found) from None
    except yaml.YAMLError as error:
        raise InputError(f"{path}: expected YAML", found=" ".join(str(error).split())) from None


def validated(document: Any, where: str) -> Experiment:
    """An experiment from plain values; raises `InputError`, which names the closest key for an unknown one."""
    if not isinstance(document, dict):
        raise InputError(f"{where}: expected a mapping", found=type(document).__name__)
    try:
        known = list(Experiment.model_fields)
        for key in document:
            if key not in known:
                raise unknown_key(key, known)
        return Experiment.model_validate(document)
    except ValidationError as error:
        raise InputError(f"{where}: {_describe(error)}") from None


def with_overrides(experiment: Experiment, overrides: Sequence[str]) -> Experiment:
    """The experiment with `key.sub=value` settings changed; values are YAML.

    >>> experiment = default_run("mlp")
    >>> with_overrides(experiment, ["embedding.num_rows=100", "model.hidden=[8, 4]"]).embedding.num_rows
    100
    """
    document = changeable(experiment)
    known = list(flatten(document))
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator:
            raise InputError("a setting is changed by key=value", found=repr(override), remedy="write trainer.epochs=3")
        if key not in known:
            raise unknown_key(key, known)
        *parents, last = key.split(".")
        place = document
        for parent in parents:
            place = place[parent]
        try:
            place[last] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise InputError(f"{key}: expected a YAML value", found=repr(text)) from None
    return validated(document, "experiment")


def changeable(experiment: Experiment) -> dict[str, Any]:
    """Every setting that may be changed, as plain values."""
    return {**experiment.model_dump(mode="json"), "target_statistics": experiment.target_statistics}


def variant(parent: Experiment, name: str, **sections: Mapping[str, Any]) -> Experiment:
    """The parent under another name, with some settings changed; a `model` with a `name` replaces the parent's.

    >>> parent = variant(default_run("mlp"), "x", model={"hidden": [8]})
    >>> variant(parent, "y", model={"dropout": 0.5}, trainer={"epochs": 3}).model.model_dump()["hidden"]
    (8,)
    """
    document = parent.model_dump(mode="json")
    for section, changes in sections.items():
        is_another_model = section == "model" and "name" in changes
        document[section] = dict(changes) if is_another_model else {**document[section], **changes}
    return Experiment.model_validate({**document, "name": name})


def unknown_key(key: str, known: Sequence[str]) -> InputError:
    """An error that names the closest known key."""
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
    return InputError("unknown setting", found=repr(key), remedy=f"did you mean {close[0]!r}?" if close else None)


def _describe(error: ValidationError) -> str:
    first = error.errors()[0]
    section, *inner = [*first["loc"], ""]
    if first["type"].startswith("union_tag"):
        found = first["input"].get("name") if isinstance(first["input"], dict) else first["input"]
        return str(InputError("unknown model", found=repr(found), remedy=f"use one of {', '.join(MODELS)}"))
    if section == "model" and inner[0] in MODELS:
        return describe_validation_error(error, MODELS[inner[0]].Config).replace(f"model.{inner[0]}.", "model.")
    sections = {"embedding": EmbeddingConfig, "trainer": TrainerConfig, "compression": Compression}
    return describe_validation_error(error, sections.get(str(section), Experiment))


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as a flat one, with keys joined by dots.

    >>> flatten({"a": {"b": 1}, "c": [1, 2]})
    {'a.b': 1, 'c': [1, 2]}
    """
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


SHALLOW = {
    # One weight per value, and as many floats as the other models' tables.
    "logistic_regression": {"num_rows": 131_072, "width": 1, "probes": 1},
    "fm": {},
}
"""Models whose logit is a sum of the table's weights, and their table's shape."""


def default_run(model: str) -> Experiment:
    """A model's default run, for any dataset directory.

    >>> default_run("final_mlp").model.name
    'final_mlp'
    """
    document: dict[str, Any] = {"name": model, "model": {"name": model}}
    if model in SHALLOW:
        # Their weights must grow to the size of a logit, which the weight decay of a deep model's embeddings prevents.
        document |= {"embedding": {**SHALLOW[model], "l2": 1e-5}, "trainer": {"learning_rate": 0.01}}
    return Experiment.model_validate(document)
