"""Compressor: the interface of the compression methods. The result is a table of another shape, a `Mask`, or both.

M table rows, w row width, S slots, n_f distinct values of a feature in train.

`muxrec prune` runs a method in four stages, each of which a method may leave out:

    reshape   the table's settings under a byte budget; before anything is trained
    wrap      training with something that learns what to keep (thresholds, gates): the supernet
    freeze    a fixed mask, from the trained supernet (or from the finished run, where there is none)
    retrain   the same for all, under the mask: from the first weights (rewind), from those that the mask was found with
              (finetune), or not at all (as_is)
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
from serving.bundle.table import TableDtype

InitFrom = Literal["rewind", "finetune", "as_is"]
"""Initial weights of the last training: those of the run, or those that the mask was found with, which are kept if no
epoch improves on them; `as_is`: the latter, without training."""

Counts = npt.NDArray[np.int64]


class Budget(NamedTuple):
    """The bytes that a compressed table may take."""

    num_bytes: int
    """Limit of the bundle's embedding files on disk: table and vocabulary."""
    dtype: TableDtype
    """Type of the exported rows."""

    def too_few(self, found: str, remedy: str) -> InputError:
        """The error for a budget that no table meets, or no mask.

        >>> str(Budget(100, "int8").too_few("300", "raise --target-bytes"))
        '100 bytes are too few; found 300; raise --target-bytes'
        """
        return InputError(f"{self.num_bytes:,} bytes are too few", found=found, remedy=remedy)


class ValueCounts(NamedTuple):
    """The distinct tokens of a feature in train, the missing one included."""

    tokens: Tokens
    """[n_f], increasing."""
    counts: Counts
    """[n_f]: how often each occurs in train."""


class TrainingStats(NamedTuple):
    """Statistics of the training data that are known before training."""

    views: dict[str, tuple[str, ...]]
    """View to the features that the model reads in it."""
    values: dict[str, ValueCounts]
    """Every token feature."""
    probes: Mapping[str, int] = {}
    """Feature to its probes, where the registry sets them."""

    @property
    def num_entries(self) -> int:
        """(view, feature, value) triples: the rows that a collisionless table reads in training."""
        return self._replace(probes={}).num_reads(1)

    def num_reads(self, probes: int) -> int:
        """Reads of a table by those entries: `probes` per entry, unless the registry sets the feature's own number."""
        names = [name for names in self.views.values() for name in names]
        return sum(len(self.values[name].tokens) * self.probes.get(name, probes) for name in names)

    def reads(self, layout: TableLayout, vocabulary: Vocabulary | None = None) -> list["SlotLookups"]:
        """Rows that each slot [S] reads in training."""
        found: list[SlotLookups] = []
        rows = {name: rows_of(layout, vocabulary, name, values.tokens) for name, values in self.values.items()}
        places = {name: iter(range(len(own))) for name, own in rows.items()}
        for slot in layout.slots:
            own = rows[slot.feature][next(places[slot.feature])]
            found.append(SlotLookups(torch.from_numpy(own.copy()), torch.tensor(self.values[slot.feature].counts)))
        return found


class SlotLookups(NamedTuple):
    """The rows that a slot reads in training, one entry per distinct value."""

    rows: Tensor
    """[n_f] int64; a row occurs twice if two values collide."""
    counts: Tensor
    """[n_f] int64: training examples (list features: tokens) that read it."""


class PruningContext(NamedTuple):
    """Everything that `build_mask` may use."""

    ranker: Ranker
    """The supernet at the weights that the method asked for, or the finished run at its best; in evaluation mode."""
    reads: list[SlotLookups]
    """Lookups of each slot [S]."""
    train: Batches
    valid: Batches
    num_bytes: Callable[[Mask], int]
    """Bytes on disk of the embedding files under a mask; O(M)."""
    budget: Budget
    seed: int
    directory: Path
    """Directory in which a long search keeps its state, to resume after it was killed."""
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
        """The ranker's table [M, w], detached; not to be written to."""
        return self.ranker.embedding.table.detach()


class Compressor:
    """One method: an entry of COMPRESSORS; a subclass gives at least `build_mask`, or `reshape` and `replaces_table`.

    Args:
        config: its own settings.
        budget: bytes and type of the stored rows.
    """

    class Config(BaseModel):
        """Settings of one method: frozen, unknown keys refused."""

        model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    replaces_table: ClassVar[bool] = False
    """True if `reshape` is the whole method: the new table is trained once from initial weights, without a mask."""
    keeps_every_row: ClassVar[bool] = False
    """True if no row is removed; the default budget is then the run's bytes instead of a tenth of them."""
    has_supernet: bool = False
    """True if `install_supernet` installs something that learns."""
    supernet_keeps: Keep = "best"
    """Epoch of the supernet whose weights `build_mask` sees."""
    start: ClassVar[InitFrom] = "finetune"
    """Default initial weights of the last training; not used if `replaces_table`."""
    has_one_start: ClassVar[bool] = False
    """True if `start` cannot be changed; that also holds if `replaces_table`."""

    def __init__(self, config: Any, budget: Budget) -> None:
        self.config = config
        self.budget = budget

    def reshape(self, embedding: EmbeddingConfig, facts: TrainingStats) -> EmbeddingConfig:
        """The table to train; by default the run's own. Raises `InputError` for a budget that no table can meet.

        If it differs from the run's, the supernet (or the table to be frozen) is trained from the start.
        """
        return embedding

    def install_supernet(self, ranker: Ranker, optimizer: TableOptimizer) -> TableOptimizer:
        """Set the `gate` that learns in a fresh ranker's embedding; returns the optimiser of gate and table."""
        return optimizer

    def supernet_trainer(self, trainer: TrainerConfig) -> TrainerConfig:
        """Settings of the supernet's training; by default the run's own."""
        return trainer

    def build_mask(self, evidence: PruningContext) -> Mask:
        """The mask of what is kept within the budget; raises `InputError` if not even an empty table fits."""
        raise NotImplementedError
