"""Warnings when the values in requests no longer resemble those of training.

A client that starts to write `True` for `true` still gets scores, and they are wrong.
"""

import threading
from collections.abc import Mapping

from serving.bundle import Bundle
from serving.coverage import Coverage, add_coverage, coverage_warnings

WINDOW = 100
"""Rows per judgement. The candidates of one context count as one row, or a single new user would cause a warning."""


class CoverageWindow:
    """Adds up the coverage of requests to one version, and judges it every `WINDOW` rows."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._lock = threading.Lock()
        self._num_rows = 0
        self._total: Mapping[str, Coverage] = {}
        self._known: frozenset[str] = frozenset()

    def add(self, coverage: Mapping[str, Coverage], num_rows: int) -> list[str]:
        """Warnings if this request completes a window, except for features that had one in the previous window."""
        with self._lock:
            self._total = add_coverage(self._total, coverage)
            self._num_rows += num_rows
            if self._num_rows < WINDOW:
                return []
            lines = {line.partition(":")[0]: line for line in coverage_warnings(self._total, self._bundle)}
            new = [line for feature, line in lines.items() if feature not in self._known]
            self._num_rows = 0
            self._total, self._known = {}, frozenset(lines)
            return new
