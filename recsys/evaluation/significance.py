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
    if min(len(first), len(second)) < 2 or statistics.variance(first) + statistics.variance(second) == 0:
        return None
    from scipy.stats import ttest_ind  # takes longer to import than all of this to run

    result: Any = ttest_ind(first, second, equal_var=False)
    return float(result.pvalue)


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
