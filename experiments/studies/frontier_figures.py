"""What a point of the frontier is measured by: quality, bytes on the disk, and the time of the scorer.

The scorer is timed when nothing is trained any more, so a bundle stays after its run has gone, until that is done.
"""

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from experiments.studies.runner import AnyWork, Record, Results
from features.files import temporary_directory_beside
from features.golden import golden_frame
from recsys.runs.run_directory import RunDirectory
from serving.bundle import Bundle
from serving.scorer import Scorer

TIME = "scorer_us_per_row"
"""Of a record: microseconds a row."""


def measured(run: Path) -> Record:
    """Metrics of a finished run, and what its bundle takes on the disk."""
    bundle = Bundle.open(RunDirectory(run).bundle)
    return {
        "metrics": RunDirectory(run).metrics(),
        "embedding_bytes": bundle.manifest.table_bytes,
        "bundle_bytes": sum(path.stat().st_size for path in RunDirectory(run).bundle.iterdir()),
    }


def keep_bundle(run: Path, work: Path) -> None:
    """Put a copy of a run's bundle where `time_scorers` looks for it."""
    kept = work / "bundles" / run.name
    shutil.rmtree(kept, ignore_errors=True)
    with temporary_directory_beside(kept) as temporary:
        shutil.copytree(RunDirectory(run).bundle, temporary / kept.name)
        (temporary / kept.name).rename(kept)


def time_scorers(
    points: Sequence[AnyWork], kept: Results, work: Path, log: Callable[[AnyWork, float], None] | None = None
) -> None:
    """Add the scorer's time to the records that have none yet, where a bundle is left to measure it with."""
    for point in points:
        record = kept.records.get(point.key)
        if record is None or "metrics" not in record or TIME in record:
            continue
        copy = work / "bundles" / point.key
        places = [copy, work / "runs" / point.key / "bundle", work / "bases" / point.key / "bundle"]
        bundle = next((place for place in places if place.is_dir()), None)
        if bundle is None:
            continue
        microseconds = scorer_microseconds(Bundle.open(bundle))
        if log:
            log(point, microseconds)
        kept.add(point, {**record, TIME: microseconds})
        shutil.rmtree(copy, ignore_errors=True)


def scorer_microseconds(bundle: Bundle, num_rows: int = 4096, repeats: int = 5) -> float:
    """Microseconds a row that one thread takes to score made-up raw rows together; the quickest of some repeats."""
    scorer, rows = Scorer(bundle, num_threads=1), golden_frame(bundle.registry, num_rows=num_rows, seed=1)
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        scorer.score(rows)
        seconds.append(time.perf_counter() - began)
    return float(np.min(seconds)) / num_rows * 1e6
