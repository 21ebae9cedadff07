"""SearchSpace: the settings that a sweep varies, each with its range; declared next to its run.

A space maps keys as `muxrec train` takes them (`embedding.l2`) to `Float`, `Int` or `Choice`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from features.errors import InputError
from recsys.config import Experiment, changeable, flatten, read_yaml, unknown_key, with_overrides

if TYPE_CHECKING:
    from optuna.trial import Trial


class _Numbers(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    log: bool = False
    """True to sample on a logarithmic scale."""
    type: Any
    low: Any
    high: Any

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError(f"expected low < high, and low above 0 with log; found {self.low} and {self.high}")
        return self

    @property
    def ends(self) -> tuple[Any, ...]:
        """Both bounds: where they are valid settings, the values between them are too."""
        return self.low, self.high

    def suggest(self, trial: "Trial", key: str) -> Any:
        """The trial's parameter for a key; the same one in later calls."""
        draw = trial.suggest_int if isinstance(self, Int) else trial.suggest_float
        return draw(key, self.low, self.high, log=self.log)

    def setting(self, parameter: Any) -> Any:
        """The setting's value for a parameter of the study."""
        return parameter

    def as_parameter(self, value: Any) -> Any:
        """The study's parameter for a value; None outside the range."""
        return value if isinstance(value, int | float) and self.low <= value <= self.high else None

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}{', log' if self.log else ''}"


class Float(_Numbers):
    """A number.

    >>> str(Float(low=1e-4, high=0.1, log=True))
    '0.0001 to 0.1, log'
    """

    type: Literal["float"] = "float"
    low: float
    high: float

    def setting(self, parameter: Any) -> float:
        """The number to four digits, so that the reported value is the trained one."""
        return float(f"{parameter:.4g}")


class Int(_Numbers):
    """A whole number."""

    type: Literal["int"] = "int"
    low: int
    high: int


class Choice(BaseModel):
    """One of some values, which may be lists, as for `model.hidden`.

    >>> str(Choice(values=([400], [400, 400])))
    '[400] | [400, 400]'
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Literal["choice"] = "choice"
    values: tuple[Any, ...] = Field(min_length=1)

    @property
    def ends(self) -> tuple[Any, ...]:
        """All values."""
        return self.values

    def suggest(self, trial: "Trial", key: str) -> Any:
        """JSON of one of the values, as Optuna's parameters cannot be lists."""
        return trial.suggest_categorical(key, [json.dumps(value) for value in self.values])

    def setting(self, parameter: Any) -> Any:
        """The value."""
        return json.loads(parameter)

    def as_parameter(self, value: Any) -> str | None:
        """The value's JSON."""
        text = json.dumps(list(value) if isinstance(value, tuple) else value)
        return text if text in [json.dumps(one) for one in self.values] else None

    def __str__(self) -> str:
        return " | ".join(json.dumps(value) for value in self.values)


SearchSpace = Mapping[str, Float | Int | Choice]
_READER = TypeAdapter(dict[str, Annotated[Float | Int | Choice, Field(discriminator="type")]])


def default_space(experiment: Experiment) -> dict[str, Float | Int | Choice]:
    """Settings that matter in any run: the learning rate, the table's L2, and the model's dropouts.

    >>> from recsys.config import default_run
    >>> list(default_space(default_run("mlp")))
    ['trainer.learning_rate', 'embedding.l2', 'model.dropout']
    """
    space: dict[str, Float | Int | Choice] = {
        "trainer.learning_rate": Float(low=3e-4, high=1e-2, log=True),
        "embedding.l2": Float(low=1e-6, high=0.3, log=True),
    }
    dropouts = [name for name, _ in experiment.model if name.endswith("dropout")]
    return space | {f"model.{name}": Float(low=0.0, high=0.5) for name in dropouts}


def read_space(path: Path) -> dict[str, Float | Int | Choice]:
    """A space from YAML, such as `embedding.l2: {type: float, low: 1.0e-5, high: 0.1, log: true}`.

    Raises `InputError` that names the file and the key.
    """
    try:
        return _READER.validate_python(read_yaml(path, "a search space"))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][:1]) or "the file"
        remedy = "write `key: {type: float|int, low: ..., high: ..., log: true}` or `{type: choice, values: [...]}`"
        raise InputError(f"{path}: {where}", found=str(first["msg"]), remedy=remedy) from None


def check_space(space: SearchSpace, experiment: Experiment) -> None:
    """Raise `InputError` for an empty space, an unknown key, or a value that does not fit the run."""
    if not space:
        raise InputError("a sweep needs a setting to vary", found="none", remedy="leave one of them out of the command")
    known = list(flatten(changeable(experiment)))
    for key, values in space.items():
        if key not in known:
            raise unknown_key(key, known)
        if key in ("name", "seed", "trainer.monitor"):
            raise InputError(f"a sweep cannot vary {key}", remedy="leave it out of the space")
        for value in values.ends:
            with_settings(experiment, {key: value})


def with_settings(experiment: Experiment, settings: Mapping[str, Any]) -> Experiment:
    """The experiment with a trial's values; raises `InputError` for values that do not fit together."""
    return with_overrides(experiment, [f"{key}={json.dumps(value)}" for key, value in settings.items()])
