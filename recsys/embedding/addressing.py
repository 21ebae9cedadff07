"""Slots: the lookups of a batch, and the pooling of their values into output columns.

B examples, M table rows, w row width, S slots (one per view, feature and probe), W = S * w output columns, N tokens,
L list tokens of a feature in a batch.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from features.addressing import Vocabulary, addressing_of
from features.layout import TableLayout

TABLE = "unified"


def table_config(layout: TableLayout) -> EmbeddingBagConfig:
    """torchrec's description of the table: one torchrec feature per slot."""
    names = [f"{slot.view}/{slot.feature}/{slot.probe}" for slot in layout.slots]
    return EmbeddingBagConfig(
        name=TABLE, embedding_dim=layout.width, num_embeddings=layout.num_rows, feature_names=names
    )


class ListRows(NamedTuple):
    """Rows that a list feature reads."""

    rows: Tensor  # [slots of the feature, L]
    lengths: Tensor  # [B]


class Lookups(NamedTuple):
    """Rows that a batch reads."""

    scalars: Tensor  # [scalar slots, B]
    lists: dict[str, ListRows]

    def flat_rows(self) -> Tensor:
        """All rows [n]: those of the scalars, example by example, then those of each list feature."""
        return torch.cat([self.scalars.t().flatten(), *(part.rows.flatten() for part in self.lists.values())])


class Slots:
    """Lookups of all slots, and their output columns; scalars are looked up together, list features separately."""

    def __init__(self, layout: TableLayout, vocabulary: Vocabulary | None = None) -> None:
        """`vocabulary` is required for a collisionless layout."""
        self.layout = layout
        features = list(dict.fromkeys(slot.feature for slot in layout.slots))
        self.lists = {name: layout.positions_of(name) for name in features if name in layout.pooling}
        self.scalars = [p for p, slot in enumerate(layout.slots) if slot.feature not in layout.pooling]
        self._scalar_addressing = addressing_of(layout, vocabulary, self.scalars)
        self._list_addressing = {name: addressing_of(layout, vocabulary, self.lists[name]) for name in self.lists}
        stacked = self.scalars + [position for positions in self.lists.values() for position in positions]
        # Position of each slot in the stack "scalars, then each list feature".
        self.order = torch.argsort(torch.tensor(stacked, dtype=torch.int64)) if self.lists else None

    def lookups(self, sparse: KeyedJaggedTensor) -> Lookups:
        """Rows that every slot reads."""
        keys, num_examples = sparse.keys(), sparse.stride()
        if self.lists:
            parts = sparse.to_dict()
            columns = {name: parts[name].values() for name in keys}
        else:
            # Every bag holds one token, so the values already are [F, B].
            columns = dict(zip(keys, sparse.values().view(len(keys), num_examples), strict=True))
        scalars = torch.zeros(0, num_examples, dtype=torch.int64, device=sparse.values().device)
        if self.scalars:
            tokens = torch.stack([columns[self.layout.slots[p].feature] for p in self.scalars])  # [scalar slots, B]
            scalars = self._scalar_addressing.rows(tokens.t(), torch).t()
        lists = {
            name: ListRows(addressing.rows(columns[name][:, None], torch).t(), sparse[name].lengths())
            for name, addressing in self._list_addressing.items()
        }
        return Lookups(scalars, lists)

    def slot_and_example_of_lookups(self, lookups: Lookups) -> tuple[Tensor, Tensor]:
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

    def sum(self, values: Tensor, lookups: Lookups) -> Tensor:
        """Values [n, w] of `Lookups.flat_rows`, summed over each bag: [B, W]."""
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
        """Sums [B, W] as means for list features that are pooled by the mean."""
        means = [name for name in lookups.lists if self.layout.pooling[name] == "mean"]
        if not means:
            return summed
        counts = summed.new_ones(len(summed), len(self.layout.slots))
        for name in means:
            counts[:, self.lists[name]] = lookups.lists[name].lengths.clamp(min=1).to(counts.dtype)[:, None]
        return summed / counts.repeat_interleave(self.layout.width, dim=1)

    def jagged_rows(self, lookups: Lookups) -> KeyedJaggedTensor:
        """Rows for torchrec: one key per slot, in slot order."""
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
