"""The supernet of OptEmbed: a learned threshold per feature and view, and random prefixes of its columns.

B examples, P (view, feature) pairs, n lookups of a batch, w row width, D = probes * w columns of a pair.

Lyu et al., "OptEmbed: Learning Optimal Embedding Table for Click-through Rate Prediction", CIKM 2022, arXiv 2208.04482,
section 2.
"""

from typing import Any, Literal

import torch
from torch import Tensor

from features.layout import TableLayout
from recsys.embedding.mask import Gate, Reads
from recsys.embedding.optimizers import TableOptimizer, TableOptimizerWrapper

Norm = Literal["l1", "l2"]


class Step(torch.autograd.Function):
    """1 where x > 0, else 0; backward the long-tailed estimator: 2 - 4|x| up to 0.4, 0.4 up to 1, 0 beyond.

    >>> x = torch.tensor([0.1, 0.0, -2.0], requires_grad=True)
    >>> Step.apply(x).sum().backward()
    >>> x.grad
    tensor([1.6000, 2.0000, 0.0000])
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(x)
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        (x,) = ctx.saved_tensors
        distance = x.abs()
        slope = torch.where(distance <= 0.4, 2 - 4 * distance, 0.4)
        return grad * torch.where(distance <= 1, slope, 0.0)


def view_feature_pairs(layout: TableLayout) -> list[tuple[str, str]]:
    """The (view, feature) pairs [P], in output order."""
    return list(dict.fromkeys((slot.view, slot.feature) for slot in layout.slots))


def pair_of_slots(layout: TableLayout) -> Tensor:
    """Number of the (view, feature) pair of each slot [S]."""
    numbers = {pair: number for number, pair in enumerate(view_feature_pairs(layout))}
    return torch.tensor([numbers[slot.view, slot.feature] for slot in layout.slots])


class WidthChoices:
    """The widths that a pair may have, by number: multiples of `columns`, and all D; a prefix over its probes.

    >>> layout = TableLayout(num_rows=9, width=4, seed=0, views={"main": {"a": 2}}, keys={"a": "a"}, pooling={})
    >>> widths = WidthChoices(layout, columns=3, may_drop=False)
    >>> widths.num_choices.tolist(), [widths.slot_widths(torch.tensor([c])).tolist() for c in range(3)]
    ([3], [[3, 0], [4, 2], [4, 4]])
    """

    def __init__(self, layout: TableLayout, *, columns: int, may_drop: bool) -> None:
        self.columns, self.width = columns, layout.width
        self.first_number = 0 if may_drop else 1
        self.pair = pair_of_slots(layout)
        self.first_column = torch.tensor([slot.probe for slot in layout.slots], dtype=torch.int64) * layout.width
        self.num_columns = torch.bincount(self.pair, minlength=len(view_feature_pairs(layout))) * layout.width
        self.num_choices = -(-self.num_columns // columns) + 1 - self.first_number
        """[P]."""

    def slot_widths(self, choices: Tensor) -> Tensor:
        """Columns [..., S] that each slot keeps under the choices [..., P] of the pairs."""
        columns = torch.minimum((choices + self.first_number) * self.columns, self.num_columns)
        return (columns[..., self.pair] - self.first_column).clamp(0, self.width)

    def draw(self, num_examples: int) -> Tensor:
        """Columns [B, S] that each slot keeps of each example: a uniform choice for each example and pair."""
        drawn = torch.rand(num_examples, len(self.num_choices)) * self.num_choices
        return self.slot_widths(drawn.long())


def row_norms(values: Tensor, norm: Norm) -> Tensor:
    """Norms [n] of values [n, w]; the gradient of a row of zeros is zero."""
    if norm == "l1":
        return values.abs().sum(dim=1)
    squares = values.square().sum(dim=1)
    return torch.where(squares > 0, squares.clamp(min=torch.finfo(values.dtype).tiny).sqrt(), 0.0)


class OptEmbedSupernet(Gate):
    """values -> values * prefix * step(norm / scale - threshold); thresholds rise by the penalty alpha * sum exp(-t).

    On a shared table a row belongs to no single feature, so a threshold masks lookups, and a row is removed when every
    pair that looks it up masks it. Norms grow with the number of those pairs; `scale` brings them to one unit.
    """

    thresholds: Tensor
    """[P]: norm that the rows of a pair must exceed."""

    def __init__(
        self,
        layout: TableLayout,
        *,
        alpha: float,
        norm: Norm,
        scale: float,
        columns_a_step: int = 1,
        may_drop: bool = False,
        prefix_rate: float = 1.0,
    ) -> None:
        super().__init__()
        self.norm: Norm = norm
        self.alpha, self.scale, self.prefix_rate = alpha, scale, prefix_rate
        self.choices = WidthChoices(layout, columns=columns_a_step, may_drop=may_drop)
        self.register_buffer("thresholds", torch.zeros(len(view_feature_pairs(layout))).requires_grad_())

    @property
    def slot_thresholds(self) -> Tensor:
        """The threshold that each slot [S] applies."""
        return self.thresholds[self.choices.pair]

    def forward(self, values: Tensor, reads: Reads) -> Tensor:
        """Mask values [n, w]: rows by threshold and, in training, columns by a random prefix."""
        norms = row_norms(values, self.norm) / self.scale
        is_kept = Step.apply(norms - self.slot_thresholds[reads.slots])
        if self.training and self.prefix_rate:
            values = values * self.prefix(reads)
        return values * is_kept[:, None]

    def prefix(self, reads: Reads) -> Tensor:
        """Flags [n, w] of the columns inside a random prefix."""
        num_examples = int(reads.examples.max()) + 1 if len(reads.examples) else 0
        widths = self.choices.draw(num_examples)
        if self.prefix_rate < 1:
            is_whole = torch.rand(num_examples, len(self.thresholds)) >= self.prefix_rate
            widths[is_whole[:, self.choices.pair]] = self.choices.width
        widths = widths[reads.examples, reads.slots]
        return torch.arange(self.choices.width) < widths[:, None]

    def penalty(self) -> Tensor:
        """alpha * sum over pairs of exp(-t)."""
        return self.alpha * torch.exp(-self.thresholds).sum()


class ThresholdSGD(TableOptimizerWrapper):
    """A table optimiser that also moves the supernet's thresholds, by plain gradient descent at a separate rate.

    It saves the table's state only, as thresholds are part of the model.
    """

    def __init__(self, table: TableOptimizer, supernet: OptEmbedSupernet, learning_rate: float) -> None:
        super().__init__(table)
        self.supernet, self.rate = supernet, learning_rate

    def step(self) -> None:
        """One step of both."""
        super().step()
        thresholds = self.supernet.thresholds
        if thresholds.grad is not None:
            with torch.no_grad():
                thresholds.sub_(thresholds.grad, alpha=self.rate)
            thresholds.grad = None
