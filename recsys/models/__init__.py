"""The models by name; to add one, write a file here and a line in ``MODELS``."""

from recsys.models.base import Model
from recsys.models.dcn_v2 import DCNv2
from recsys.models.deep_fm import DeepFM
from recsys.models.dual_mlp import DualMLP
from recsys.models.final_mlp import FinalMLP
from recsys.models.final_net import FinalNet
from recsys.models.fm import FactorizationMachine
from recsys.models.logistic_regression import LogisticRegression
from recsys.models.mlp import SingleMLP

MODELS: dict[str, type[Model]] = {
    "final_mlp": FinalMLP,
    "final_net": FinalNet,
    "dcn_v2": DCNv2,
    "deep_fm": DeepFM,
    "dual_mlp": DualMLP,
    "mlp": SingleMLP,
    "fm": FactorizationMachine,
    "logistic_regression": LogisticRegression,
}

__all__ = [
    "MODELS",
    "DCNv2",
    "DeepFM",
    "DualMLP",
    "FactorizationMachine",
    "FinalMLP",
    "FinalNet",
    "LogisticRegression",
    "Model",
    "SingleMLP",
]
