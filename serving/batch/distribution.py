"""Mean and quantiles of any number of scores, in constant memory.

N scores.
"""

import math

import numpy as np
import numpy.typing as npt

QUANTILES = {"p01": 0.01, "p05": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95, "p99": 0.99}
_LIMIT = 20.0  # log-odds of 2e-9
_BINS = 8_000


class ScoreDistribution:
    """A histogram of log-odds, fine enough for small scores: the odds of a quantile are right to 1 part in 200.

    >>> scores = ScoreDistribution()
    >>> scores.add(np.array([0.001, 0.002, 0.5]))
    >>> round(scores.quantiles()["p50"], 5), round(scores.mean, 5)
    (0.002, 0.16767)
    """

    def __init__(self) -> None:
        self._counts = np.zeros(_BINS, dtype=np.int64)
        self._sums: list[float] = []
        self._smallest, self._largest = 1.0, 0.0

    def add(self, scores: npt.NDArray[np.float64]) -> None:
        """Count scores [N] in [0, 1]."""
        if not len(scores):
            return
        inside = np.clip(scores, 1e-12, 1.0 - 1e-12)
        log_odds = np.clip(np.log(inside) - np.log1p(-inside), -_LIMIT, _LIMIT)
        self._counts += np.histogram(log_odds, bins=_BINS, range=(-_LIMIT, _LIMIT))[0]
        self._sums.append(float(scores.sum()))
        self._smallest = min(self._smallest, float(scores.min()))
        self._largest = max(self._largest, float(scores.max()))

    @property
    def mean(self) -> float | None:
        """Mean score; None if there are no scores."""
        num_scores = int(self._counts.sum())
        # Exact, so that it does not depend on the order in which parts are finished.
        return math.fsum(self._sums) / num_scores if num_scores else None

    def quantiles(self) -> dict[str, float]:
        """`min`, `p01` ... `p99`, `max`; empty if there are no scores."""
        cumulative = np.cumsum(self._counts)
        if not cumulative[-1]:
            return {}
        bins = np.searchsorted(cumulative, np.array(list(QUANTILES.values())) * cumulative[-1], side="left")
        middles = 1.0 / (1.0 + np.exp(_LIMIT - (bins + 0.5) * (2 * _LIMIT / _BINS)))
        inside = np.clip(middles, self._smallest, self._largest).tolist()
        return {"min": self._smallest, **dict(zip(QUANTILES, inside, strict=True)), "max": self._largest}
