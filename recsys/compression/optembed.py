"""OptEmbed on a shared table: a supernet with learned thresholds, a search over widths under a byte budget, a mask.

M table rows, w row width, S slots, R readers (a reader is a feature in a view), D = probes * w columns of a reader.

Lyu et al., "OptEmbed: Learning Optimal Embedding Table for Click-through Rate Prediction", CIKM 2022, arXiv
2208.04482. What differs from the reference code, and why:

- By default there is no supernet (`supernet`), and the result is tuned instead of trained again from the first
  weights: only the paper's second stage, a search over widths, on a plainly trained table. docs/results calls that
  "width search", and the paper's whole procedure (`supernet=true` with `start=rewind`) "OptEmbed".
- Rows are shared, so thresholds mask lookups, and a row is removed when all its readers mask it. Norms are in units
  of the median row's norm, because they grow with the number of readers.
- There is a byte budget; the reference search knows only AUC. Each candidate is filled up to the same bytes: every row
  keeps the prefix that is worth its bytes, measured by the squared error in the network's inputs without it.
- Widths are multiples of a number of columns, because fewer different widths are cheaper to store; 0 is allowed.
- Mutation copies its parent, crossover cuts between features instead of columns, every width can be drawn, the best
  candidates stay parents, sizes are those of the file, and batch norm statistics are computed for each candidate. The
  vocabulary is that of train.
"""

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from recsys.compression.base import Budget, PruningContext, SlotLookups
from recsys.compression.evolution import Genome, SearchConfig, evolve
from recsys.compression.fitness import Fitness
from recsys.compression.gate import OptEmbedGate, ThresholdSGD, WidthChoices, row_norms
from recsys.compression.importance import least_error_mask
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
        """Norm of a row that is compared with its readers' thresholds."""
        columns_a_step: int = Field(default=4, ge=1)
        """The supernet and the search use widths that are multiples of this."""
        prefix_rate: float = Field(default=1.0, ge=0, le=1)
        """Share of the reads that the supernet cuts to a random prefix; the paper cuts all of them."""
        may_drop: bool = True
        """True to allow width 0, a feature that is not read at all. The paper has widths 1 to D."""
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
        gate = OptEmbedGate(
            ranker.embedding.layout,
            alpha=config.alpha,
            norm=config.norm,
            scale=scale or 1.0,
            columns_a_step=config.columns_a_step,
            may_drop=config.may_drop,
            prefix_rate=config.prefix_rate,
        )
        ranker.embedding.gate = gate
        return ThresholdSGD(optimizer, gate, config.threshold_learning_rate)

    def build_mask(self, evidence: PruningContext) -> Mask:
        """The mask of the best candidate."""
        config = self.config
        steps = WidthChoices(evidence.layout, columns=config.columns_a_step, may_drop=config.may_drop)
        choices = Choices(evidence, steps)
        fitness = Fitness(evidence, config.tuning_steps)
        winner = evolve(
            choices.num_choices,
            lambda genome: fitness(choices.mask(genome)),
            self.config.search,
            seed=evidence.seed,
            path=evidence.directory / "search.jsonl",
            start=choices.simple(),
            identity=[self.budget.num_bytes, self.budget.dtype, config.tuning_steps],
            progress=evidence.progress,
        )
        return choices.mask(winner.genome)


def row_margins(table: Tensor, reads: list[SlotLookups], gate: OptEmbedGate) -> Tensor:
    """Norm of each row [M] less the lowest threshold among its readers; minus infinity for a row without readers.

    A row is removed where this is 0 or less: all its readers mask it.
    """
    norms = row_norms(table, gate.norm) / gate.scale
    lowest = torch.full_like(norms, torch.inf)
    for slot, threshold in zip(reads, gate.slot_thresholds.detach().tolist(), strict=True):
        lowest[slot.rows] = lowest[slot.rows].clamp(max=threshold)
    return norms - lowest


class Choices:
    """Masks of genomes: a genome is one width per reader, and the budget decides what each row stores of it."""

    def __init__(self, evidence: PruningContext, steps: WidthChoices) -> None:
        self.evidence, self.steps = evidence, steps
        self.num_choices: list[int] = steps.num_choices.tolist()
        self._table, gate = evidence.table, evidence.ranker.embedding.gate
        if isinstance(gate, OptEmbedGate):
            self._table = self._table * (row_margins(self._table, evidence.reads, gate) > 0)[:, None]

    def simple(self) -> list[Genome]:
        """Genomes to begin with: all columns, all but one reader, and three quarters, half and a quarter of all."""
        full = [n - 1 for n in self.num_choices]
        without = [tuple(0 if other == reader else n for other, n in enumerate(full)) for reader in range(len(full))]
        shares = [tuple(round(share * n) for n in full) for share in (0.75, 0.5, 0.25)]
        return list(dict.fromkeys([tuple(full), *without, *shares]))

    def mask(self, genome: Genome) -> Mask:
        """The widths of a genome, and the prefix of each row that the budget then admits."""
        slot_widths = self.steps.slot_widths(torch.tensor(genome))
        return least_error_mask(self._table, slot_widths, self.steps.columns, self.evidence)
