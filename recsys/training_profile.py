"""The training profile of a run (`serving.bundle.profile`): features of train, scores and unseen values of valid.

`summarize_train` reads the training rows once, for the profile and for all other counts of their values. Where
negatives were down-sampled, each remaining one is weighted to represent those removed, as later inputs have them all.

N rows, M table rows, P slots of one feature, V values of one feature.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from features.addressing import known, rows_of
from features.encode import EncodedBatch
from features.hashing import MISSING_TOKEN
from recsys.dataset import Split
from recsys.embedding.table import UnifiedEmbedding
from recsys.evaluation.collisions import Distinct
from recsys.evaluation.predictions import Predictions
from recsys.evaluation.segments import token_counts
from serving.bundle.profile import Distributions, FeatureProfile, FloatBins, ProfileBuilder, float_bins


class TrainSummary(NamedTuple):
    """The training rows' values, from one pass over them."""

    counts: dict[str, pl.DataFrame]
    """Token feature to a frame [V] of `token` and `count`."""
    features: dict[str, FeatureProfile]

    def distinct(self) -> Distinct:
        """Feature to its distinct tokens, increasing, and the number of its reads, as `distinct_tokens` gives them."""
        return {name: (of["token"].sort().to_numpy(), int(of["count"].sum())) for name, of in self.counts.items()}


def summarize_train(train: Split, negative_rate: float = 1.0) -> TrainSummary:
    """Count the training rows' values; `negative_rate` is the share of the negatives that the split kept."""
    builder = ProfileBuilder(train.registry, train.num_rows)

    def profiled() -> Iterator[EncodedBatch]:
        for batch, labels, _ in train.labelled_tokens():
            builder.add(batch, _weights(labels, negative_rate))
            yield batch

    counts = token_counts(profiled(), [feature.name for feature in train.registry.token_features])
    return TrainSummary(counts, builder.finish(train.info.splits["train"].missing_rates))


def training_profile(
    features: dict[str, FeatureProfile],
    valid: Split,
    predictions: Predictions,
    embedding: UnifiedEmbedding,
    trained_rows: npt.NDArray[np.bool_],
    negative_rate: float = 1.0,
) -> Distributions:
    """Distributions of the training rows' `features` and of the validation rows' scores in `predictions` [N].

    `trained_rows` [M] flags the rows that a training example read: a value that reads any other row is unseen; in a
    pruned table, a value without any row left is. `negative_rate` is the share of the negatives that both splits kept.
    """
    unseen = _unseen_rates(valid, embedding, trained_rows, negative_rate)
    known = {name: one.model_copy(update={"unseen": unseen.get(name)}) for name, one in features.items()}
    return Distributions(features=known, score=_score_bins(predictions, negative_rate))


def _score_bins(predictions: Predictions, negative_rate: float) -> FloatBins:
    return float_bins(predictions.probabilities, weights=_weights(predictions.labels, negative_rate))


def _weights(labels: npt.NDArray[np.float32], negative_rate: float) -> npt.NDArray[np.float64]:
    """Number of original rows that each of these rows [N] represents.

    >>> _weights(np.array([1, 0], dtype=np.float32), 0.1).tolist()
    [1.0, 10.0]
    """
    return np.where(labels == 1, 1.0, 1.0 / negative_rate)


def _unseen_rates(
    split: Split, embedding: UnifiedEmbedding, trained_rows: npt.NDArray[np.bool_], negative_rate: float
) -> dict[str, float]:
    """Share of each token feature's values in a split that are unseen, as `Scorer.coverage` counts them."""
    mask = embedding.mask
    is_pruned = mask is not None and mask.num_rows_kept < embedding.layout.num_rows
    if mask is not None:  # a pruned row has lost what it learned
        trained_rows = trained_rows & (mask.row_widths.cpu().numpy() > 0)
    used = {slot.feature for slot in embedding.layout.slots}
    names = [feature.name for feature in split.registry.token_features if feature.name in used]
    unseen, values = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    for batch, labels, _ in split.labelled_tokens():
        weights = _weights(labels, negative_rate)
        for name in names:
            tokens, counts = _present(batch, name, weights)
            rows = rows_of(embedding.layout, embedding.vocabulary, name, tokens)  # [P, V]
            is_known = known(trained_rows[rows].T, is_pruned=is_pruned)
            unseen[name] += float(counts[~is_known].sum())
            values[name] += float(counts.sum())
    return {name: round(unseen[name] / values[name], 6) for name in names if values[name]}


def _present(
    batch: EncodedBatch, name: str, weights: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.float64]]:
    """The distinct tokens [V] of a feature without the missing one, and the sum of the row weights [N] of each."""
    tokens, inverse = np.unique(batch.tokens[name], return_inverse=True)
    of_values = np.repeat(weights, batch.lengths[name]) if name in batch.lengths else weights
    counts = np.bincount(inverse, weights=of_values, minlength=len(tokens)).astype(np.float64)
    is_present = tokens != np.uint64(MISSING_TOKEN)
    return tokens[is_present], counts[is_present]
