"""The training profile of a run (`serving.profile`): features of train, scores and unseen values of valid.

N rows, M table rows, P slots of one feature.
"""

import numpy as np
import numpy.typing as npt

from features.addressing import rows_of
from features.encode import EncodedBatch
from features.hashing import MISSING_TOKEN
from recsys.dataset import Split
from recsys.embedding import UnifiedEmbedding
from serving.profile import Distributions, ProfileBuilder, float_bins


def training_profile(
    train: Split,
    valid: Split,
    scores: npt.NDArray[np.float64],
    embedding: UnifiedEmbedding,
    trained_rows: npt.NDArray[np.bool_],
) -> Distributions:
    """Distributions of the training rows' features and of the validation rows' scores [N].

    `trained_rows` [M] flags the rows that a training example read: a value that reads another one is unseen.
    """
    builder = ProfileBuilder(train.registry, train.num_rows)
    for batch in train.tokens():
        builder.add(batch)
    features = builder.finish(train.info.splits["train"].missing_rates)
    if embedding.mask is not None:  # nothing is left of what a row learned that was pruned
        trained_rows = trained_rows & (embedding.mask.row_widths.cpu().numpy() > 0)
    unseen = _unseen_rates(valid, embedding, trained_rows)
    known = {name: one.model_copy(update={"unseen": unseen.get(name)}) for name, one in features.items()}
    return Distributions(features=known, score=float_bins(scores))


def _unseen_rates(split: Split, embedding: UnifiedEmbedding, trained_rows: npt.NDArray[np.bool_]) -> dict[str, float]:
    """Share of each token feature's values in a split that read a row which training did not; as `Scorer.coverage`."""
    used = {slot.feature for slot in embedding.layout.slots}
    names = [feature.name for feature in split.registry.token_features if feature.name in used]
    unseen, values = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    for batch in split.tokens():
        for name in names:
            tokens, counts = _present(batch, name)
            rows = rows_of(embedding.layout, embedding.vocabulary, name, tokens)  # [P, N]
            unseen[name] += int(counts[~trained_rows[rows].all(axis=0)].sum())
            values[name] += int(counts.sum())
    return {name: round(unseen[name] / values[name], 6) for name in names if values[name]}


def _present(batch: EncodedBatch, name: str) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
    """The distinct tokens of a feature but the missing one, and how often each stands there."""
    tokens, counts = np.unique(batch.tokens[name], return_counts=True)
    is_present = tokens != np.uint64(MISSING_TOKEN)
    return tokens[is_present], counts[is_present]
