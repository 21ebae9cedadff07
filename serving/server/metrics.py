"""Metrics for Prometheus: requests, latency, batch sizes, scores; missing and unseen values by feature."""

import threading
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector, disable_created_metrics
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

disable_created_metrics()  # a time of creation per series would double the page


class ModelVersion(NamedTuple):
    """The labels `model` and `version` of a series."""

    model: str
    version: str


NO_MODEL = ModelVersion("", "")


class Histogram(Collector):
    """A histogram whose observations come as arrays: a request has up to thousands of scores.

    prometheus-client's own takes one value per call, and writes the bound 1 as "1.0".

    >>> histogram = Histogram("rows", "Rows per request.", ["model"], (1, 2))
    >>> histogram.observe(("clicks",), np.array([0.5, 1.0, 1.5, 9.0]))
    >>> [sample.value for sample in next(histogram.collect()).samples]  # up to 1, up to 2, all, their number, their sum
    [2, 3, 4, 4, 12.0]
    """

    def __init__(self, name: str, documentation: str, labels: list[str], bounds: tuple[float, ...]) -> None:
        self._name, self._documentation, self._labels = name, documentation, labels
        self._bounds = np.asarray(bounds, dtype=np.float64)
        self._lock = threading.Lock()
        self._series: dict[tuple[str, ...], tuple[npt.NDArray[np.int64], float]] = {}
        """Labels to counts by bucket, and the sum."""

    def observe(self, labels: tuple[str, ...], values: npt.NDArray[np.float64]) -> None:
        """Count values [N]; an upper bound belongs to its bucket."""
        buckets = np.searchsorted(self._bounds, values, side="left")
        added = np.bincount(buckets, minlength=len(self._bounds) + 1), float(values.sum())
        with self._lock:
            counts, total = self._series.get(labels, (0, 0.0))
            self._series[labels] = counts + added[0], total + added[1]

    def remove_by_labels(self, labels: Mapping[str, str]) -> None:
        """End the series that have these labels among theirs."""
        wanted = {self._labels.index(name): value for name, value in labels.items()}
        with self._lock:
            for key in [key for key in self._series if all(key[k] == value for k, value in wanted.items())]:
                del self._series[key]

    def collect(self) -> Iterator[Metric]:
        """The family of metrics, for prometheus-client."""
        family = HistogramMetricFamily(self._name, self._documentation, labels=self._labels)
        names = [*(f"{bound:g}" for bound in self._bounds), "+Inf"]
        with self._lock:
            series = list(self._series.items())
        for labels, (counts, total) in series:
            family.add_metric([*labels], list(zip(names, np.cumsum(counts).tolist(), strict=True)), total)
        yield family


class ServerMetrics:
    """All metrics of a server; `text` is the page that Prometheus reads."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        model = ["model", "version"]
        endpoint, feature = [*model, "endpoint"], [*model, "feature"]
        self._requests = Counter("muxrec_requests", "Answered requests.", [*endpoint, "status"], registry=registry)
        text = "Requests that were answered with an error."
        self._failures = Counter("muxrec_request_failures", text, [*endpoint, "reason"], registry=registry)
        text = "From the first byte of a request to its answer, in seconds."
        self._latency = Histogram("muxrec_request_seconds", text, endpoint, SECONDS)
        text = "Seconds of a scoring request by stage."
        self._stages = Histogram("muxrec_stage_seconds", text, [*model, "stage"], SECONDS)
        self._rows = Histogram("muxrec_batch_rows", "Rows, or candidates, per request.", model, ROWS)
        self._scores = Histogram("muxrec_score", "Probabilities in answers.", model, SCORES)
        coverage = {  # in the order of `Coverage`
            "examples": "Rows scored, by feature: the denominator of the missing rate.",
            "missing": "Rows without a value of the feature.",
            "values": "Values looked up: the denominator of the unseen rate.",
            "unseen": "Values that certainly occurred in no training row.",
        }
        self._coverage = [
            Counter(f"muxrec_feature_{name}", text, feature, registry=registry) for name, text in coverage.items()
        ]
        text = "Looks for a new version, by outcome."
        self._loads = Counter("muxrec_model_loads", text, ["outcome"], registry=registry)
        self._in_flight = Gauge("muxrec_requests_in_flight", "Requests being answered.", registry=registry)
        self._ready = Gauge("muxrec_ready", "1 where new requests are welcome.", registry=registry)
        text = "Time at which a version was loaded, in seconds since 1970."
        name = "muxrec_model_loaded_timestamp_seconds"
        self._loaded = Gauge(name, text, [*model, "role"], registry=registry)
        self._versions: dict[ModelVersion, float] = {}
        self._counted: set[ModelVersion] = set()
        # Looking labels up takes 40 us per request.
        self._by_feature: dict[tuple[ModelVersion, str], list[Counter]] = {}
        histograms = (self._latency, self._stages, self._rows, self._scores)
        for histogram in histograms:
            registry.register(histogram)
        self._by_version = (self._requests, self._failures, *histograms, *self._coverage)

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
            self._latency.observe((*version, endpoint), np.array([seconds]))

    def add_scored(
        self,
        version: ModelVersion,
        probabilities: npt.NDArray[np.float64],
        coverage: Mapping[str, Coverage],
        stages: Mapping[str, float],
    ) -> None:
        """Count the scores of a request; `stages`: seconds by stage."""
        self._rows.observe(version, np.array([float(len(probabilities))]))
        self._scores.observe(version, probabilities)
        for stage, seconds in stages.items():
            self._stages.observe((*version, stage), np.array([seconds]))
        for feature, counts in coverage.items():
            counters = self._by_feature.get((version, feature))
            if counters is None:
                counters = [counter.labels(*version, feature) for counter in self._coverage]
                self._by_feature[version, feature] = counters
            for counter, count in zip(counters, counts, strict=True):
                if count:
                    counter.inc(count)

    def add_load(self, outcome: str) -> None:
        """Count a look for a new version: `loaded`, `unchanged` or `refused`."""
        self._loads.labels(outcome).inc()

    def set_served(self, versions: Mapping[ModelVersion, float], *, is_ready: bool) -> None:
        """Versions that are loaded, the current one first, with the time of loading; the others' series end."""
        self._ready.set(is_ready)
        if tuple(self._versions) == tuple(versions):
            return
        for version in self._counted - versions.keys() - {NO_MODEL}:
            self._counted.remove(version)
            for metric in self._by_version:
                metric.remove_by_labels(version._asdict())
        self._by_feature.clear()
        self._versions = dict(versions)
        self._loaded.clear()
        for position, (version, loaded_at) in enumerate(versions.items()):
            self._loaded.labels(*version, "previous" if position else "current").set(loaded_at)
