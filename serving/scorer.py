"""Scorer: raw rows to probabilities with numpy, polars and onnxruntime alone.

B examples, S slots, P slots of one feature, w row width, M table rows, T tokens of a list feature in a batch.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from features.addressing import Addressing, Vocabulary
from features.encode import EncodedBatch, encode
from features.errors import InputError
from features.hashing import Rows
from features.layout import TableLayout
from features.registry import FeatureRegistry
from serving.bundle import PROBABILITY, Bundle, StoredTable, open_session
from serving.rows import to_frame

CHUNK_ROWS = 16_384
_CHUNK_FLOATS = 2**24

Floats = npt.NDArray[np.float32]
Probabilities = npt.NDArray[np.float64]


class Scorer:
    """Scores raw rows with a bundle; holds no state between calls, so threads may share one.

        scorer = Scorer("runs/frappe/bundle")
        scorer.score([{"user": 7, "item": "a", "genres": ["x", "y"]}])  # array([0.31...])

    `num_threads`: threads of one call inside onnxruntime; None: one a core. Raises `InputError` for a bad bundle.
    """

    def __init__(self, bundle: Bundle | str | Path, *, num_threads: int | None = None) -> None:
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        self._session = open_session(self.bundle.dense_onnx, num_threads=num_threads)
        self._slots = _Slots(self.bundle.registry, self.bundle.layout, self.bundle.vocabulary)
        # Wide inputs get shorter chunks: a chunk's embeddings take 64 MB at most.
        self._chunk_rows = max(256, min(CHUNK_ROWS, _CHUNK_FLOATS // max(1, self.bundle.layout.embedded_width)))

    @property
    def registry(self) -> FeatureRegistry:
        """What a raw example means."""
        return self.bundle.registry

    def score(self, rows: object, *, allow_missing: bool = False) -> Probabilities:
        """Probabilities [B] of raw rows, in their order.

        `rows`: a polars or pandas frame, anything with an Arrow C stream, or a sequence of mappings from feature to
        value, where an absent key is a missing value. A frame without a feature's column raises `InputError`, or is
        all missing there with `allow_missing`; so does a value that its feature cannot take, and a NaN logit.
        """
        frame = to_frame(rows, self.registry)
        chunks: list[Probabilities] = []
        for start in range(0, max(1, len(frame)), self._chunk_rows):  # at least once: an empty frame is checked too
            try:
                encoded = encode(frame[start : start + self._chunk_rows], self.registry, allow_missing=allow_missing)
                chunks.append(self.probabilities(self.logits(encoded)))
            except InputError as error:
                raise error if error.row is None else _in_row(error, start + error.row) from None
        return np.concatenate(chunks)

    def probabilities(self, logits: Floats) -> Probabilities:
        """Probabilities of logits [B]: the sigmoid in float64, then the bundle's prior correction."""
        if np.isnan(logits).any():
            row = int(np.flatnonzero(np.isnan(logits))[0])
            remedy = "look for extreme numbers in that row, then for a diverged training run"
            raise InputError("expected a logit that is a number", found="NaN", remedy=remedy, row=row)
        # exp overflows above 709, where the probability is 0 for any use.
        probabilities = 1.0 / (1.0 + np.exp(np.clip(-logits.astype(np.float64), -700.0, 700.0)))
        correction = self.bundle.manifest.prior_correction
        return probabilities if correction is None else correction.apply(probabilities)

    def logits(self, encoded: EncodedBatch) -> Floats:
        """Logits [B] of an encoded batch."""
        if encoded.num_examples == 0:  # many graphs cannot reshape a batch of none
            return np.zeros(0, dtype=np.float32)
        inputs: dict[str, Any] = {"embedded": self.embed(encoded)}
        if self.registry.dense_features:
            inputs["dense"] = encoded.dense
        logits: Any = self._session.run(["logit"], inputs)[0]
        if logits.shape != (encoded.num_examples,):
            found = str(list(logits.shape))
            raise InputError(
                f"dense.onnx: expected logits [{encoded.num_examples}]", found=found, remedy="export again"
            )
        return logits

    def embed(self, encoded: EncodedBatch) -> Floats:
        """Rows of the table for every slot, pooled where the feature is a list: [B, S * w]."""
        layout, table, slots = self.bundle.layout, self.bundle.table, self._slots
        num_examples = encoded.num_examples
        scalars = np.zeros((num_examples, 0, layout.width), dtype=np.float32)
        if slots.scalar_features:
            tokens = np.stack([encoded.tokens[name] for name in slots.scalar_features], axis=1)
            rows = slots.scalars.rows(tokens[:, slots.feature_of_slot])  # [B, S of scalars]
            scalars = table.gather(rows.ravel()).reshape(num_examples, len(slots.feature_of_slot), layout.width)
        if slots.lists:
            embedded = np.empty((num_examples, len(layout.slots), layout.width), dtype=np.float32)
            embedded[:, slots.scalar_positions] = scalars
            for bag in slots.lists:
                rows = bag.addressing.rows(encoded.tokens[bag.name][:, None])
                embedded[:, bag.positions] = _pool(table, rows, encoded.lengths[bag.name], mean=bag.is_mean)
        else:
            embedded = scalars  # already in output order
        return embedded.reshape(num_examples, layout.embedded_width)

    def verify(self) -> float:
        """Score the golden rows again: the largest difference to the trainer's probability.

        Rounding of a fp16 or int8 table is part of it. For fp32 only the network's own rounding is left, which is about
        1e-6 where its inputs and logits are of ordinary size.
        """
        golden = self.bundle.golden
        expected = golden[PROBABILITY].cast(pl.Float64).to_numpy()
        return float(np.abs(self.score(golden.drop(PROBABILITY)) - expected).max())


class _Bag(NamedTuple):
    """The slots of a list feature."""

    name: str
    addressing: Addressing
    positions: list[int]
    is_mean: bool


class _Slots:
    """The layout's slots, split into those of scalar features, which are read in one go, and list features."""

    def __init__(self, registry: FeatureRegistry, layout: TableLayout, vocabulary: Vocabulary | None) -> None:
        used = {slot.feature for slot in layout.slots}
        self.lists: list[_Bag] = []
        for name, pooling in layout.pooling.items():
            if name in used:
                positions = layout.positions_of(name)
                self.lists.append(_Bag(name, Addressing(layout, vocabulary, positions), positions, pooling == "mean"))
        self.scalar_features = [
            feature.name for feature in registry.token_features if feature.name in used and not feature.is_list
        ]
        scalars = [(p, slot) for p, slot in enumerate(layout.slots) if slot.feature not in layout.pooling]
        self.scalar_positions = [position for position, _ in scalars]
        self.feature_of_slot = [self.scalar_features.index(slot.feature) for _, slot in scalars]
        self.scalars = Addressing(layout, vocabulary, self.scalar_positions)


def _pool(table: StoredTable, rows: Rows, lengths: npt.NDArray[np.int64], *, mean: bool) -> Floats:
    """Sum or mean of each example's rows: rows [T, P] and lengths [B] to [B, P, w]; zeros where a list is empty.

    Step k adds the k-th value of every list that has one. So each sum runs in the order of the list, as in training
    (`np.add.reduceat` sums in pairs, and gives an empty list its neighbour's row), and memory does not grow with T.
    """
    num_slots = rows.shape[1]
    pooled = np.zeros((len(lengths), num_slots, table.rows.shape[1]), dtype=np.float32)
    longest_first = np.argsort(-lengths, kind="stable")
    starts = (np.cumsum(lengths) - lengths)[longest_first]
    ascending = lengths[longest_first][::-1]
    for k in range(int(lengths.max(initial=0))):
        num_active = len(lengths) - int(np.searchsorted(ascending, k, side="right"))
        step = rows[starts[:num_active] + k]  # [active, P]
        pooled[longest_first[:num_active]] += table.gather(step.ravel()).reshape(num_active, num_slots, -1)
    if mean:
        pooled /= np.maximum(lengths, 1).astype(np.float32)[:, None, None]
    return pooled


def _in_row(error: InputError, row: int) -> InputError:
    return InputError(error.expected, found=error.found, remedy=error.remedy, row=row)
