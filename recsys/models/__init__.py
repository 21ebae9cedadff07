"""The models, by the name a run gives them; adding one is a file beside these and a line in ``MODELS``."""

from recsys.models.base import Model
from recsys.models.dual_mlp import DualMLP
from recsys.models.final_mlp import FinalMLP
from recsys.models.logistic_regression import LogisticRegression
from recsys.models.mlp import SingleMLP

MODELS: dict[str, type[Model]] = {
    "final_mlp": FinalMLP,
    "dual_mlp": DualMLP,
    "mlp": SingleMLP,
    "logistic_regression": LogisticRegression,
}

__all__ = ["MODELS", "DualMLP", "FinalMLP", "LogisticRegression", "Model", "SingleMLP"]
