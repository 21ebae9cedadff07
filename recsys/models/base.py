"""Model, the base of every model: a frozen Config and a module that turns an example's columns into one logit.

Shapes as in ``recsys.models.layers``: B batch, W columns of ``embedded``, N numeric features, E width of an
``InputVector``.
"""

import difflib
from collections import Counter
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, PositiveInt
from torch import Tensor, nn

from features.errors import InputError
from recsys.models.layers import ModelInputs, NumericEmbedding

HiddenWidths = Annotated[tuple[PositiveInt, ...], Field(min_length=1)]
"""Width of each hidden layer, first to last; at least one."""

DropoutRate = Annotated[float, Field(ge=0, lt=1)]
"""Probability of dropping a hidden activation."""


class Model(nn.Module):
    """An entry of ``MODELS``; a new model is a file with a subclass, and a line in that dict.

    A model is given embedded tokens and plain numbers. It knows no table, optimiser or trainer, so it exports as it is.
    Its constructor takes its own Config and the ModelInputs of its views:

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
        inputs: the columns it reads, with the views that ``views`` returned.

    Raises:
        InputError: a context names an unknown feature, or ``inputs`` lacks a view.
    """

    class Config(BaseModel):
        """The settings of one model: frozen, unknown keys refused."""

        model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

        def contexts(self) -> dict[str, tuple[str, ...]]:
            """View name -> features that the model reads a second time, through other rows; none by default.

            The settings that hold them are named after the view: ``fs1_context`` for view "fs1".

            >>> Model.Config().contexts()
            {}
            """
            return {}

    def __init__(self, config: Config, inputs: ModelInputs) -> None:
        super().__init__()
        self._check_inputs(config, inputs)
        self.config = config
        self.inputs = inputs

    @classmethod
    def views(cls, config: Config, features: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
        """The views of the embedding table that the model reads, each with its features.

        Args:
            config: the settings.
            features: the token features in registry order.

        Returns:
            "main" with all of them, then a view for each context that names one, in registry order as in the reference
            code. Other names in a context are numeric features, which need no table; the constructor checks them.

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

    def loss(self, embedded: Tensor, dense: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
        """The loss of a training step: the log loss of ``forward``, unless a model overrides it.

        Args:
            embedded: [B, W], float32.
            dense: [B, N], float32.
            labels: [B], 0 or 1, float32.
            weights: [B], or None for ones. They are not normalised: the mean is over B, not over their sum.

        Returns:
            a scalar, the mean over the batch.

        >>> from recsys.models import LogisticRegression
        >>> model = LogisticRegression(LogisticRegression.Config(), ModelInputs(views={"main": {"user": 1}}))
        >>> round(model.loss(torch.zeros(2, 1), torch.zeros(2, 0), torch.tensor([0.0, 1.0])).item(), 4)
        0.6931
        """
        return F.binary_cross_entropy_with_logits(self(embedded, dense), labels, weight=weights)

    def embedding_parameters(self) -> list[nn.Parameter]:
        """Parameters that belong to the embedding and take its L2 (BARS): those of numeric features.

        >>> from recsys.models import SingleMLP
        >>> inputs = ModelInputs(views={"main": {}}, dense_features=("age", "price"), dense_width=4)
        >>> [tuple(p.shape) for p in SingleMLP(SingleMLP.Config(), inputs).embedding_parameters()]
        [(2, 4)]
        """
        return [part.weight for part in self.modules() if isinstance(part, NumericEmbedding)]

    @classmethod
    def _check_inputs(cls, config: Config, inputs: ModelInputs) -> None:
        """Raise `InputError` for an unknown name in a context, and for inputs laid out for another config."""
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
        expected = cls.views(config, tuple(tokens))
        found = {view: tuple(widths) for view, widths in inputs.views.items()}
        if found != expected:
            raise InputError(
                f"inputs must hold the views {expected}",
                found=repr(found),
                remedy="lay them out by the model's `views`",
            )


class InputVector(nn.Module):
    """The input of a network: the main view's columns, then each numeric feature times its own vector.

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
        main = view_columns(self.inputs, "main", embedded)
        return main if self.numeric is None else torch.cat([main, self.numeric(dense)], dim=1)


def view_columns(inputs: ModelInputs, view: str, embedded: Tensor) -> Tensor:
    """One view's part of ``embedded``.

    Args:
        inputs: the columns of ``embedded``.
        view: its name; a view without token features is absent and has no columns.
        embedded: [B, W].

    Returns:
        [B, width of the view], a view of the same memory.

    >>> inputs = ModelInputs(views={"main": {"user": 3}, "fs1": {"user": 2}})
    >>> [view_columns(inputs, view, torch.zeros(5, 5)).shape[1] for view in ("main", "fs1", "fs2")]
    [3, 2, 0]
    """
    # A slice past the end would be short without an error, and a sum over it wrong.
    assert embedded.shape[1] == inputs.embedded_width, (embedded.shape, inputs.embedded_width)
    return embedded[:, inputs.columns(view) if view in inputs.views else slice(0, 0)]


def field_shape(inputs: ModelInputs, reader: str) -> tuple[int, int]:
    """F and D of an input vector that is F fields (token and numeric features) of D columns each.

    Args:
        inputs: the columns of the model.
        reader: the model or setting that needs equal widths, for the message.

    Raises:
        InputError: the features have different widths.

    >>> field_shape(ModelInputs(views={"main": {"user": 4}}, dense_features=("price",), dense_width=4), "a model")
    (2, 4)
    """
    widths = {**inputs.views["main"], **dict.fromkeys(inputs.dense_features, inputs.dense_width)}
    ((width, _),) = Counter(widths.values()).most_common(1)
    for name, other in widths.items():
        if other != width:
            raise InputError(
                f"{reader} needs features of equal width",
                found=f"{name!r} of {other} columns, next to others of {width}",
                remedy="let every `probes:` of the registry equal embedding.probes",
            )
    return len(widths), width
