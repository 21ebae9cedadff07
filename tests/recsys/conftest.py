"""A table layout that is awkward on purpose, random tokens for it, and what the embedding must return, by loops.

S slots, W = S * w output columns, M table rows.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from features.layout import TableLayout
from features.registry import FeatureRegistry
from recsys.embedding import UnifiedEmbedding

Bags = Mapping[str, Sequence[Sequence[int]]]
"""Feature to the tokens of each example."""

# Lists stand between scalars, probes and pooling differ, and views name features against the registry's order.
FEATURES: dict[str, Any] = {
    "user": "categorical",
    "tags": {"type": "categorical_list", "probes": 2},
    "item": {"type": "categorical", "probes": 12},
    "words": {"type": "categorical_list", "pooling": "sum", "probes": 1},
}
REGISTRY = FeatureRegistry.of(seed=5, features=FEATURES)
LAYOUT = TableLayout.of(
    REGISTRY,
    num_rows=37,
    width=3,
    probes=3,
    views={"main": ("words", "item", "user", "tags"), "fs1": ("words", "item"), "fs2": ("tags",)},
)


def row(layout: TableLayout, view: str, feature: str, probe: int, token: int) -> int:
    """The row contract in plain integers, with the other implementation of xxh3."""
    text = "\x1f".join((str(layout.seed), layout.keys[feature], view, str(probe)))
    value = token ^ xxhash.xxh3_64_intdigest(text.encode())
    for shift, multiplier in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        value = ((value ^ (value >> shift)) * multiplier) % 2**64
    value ^= value >> 31
    return ((value >> 32) * layout.num_rows) >> 32


def looked_up(layout: TableLayout, table: Tensor, bags: Bags) -> Tensor:
    """What the embedding must return, by loops over examples, views, features, probes and tokens; differentiable."""
    num_examples = len(next(iter(bags.values())))
    examples = []
    for example in range(num_examples):
        columns = []
        for view, probes in layout.views.items():
            for feature, num_probes in probes.items():
                for probe in range(num_probes):
                    total = torch.zeros(layout.width)
                    bag = bags[feature][example]
                    for token in bag:
                        total = total + table[row(layout, view, feature, probe, token)]
                    is_mean = layout.pooling.get(feature) == "mean"
                    columns.append(total / max(1, len(bag)) if is_mean else total)
        examples.append(torch.cat(columns))
    return torch.stack(examples)


def jagged(bags: Bags) -> KeyedJaggedTensor:
    values = [token for bag_list in bags.values() for bag in bag_list for token in bag]
    lengths = [len(bag) for bag_list in bags.values() for bag in bag_list]
    return KeyedJaggedTensor(
        keys=list(bags),
        values=torch.from_numpy(np.array(values, dtype=np.uint64).view(np.int64)),
        lengths=torch.tensor(lengths, dtype=torch.int64),
        stride=len(next(iter(bags.values()))),
    )


def random_bags(layout: TableLayout, num_examples: int, seed: int = 0, num_values: int = 9) -> dict[str, Any]:
    """Few values, so that rows repeat inside a batch, inside a list and between features."""
    random = np.random.default_rng(seed)
    vocabulary = [int(token) for token in random.integers(0, 2**64 - 1, num_values, dtype=np.uint64)]
    bags: dict[str, Any] = {}
    for feature in layout.keys:
        lengths = random.integers(0, 4, num_examples) if feature in layout.pooling else np.ones(num_examples, int)
        bags[feature] = [[vocabulary[k] for k in random.integers(0, num_values, length)] for length in lengths]
    return bags


def embedding_of(layout: TableLayout, seed: int = 0) -> UnifiedEmbedding:
    torch.manual_seed(seed)
    return UnifiedEmbedding(layout)
