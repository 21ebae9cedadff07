"""UnifiedEmbedding: every categorical feature in one torchrec table, read through per-feature salts.

Coleman et al., "Unified Embedding: Battle-Tested Feature Representations for Web-Scale ML Systems", NeurIPS 2023,
arXiv 2305.12102, section "feature multiplexing": one table of M rows of width w, an independent hash a (feature,
probe), probes concatenated.

B examples, M table rows, w row width, S slots (one per view, feature and probe), W = S * w output columns, U rows
that a batch touches, L list tokens of a feature in a batch.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from features.hashing import check_num_rows
from features.layout import TableLayout

TABLE = "unified"
_MULTIPLIER_1 = 0xBF58476D1CE4E5B9 - 2**64  # the bit patterns of features.hashing, as int64
_MULTIPLIER_2 = 0x94D049BB133111EB - 2**64


class EmbeddingConfig(BaseModel):
    """Size of the table, how it starts, and how it is trained."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_rows: int = Field(default=32_768, ge=1, le=2**31)
    """M: rows that all features and views share."""
    width: int = Field(default=4, ge=1, le=4096)
    """w: floats a row."""
    probes: int = Field(default=4, ge=1, le=64)
    """Rows that are read and concatenated per value, where a feature does not set its own number."""
    init: Literal["uniform", "normal"] = "uniform"
    """`uniform`: U(-0.05, 0.05), as for multiplexed tables; `normal`: N(0, 1e-4), as BARS."""
    optimizer: Literal["adam", "rowwise_adagrad"] = "adam"
    """`adam`: dense Adam with L2 at the cost of the rows touched; `rowwise_adagrad`: torchrec's fused one."""
    learning_rate: float | None = Field(default=None, gt=0)
    """Of the table alone; the trainer's where not set."""
    l2: float = Field(default=0.05, ge=0)
    """Coupled weight decay: under `adam` of every row at every step, under `rowwise_adagrad` of the rows that a step
    reads; of numeric embeddings at every step."""


class Touched(NamedTuple):
    """Rows that the last training forward read, and the leaf that collects their gradient."""

    rows: Tensor
    """Distinct rows [U], int64, increasing."""
    block: Tensor
    """Their values [U, w]; `block.grad` is there after backward."""


class UnifiedEmbedding(nn.Module):
    """One embedding table that all token features share.

    The weights live in a torchrec collection of one table with one torchrec feature a slot. In training, `forward`
    gathers the distinct rows of the batch into a small leaf, so that a step costs O(rows touched), and leaves it in
    `touched` for the row optimiser. With `fused`, the settings of torchrec's row-wise Adagrad, the collection updates
    itself inside backward instead.

    >>> from features.registry import FeatureRegistry
    >>> registry = FeatureRegistry.of(features={"user": "categorical", "item": "categorical"})
    >>> layout = TableLayout.of(registry, num_rows=100, width=4, probes=2, views={"main": ("user", "item")})
    >>> tokens = KeyedJaggedTensor(
    ...     keys=["user", "item"], values=torch.tensor([1, 2, 3, 1, 1, 1]), lengths=torch.ones(6, dtype=torch.int64)
    ... )
    >>> UnifiedEmbedding(layout)(tokens).shape
    torch.Size([3, 16])
    """

    def __init__(self, layout: TableLayout, init: str = "uniform", *, fused: dict[str, Any] | None = None) -> None:
        super().__init__()
        check_num_rows(layout.num_rows)
        self.layout = layout
        self.is_fused = fused is not None
        # torchrec fills the table by rules of its own; so that a seed gives one start under either optimiser, the
        # numbers that this draws are given back.
        with torch.random.fork_rng(devices=[]):
            self.collection: Any = _collection(layout, fused)
        self.table.requires_grad_(False)  # its gradient is that of `touched.block`, or stays inside the fused kernel
        initialise(self.table, init)
        self.touched: Touched | None = None
        self.catch_up: Callable[[Tensor], None] | None = None
        """Brings rows [U] up to date before they are read in training; set by the row optimiser."""
        self._slots = _Slots(layout)

    @property
    def table(self) -> Tensor:
        """The weights [M, w]."""
        return self.collection.embedding_bags[TABLE].weight

    def forward(self, sparse_features: KeyedJaggedTensor) -> Tensor:
        """Embeddings [B, W] of tokens: slots in layout order, list features pooled (no token: zeros)."""
        num_examples = sparse_features.stride()
        if not self.layout.slots:
            return torch.zeros(num_examples, 0, device=self.table.device)
        lookups = self._slots.lookups(sparse_features)
        is_training = self.training and torch.is_grad_enabled()
        if is_training and self.is_fused:
            return self._slots.scale(self.collection(self._slots.jagged_rows(lookups)).values(), lookups)
        rows = torch.cat([lookups.scalars.flatten(), *(part.rows.flatten() for part in lookups.lists.values())])
        if is_training:
            touched, places = torch.unique(rows, return_inverse=True)
            if self.catch_up is not None:
                self.catch_up(touched)
            block = self.table.detach()[touched].requires_grad_()
            self.touched = Touched(touched, block)
        else:
            block, places = self.table, rows
        return self._slots.scale(self._slots.sum(block, places, lookups), lookups)


def _collection(layout: TableLayout, fused: dict[str, Any] | None) -> nn.Module:
    if fused is None:
        return EmbeddingBagCollection(tables=[table_config(layout)])
    # Only this branch loads the fbgemm kernels, so that the default optimiser runs where they do not load.
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import WeightDecayMode
    from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection
    from torchrec.optim import RowWiseAdagrad

    settings = {**fused, "weight_decay_mode": WeightDecayMode.L2}
    # Where the network and the batches are: on the CPU, also beside a GPU.
    return FusedEmbeddingBagCollection([table_config(layout)], RowWiseAdagrad, settings, device=torch.device("cpu"))


def table_config(layout: TableLayout) -> EmbeddingBagConfig:
    """torchrec's description of the table: one torchrec feature a slot."""
    names = [f"{slot.view}/{slot.feature}/{slot.probe}" for slot in layout.slots]
    return EmbeddingBagConfig(
        name=TABLE, embedding_dim=layout.width, num_embeddings=layout.num_rows, feature_names=names
    )


def initialise(table: Tensor, init: str) -> None:
    """Fill a table [M, w] in place: U(-0.05, 0.05) or N(0, 1e-4)."""
    with torch.no_grad():
        if init == "uniform":
            nn.init.uniform_(table, -0.05, 0.05)
        else:
            nn.init.normal_(table, std=1e-4)


def mix64(values: Tensor) -> Tensor:
    """`features.hashing.mix64` on int64 bit patterns of any shape.

    >>> mix64(torch.tensor([1])).item() == 0x5692161D100B05E5
    True
    """
    values = (values ^ _shifted(values, 30)) * _MULTIPLIER_1
    values = (values ^ _shifted(values, 27)) * _MULTIPLIER_2
    return values ^ _shifted(values, 31)


def rows_of_tokens(tokens: Tensor, salts: Tensor, num_rows: int) -> Tensor:
    """`features.hashing.rows_of_tokens` in torch: tokens [N] under salts [S] to rows [S, N], int64.

    >>> rows_of_tokens(torch.tensor([7, 7]), torch.tensor([1, 2]), 1).tolist()
    [[0, 0], [0, 0]]
    """
    return _reduced(mix64(tokens[None, :] ^ salts[:, None]), num_rows)


def _reduced(mixed: Tensor, num_rows: int) -> Tensor:
    return (_shifted(mixed, 32) * num_rows) >> 32


def _shifted(values: Tensor, bits: int) -> Tensor:
    """Logical shift right: torch's own copies the sign."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)


class _ListRows(NamedTuple):
    rows: Tensor  # [slots of the feature, L]
    lengths: Tensor  # [B]


class _Lookups(NamedTuple):
    scalars: Tensor  # [scalar slots, B]
    lists: dict[str, _ListRows]


class _Slots:
    """Tokens to rows, and rows to output columns; scalars are looked up together, list features one by one."""

    def __init__(self, layout: TableLayout) -> None:
        self.layout = layout
        features = list(dict.fromkeys(slot.feature for slot in layout.slots))
        self.lists = {name: layout.positions_of(name) for name in features if name in layout.pooling}
        self.scalars = [p for p, slot in enumerate(layout.slots) if slot.feature not in layout.pooling]
        salts = np.array([slot.salt for slot in layout.slots], dtype=np.uint64).view(np.int64)
        self.salts = torch.from_numpy(salts.copy())
        stacked = self.scalars + [position for positions in self.lists.values() for position in positions]
        # Where each slot stands in the stack "scalars, then list after list".
        self.order = torch.argsort(torch.tensor(stacked, dtype=torch.int64)) if self.lists else None

    def lookups(self, sparse: KeyedJaggedTensor) -> _Lookups:
        """Rows that every slot reads."""
        keys, num_examples, num_rows = sparse.keys(), sparse.stride(), self.layout.num_rows
        salts = self.salts.to(sparse.values().device)
        if self.lists:
            parts = sparse.to_dict()
            columns = {name: parts[name].values() for name in keys}
        else:
            # Every bag holds one token, so that the values are [F, B] as they stand.
            columns = dict(zip(keys, sparse.values().view(len(keys), num_examples), strict=True))
        scalars = torch.zeros(0, num_examples, dtype=torch.int64, device=salts.device)
        if self.scalars:
            tokens = torch.stack([columns[self.layout.slots[p].feature] for p in self.scalars])  # [scalar slots, B]
            scalars = _reduced(mix64(tokens ^ salts[self.scalars][:, None]), num_rows)
        lists = {
            name: _ListRows(rows_of_tokens(columns[name], salts[positions], num_rows), sparse[name].lengths())
            for name, positions in self.lists.items()
        }
        return _Lookups(scalars, lists)

    def sum(self, block: Tensor, places: Tensor, lookups: _Lookups) -> Tensor:
        """Rows of `block` at `places` (scalars, then list after list), summed over each bag: [B, W]."""
        num_examples, start = lookups.scalars.shape[1], lookups.scalars.numel()
        index = places[:start].view(-1, num_examples).t()  # [B, scalar slots]
        parts = [F.embedding(index, block)]  # [B, scalar slots, w]
        for rows, lengths in lookups.lists.values():
            num_slots, num_tokens = rows.shape
            index = places[start : start + rows.numel()]
            start += rows.numel()
            begins = lengths.cumsum(0) - lengths
            offsets = begins + num_tokens * torch.arange(num_slots, device=begins.device)[:, None]
            pooled = F.embedding_bag(index, block, offsets.flatten(), mode="sum")  # [slots * B, w]
            parts.append(pooled.view(num_slots, num_examples, -1).transpose(0, 1))  # [B, slots, w]
        stacked = parts[0] if self.order is None else torch.cat(parts, dim=1)[:, self.order.to(block.device)]
        return stacked.reshape(num_examples, -1)  # [B, S, w] -> [B, W]

    def scale(self, summed: Tensor, lookups: _Lookups) -> Tensor:
        """Sums [B, W] to means where a list feature asks for them."""
        means = [name for name in lookups.lists if self.layout.pooling[name] == "mean"]
        if not means:
            return summed
        counts = summed.new_ones(len(summed), len(self.layout.slots))
        for name in means:
            counts[:, self.lists[name]] = lookups.lists[name].lengths.clamp(min=1).to(counts.dtype)[:, None]
        return summed / counts.repeat_interleave(self.layout.width, dim=1)

    def jagged_rows(self, lookups: _Lookups) -> KeyedJaggedTensor:
        """Rows as torchrec takes them: one key a slot, in slot order."""
        num_examples = lookups.scalars.shape[1]
        ones = torch.ones(num_examples, dtype=torch.int64, device=lookups.scalars.device)
        bags = {p: (rows, ones) for p, rows in zip(self.scalars, lookups.scalars, strict=True)}
        for name, positions in self.lists.items():
            part = lookups.lists[name]
            bags |= {p: (rows, part.lengths) for p, rows in zip(positions, part.rows, strict=True)}
        ordered = [bags[position] for position in range(len(self.layout.slots))]
        return KeyedJaggedTensor(
            keys=table_config(self.layout).feature_names,
            values=torch.cat([rows for rows, _ in ordered]),
            lengths=torch.cat([lengths for _, lengths in ordered]),
            stride=num_examples,
        )
