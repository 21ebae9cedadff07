"""Factorisation machine: logistic regression and, for every pair of fields, the product of their vectors.

Rendle, "Factorization Machines", ICDM 2010.

Shapes as in ``recsys.models.layers``: B batch, W columns of ``embedded``, N numeric features, E width of the
input vector e, F fields (token and numeric features together) of D columns each, E = F * D.
"""

from typing import ClassVar

from torch import Tensor

from recsys.models.base import InputVector, Model, field_shape
from recsys.models.layers import ModelInputs
from recsys.models.logistic_regression import LogisticRegression


class FactorizationMachine(LogisticRegression):
    """logit = bias + weight of each value + sum over pairs of fields f < g of v_f . v_g (Eq. 1).

    The weights are in a separate view, "linear", whose columns are summed; the vectors are the main view's. A
    numeric feature x has a weight and a vector, each times x. A list is one field: its values are multiplied with the
    other fields and not with each other.

    Raises:
        InputError: the features have different widths.

    >>> import torch
    >>> inputs = ModelInputs(views={"main": {"user": 2, "item": 2}, "linear": {"user": 2, "item": 2}})
    >>> model = FactorizationMachine(FactorizationMachine.Config(), inputs)
    >>> model(torch.tensor([[1.0, 2.0, 3.0, 4.0, 0.0, 0.0, 0.0, 0.0]]), torch.zeros(1, 0)).tolist()
    [11.0]
    """

    weight_view: ClassVar[str] = "linear"

    def __init__(self, config: Model.Config, inputs: ModelInputs) -> None:
        super().__init__(config, inputs)
        self.shape = field_shape(inputs, "a factorisation machine")
        self.input = InputVector(inputs)

    @classmethod
    def views(cls, config: Model.Config, features: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
        """As ``Model.views``, with all token features once more for their weights.

        >>> FactorizationMachine.views(FactorizationMachine.Config(), ("user", "item"))
        {'main': ('user', 'item'), 'linear': ('user', 'item')}
        """
        views = super().views(config, features)
        return {**views, cls.weight_view: features} if features else views

    def forward(self, embedded: Tensor, dense: Tensor) -> Tensor:
        """[B, W], [B, N] -> logits [B]."""
        return self.first_two_orders(embedded, dense, self.input(embedded, dense))

    def first_two_orders(self, embedded: Tensor, dense: Tensor, vector: Tensor) -> Tensor:
        """[B, W], [B, N], input vector [B, E] -> [B]."""
        return super().forward(embedded, dense) + pair_products(vector.unflatten(1, self.shape))


def pair_products(fields: Tensor) -> Tensor:
    """Sum over pairs of fields of their inner product, in O(F * D) as in Lemma 3.1.

    Each field is multiplied by the sum of those before it. The lemma's difference of squares is the same number with
    twice the rounding, as it subtracts the fields' own squares, which may be far larger than the result.

    Args:
        fields: [B, F, D].

    Returns:
        [B].

    >>> import torch
    >>> pair_products(torch.tensor([[[1.0], [2.0], [10.0]]])).tolist()  # 1 * 2 + (1 + 2) * 10
    [32.0]
    """
    return (fields[:, 1:] * fields.cumsum(1)[:, :-1]).sum((1, 2))
