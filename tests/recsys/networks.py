"""Models built for tests: their columns laid out as the trainer does, and rows to score."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from recsys.models import MODELS, Model
from recsys.models.layers import ModelInputs

EQUAL_WIDTHS = ("final_net", "deep_fm", "fm")
"""Models that need features of equal width, unless their settings lift that."""
DENSE_WIDTH = 3


class Layout(NamedTuple):
    """Features of an example; the widths differ, as the probes of a feature may."""

    tokens: dict[str, int]
    dense: tuple[str, ...]


LAYOUTS = {
    "both": Layout({"user": 6, "item": 4, "genres": 2}, ("price", "age", "hour")),
    "only tokens": Layout({"user": 6, "item": 4}, ()),
    "only numbers": Layout({}, ("price", "age")),
}


def lay_out(cls: type[Model], config: Any, layout: Layout) -> ModelInputs:
    """The inputs that the trainer lays out between `views` and the constructor."""
    views = cls.views(config, tuple(layout.tokens))
    widths = {view: {feature: layout.tokens[feature] for feature in names} for view, names in views.items()}
    return ModelInputs(views=widths, dense_features=layout.dense, dense_width=DENSE_WIDTH)


def build(name: str, settings: dict[str, Any] | None = None, layout: str = "both", seed: int = 3) -> Any:
    """A model of MODELS on one of LAYOUTS, whose widths become equal where the model needs it."""
    cls, features = MODELS[name], LAYOUTS[layout]
    config = cls.Config.model_validate(settings or {})
    if name in EQUAL_WIDTHS and getattr(config, "use_field_gate", True):
        features = features._replace(tokens=dict.fromkeys(features.tokens, DENSE_WIDTH))
    torch.manual_seed(seed)
    return cls(config, lay_out(cls, config, features))


def batch_for(model: Model, rows: int, seed: int = 11) -> tuple[Tensor, Tensor]:
    """`embedded` and `dense` of some rows."""
    generator = torch.Generator().manual_seed(seed)
    embedded = torch.randn(rows, model.inputs.embedded_width, generator=generator)
    return embedded, torch.randn(rows, len(model.inputs.dense_features), generator=generator)


def count(module: nn.Module) -> int:
    """Trained numbers."""
    return sum(p.numel() for p in module.parameters())


def degree_along_a_ray(function: Callable[[Tensor], Tensor], width: int) -> int:
    """Degree, up to 10, of the polynomial that a function of [n, width] to [n] is along a random line through 0.

    The k-th differences at points an equal distance apart vanish for a degree below k, and for no other.
    """
    points = torch.linspace(-1, 1, 12, dtype=torch.float64)
    differences, degree = function(points[:, None] * torch.randn(width, dtype=torch.float64)).detach(), -1
    negligible = 1e-10 * differences.abs().max()
    while differences.abs().max() > negligible:
        differences, degree = differences.diff(), degree + 1
        assert len(differences), "not a polynomial of degree 10 or less"
    return degree
