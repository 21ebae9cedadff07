"""Metrics for Prometheus: requests, latency, batch sizes, scores; missing and unseen values by feature."""

import threading
from collections.abc import Iterator, Mapping
from functools import cache, partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client import generate_latest as text_of
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from serving.scorer import Coverage

SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
ROWS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)
LOW_SCORES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
SCORES = (*LOW_SCORES, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
SCORING = frozenset({"score", "infer", "invocations"})
"""Endpoints whose latency is recorded; the others would only hide theirs."""
_COVERAGE = {
    "examples": "Rows scored, by feature: the denominator of the missing rate.",
    "missing": "Rows without a value of the feature.",
    "values": "Values looked up: the denominator of the unseen rate.",
    "unseen": "Values that certainly occurred in no training row.",
}
"""Counters by feature, in the order of `Coverage`."""

disable_created_metrics()  # a time of creation per series would double the page


class ModelVersion(NamedTuple):
    """The labels `model` and `version` of a series."""

    model: str
    version: str


NO_MODEL = ModelVersion("", "")


class ScoreHistogram(Collector):
    """The histogram of scores, which come as arrays of up to thousands; prometheus-client's own takes one per call.

    >>> histogram = ScoreHistogram()
    >>> histogram.observe(ModelVersion("clicks", "1"), np.array([0.0005, 0.001, 0.0015, 0.5]))
    >>> [sample.value for sample in next(histogram.collect()).samples][:3]  # up to .001, .002 and .005
    [2, 3, 3]
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._series: dict[ModelVersion, tuple[npt.NDArray[np.int64], float]] = {}
        """Counts by bucket, and the sum."""

    def observe(self, version: ModelVersion, values: npt.NDArray[np.float64]) -> None:
        """Count values [N]; an upper bound belongs to its bucket."""
        added = np.bincount(np.searchsorted(SCORES, values, side="left"), minlength=len(SCORES) + 1)
        with self._lock:
            counts, total = self._series.get(version, (0, 0.0))
            self._series[version] = counts + added, total + float(values.sum())

    def remove_by_labels(self, labels: dict[str, str]) -> None:
        """End the series of a version."""
        self._series.pop(ModelVersion(**labels), None)

    def collect(self) -> Iterator[Metric]:
        """The family of metrics, for prometheus-client."""
        family = HistogramMetricFamily("muxrec_score", "Probabilities in answers.", labels=ModelVersion._fields)
        names = [*map(str, SCORES), "+Inf"]
        for version, (counts, total) in list(self._series.items()):
            family.add_metric(version, list(zip(names, np.cumsum(counts).tolist(), strict=True)), total)
        yield family


class ServerMetrics:
    """All metrics of a server; `text` is the page that Prometheus reads."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        counter = partial(Counter, namespace="muxrec", registry=registry)
        gauge = partial(Gauge, namespace="muxrec", registry=registry)
        histogram = partial(Histogram, namespace="muxrec", registry=registry)
        model = ModelVersion._fields
        self._requests = counter("requests", "Answered requests.", [*model, "endpoint", "status"])
        self._failures = counter("request_failures", "Answers that are errors.", [*model, "endpoint", "reason"])
        text = "Seconds from the first byte of a request to its answer."
        self._latency = histogram("request_seconds", text, [*model, "endpoint"], buckets=SECONDS)
        text = "Seconds of a scoring request by stage."
        self._stages = histogram("stage_seconds", text, [*model, "stage"], buckets=SECONDS)
        self._rows = histogram("batch_rows", "Rows, or candidates, per request.", model, buckets=ROWS)
        self._scores = ScoreHistogram()
        registry.register(self._scores)
        self._coverage = [counter(f"feature_{name}", text, [*model, "feature"]) for name, text in _COVERAGE.items()]
        self._loads = counter("model_loads", "Looks for a new version, by outcome.", ["outcome"])
        self._in_flight = gauge("requests_in_flight", "Requests being answered.")
        self._ready = gauge("ready", "1 where new requests are welcome.")
        text = "Time at which a version was loaded, in seconds since 1970."
        self._loaded = gauge("model_loaded_timestamp_seconds", text, [*model, "role"])
        self._counted: set[ModelVersion] = set()
        histograms = (self._latency, self._stages, self._rows, self._scores)
        self._by_version = (self._requests, self._failures, *histograms, *self._coverage)
        # Looking labels up takes 40 us per request.
        self._counters = cache(lambda version, feature: [one.labels(*version, feature) for one in self._coverage])

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return text_of(self._registry)

    def add_in_flight(self, change: int) -> None:
        """Add the number of requests that came in, or subtract those that were answered."""
        self._in_flight.inc(change)

    def add_request(
        self, version: ModelVersion, endpoint: str, status: int, reason: str | None, seconds: float
    ) -> None:
        """Count an answered request; `reason`: of its failure, None if it succeeded."""
        self._counted.add(version)
        self._requests.labels(*version, endpoint, str(status)).inc()
        if reason:
            self._failures.labels(*version, endpoint, reason).inc()
        if endpoint in SCORING:
            self._latency.labels(*version, endpoint).observe(seconds)

    def add_scored(
        self,
        version: ModelVersion,
        probabilities: npt.NDArray[np.float64],
        coverage: Mapping[str, Coverage],
        stages: Mapping[str, float],
    ) -> None:
        """Count the scores of a request; `stages`: seconds by stage."""
        self._rows.labels(*version).observe(len(probabilities))
        self._scores.observe(version, probabilities)
        for stage, seconds in stages.items():
            self._stages.labels(*version, stage).observe(seconds)
        for feature, counts in coverage.items():
            for counter, count in zip(self._counters(version, feature), counts, strict=True):
                counter.inc(count)

    def add_load(self, outcome: str) -> None:
        """Count a look for a new version: `loaded`, `unchanged` or `refused`."""
        self._loads.labels(outcome).inc()

    def set_served(self, versions: Mapping[ModelVersion, float], *, is_ready: bool) -> None:
        """Versions that are loaded, the current one first, with the time of loading; the others' series end."""
        self._ready.set(is_ready)
        for version in self._counted - versions.keys() - {NO_MODEL}:
            self._counted.remove(version)
            for metric in self._by_version:
                metric.remove_by_labels(version._asdict())
            self._counters.cache_clear()
        self._loaded.clear()
        for position, (version, loaded_at) in enumerate(versions.items()):
            self._loaded.labels(*version, "previous" if position else "current").set(loaded_at)
