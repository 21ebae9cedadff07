"""Published runs of reczoo/BARS: the fields of its datasets, and the parameters that a model has on them there."""

from collections.abc import Mapping
from typing import NamedTuple

import torch

from recsys.models import MODELS, Model
from recsys.models.layers import ModelInputs


class Fields(NamedTuple):
    """The features of a dataset of BARS."""

    width: int
    """D: floats per value."""
    tokens: tuple[str, ...]
    dense: tuple[str, ...]
    vocabulary: int
    """Rows of all tables, those for padding and unknown values included."""
    vocabulary_of: Mapping[str, int] = {}
    """Of the fields that some gate reads."""


NUMBERS = tuple(f"I{number}" for number in range(1, 14))
CATEGORIES = tuple(f"C{number}" for number in range(1, 27))
CRITEO_X1 = Fields(10, CATEGORIES, NUMBERS, 2_086_329, {"C6": 23})
CRITEO_X4 = Fields(16, (*NUMBERS, *CATEGORIES), (), 910_747)
AVAZU_X1 = Fields(10, tuple(f"feat_{number}" for number in range(1, 23)), (), 1_298_621)
AVAZU_X4 = Fields(16, tuple(f"feat_{number}" for number in range(1, 25)), (), 3_750_999)
MOVIELENS_X1 = Fields(10, ("user_id", "item_id", "tag_id"), (), 90_242)
FRAPPE = ("user", "item", "daytime", "weekday", "isweekend", "homework", "cost", "weather", "country", "city")
FRAPPE_X1 = Fields(10, FRAPPE, (), 5_399, {"user": 956, "item": 4_084})
OLD_FRAPPE_X1 = FRAPPE_X1._replace(vocabulary=5_399 - 10)
"""As FuxiCTR 1.1 counted, which ran the older models: one row fewer a field. Three logs agree on it."""


def parameters_there(name: str, config: Model.Config, fields: Fields) -> int:
    """Parameters of a model of ours if it had the tables of the published run, and the parts that we leave out."""
    cls = MODELS[name]
    views = cls.views(config, fields.tokens)
    columns = {view: dict.fromkeys(names, fields.width) for view, names in views.items()}
    inputs = ModelInputs(views=columns, dense_features=fields.dense, dense_width=fields.width)
    with torch.device("meta"):  # counted, never allocated
        network = sum(p.numel() for p in cls(config, inputs).parameters())
    tables = fields.width * fields.vocabulary
    for view, names in views.items():
        if view == "linear":
            tables += fields.vocabulary  # there, a weight of a value is a separate column
        elif view != "main":
            tables += fields.width * sum(fields.vocabulary_of[feature] for feature in names)
    return tables + network + _dead(config, inputs, fields.width)


def _dead(config: Model.Config, inputs: ModelInputs, width: int) -> int:
    """Parameters that gates without a context leave out (A5): the context vector and the MLP, but for its last bias."""
    hidden = getattr(config, "gate_hidden", ())
    assert len(hidden) <= 1, "of one hidden layer, as in every published run"
    a_gate = width + sum((width + 1) * size + size * inputs.input_width for size in hidden)
    return sum(not context for context in config.contexts().values()) * a_gate
