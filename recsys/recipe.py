"""The settings of `final_mlp` that follow the size of the data; docs/recipe.md has the measurements behind them.

What limits a click model is how many examples it has of the rarer label, and how often it sees its data:

- fewer than `FEW_EXAMPLES` of the rarer label: 5 epochs of small steps (10 of larger ones if all features are numeric),
  target statistics, and no batch norm, so that the strong decay of the embeddings keeps the streams small;
- otherwise batch norm, and as many epochs as make `SEEN_EXAMPLES`, between 2 and 12. Up to `FULL_RATE_ROWS` training
  rows the rate is high and the embeddings decay strongly; beyond, both fall as the rows grow, as a prior weighs less.

Either way the rate falls along a cosine and the embeddings start near 0.
"""

from typing import Any

from features.dataset.info import DatasetInfo
from features.registry import FeatureRegistry
from recsys.config import Experiment, default_run, variant

NEAR_ZERO = {"init": "normal"}
"""Settings of the table: initial values so small that only values seen in training contribute."""
COSINE = {"schedule": "cosine", "epochs": 15, "learning_rate": 0.003}
"""Settings of the trainer, for a tuned run on some 200,000 training rows."""
FEW_EXAMPLES = 10_000
"""Training rows of the rarer label below which a dataset counts as small."""
SEEN_EXAMPLES = 10_000_000
"""Training rows times epochs, of a dataset that is not small."""
FULL_RATE_ROWS = 200_000
"""Training rows up to which a dataset that is not small has the highest rate and decay."""


def for_data(experiment: Experiment, info: DatasetInfo, registry: FeatureRegistry) -> Experiment:
    """The default run of `final_mlp` with the settings for a dataset of this size; any other run as it is."""
    if experiment != default_run("final_mlp"):
        return experiment
    rows, rate = info.splits["train"].rows, info.splits["train"].label_rate
    sections: dict[str, Any] = {}
    if min(rate, 1 - rate) * rows < FEW_EXAMPLES:
        sections["embedding"] = NEAR_ZERO
        sections["model"] = {"mlp1_batch_norm": False, "mlp2_batch_norm": False}
        has_statistics = bool(registry.token_features)
        # Numbers cannot be memorised value by value, so they are learned for longer.
        steps = {"epochs": 5} if has_statistics else {"epochs": 10, "learning_rate": 0.003}
        sections["trainer"] = {"schedule": "cosine", "batch_size": min(max(rows // 50, 128), 1024), **steps}
    else:
        share = min(1.0, FULL_RATE_ROWS / rows)
        epochs = min(max(round(SEEN_EXAMPLES / rows), 2), 12)
        sections["trainer"] = {**COSINE, "epochs": epochs, "learning_rate": max(0.003 * share, 0.001)}
        sections["embedding"] = {**NEAR_ZERO, "l2": max(0.05 * share, 0.005)}
        has_statistics = False
    adapted = variant(experiment, experiment.name, **sections)
    return adapted.model_copy(update={"target_statistics": has_statistics})
