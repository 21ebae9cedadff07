"""OptEmbed on a shared table: a supernet with learned thresholds, a search over widths under a byte budget, a mask.

M table rows, w row width, S slots, P (view, feature) pairs, D = probes * w columns of a pair.

Lyu et al., "OptEmbed: Learning Optimal Embedding Table for Click-through Rate Prediction", CIKM 2022, arXiv
2208.04482. What differs from the reference code, and why:

- By default the supernet is left out (`supernet`), and the result is tuned and not trained again from the first
  weights: a search over widths, the paper's second stage, on a plainly trained table. docs/results calls that "width
  search", and "OptEmbed" what `supernet=true` with `start=rewind` does, all that the paper describes.
- Rows are shared, so thresholds mask lookups, and a row is removed when every pair that looks it up masks it; norms are
  in units of the median row's, as they grow with the number of such pairs.
- There is a byte budget, where the code's search knows AUC alone. Each candidate is filled up to the same bytes: every
  row gets the prefix that is worth its bytes, by the squared error which the network's inputs would have without.
- Widths are multiples of some columns, as fewer different ones are cheaper to store; 0 is one of them.
- Mutation copies its parent, crossover cuts between features and not between columns, every width can be drawn, the
  best candidates stay parents, sizes are those of the file, and batch norm is taken anew for each candidate. The
  vocabulary is that of train.
"""

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from recsys.compression.base import Budget, PruningContext, SlotLookups
from recsys.compression.evolution import Genome, SearchConfig, evolve
from recsys.compression.fitness import Fitness
from recsys.compression.importance import least_error_mask
from recsys.compression.supernet import OptEmbedSupernet, ThresholdSGD, WidthChoices, row_norms
from recsys.compression.wide import WideConfig, WideTable
from recsys.embedding.mask import Mask
from recsys.embedding.optimizers import TableOptimizer
from recsys.ranker import Ranker


class OptEmbed(WideTable):
    """Thresholds, prefixes, evolution, retraining."""

    class Config(WideConfig):
        """Settings of the supernet and of the search."""

        supernet: bool = False
        """True to learn thresholds and prefixes; else the search starts from the plainly trained table."""
        alpha: float = Field(default=1e-4, ge=0)
        """Weight of the penalty exp(-t), which makes thresholds rise."""
        threshold_learning_rate: float = Field(default=1e-2, gt=0)
        """Learning rate of the thresholds, which have their own gradient descent."""
        norm: Literal["l1", "l2"] = "l1"
        """Of a row, compared with the thresholds of the pairs that look it up."""
        columns_a_step: int = Field(default=4, ge=1)
        """The supernet and the search use widths that are multiples of this."""
        prefix_rate: float = Field(default=1.0, ge=0, le=1)
        """Share of the lookups that the supernet cuts to a random prefix; the paper cuts all of them."""
        may_drop: bool = True
        """True to allow width 0, which drops the feature. The paper has widths 1 to D."""
        tuning_steps: int = Field(default=80, ge=0)
        """Training steps per candidate; the better score of before and after counts. The paper has none."""
        search: SearchConfig = SearchConfig()

    def __init__(self, config: Any, budget: Budget) -> None:
        super().__init__(config, budget)
        self.has_supernet = config.supernet

    def install_supernet(self, ranker: Ranker, optimizer: TableOptimizer) -> TableOptimizer:
        """Thresholds and prefixes between the table and the network."""
        config, table = self.config, ranker.embedding.table.detach()
        if not config.supernet:
            return optimizer
        scale = float(row_norms(table, config.norm).median())
        supernet = OptEmbedSupernet(
            ranker.embedding.layout,
            alpha=config.alpha,
            norm=config.norm,
            scale=scale or 1.0,
            columns_a_step=config.columns_a_step,
            may_drop=config.may_drop,
            prefix_rate=config.prefix_rate,
        )
        ranker.embedding.gate = supernet
        return ThresholdSGD(optimizer, supernet, config.threshold_learning_rate)

    def build_mask(self, context: PruningContext) -> Mask:
        """The mask of the best candidate."""
        config = self.config
        steps = WidthChoices(context.layout, columns=config.columns_a_step, may_drop=config.may_drop)
        choices = Choices(context, steps)
        fitness = Fitness(context, config.tuning_steps)
        winner = evolve(
            choices.num_choices,
            lambda genome: fitness(choices.mask(genome)),
            self.config.search,
            seed=context.seed,
            path=context.directory / "search.jsonl",
            start=choices.simple(),
            identity=[self.budget.num_bytes, self.budget.dtype, config.tuning_steps],
            progress=context.progress,
        )
        return choices.mask(winner.genome)


def row_margins(table: Tensor, lookups: list[SlotLookups], supernet: OptEmbedSupernet) -> Tensor:
    """Norm of each row [M] less the lowest threshold of a pair that looks it up; minus infinity without a lookup.

    A row is removed where this is 0 or less: all its pairs mask it.
    """
    norms = row_norms(table, supernet.norm) / supernet.scale
    lowest = torch.full_like(norms, torch.inf)
    for slot, threshold in zip(lookups, supernet.slot_thresholds.detach().tolist(), strict=True):
        lowest[slot.rows] = lowest[slot.rows].clamp(max=threshold)
    return norms - lowest


class Choices:
    """Masks of genomes: a genome is a width per pair, and the budget decides what each row stores."""

    def __init__(self, context: PruningContext, steps: WidthChoices) -> None:
        self.context, self.steps = context, steps
        self.num_choices: list[int] = steps.num_choices.tolist()
        self._table, supernet = context.table, context.ranker.embedding.gate
        if isinstance(supernet, OptEmbedSupernet):
            self._table = self._table * (row_margins(self._table, context.lookups, supernet) > 0)[:, None]

    def simple(self) -> list[Genome]:
        """The first candidates: everything, everything but one pair, and three quarters, half, a quarter of all."""
        full = [n - 1 for n in self.num_choices]
        without = [tuple(0 if other == pair else n for other, n in enumerate(full)) for pair in range(len(full))]
        shares = [tuple(round(share * n) for n in full) for share in (0.75, 0.5, 0.25)]
        return list(dict.fromkeys([tuple(full), *without, *shares]))

    def mask(self, genome: Genome) -> Mask:
        """The widths of a genome, and the prefix of each row that the budget then admits."""
        slot_widths = self.steps.slot_widths(torch.tensor(genome))
        return least_error_mask(self._table, slot_widths, self.steps.columns, self.context)
