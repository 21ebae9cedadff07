"""OptFS: one gate per row, annealed from soft to hard while the network trains; rows whose gates end open are kept.

M table rows, w row width, n lookups of a batch. Lyu et al., "Optimizing Feature Set for Click-Through Rate Prediction",
WWW 2023, arXiv 2301.10909: row r is read as sigmoid(t m_r) / sigmoid(m_0) times its values, the temperature t grows
from 1 to gamma epoch by epoch as gamma^(e / (E - 1)), and penalty * sum_r sigmoid(t m_r) closes useless gates.
The paper keeps m_r > 0, however many rows these are; under a byte budget the rows are ranked by m_r instead. The
division by sigmoid(m_0) is left to the weights when the network is trained again.
"""

from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from recsys import checkpoint
from recsys.compression.base import Budget, PruningContext
from recsys.compression.rows import keep_best_rows
from recsys.compression.wide import WideConfig, WideTable
from recsys.embedding.mask import Gate, Mask, Reads
from recsys.embedding.optimizers import TableOptimizer, TableOptimizerWrapper
from recsys.ranker import Ranker
from recsys.trainer import Keep, TrainerConfig


class OptFS(WideTable):
    """Gates of rows, trained with the network by a separate Adam."""

    class Config(WideConfig):
        """The table, and how its gates are trained."""

        epochs: int = Field(default=5, ge=1)
        """E: epochs from soft to hard."""
        gamma: float = Field(default=200.0, ge=1)
        """Temperature of the last epoch."""
        penalty: float = Field(default=1e-8, ge=0)
        """Cost of an open gate, in units of the mean log loss."""
        start: float = 0.0
        """m_0: initial value of every gate."""
        learning_rate: float = Field(default=0.01, gt=0)
        """Of the gates."""
        rank_by: Keep = "last"
        """Weights of the supernet whose gates decide: the last ones, which are hard, or those that validated best."""

    has_supernet = True
    start = "rewind"
    has_one_start = True  # the weights alone lack the gates' factors, so no training can start from them

    def __init__(self, config: Any, budget: Budget) -> None:
        super().__init__(config, budget)
        self.supernet_keeps = config.rank_by

    def install_supernet(self, ranker: Ranker, optimizer: TableOptimizer) -> TableOptimizer:
        """One gate per row between table and network, and an optimiser that steps gates and table."""
        gate = RowGate(ranker.embedding.layout.num_rows, self.config)
        ranker.embedding.gate = gate
        return GatedTable(optimizer, gate, self.config.learning_rate)

    def supernet_trainer(self, trainer: TrainerConfig) -> TrainerConfig:
        """As many epochs as the gates take, at one rate: an earlier stop would leave them soft."""
        epochs = self.config.epochs
        return trainer.model_copy(
            update={"schedule": "plateau", "epochs": epochs, "patience": epochs, "learning_rate_factor": 1.0}
        )

    def build_mask(self, context: PruningContext) -> Mask:
        """The rows whose gates ended most open."""
        gate = context.ranker.embedding.gate
        assert isinstance(gate, RowGate)
        openness = gate.openness.detach().double()
        # Above 0 for every row, as rows of score 0 are always dropped.
        return keep_best_rows(openness - openness.min() + 1, context)


class RowGate(Gate):
    """Multiplies the values of a row by the openness of its gate.

    >>> gate = RowGate(3, OptFS.Config())
    >>> gate(torch.ones(2, 1), Reads(torch.tensor([0, 2]), torch.tensor([0, 0]), torch.tensor([0, 1]))).tolist()
    [[1.0], [1.0]]
    """

    openness: Tensor
    epoch: Tensor

    def __init__(self, num_rows: int, config: "OptFS.Config") -> None:
        super().__init__()
        self.config = config
        self.register_buffer("openness", torch.full((num_rows,), config.start).requires_grad_())
        """m [M]."""
        self.register_buffer("epoch", torch.zeros((), dtype=torch.int64))
        """Epochs that have ended."""

    @property
    def temperature(self) -> float:
        """t of the current epoch; that of the last one after it."""
        last = self.config.epochs - 1
        return self.config.gamma ** (min(int(self.epoch), last) / last) if last else self.config.gamma

    def forward(self, values: Tensor, reads: Reads) -> Tensor:
        """Values [n, w] times the gates of their rows."""
        start = torch.sigmoid(torch.tensor(self.config.start))
        return values * (torch.sigmoid(self.temperature * self.openness[reads.rows]) / start)[:, None]

    def penalty(self) -> Tensor:
        """penalty * sum of the gates of all rows: of M numbers, not of the table."""
        return self.config.penalty * torch.sigmoid(self.temperature * self.openness).sum()


class GatedTable(TableOptimizerWrapper):
    """A table's optimiser with an Adam for the gates; a flush ends an epoch."""

    def __init__(self, table: TableOptimizer, gate: RowGate, learning_rate: float) -> None:
        super().__init__(table)
        self.gate = gate
        self.adam = torch.optim.Adam([gate.openness], lr=learning_rate, fused=True)

    def step(self) -> None:
        """One step of both."""
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        super().step()

    def flush(self) -> None:
        """Bring the table up to date, and make the gates harder."""
        super().flush()
        self.gate.epoch += 1

    def state_dict(self) -> dict[str, Tensor]:
        """The table's state and the gates' moments."""
        moments = checkpoint.optimizer_tensors(self.adam)
        return {**checkpoint.prefixed("table", self.table.state_dict()), **checkpoint.prefixed("gates", moments)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore them."""
        self.table.load_state_dict(checkpoint.unprefixed("table", state))
        checkpoint.load_optimizer_tensors(self.adam, checkpoint.unprefixed("gates", state))
