"""What every model is: a frozen Config beside a module that turns an example's columns into one logit.

Shapes as in ``recsys.layers``: B batch, W columns of ``embedded``, N numeric features, E width of an ``InputVector``.
"""

import difflib
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveInt
from torch import Tensor, nn

from features.errors import InputError
from recsys.layers import ModelInputs, NumericEmbedding

HiddenWidths = Annotated[tuple[PositiveInt, ...], Field(min_length=1)]
"""Width of each hidden layer, first to last; at least one."""

Dropout = Annotated[float, Field(ge=0, lt=1)]
"""Probability of dropping a hidden activation."""


class Model(nn.Module):
    """The contract of an entry of ``MODELS``; a new model is a file with a subclass, and a line in that dict.

    A model is handed embedded tokens and plain numbers. It knows no table, no loss, no optimiser and no trainer,
    so that it exports as it is. Its constructor takes its own Config and the ModelInputs that its views led to:

    >>> from recsys.models import MODELS
    >>> cls = MODELS["mlp"]
    >>> config = cls.Config.model_validate({"hidden": [8]})
    >>> cls.views(config, ("user", "item"))
    {'main': ('user', 'item')}
    >>> inputs = ModelInputs(views={"main": {"user": 4, "item": 4}}, dense_features=("price",), dense_width=4)
    >>> cls(config, inputs)(torch.zeros(3, 8), torch.zeros(3, 1)).shape
    torch.Size([3])

    Args:
        config: the settings, of the class's own ``Config``.
        inputs: the columns it reads. Its views are those that ``views`` asked for.

    Raises:
        InputError: a context names an unknown feature, or ``inputs`` lacks a view.
    """

    class Config(BaseModel):
        """The settings of one model: frozen, unknown keys refused."""

        model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

        def contexts(self) -> dict[str, tuple[str, ...]]:
            """View name -> features that the model reads once more, through rows of their own; none by default.

            The settings that hold them are named after the view: ``fs1_context`` for view "fs1".

            >>> Model.Config().contexts()
            {}
            """
            return {}

    def __init__(self, config: Config, inputs: ModelInputs) -> None:
        super().__init__()
        _check_contexts(config, inputs)
        self.config = config
        self.inputs = inputs

    @classmethod
    def views(cls, config: Config, features: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
        """The views of the embedding table that the model reads, each with its features.

        Args:
            config: the settings.
            features: the token features in registry order.

        Returns:
            "main" with all of them, then a view for each context that names one, in registry order (as the reference
            code orders a context). Other names in a context are numeric features, which need no table; whether they
            exist is checked when the model is built, where the numeric features are known.

        >>> from recsys.models import FinalMLP
        >>> FinalMLP.views(FinalMLP.Config(fs1_context=("item", "price", "user")), ("user", "item"))
        {'main': ('user', 'item'), 'fs1': ('user', 'item')}
        """
        views = {"main": features}
        for view, context in config.contexts().items():
            if chosen := tuple(feature for feature in features if feature in context):
                views[view] = chosen
        return views

    def forward(self, embedded: Tensor, dense: Tensor) -> Tensor:
        """Score a batch.

        Args:
            embedded: [B, W], float32; the views one after another.
            dense: [B, N], float32; the numeric features.

        Returns:
            logits [B]; the probability is their sigmoid.
        """
        raise NotImplementedError

    def embedding_parameters(self) -> list[nn.Parameter]:
        """The weights inside the model that belong to the embedding and take its L2 (BARS): those of numeric features.

        >>> from recsys.models import SingleMLP
        >>> inputs = ModelInputs(views={"main": {}}, dense_features=("age", "price"), dense_width=4)
        >>> [tuple(p.shape) for p in SingleMLP(SingleMLP.Config(), inputs).embedding_parameters()]
        [(2, 4)]
        """
        return [part.weight for part in self.modules() if isinstance(part, NumericEmbedding)]


class InputVector(nn.Module):
    """The input of a network: the main view's columns, then each numeric feature times a vector of its own.

    >>> inputs = ModelInputs(views={"main": {"user": 3}}, dense_features=("price",), dense_width=2)
    >>> vector = InputVector(inputs)(torch.ones(5, 3), torch.zeros(5, 1))
    >>> vector.shape, vector[0, :3].tolist()
    (torch.Size([5, 5]), [1.0, 1.0, 1.0])
    """

    def __init__(self, inputs: ModelInputs) -> None:
        super().__init__()
        self.inputs = inputs
        num_dense = len(inputs.dense_features)
        self.numeric = NumericEmbedding(num_dense, inputs.dense_width) if num_dense else None

    def forward(self, embedded: Tensor, dense: Tensor) -> Tensor:
        """[B, W], [B, N] -> [B, E]."""
        main = main_columns(self.inputs, embedded)
        return main if self.numeric is None else torch.cat([main, self.numeric(dense)], dim=1)


def main_columns(inputs: ModelInputs, embedded: Tensor) -> Tensor:
    """The main view's part of ``embedded``.

    Args:
        inputs: the columns of ``embedded``.
        embedded: [B, W].

    Returns:
        [B, width of the main view], a view of the same memory.

    >>> inputs = ModelInputs(views={"main": {"user": 3}, "fs1": {"user": 3}})
    >>> main_columns(inputs, torch.zeros(5, 6)).shape
    torch.Size([5, 3])
    """
    # A slice past the end is silently short, and a sum over it silently wrong.
    assert embedded.shape[1] == inputs.embedded_width, (embedded.shape, inputs.embedded_width)
    return embedded[:, inputs.columns("main")]


def _check_contexts(config: Model.Config, inputs: ModelInputs) -> None:
    """Refuse a context that names no feature, and inputs that were laid out for another config."""
    tokens = inputs.views["main"]
    known = [*tokens, *inputs.dense_features]
    for view, context in config.contexts().items():
        for name in context:
            if name not in known:
                closest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
                raise InputError(
                    f"{view}_context must name features of the registry",
                    found=repr(name),
                    remedy=f"the closest one is {closest[0]!r}",
                )
    expected = Model.views(config, tuple(tokens))
    found = {view: tuple(widths) for view, widths in inputs.views.items()}
    if found != expected:
        raise InputError(
            f"inputs must hold the views {expected}", found=repr(found), remedy="lay them out by the model's `views`"
        )
