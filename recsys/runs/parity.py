"""`muxrec parity`: trainer and scorer compared on raw rows: equal ids, and probabilities equal up to rounding."""

import logging
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from features.addressing import addressing_of, rows_of
from features.encode import encode
from features.errors import InputError
from features.io.readers import expand, read_chunks
from features.registry import FeatureRegistry
from recsys.export import probabilities, quantized_copy
from recsys.ranker import Ranker
from recsys.runs.run_directory import RunDirectory, check_registry
from recsys.tracking.store import shown_uri
from recsys.tracking.tracker import Tracker
from serving.bundle import Bundle
from serving.coverage import Coverage, add_coverage, coverage_warnings
from serving.scorer import Scorer

logger = logging.getLogger(__name__)

ROUNDING_FACTOR = 4.0
"""Two float32 programs that add in different orders differ in rounding error by a small factor at most."""


def parity_of(
    path: Path, bundle: Path, inputs: Sequence[str], *, tolerance: float = 1e-6, quantized: bool = False
) -> dict[str, Any]:
    """Score raw rows with the trainer's model and with the bundle, and log the differences to the run's MLflow run.

    Without `inputs` the rows are the bundle's golden ones. `quantized`: round the trainer's table to the bundle's type
    first, so that no difference comes from that.

    Both correct for the bundle's share of negatives. The scorer passes when its ids equal the trainer's and its
    probabilities are within `tolerance` of the trainer's, or at most `ROUNDING_FACTOR` times as far from the same
    network in float64 as the trainer's are.

    Raises `InputError` for files that cannot be read and for a bundle of another registry.
    """
    run, scorer = RunDirectory(path), Scorer(bundle)
    registry = run.registry()
    check_registry(registry, scorer.bundle.registry, str(bundle))
    ranker = run.ranker(quantized=not quantized)
    if quantized:
        ranker = quantized_copy(ranker, scorer.bundle.manifest.table_dtype).ranker.eval()
    correction = scorer.bundle.manifest.prior_correction
    num_rows, ids_equal = 0, True
    worst, rounding, error = 0.0, 0.0, 0.0
    coverage: dict[str, Coverage] = {}
    names = [feature.name for feature in registry.features]
    files = expand(inputs) if inputs else []
    raw = chain.from_iterable(read_chunks(file, names, csv=registry.csv, chunk_rows=16_384) for file in files)
    for chunk in raw if inputs else [scorer.bundle.golden.select(names)]:
        trained = probabilities(ranker, registry, chunk, correction=correction)
        exact = probabilities(ranker, registry, chunk, exact=True, correction=correction)
        encoded = scorer.encode(chunk)
        scores = scorer.score_encoded(encoded)
        coverage = add_coverage(coverage, scorer.coverage(encoded)) if inputs else coverage
        # np.maximum keeps a NaN, which then fails every comparison.
        worst = float(np.maximum(worst, np.abs(trained - scores).max(initial=0.0)))
        rounding = float(np.maximum(rounding, np.abs(trained - exact).max(initial=0.0)))
        error = float(np.maximum(error, np.abs(scores - exact).max(initial=0.0)))
        ids_equal &= _ids_equal(chunk, registry, ranker, scorer.bundle)
        num_rows += len(chunk)
    result = {"rows": num_rows, "max_abs_diff": worst, "ids_equal": ids_equal, "tolerance": tolerance}
    result |= {"trainer_rounding": rounding, "scorer_rounding": error}
    result["warnings"] = coverage_warnings(coverage, scorer.bundle) if inputs else []
    result["ok"] = bool(num_rows and ids_equal and (worst <= tolerance or error <= ROUNDING_FACTOR * rounding))
    try:
        if tracker := Tracker.of(run.record):
            figures = {"parity/max_abs_diff": worst, "parity/rows": num_rows, "parity/ids_equal": ids_equal}
            tracker.log_metrics(figures)
            result["store"] = shown_uri(tracker.uri)
    except InputError as error:  # the result matters more than its record
        logger.warning("parity was not logged to MLflow: %s", error)
    return result


def _ids_equal(raw: pl.DataFrame, registry: FeatureRegistry, trained: Ranker, bundle: Bundle) -> bool:
    """True if torch with the trainer's layout and numpy with the bundle's read the same rows."""
    layout = trained.embedding.layout
    for name, tokens in encode(raw, registry).tokens.items():
        addressing = addressing_of(layout, trained.embedding.vocabulary, layout.positions_of(name))
        ours = addressing.rows(torch.from_numpy(tokens.view(np.int64).copy())[:, None], torch).T
        if not np.array_equal(ours.numpy(), rows_of(bundle.layout, bundle.vocabulary, name, tokens)):
            return False
    return True
