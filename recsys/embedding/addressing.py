"""Slots: tokens to rows of the table, and rows to output columns.

B examples, M table rows, w row width, S slots (one per view, feature and probe), W = S * w output columns, N tokens,
L list tokens of a feature in a batch.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from features.addressing import Vocabulary, searchable
from features.hashing import MISSING_TOKEN, Tokens
from features.layout import TableLayout

TABLE = "unified"
_MULTIPLIER_1 = 0xBF58476D1CE4E5B9 - 2**64  # the bit patterns of features.hashing, as int64
_MULTIPLIER_2 = 0x94D049BB133111EB - 2**64
_SIGN = -(2**63)


def table_config(layout: TableLayout) -> EmbeddingBagConfig:
    """torchrec's description of the table: one torchrec feature a slot."""
    names = [f"{slot.view}/{slot.feature}/{slot.probe}" for slot in layout.slots]
    return EmbeddingBagConfig(
        name=TABLE, embedding_dim=layout.width, num_embeddings=layout.num_rows, feature_names=names
    )


def mix64(values: Tensor) -> Tensor:
    """`features.hashing.mix64` on int64 bit patterns of any shape.

    >>> mix64(torch.tensor([1])).item() == 0x5692161D100B05E5
    True
    """
    values = (values ^ _shifted(values, 30)) * _MULTIPLIER_1
    values = (values ^ _shifted(values, 27)) * _MULTIPLIER_2
    return values ^ _shifted(values, 31)


def rows_of_tokens(tokens: Tensor, salts: Tensor, num_rows: int | Tensor) -> Tensor:
    """`features.hashing.rows_of_tokens` in torch, on int64 bit patterns; shapes broadcast.

    >>> rows_of_tokens(torch.tensor([7, 8]), torch.tensor([[1], [2]]), 1).tolist()
    [[0, 0], [0, 0]]
    """
    return (_shifted(mix64(tokens ^ salts), 32) * num_rows) >> 32


def _shifted(values: Tensor, bits: int) -> Tensor:
    """Logical shift right: torch's own copies the sign."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)


class ListRows(NamedTuple):
    """Rows that one list feature reads."""

    rows: Tensor  # [slots of the feature, L]
    lengths: Tensor  # [B]


class Lookups(NamedTuple):
    """Rows that a batch reads."""

    scalars: Tensor  # [scalar slots, B]
    lists: dict[str, ListRows]

    def flat_rows(self) -> Tensor:
        """All rows [n]: those of the scalars example by example, then list after list."""
        return torch.cat([self.scalars.t().flatten(), *(part.rows.flatten() for part in self.lists.values())])


class Slots:
    """Tokens to rows, and rows to output columns; scalars are looked up together, list features one by one."""

    def __init__(self, layout: TableLayout, vocabulary: Vocabulary | None = None) -> None:
        """`vocabulary` is needed where the layout is `collisionless`."""
        self.layout = layout
        features = list(dict.fromkeys(slot.feature for slot in layout.slots))
        self.lists = {name: layout.positions_of(name) for name in features if name in layout.pooling}
        self.scalars = [p for p, slot in enumerate(layout.slots) if slot.feature not in layout.pooling]
        self.salts = _as_int64(np.array([slot.salt for slot in layout.slots], dtype=np.uint64))
        self.first_rows = torch.tensor([slot.first_row for slot in layout.slots], dtype=torch.int64)
        self.num_ids = torch.tensor([slot.num_ids for slot in layout.slots], dtype=torch.int64)
        # [3, S]: how an id becomes a row where it is none.
        parts = [(slot.divisor, slot.offset, slot.num_rows) for slot in layout.slots]
        self.composition = torch.tensor(parts, dtype=torch.int64).reshape(-1, 3).t().contiguous()
        self.sorted: dict[str, Tensor] = {}
        if layout.kind == "collisionless":
            assert vocabulary is not None
            self.sorted = {name: _as_int64(searchable(vocabulary[name])) ^ _SIGN for name in features}
        stacked = self.scalars + [position for positions in self.lists.values() for position in positions]
        # Where each slot stands in the stack "scalars, then list after list".
        self.order = torch.argsort(torch.tensor(stacked, dtype=torch.int64)) if self.lists else None

    def lookups(self, sparse: KeyedJaggedTensor) -> Lookups:
        """Rows that every slot reads."""
        keys, num_examples = sparse.keys(), sparse.stride()
        if self.lists:
            parts = sparse.to_dict()
            columns = {name: parts[name].values() for name in keys}
        else:
            # Every bag holds one token, so that the values are [F, B] as they stand.
            columns = dict(zip(keys, sparse.values().view(len(keys), num_examples), strict=True))
        scalars = torch.zeros(0, num_examples, dtype=torch.int64, device=sparse.values().device)
        if self.scalars:
            tokens = torch.stack([columns[self.layout.slots[p].feature] for p in self.scalars])  # [scalar slots, B]
            scalars = self.rows(tokens, self.scalars)
        lists = {
            name: ListRows(self.rows(columns[name][None], positions), sparse[name].lengths())
            for name, positions in self.lists.items()
        }
        return Lookups(scalars, lists)

    def readers(self, lookups: Lookups) -> tuple[Tensor, Tensor]:
        """The slot and the example of each of `Lookups.flat_rows`: [n] and [n]."""
        device, num_examples = lookups.scalars.device, lookups.scalars.shape[1]
        examples = torch.arange(num_examples, device=device)
        slots = [torch.tensor(self.scalars, dtype=torch.int64, device=device).repeat(num_examples)]
        places = [examples.repeat_interleave(len(self.scalars))]
        for name, part in lookups.lists.items():
            num_slots, num_tokens = part.rows.shape
            slots.append(torch.tensor(self.lists[name], device=device).repeat_interleave(num_tokens))
            places.append(examples.repeat_interleave(part.lengths).repeat(num_slots))
        return torch.cat(slots), torch.cat(places)

    def rows(self, tokens: Tensor, positions: list[int]) -> Tensor:
        """Rows [P, N] of the slots at `positions` for tokens [P, N], or [1, N] where they all read the same ones."""
        self._move_to(tokens.device)
        if self.layout.kind == "collisionless":
            names = [self.layout.slots[position].feature for position in positions]
            columns = tokens.expand(len(positions), -1)
            found = [_offsets(self.sorted[name], column) for name, column in zip(names, columns, strict=True)]
            return torch.stack(found) + self.first_rows[positions][:, None]
        salts = self.salts[positions][:, None]
        if self.layout.kind == "unified":
            return rows_of_tokens(tokens, salts, self.layout.num_rows)
        ids = rows_of_tokens(tokens, salts, self.num_ids[positions][:, None])
        if self.layout.kind != "hashed":
            divisors, offsets, num_rows = self.composition[:, positions, None]
            ids = (ids // divisors + offsets) % num_rows
        return ids + self.first_rows[positions][:, None]

    def _move_to(self, device: torch.device) -> None:
        if self.salts.device != device:
            self.salts, self.first_rows = self.salts.to(device), self.first_rows.to(device)
            self.num_ids, self.composition = self.num_ids.to(device), self.composition.to(device)
            self.sorted = {name: ordered.to(device) for name, ordered in self.sorted.items()}

    def sum(self, values: Tensor, lookups: Lookups) -> Tensor:
        """Values [n, w] of the rows in reading order, summed over each bag: [B, W]."""
        num_slots, num_examples = lookups.scalars.shape
        start = lookups.scalars.numel()
        parts = [values[:start].view(num_examples, num_slots, values.shape[1])]  # [B, scalar slots, w]
        for rows, lengths in lookups.lists.values():
            num_slots, num_tokens = rows.shape
            own = values[start : start + rows.numel()]
            start += rows.numel()
            begins = lengths.cumsum(0) - lengths
            offsets = begins + num_tokens * torch.arange(num_slots, device=begins.device)[:, None]
            everything = torch.arange(len(own), device=own.device)
            pooled = F.embedding_bag(everything, own, offsets.flatten(), mode="sum")  # [slots * B, w]
            parts.append(pooled.view(num_slots, num_examples, -1).transpose(0, 1))  # [B, slots, w]
        stacked = parts[0] if self.order is None else torch.cat(parts, dim=1)[:, self.order.to(values.device)]
        return stacked.reshape(num_examples, -1)  # [B, S, w] -> [B, W]

    def scale(self, summed: Tensor, lookups: Lookups) -> Tensor:
        """Sums [B, W] to means where a list feature asks for them."""
        means = [name for name in lookups.lists if self.layout.pooling[name] == "mean"]
        if not means:
            return summed
        counts = summed.new_ones(len(summed), len(self.layout.slots))
        for name in means:
            counts[:, self.lists[name]] = lookups.lists[name].lengths.clamp(min=1).to(counts.dtype)[:, None]
        return summed / counts.repeat_interleave(self.layout.width, dim=1)

    def jagged_rows(self, lookups: Lookups) -> KeyedJaggedTensor:
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


def _as_int64(tokens: Tokens) -> Tensor:
    """The same 64 bits; a copy, as a tensor cannot be made of memory that is read only."""
    return torch.from_numpy(tokens.view(np.int64).copy())


def _offsets(ordered: Tensor, tokens: Tensor) -> Tensor:
    """`features.addressing` in torch: tokens [N] among sorted ones, which a turned sign bit orders as uint64."""
    keys = tokens ^ _SIGN
    after = torch.searchsorted(ordered, keys, right=True)
    offsets = torch.where(ordered[after - 1] == keys, after + 1, 1)
    return torch.where(tokens == MISSING_TOKEN, 0, offsets)
