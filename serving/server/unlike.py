"""Whether the values that are asked about are still like those of training; a line of warning when they are not.

A client that begins to write `True` for `true` gets scores all the same, and wrong ones.
"""

import threading
from collections.abc import Mapping

from serving.bundle import Bundle
from serving.coverage import Coverage, add_coverage, coverage_warnings

MIN_REQUESTS = 100
MIN_EXAMPLES = 1000
"""A window of both: a thousand candidates of one new user are no change of the world."""


class Window:
    """Adds up the coverage of requests to one version, and looks at it when there is enough."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._lock = threading.Lock()
        self._num_requests = self._num_examples = 0
        self._total: Mapping[str, Coverage] = {}
        self._known: frozenset[str] = frozenset()

    def add(self, coverage: Mapping[str, Coverage]) -> list[str]:
        """Lines of warning where this request ends a window; a feature that had one in the window before has none."""
        with self._lock:
            self._total = add_coverage(self._total, coverage)
            self._num_requests += 1
            self._num_examples += max((one.num_examples for one in coverage.values()), default=0)
            if self._num_requests < MIN_REQUESTS or self._num_examples < MIN_EXAMPLES:
                return []
            lines = {line.partition(":")[0]: line for line in coverage_warnings(self._total, self._bundle)}
            new = [line for feature, line in lines.items() if feature not in self._known]
            self._num_requests = self._num_examples = 0
            self._total, self._known = {}, frozenset(lines)
            return new
