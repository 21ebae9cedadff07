"""UnifiedEmbedding: all categorical features in one torchrec table, each hashed with its own salts.

Coleman et al., "Unified Embedding: Battle-Tested Feature Representations for Web-Scale ML Systems", NeurIPS 2023,
arXiv 2305.12102, section "feature multiplexing": one table of M rows of width w, an independent hash per feature and
probe, probes concatenated.

B examples, M table rows, w row width, S slots (one per view, feature and probe), W = S * w output columns, n lookups
of a batch.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from features.addressing import Vocabulary
from features.hashing import check_num_rows
from features.layout import TableLayout
from features.table_kinds import TableKind
from recsys.embedding.active_rows import GatherFn, gather
from recsys.embedding.addressing import TABLE, Slots, table_config
from recsys.embedding.mask import Gate, Mask, MaskGate, Reads


class EmbeddingConfig(BaseModel):
    """Size, initial values and training of the table."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: TableKind = "unified"
    """`unified`: every feature and view reads all rows by hash; `hashed`: each has its own range, in proportion to its
    distinct values in train; `collisionless`: each value seen in train has its own row, read by one probe;
    `quotient_remainder`: two probes, of one hash's quotient and remainder, each with its own range; `robe`: every
    feature and view reads all rows, in runs of `block` probes that begin at a hashed row."""
    num_rows: int = Field(default=32_768, ge=1, le=2**31)
    """M: rows of the table; ignored under `collisionless`, where they follow from the data."""
    width: int = Field(default=4, ge=1, le=4096)
    """w: floats per row."""
    probes: int = Field(default=4, ge=1, le=64)
    """Rows that are read and concatenated per value, unless a feature sets its own number."""
    block: int = Field(default=1, ge=1, le=4096)
    """Z: consecutive rows in a run, under `robe` only; with a width of 1 the table is an array of floats."""
    init: Literal["uniform", "normal"] = "uniform"
    """`uniform`: U(-0.05, 0.05), as for multiplexed tables; `normal`: N(0, 1e-4), as in BARS."""
    optimizer: Literal["adam", "rowwise_adagrad", "dense_adam"] = "adam"
    """`adam`: dense Adam with L2 at the cost of the rows that are read; `rowwise_adagrad`: torchrec's fused kernel;
    `dense_adam`: torch's Adam over the whole table at every step, for comparison."""
    learning_rate: float | None = Field(default=None, gt=0)
    """Learning rate of the table; the trainer's if not set."""
    l2: float = Field(default=0.05, ge=0)
    """Coupled weight decay of every row at every step under both Adams, of the rows that a step reads under
    `rowwise_adagrad`, and of numeric embeddings at every step."""


class UnifiedEmbedding(nn.Module):
    """One embedding table that all token features share.

    The weights live in a torchrec collection of one table with one torchrec feature per slot. In training, `forward`
    gathers the distinct rows of the batch by `gather_fn` into a small leaf, so that a step costs O(rows read). With
    `fused`, the settings of torchrec's row-wise Adagrad, the collection updates itself inside backward instead. A
    `gate`, where one is set, masks or scales the gathered values.

    >>> from features.registry import FeatureRegistry
    >>> registry = FeatureRegistry.of(features={"user": "categorical", "item": "categorical"})
    >>> layout = TableLayout.of(registry, num_rows=100, width=4, probes=2, views={"main": ("user", "item")})
    >>> tokens = KeyedJaggedTensor(
    ...     keys=["user", "item"], values=torch.tensor([1, 2, 3, 1, 1, 1]), lengths=torch.ones(6, dtype=torch.int64)
    ... )
    >>> UnifiedEmbedding(layout)(tokens).shape
    torch.Size([3, 16])
    """

    def __init__(
        self,
        layout: TableLayout,
        init: str = "uniform",
        *,
        fused: dict[str, Any] | None = None,
        vocabulary: Vocabulary | None = None,
    ) -> None:
        super().__init__()
        check_num_rows(layout.num_rows)
        self.layout = layout
        self.vocabulary = vocabulary
        self.is_fused = fused is not None
        # torchrec draws initial values that are overwritten below; forking the generator makes a seed give the same
        # start under either optimiser.
        with torch.random.fork_rng(devices=[]):
            self.collection: Any = _collection(layout, fused)
        self.table.requires_grad_(False)  # its gradient is that of gathered rows, or stays inside the fused kernel
        initialise(self.table, init)
        self.gather_fn: GatherFn = self._gather
        """Rows that training reads, up to date; `build_table` binds that of the table's optimiser."""
        self.gate: Gate | None = None
        """Masks or scales the gathered values; None under `fused`, where values never leave the collection."""
        self._slots = Slots(layout, vocabulary)

    @property
    def table(self) -> Tensor:
        """The weights [M, w]."""
        return self.collection.embedding_bags[TABLE].weight

    @property
    def mask(self) -> Mask | None:
        """The mask of the table; None if all of it is kept."""
        return self.gate.mask if isinstance(self.gate, MaskGate) else None

    def apply_mask(self, mask: Mask) -> None:
        """Zero the masked cells, now and in training; raises `InputError` for another table's mask."""
        mask.check(self.layout).apply(self.table)
        self.gate = MaskGate(mask)

    def forward(self, sparse_features: KeyedJaggedTensor) -> Tensor:
        """Embeddings [B, W] of tokens: slots in layout order, lists pooled (zeros for an empty list)."""
        num_examples = sparse_features.stride()
        if not self.layout.slots:
            return torch.zeros(num_examples, 0, device=self.table.device)
        lookups = self._slots.lookups(sparse_features)
        is_training = self.training and torch.is_grad_enabled()
        if is_training and self.is_fused:
            assert self.gate is None
            return self._slots.scale(self.collection(self._slots.jagged_rows(lookups)).values(), lookups)
        rows = lookups.flat_rows()
        values = gather(rows, self.layout.num_rows, self.gather_fn) if is_training else F.embedding(rows, self.table)
        if self.gate is not None:
            values = self.gate(values, Reads(rows, *self._slots.slot_and_example_of_lookups(lookups)))
        return self._slots.scale(self._slots.sum(values, lookups), lookups)

    def _gather(self, rows: Tensor) -> Tensor:
        return self.table.detach().index_select(0, rows).requires_grad_()


def _collection(layout: TableLayout, fused: dict[str, Any] | None) -> nn.Module:
    if fused is None:
        return EmbeddingBagCollection(tables=[table_config(layout)])
    # Imported here, so that the default optimiser runs where the fbgemm kernels do not load.
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import WeightDecayMode
    from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection
    from torchrec.optim import RowWiseAdagrad

    settings = {**fused, "weight_decay_mode": WeightDecayMode.L2}
    # On the CPU like the network and the batches, even where there is a GPU.
    return FusedEmbeddingBagCollection([table_config(layout)], RowWiseAdagrad, settings, device=torch.device("cpu"))


def initialise(table: Tensor, init: str) -> None:
    """Fill a table [M, w] in place: U(-0.05, 0.05) or N(0, 1e-4)."""
    with torch.no_grad():
        if init == "uniform":
            nn.init.uniform_(table, -0.05, 0.05)
        else:
            nn.init.normal_(table, std=1e-4)
