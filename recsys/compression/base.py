"""Compressor, the base of every method of compression: it makes a table of another shape, a `Mask`, or both.

M table rows, w row width, S slots, n_f distinct values of a feature in train.

`muxrec prune` runs four stages; a method overrides those it needs:

    reshape             the table's settings under a byte budget, before any training
    install_supernet    training with parameters that learn what to keep (thresholds, gates)
    build_mask          a fixed mask, from the trained supernet, or from the finished run where there is none
    retrain             the same for all methods, under the mask, from the weights that InitFrom names
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from features.addressing import Vocabulary, rows_of
from features.errors import InputError
from features.hashing import Tokens
from features.layout import TableLayout
from recsys.embedding.mask import Mask
from recsys.embedding.optimizers import TableOptimizer
from recsys.embedding.table import EmbeddingConfig
from recsys.ranker import Ranker
from recsys.trainer import Batches, Keep, TrainerConfig
from serving.bundle.quantize import TableDtype

InitFrom = Literal["rewind", "finetune", "as_is"]
"""Weights that the last training starts from: `rewind`, the run's initial ones; `finetune`, those that the mask was
built from, which are kept if no epoch improves on them; `as_is`, the latter without training."""

Counts = npt.NDArray[np.int64]


class Budget(NamedTuple):
    """Bytes that the compressed table may take."""

    num_bytes: int
    """Limit for the bundle's embedding files on disk: table and vocabulary."""
    dtype: TableDtype
    """Type of the exported rows."""

    def too_few(self, found: str, remedy: str) -> InputError:
        """The error for a budget that no table or mask meets.

        >>> str(Budget(100, "int8").too_few("300", "raise --target-bytes"))
        '100 bytes are too few; found 300; raise --target-bytes'
        """
        return InputError(f"{self.num_bytes:,} bytes are too few", found=found, remedy=remedy)


class ValueCounts(NamedTuple):
    """The distinct tokens of a feature in train, the missing one included."""

    tokens: Tokens
    """[n_f], increasing."""
    counts: Counts
    """[n_f]: occurrences of each."""


class TrainingStats(NamedTuple):
    """Statistics of the training data, before any training."""

    views: dict[str, tuple[str, ...]]
    """View to its features."""
    value_counts: dict[str, ValueCounts]
    """By token feature."""
    probes: Mapping[str, int] = {}
    """Probes of the features for which the registry sets them."""

    @property
    def num_entries(self) -> int:
        """(view, feature, value) triples: the rows of a collisionless table that training looks up."""
        return self._replace(probes={}).num_lookups(1)

    def num_lookups(self, probes: int) -> int:
        """Lookups of those entries, each with `probes` probes, or the number that the registry sets for its feature."""
        names = [name for names in self.views.values() for name in names]
        return sum(len(self.value_counts[name].tokens) * self.probes.get(name, probes) for name in names)

    def lookups(self, layout: TableLayout, vocabulary: Vocabulary | None = None) -> list["SlotLookups"]:
        """Rows that each slot [S] looks up in training."""
        found: list[SlotLookups] = []
        rows = {name: rows_of(layout, vocabulary, name, counted.tokens) for name, counted in self.value_counts.items()}
        places = {name: iter(range(len(own))) for name, own in rows.items()}
        for slot in layout.slots:
            own = rows[slot.feature][next(places[slot.feature])]
            found.append(
                SlotLookups(torch.from_numpy(own.copy()), torch.tensor(self.value_counts[slot.feature].counts))
            )
        return found


class SlotLookups(NamedTuple):
    """Rows that a slot looks up in training, one entry per distinct value."""

    rows: Tensor
    """[n_f] int64; a row occurs twice where two values collide."""
    counts: Tensor
    """[n_f] int64: training examples (list features: tokens) with that value."""


class PruningContext(NamedTuple):
    """Everything that `build_mask` may use."""

    ranker: Ranker
    """The supernet at the weights that the method asked for, or the finished run at its best; in evaluation mode."""
    lookups: list[SlotLookups]
    """By slot [S]."""
    train: Batches
    valid: Batches
    num_bytes: Callable[[Mask], int]
    """Bytes on disk of the embedding files under a mask; O(M)."""
    budget: Budget
    seed: int
    directory: Path
    """For the state of a long search, so that a killed one can resume."""
    progress: bool = False
    trainer: TrainerConfig = TrainerConfig()
    """Trainer settings of the run."""
    embedding: EmbeddingConfig = EmbeddingConfig()
    """Settings of the ranker's table."""

    @property
    def layout(self) -> TableLayout:
        """Layout of the ranker's table."""
        return self.ranker.embedding.layout

    @property
    def table(self) -> Tensor:
        """The ranker's table [M, w], detached; read only."""
        return self.ranker.embedding.table.detach()


class Compressor:
    """One method: an entry of COMPRESSORS; a subclass gives at least `build_mask`, or `reshape` and `replaces_table`.

    Args:
        config: settings of the method.
        budget: bytes that the result may take.
    """

    class Config(BaseModel):
        """Settings of one method: frozen, unknown keys refused."""

        model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    replaces_table: ClassVar[bool] = False
    """True if `reshape` is the whole method: the new table is trained once from its initial weights, without a mask."""
    keeps_every_row: ClassVar[bool] = False
    """True if no row is removed. The default budget is then the size of the run's table; otherwise it is a tenth."""
    has_supernet: bool = False
    """True if `install_supernet` installs anything."""
    supernet_keeps: Keep = "best"
    """Epoch of the supernet whose weights `build_mask` sees."""
    start: ClassVar[InitFrom] = "finetune"
    """Default start of the last training; unused if `replaces_table`."""
    has_one_start: ClassVar[bool] = False
    """True if `start` is the only possible one, as it is if `replaces_table`."""

    def __init__(self, config: Any, budget: Budget) -> None:
        self.config = config
        self.budget = budget

    def reshape(self, embedding: EmbeddingConfig, stats: TrainingStats) -> EmbeddingConfig:
        """The table to train; by default the run's own. Raises `InputError` for a budget that no table meets.

        If it differs from the run's, the supernet (or the table that is masked) is trained anew.
        """
        return embedding

    def install_supernet(self, ranker: Ranker, optimizer: TableOptimizer) -> TableOptimizer:
        """Install trainable masking in a fresh ranker, as `ranker.embedding.gate`; returns the optimiser of both."""
        return optimizer

    def supernet_trainer(self, trainer: TrainerConfig) -> TrainerConfig:
        """Settings of the supernet's training; by default the run's own."""
        return trainer

    def build_mask(self, context: PruningContext) -> Mask:
        """The rows and columns to keep, within the budget; raises `InputError` if nothing fits."""
        raise NotImplementedError
