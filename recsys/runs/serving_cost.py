"""Cost of serving a bundle: bytes on the disk, and milliseconds per request.

Measured in a second, by one client in this process on a machine with other work: for comparing runs, not a benchmark.
"""

import statistics
import time
from collections.abc import Callable

from serving.scorer import Scorer

REPEATS = 25


def serving_cost(scorer: Scorer) -> dict[str, float]:
    """Bytes of the bundle and of its embedding, and median milliseconds to score one row and a hundred."""
    rows = scorer.bundle.golden.drop("probability").to_dicts()
    hundred = (rows * (100 // len(rows) + 1))[:100]
    return {
        "bundle_bytes": float(scorer.bundle.num_bytes),
        "table_bytes": float(scorer.bundle.manifest.table_bytes),
        "score_ms": _median_ms(lambda: scorer.score(rows[:1])),
        "score_100_ms": _median_ms(lambda: scorer.score(hundred)),
    }


def _median_ms(call: Callable[[], object]) -> float:
    """Median time of a call, after one to warm up."""
    call()
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return 1000 * statistics.median(times)
