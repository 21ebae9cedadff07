"""What a compressed run says of itself: figures for metrics.json and MLflow, facts for the bundle's manifest."""

from collections.abc import Mapping
from typing import Any

from recsys.compression.supernet import pair_of_slots, view_feature_pairs
from recsys.config import Experiment
from recsys.embedding.mask import Mask
from recsys.ranker import Ranker
from serving.bundle.bundle import Bundle


def compression_figures(ranker: Ranker, bundle: Bundle, metrics: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Bytes of the embedding files, what is kept of the table, and the quality with it."""
    mask = ranker.embedding.mask or Mask.full(ranker.embedding.layout)
    figures = {
        "bytes_after": float(bundle.manifest.table_bytes),
        "rows_kept": float(mask.num_rows_kept),
        "cells_kept": float(mask.num_cells),
    }
    for split in [name for name in ("valid", "test") if name in metrics]:
        figures |= {f"{split}_{name}_after": metrics[split][name] for name in ("auc", "logloss")}
    return figures


def compression_facts(ranker: Ranker, experiment: Experiment, before: Mapping[str, float]) -> dict[str, Any]:
    """Method, budget, and what is kept for each reader: columns of a value, by view and feature."""
    assert experiment.compression is not None
    layout = ranker.embedding.layout
    mask = ranker.embedding.mask or Mask.full(layout)
    columns: dict[str, dict[str, int]] = {view: {} for view in layout.views}
    for (view, feature), reader in zip(view_feature_pairs(layout), range(len(view_feature_pairs(layout))), strict=True):
        columns[view][feature] = int(mask.slot_widths[pair_of_slots(layout) == reader].sum())
    settings = experiment.compression.model_dump(mode="json")
    return {**settings, "columns_kept": columns, "rows_kept": mask.num_rows_kept, "before": dict(before)}
