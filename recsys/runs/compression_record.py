"""Results of a compressed run: figures for metrics.json and MLflow, and the record in the bundle's manifest."""

from collections.abc import Mapping
from typing import Any

from recsys.config import Compression
from recsys.embedding.mask import Mask
from recsys.ranker import Ranker
from serving.bundle import Bundle


def compression_figures(ranker: Ranker, bundle: Bundle, metrics: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Bytes of the embedding files, kept rows and cells of the table, and AUC and log loss after compression."""
    mask = ranker.embedding.mask or Mask.full(ranker.embedding.layout)
    figures = {
        "bytes_after": float(bundle.manifest.table_bytes),
        "rows_kept": float(mask.num_rows_kept),
        "cells_kept": float(mask.num_cells),
    }
    for split in [name for name in ("valid", "test") if name in metrics]:
        figures |= {f"{split}_{name}_after": metrics[split][name] for name in ("auc", "logloss")}
    return figures


def compression_record(ranker: Ranker, compression: Compression, before: Mapping[str, float]) -> dict[str, Any]:
    """Method, budget, kept rows, and the kept columns per value by view and feature."""
    layout = ranker.embedding.layout
    mask = ranker.embedding.mask or Mask.full(layout)
    columns: dict[str, dict[str, int]] = {view: {} for view in layout.views}
    for slot, width in zip(layout.slots, mask.slot_widths.tolist(), strict=True):
        columns[slot.view][slot.feature] = columns[slot.view].get(slot.feature, 0) + width
    settings = compression.model_dump(mode="json")
    return {**settings, "columns_kept": columns, "rows_kept": mask.num_rows_kept, "before": dict(before)}
