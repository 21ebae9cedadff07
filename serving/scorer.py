"""Scorer: raw rows to probabilities, with only numpy, polars and onnxruntime.

B examples, S slots, w row width.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from features.encode import EncodedBatch
from features.errors import InputError
from features.feature_types import AnyFeature
from features.hashing import MISSING_TOKEN
from features.registry import FeatureRegistry
from serving.bundle.bundle import PROBABILITY, Bundle, open_session
from serving.bundle.quantize import Floats
from serving.bundle.target_statistics import NUM_COLUMNS, TargetStatistics
from serving.coverage import Coverage
from serving.lookup import Lookup
from serving.rows import check_keys, encode_rows, rows_of

CHUNK_ROWS = 16_384
"""Rows that are encoded at once, so that memory does not grow with a frame."""
BLOCK_ROWS = 512
"""Rows that the network takes at once: its activations then stay in the processor's cache, which halves the time per
row of a large batch."""

Probabilities = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Rows [B] that `Scorer.encode` checked and encoded."""

    examples: EncodedBatch
    context: EncodedBatch | None = None
    """One example, of the features that all B share."""
    shared: frozenset[str] = frozenset()

    @property
    def num_examples(self) -> int:
        """B."""
        return self.examples.num_examples


class _FeatureSubset(NamedTuple):
    """Some of a bundle's features, with what encodes them and gathers their rows."""

    registry: FeatureRegistry
    lookup: Lookup
    dense_positions: list[int]
    """Positions of their float columns among all of them."""
    statistics: TargetStatistics | None

    @staticmethod
    def of(bundle: Bundle, names: frozenset[str]) -> "_FeatureSubset":
        features = tuple(feature for feature in bundle.registry.features if feature.name in names)
        # `model_copy` does not validate: a subset may be empty, which a registry may not.
        registry = bundle.registry.model_copy(update={"features": features})
        own = [*bundle.registry.dense_features]
        if bundle.target_statistics is not None:
            own += [feature for feature in bundle.registry.token_features for _ in range(NUM_COLUMNS)]
        positions = [k for k, feature in enumerate(own) if feature.name in names]
        return _FeatureSubset(registry, Lookup(bundle, names), positions, bundle.target_statistics)

    def dense(self, encoded: EncodedBatch, first: int, last: int) -> Floats:
        """Their float columns [n, ...] of examples `first` to `last`."""
        own = encoded.dense[first:last]
        return own if self.statistics is None else np.hstack([own, self.statistics.columns(encoded, first, last)])


class Scorer:
    """Scores raw rows with a bundle; keeps no state between calls, so threads may share one.

        scorer = Scorer("runs/frappe/bundle")
        scorer.score([{"user": 7, "item": "a", "genres": ["x", "y"]}])  # array([0.31...])
        scorer.score({"user": 7}, [{"item": "a"}, {"item": "b"}])  # one user, two candidates

    `num_threads`: threads of one call inside onnxruntime; None: one per core. If several calls run at once, as in a
    server, 1 is best. Raises `InputError` for a bad bundle.
    """

    def __init__(self, bundle: Bundle | str | Path, *, num_threads: int | None = None) -> None:
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        self._session = open_session(self.bundle.dense_onnx, num_threads=num_threads)
        self._names = frozenset(feature.name for feature in self.registry.features)
        self._whole = _FeatureSubset.of(self.bundle, self._names)
        # Bounded, as callers choose the features of a context; without `self`, so that no cycle keeps the bundle open.
        self._split = lru_cache(maxsize=64)(partial(_split, self.bundle, self._names))

    @property
    def registry(self) -> FeatureRegistry:
        """Features of a raw example."""
        return self.bundle.registry

    def score(self, rows: object, candidates: object = None, *, allow_missing: bool = False) -> Probabilities:
        """Probabilities [B] of raw rows, or of candidates in a context, in their order.

        `rows`: a polars or pandas frame, anything with an Arrow C stream, or a sequence of mappings from feature to
        value, where an absent key is a missing value. Raises `InputError` for a value that its feature cannot take, for
        a NaN logit, and for a frame without a feature's column; `allow_missing` reads such a column as missing values.

        With `candidates`, which are such rows, the first argument is the context: one mapping of the features that they
        share. The scores are those of the rows `{**context, **candidate}`; no feature may be in both.
        """
        if candidates is not None:
            return self.score_encoded(self.encode(rows, candidates, allow_missing=allow_missing))
        whole = rows_of(rows, self.registry)
        chunks: list[Probabilities] = []
        for start in range(0, max(1, len(whole)), CHUNK_ROWS):  # at least once: an empty frame is checked too
            try:
                chunk = whole[start : start + CHUNK_ROWS]
                chunks.append(self.score_encoded(self.encode(chunk, allow_missing=allow_missing)))
            except InputError as error:
                raise error if error.row is None else _in_row(error, start + error.row) from None
        return np.concatenate(chunks)

    def encode(self, rows: object, candidates: object = None, *, allow_missing: bool = False) -> Encoded:
        """Check every value and make tokens and floats: the first half of `score`, with the same arguments."""
        if candidates is None:
            whole = rows_of(rows, self.registry)
            return Encoded(examples=encode_rows(whole, self.registry, allow_missing=allow_missing))
        if not isinstance(rows, Mapping):
            remedy = "send what all candidates share, such as the user's features, and the candidates apart"
            raise InputError("expected a context: one mapping", found=type(rows).__name__, remedy=remedy)
        check_keys([rows], [feature.name for feature in self.registry.features])
        shared = self._names.intersection(rows)
        context, rest = self._split(shared)
        own = rows_of(candidates, self.registry)
        if twice := shared.intersection(own.columns if isinstance(own, pl.DataFrame) else set().union(*own)):
            remedy = "send it in one of the two"
            raise InputError("a context and its candidates share no feature", found=repr(min(twice)), remedy=remedy)
        try:
            encoded = encode_rows([rows], context.registry)
        except InputError as error:  # its row 0 is that of the context, not of the candidates
            raise _in_row(error, None) from None
        examples = encode_rows(own, rest.registry, allow_missing=allow_missing)
        return Encoded(examples=examples, context=encoded, shared=shared)

    def score_encoded(self, encoded: Encoded) -> Probabilities:
        """Probabilities [B] of encoded rows: gathers the table's rows, runs the network and corrects the prior."""
        return self.probabilities(self.logits(encoded))

    def probabilities(self, logits: Floats) -> Probabilities:
        """Probabilities of logits [B]: the sigmoid in float64, then the bundle's prior correction."""
        if np.isnan(logits).any():
            row = int(np.flatnonzero(np.isnan(logits))[0])
            remedy = "look for extreme numbers in that row, then for a diverged training run"
            raise InputError("expected a logit that is a number", found="NaN", remedy=remedy, row=row)
        # exp overflows above 709, where the probability is practically 0.
        probabilities = 1.0 / (1.0 + np.exp(np.minimum(-logits.astype(np.float64), 700.0)))
        correction = self.bundle.manifest.prior_correction
        return probabilities if correction is None else correction.apply(probabilities)

    def logits(self, encoded: Encoded) -> Floats:
        """Logits [B] of encoded rows."""
        logits = np.zeros(encoded.num_examples, dtype=np.float32)  # many graphs cannot reshape an empty batch
        for first, embedded in self._blocks(encoded):
            inputs: dict[str, Any] = {"embedded": embedded}
            if self.bundle.manifest.num_dense:
                inputs["dense"] = self._dense(encoded, first, first + len(embedded))
            block: Any = self._session.run(["logit"], inputs)[0]
            if block.shape != (len(embedded),):
                expected, found = f"dense.onnx: expected logits [{len(embedded)}]", str(list(block.shape))
                raise InputError(expected, found=found, remedy="export again")
            logits[first : first + len(embedded)] = block
        return logits

    def embed(self, encoded: Encoded) -> Floats:
        """Rows of the table for every slot, pooled where the feature is a list: [B, S * w]."""
        blocks = [embedded for _, embedded in self._blocks(encoded)]
        return np.concatenate([np.zeros((0, self.bundle.layout.embedded_width), dtype=np.float32), *blocks])

    def coverage(self, encoded: Encoded) -> dict[str, Coverage]:
        """Missing and unseen values by feature; looks the rows up again. A context counts once per example."""
        parts = [(encoded.examples, self._whole if encoded.context is None else self._split(encoded.shared)[1], 1)]
        if encoded.context is not None:
            parts.append((encoded.context, self._split(encoded.shared)[0], encoded.num_examples))
        counts = {
            feature.name: Coverage(*(times * count for count in _coverage(batch, part.lookup, feature)))
            for batch, part, times in parts
            for feature in part.registry.features
        }
        return {feature.name: counts[feature.name] for feature in self.registry.features}

    def verify(self) -> float:
        """Largest difference between the scores of the golden rows and the trainer's probabilities.

        It includes the rounding of an fp16 or int8 table. For fp32 it is the network's rounding alone, about 1e-6 for
        inputs and logits of ordinary size.
        """
        golden = self.bundle.golden
        expected = golden[PROBABILITY].cast(pl.Float64).to_numpy()
        return float(np.abs(self.score(golden.drop(PROBABILITY)) - expected).max())

    def _blocks(self, encoded: Encoded) -> Iterator[tuple[int, Floats]]:
        """Position of the first example of each block, and the network's input [n, S * w] for the block."""
        part, shared = self._whole, None
        if encoded.context is not None:
            context, part = self._split(encoded.shared)
            shared = context.lookup.read(encoded.context, 0, 1)
        width = self.bundle.layout.embedded_width
        for first in range(0, encoded.num_examples, BLOCK_ROWS):
            last = min(first + BLOCK_ROWS, encoded.num_examples)
            yield first, part.lookup.read(encoded.examples, first, last, shared).reshape(last - first, width)

    def _dense(self, encoded: Encoded, first: int, last: int) -> Floats:
        """Float columns [n, N] of some examples."""
        if encoded.context is None:
            return self._whole.dense(encoded.examples, first, last)
        context, part = self._split(encoded.shared)
        dense = np.empty((last - first, self.bundle.manifest.num_dense), dtype=np.float32)
        dense[:, context.dense_positions] = context.dense(encoded.context, 0, 1)
        dense[:, part.dense_positions] = part.dense(encoded.examples, first, last)
        return dense


def _split(bundle: Bundle, names: frozenset[str], shared: frozenset[str]) -> tuple[_FeatureSubset, _FeatureSubset]:
    return _FeatureSubset.of(bundle, shared), _FeatureSubset.of(bundle, names - shared)


def _coverage(batch: EncodedBatch, lookup: Lookup, feature: AnyFeature) -> Coverage:
    if not feature.has_tokens:
        return Coverage(batch.num_examples, batch.num_missing.get(feature.name, 0), 0, 0)
    tokens = batch.tokens[feature.name]
    is_missing = tokens == np.uint64(MISSING_TOKEN)
    present = tokens[~is_missing]
    missing = len(tokens) - len(present)
    if feature.is_list:  # a missing list is one missing value
        lengths = batch.lengths[feature.name]
        starts = np.cumsum(lengths) - lengths
        missing = int(is_missing[starts[lengths == 1]].sum())
    return Coverage(batch.num_examples, missing, len(present), lookup.num_untrained(feature.name, present))


def _in_row(error: InputError, row: int | None) -> InputError:
    return InputError(error.expected, found=error.found, remedy=error.remedy, row=row)
