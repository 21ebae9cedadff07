"""Significance of the difference between two groups of runs: spread between seeds, and Welch's t-test.

Spread is the standard deviation (n - 1). The test is two-sided, for unequal variances (Welch, "The generalization of
'Student's' problem when several different population variances are involved", Biometrika 1947).
"""

import statistics
from collections.abc import Sequence
from typing import Any


def welch(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Two-sided p-value of Welch's t-test; None if a side has fewer than two values, or nothing varies.

    >>> welch([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    1.0
    >>> welch([1.0], [1.0, 2.0])
    """
    result = _welch(first, second)
    return None if result is None else float(result.pvalue)


def welch_interval(first: Sequence[float], second: Sequence[float]) -> tuple[float, float] | None:
    """95% interval of the first mean minus the second, by Welch's t-test; None where `welch` is.

    >>> low, high = welch_interval([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    >>> round(low, 3), round(high, 3)
    (-2.267, 2.267)
    """
    result = _welch(first, second)
    if result is None:
        return None
    low, high = result.confidence_interval(0.95)
    return float(low), float(high)


def _welch(first: Sequence[float], second: Sequence[float]) -> Any:
    if min(len(first), len(second)) < 2 or statistics.variance(first) + statistics.variance(second) == 0:
        return None
    from scipy.stats import ttest_ind  # takes longer to import than all of this to run

    return ttest_ind(first, second, equal_var=False)


def spread(values: Sequence[float]) -> float | None:
    """Standard deviation between seeds; None for a single one.

    >>> spread([1.0, 3.0]), spread([1.0])
    (1.4142135623730951, None)
    """
    return statistics.stdev(values) if len(values) > 1 else None


def p_text(p: float | None) -> str:
    """A p-value for a table.

    >>> p_text(0.0312), p_text(1e-9), p_text(None)
    ('0.031', '< 0.0001', '')
    """
    return "" if p is None else "< 0.0001" if p < 1e-4 else f"{p:.2g}"
