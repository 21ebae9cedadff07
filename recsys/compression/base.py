"""Compressor: what every method of compression promises; its result is a table of another shape, a `Mask`, or both.

M table rows, w row width, S slots, n_f distinct values of a feature in train.

`muxrec prune` runs a method in four stages, each of which a method may leave as it is:

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
from serving.bundle.quantize import TableDtype

InitFrom = Literal["rewind", "finetune", "as_is"]
"""Weights that the last training begins with: the first ones of the run, or those that the mask was found with, which
stay where no epoch makes them better; or `as_is`: the latter, and no training."""

Counts = npt.NDArray[np.int64]


class Budget(NamedTuple):
    """What may be spent."""

    num_bytes: int
    """Of the bundle's embedding files on disk: table and vocabulary."""
    dtype: TableDtype
    """Of the exported rows."""

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
    """[n_f]: how often each stands there."""


class TrainingStats(NamedTuple):
    """What is known of the training data before anything is trained."""

    views: dict[str, tuple[str, ...]]
    """View to the features that the model reads in it."""
    values: dict[str, ValueCounts]
    """Every token feature."""
    probes: Mapping[str, int] = {}
    """Of the features that the registry gives a number of their own."""

    @property
    def num_entries(self) -> int:
        """(view, feature, value) triples: the rows that a collisionless table reads in training."""
        return self._replace(probes={}).num_reads(1)

    def num_reads(self, probes: int) -> int:
        """Reads of a table by those entries, each by so many probes, or as many as its feature has of its own."""
        names = [name for names in self.views.values() for name in names]
        return sum(len(self.values[name].tokens) * self.probes.get(name, probes) for name in names)

    def reads(self, layout: TableLayout, vocabulary: Vocabulary | None = None) -> list["SlotLookups"]:
        """What each slot [S] reads of the table in training."""
        found: list[SlotLookups] = []
        rows = {name: rows_of(layout, vocabulary, name, values.tokens) for name, values in self.values.items()}
        places = {name: iter(range(len(own))) for name, own in rows.items()}
        for slot in layout.slots:
            own = rows[slot.feature][next(places[slot.feature])]
            found.append(SlotLookups(torch.from_numpy(own.copy()), torch.tensor(self.values[slot.feature].counts)))
        return found


class SlotLookups(NamedTuple):
    """The rows that a slot reads in training, one entry a distinct value."""

    rows: Tensor
    """[n_f] int64; a row stands there twice where two values collide."""
    counts: Tensor
    """[n_f] int64: training examples (list features: tokens) that read it."""


class PruningContext(NamedTuple):
    """What `build_mask` may look at."""

    ranker: Ranker
    """The supernet at the weights that the method asked for, or the finished run at its best; in evaluation mode."""
    reads: list[SlotLookups]
    """Of each slot [S]."""
    train: Batches
    valid: Batches
    num_bytes: Callable[[Mask], int]
    """Bytes on disk of the embedding files under a mask; O(M)."""
    budget: Budget
    seed: int
    directory: Path
    """Where a long search keeps its state, so that it can go on after it was killed."""
    progress: bool = False
    trainer: TrainerConfig = TrainerConfig()
    """Of the run."""
    embedding: EmbeddingConfig = EmbeddingConfig()
    """Of the ranker's table."""

    @property
    def layout(self) -> TableLayout:
        """Of the ranker's table."""
        return self.ranker.embedding.layout

    @property
    def table(self) -> Tensor:
        """The ranker's table [M, w], detached; not to be written to."""
        return self.ranker.embedding.table.detach()


class Compressor:
    """One method: an entry of COMPRESSORS; a subclass gives at least `build_mask`, or `reshape` and `replaces_table`.

    Args:
        config: its own settings.
        budget: what may be spent.
    """

    class Config(BaseModel):
        """Settings of one method: frozen, unknown keys refused."""

        model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    replaces_table: ClassVar[bool] = False
    """True where `reshape` is all that there is: the new table is trained once from first weights, without a mask."""
    keeps_every_row: ClassVar[bool] = False
    """True where no row is removed: then the run's bytes are the budget where the user names none, else a tenth."""
    has_supernet: bool = False
    """True where `install_supernet` installs something that learns."""
    supernet_keeps: Keep = "best"
    """Weights of the supernet that `build_mask` sees."""
    start: ClassVar[InitFrom] = "finetune"
    """What the last training begins with, where the user does not say; of no meaning where `replaces_table`."""
    has_one_start: ClassVar[bool] = False
    """True where the last training can begin with nothing else, as it is where `replaces_table`."""

    def __init__(self, config: Any, budget: Budget) -> None:
        self.config = config
        self.budget = budget

    def reshape(self, embedding: EmbeddingConfig, facts: TrainingStats) -> EmbeddingConfig:
        """The table to train; by default the run's own. Raises `InputError` for a budget that no table can meet.

        Where it differs from the run's, the supernet (or the table to be frozen) is trained anew.
        """
        return embedding

    def install_supernet(self, ranker: Ranker, optimizer: TableOptimizer) -> TableOptimizer:
        """Install what learns in a fresh ranker, as `ranker.embedding.gate`; returns the optimiser of both."""
        return optimizer

    def supernet_trainer(self, trainer: TrainerConfig) -> TrainerConfig:
        """Settings of the supernet's training; by default the run's own."""
        return trainer

    def build_mask(self, evidence: PruningContext) -> Mask:
        """What is kept, within the budget; raises `InputError` where nothing fits it."""
        raise NotImplementedError
