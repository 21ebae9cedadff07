"""Train, evaluate and keep a model, from Python or by `muxrec`: one multiplexed table, two-stream networks.

>>> from recsys import FeatureRegistry
>>> [feature.name for feature in FeatureRegistry.of(features={"user": "categorical"}).features]
['user']
"""

import importlib
import logging
from typing import TYPE_CHECKING, Any

import features as features  # before mlflow

if TYPE_CHECKING:
    from features.infer import infer_registry
    from features.registry import FeatureRegistry
    from recsys.api import Dataset, Run, prepare, train
    from recsys.config import Experiment
    from serving.scorer import Scorer

__all__ = ["Dataset", "Experiment", "FeatureRegistry", "Run", "Scorer", "infer_registry", "prepare", "train"]

_MODULES = {
    "Dataset": "recsys.api",
    "Experiment": "recsys.config",
    "FeatureRegistry": "features.registry",
    "Run": "recsys.api",
    "Scorer": "serving.scorer",
    "infer_registry": "features.infer",
    "prepare": "recsys.api",
    "train": "recsys.api",
}
"""Public name to its module, imported when the name is first used: importing recsys loads neither torch nor mlflow."""

# Importing torchrec makes torch.fx warn about a function that torchrec calls; users can do nothing about it.
logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
