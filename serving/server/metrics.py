"""Counts for Prometheus: requests, latency, batch sizes and scores by model and version, missing and unseen by feature.

One collector keeps all of them under one lock. So a request of a thousand scores is added in one go, and the series of
a version end when it is no longer kept; prometheus-client's own counters take one observation at a time and keep labels
for ever.
"""

import threading
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from serving.scorer import Coverage

SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
ROWS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)
SCORES = (
    0.001,
    0.002,
    0.005,
    0.01,
    0.02,
    0.05,
    0.1,
    0.15,
    0.2,
    0.25,
    0.3,
    0.4,
    0.5,
    0.6,
    0.7,
    0.8,
    0.9,
    0.95,
    0.99,
    1.0,
)

SCORING = frozenset({"score", "infer", "invocations"})
"""Endpoints whose latency is kept; the others would only hide it."""


class Version(NamedTuple):
    """Whose series these are."""

    model: str
    version: str


NO_MODEL = Version("", "")


class Request(NamedTuple):
    """How a request ended."""

    version: Version
    endpoint: str
    status: int
    reason: str
    """Why it failed; empty where it did not."""
    seconds: float


class Scored(NamedTuple):
    """What a request scored."""

    version: Version
    probabilities: npt.NDArray[np.float64]
    coverage: Mapping[str, Coverage]
    stages: Mapping[str, float]
    """Stage to seconds."""


class Histogram:
    """Counts of values by upper bound, which belongs to its bucket.

    >>> histogram = Histogram((1, 2))
    >>> histogram.add(np.array([0.5, 1.0, 1.5, 9.0]))
    >>> histogram.buckets(), histogram.total
    ([('1', 2), ('2', 3), ('+Inf', 4)], 12.0)
    """

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds, self._counts, self.total = (
            np.asarray(bounds, dtype=np.float64),
            np.zeros(len(bounds) + 1, np.int64),
            0.0,
        )

    def add(self, values: npt.NDArray[np.float64]) -> None:
        """Count values [N]."""
        places = np.searchsorted(self._bounds, values, side="left")
        self._counts += np.bincount(places, minlength=len(self._counts))
        self.total += float(values.sum())

    def buckets(self) -> list[tuple[str, float]]:
        """Upper bound, as text, to the number of values up to it."""
        names = [*(f"{bound:g}" for bound in self._bounds), "+Inf"]
        return list(zip(names, np.cumsum(self._counts).tolist(), strict=True))


class Metrics(Collector):
    """All counts of a server; `text` is the page that Prometheus reads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: dict[tuple[Version, str, str], int] = defaultdict(int)
        self._failures: dict[tuple[Version, str, str], int] = defaultdict(int)
        self._latency: dict[tuple[Version, str], Histogram] = defaultdict(lambda: Histogram(SECONDS))
        self._stages: dict[tuple[Version, str], Histogram] = defaultdict(lambda: Histogram(SECONDS))
        self._rows: dict[Version, Histogram] = defaultdict(lambda: Histogram(ROWS))
        self._scores: dict[Version, Histogram] = defaultdict(lambda: Histogram(SCORES))
        self._coverage: dict[tuple[Version, str], Coverage] = {}
        self._loads: dict[str, int] = defaultdict(int)
        self._in_flight = 0
        self._versions: dict[Version, float] = {}
        self._is_ready = False
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def add_in_flight(self, change: int) -> None:
        """One request more or less is being answered."""
        with self._lock:
            self._in_flight += change

    def add_request(self, request: Request) -> None:
        """Count a request that was answered."""
        with self._lock:
            self._requests[request.version, request.endpoint, str(request.status)] += 1
            if request.reason:
                self._failures[request.version, request.endpoint, request.reason] += 1
            if request.endpoint in SCORING:
                self._latency[request.version, request.endpoint].add(np.array([request.seconds]))

    def add_scored(self, scored: Scored) -> None:
        """Count what a request scored."""
        with self._lock:
            version = scored.version
            self._rows[version].add(np.array([float(len(scored.probabilities))]))
            self._scores[version].add(scored.probabilities)
            for stage, seconds in scored.stages.items():
                self._stages[version, stage].add(np.array([seconds]))
            for feature, coverage in scored.coverage.items():
                before = self._coverage.get((version, feature))
                self._coverage[version, feature] = coverage if before is None else before.plus(coverage)

    def add_load(self, outcome: str) -> None:
        """Count a look for a new version: `loaded`, `unchanged` or `refused`."""
        with self._lock:
            self._loads[outcome] += 1

    def set_served(self, versions: Mapping[Version, float], *, is_ready: bool) -> None:
        """Versions that are loaded, the current one first, with the time of loading; the others' series end."""
        with self._lock:
            self._is_ready = is_ready
            if tuple(self._versions) == tuple(versions):
                return
            self._versions = dict(versions)
            kept = {*versions, NO_MODEL}
            for series in (self._requests, self._failures, self._latency, self._stages, self._coverage):
                _drop(series, [key for key in series if key[0] not in kept])
            for series in (self._rows, self._scores):
                _drop(series, [key for key in series if key not in kept])

    def collect(self) -> Iterator[Metric]:
        """Families of metrics, for prometheus-client."""
        with self._lock:  # not while they are written out
            families = [*self._request_families(), *self._score_families(), *self._server_families()]
        yield from families

    def _request_families(self) -> Iterator[Metric]:
        labels = ["model", "version", "endpoint"]
        requests = CounterMetricFamily("muxrec_requests", "Requests that were answered.", labels=[*labels, "status"])
        for (version, endpoint, status), count in self._requests.items():
            requests.add_metric([*version, endpoint, status], count)
        yield requests
        failures = CounterMetricFamily(
            "muxrec_request_failures", "Requests that were answered with an error.", labels=[*labels, "reason"]
        )
        for (version, endpoint, reason), count in self._failures.items():
            failures.add_metric([*version, endpoint, reason], count)
        yield failures
        latency = HistogramMetricFamily("muxrec_request_seconds", "First byte to answer, in seconds.", labels=labels)
        for (version, endpoint), histogram in self._latency.items():
            latency.add_metric([*version, endpoint], histogram.buckets(), histogram.total)
        yield latency

    def _score_families(self) -> Iterator[Metric]:
        labels = ["model", "version"]
        stages = HistogramMetricFamily(
            "muxrec_stage_seconds", "Seconds of a scoring request by stage.", labels=[*labels, "stage"]
        )
        for (version, stage), histogram in self._stages.items():
            stages.add_metric([*version, stage], histogram.buckets(), histogram.total)
        yield stages
        rows = HistogramMetricFamily("muxrec_batch_rows", "Rows, or candidates, a request.", labels=labels)
        for version, histogram in self._rows.items():
            rows.add_metric([*version], histogram.buckets(), histogram.total)
        yield rows
        scores = HistogramMetricFamily("muxrec_score", "Probabilities that were answered.", labels=labels)
        for version, histogram in self._scores.items():
            scores.add_metric([*version], histogram.buckets(), histogram.total)
        yield scores
        yield from self._coverage_families()

    def _coverage_families(self) -> Iterator[Metric]:
        for name, help_text, field in (
            ("muxrec_feature_examples", "Rows scored, by feature: what missing ones are a share of.", "num_examples"),
            ("muxrec_feature_missing", "Rows without a value of the feature.", "missing"),
            ("muxrec_feature_values", "Values looked up: what unseen ones are a share of.", "num_values"),
            ("muxrec_feature_unseen", "Values that certainly no training row had.", "unseen"),
        ):
            family = CounterMetricFamily(name, help_text, labels=["model", "version", "feature"])
            for (version, feature), coverage in self._coverage.items():
                family.add_metric([*version, feature], getattr(coverage, field))
            yield family

    def _server_families(self) -> Iterator[Metric]:
        loads = CounterMetricFamily("muxrec_model_loads", "Looks for a new version, by outcome.", labels=["outcome"])
        for outcome, count in self._loads.items():
            loads.add_metric([outcome], count)
        yield loads
        yield GaugeMetricFamily("muxrec_requests_in_flight", "Requests being answered.", value=self._in_flight)
        yield GaugeMetricFamily("muxrec_ready", "1 where new requests are welcome.", value=float(self._is_ready))
        loaded = GaugeMetricFamily(
            "muxrec_model_loaded_timestamp_seconds", "When a version was loaded.", labels=["model", "version", "role"]
        )
        for position, (version, loaded_at) in enumerate(self._versions.items()):
            loaded.add_metric([*version, "previous" if position else "current"], loaded_at)
        yield loaded


def _drop(series: dict[Any, Any], keys: Collection[Any]) -> None:
    for key in keys:
        del series[key]
