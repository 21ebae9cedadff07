"""Whether the values that are asked about are still like those of training; a line of warning when they are not.

A client that begins to write `True` for `true` gets scores all the same, and wrong ones.
"""

import threading
from collections.abc import Mapping

from serving.bundle import Bundle
from serving.coverage import Coverage, add_coverage, coverage_warnings

WINDOW = 100
"""Rows to judge by; the candidates of one context count as one, since a new user is no change of the world."""


class Window:
    """Adds up the coverage of requests to one version, and looks at it when there is enough."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._lock = threading.Lock()
        self._num_rows = 0
        self._total: Mapping[str, Coverage] = {}
        self._known: frozenset[str] = frozenset()

    def add(self, coverage: Mapping[str, Coverage], num_rows: int) -> list[str]:
        """Lines of warning where this request ends a window; a feature that had one in the window before has none."""
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
