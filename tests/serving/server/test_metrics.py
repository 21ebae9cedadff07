"""The figures for Prometheus and the log, counted by hand."""

import json
import logging
import time
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from serving.bundle import Bundle
from serving.server import coverage_window
from serving.server.limits import Limits, Workers
from serving.server.logs import JsonFormatter
from serving.server.metrics import SCORES, ModelVersion, ScoreHistogram, ServerMetrics
from tests.serving.conftest import dense_graph, make_bundle
from tests.serving.server.app import FORMS, JSON, NAME, Served

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def samples(text: bytes) -> Samples:
    """(name, sorted labels) to value; a page that Prometheus could not read raises."""
    families = text_string_to_metric_families(text.decode())
    return {(one.name, tuple(sorted(one.labels.items()))): one.value for family in families for one in family.samples}


def scraped(served: Served) -> Samples:
    """The page, when what has been answered is counted too."""
    served.app.close()
    return samples(served.client().get("/metrics").content)


def value(found: Samples, name: str, **labels: str) -> float:
    """The one sample of a name with these labels among others."""
    (one,) = [v for (n, pairs), v in found.items() if n == name and set(labels.items()) <= set(pairs)]
    return one


def test_a_histogram_counts_as_a_loop_does() -> None:
    values = np.random.default_rng(3).choice([0.0, 0.1, 0.3, 0.5, 0.7, 1.0, 2.0], 200)
    histogram = ScoreHistogram()
    histogram.observe(ModelVersion("a", "1"), values[:50])
    histogram.observe(ModelVersion("a", "1"), values[50:])
    buckets = [one.value for one in next(histogram.collect()).samples if one.name == "muxrec_score_bucket"]
    (total,) = [one.value for one in next(histogram.collect()).samples if one.name == "muxrec_score_sum"]
    expected = [sum(one <= bound for one in values) for bound in (*SCORES, float("inf"))]
    assert buckets == expected
    assert total == pytest.approx(sum(values))


def test_requests_failures_batches_and_scores(bundle: Bundle) -> None:
    served = Served(bundle.path, limits=Limits(max_rows=20)).start()
    client, version = served.client(), bundle.model_id
    scores: list[float] = []
    for num_rows in (1, 3, 10):
        answer = client.post("/score", json={"rows": [{"user": k, "age": 9 * k} for k in range(num_rows)]})
        scores += answer.json()["scores"]
    client.post("/score", json={"rows": 7})
    client.post("/score", json={"rows": [{}] * 21})
    client.post("/invocations", json={"instances": [{"user": 1}]})
    client.post("/v2/models/other/infer", json={})
    client.get("/nowhere")
    found = scraped(served)

    def requests(**labels: str) -> float:
        return value(found, "muxrec_requests_total", **labels)

    mine = {"model": NAME, "version": version}
    assert requests(endpoint="score", status="200", **mine) == 3
    assert requests(endpoint="score", status="400", **mine) == 1
    assert requests(endpoint="score", status="413", **mine) == 1
    assert requests(endpoint="invocations", status="200", **mine) == 1
    assert requests(endpoint="infer", status="404", model="", version="") == 1
    assert requests(endpoint="unknown", status="404", model="") == 1
    assert value(found, "muxrec_request_failures_total", reason="invalid", **mine) == 1
    assert value(found, "muxrec_request_failures_total", reason="too_large", **mine) == 1
    assert value(found, "muxrec_request_seconds_count", endpoint="score", **mine) == 5
    rows = {
        bound: value(found, "muxrec_batch_rows_bucket", le=bound, **mine) for bound in ("1.0", "2.0", "5.0", "10.0")
    }
    assert rows == {"1.0": 2, "2.0": 2, "5.0": 3, "10.0": 4}
    assert value(found, "muxrec_batch_rows_sum", **mine) == 15
    assert value(found, "muxrec_score_count", **mine) == 15
    below = value(found, "muxrec_score_bucket", le="0.15", **mine)
    assert 0 < below <= sum(score <= 0.15 for score in scores) + 1
    assert below >= sum(score <= 0.15 for score in scores)
    for stage in ("read", "wait", "parse", "features", "network", "reply"):
        assert value(found, "muxrec_stage_seconds_count", stage=stage, **mine) == 4
    assert value(found, "muxrec_model_loads_total", outcome="loaded") == 1
    assert value(found, "muxrec_ready") == 1
    assert value(found, "muxrec_requests_in_flight") == 1, "the scrape itself"
    assert value(found, "muxrec_model_loaded_timestamp_seconds", role="current", **mine) == pytest.approx(
        time.time(), abs=60
    )


def test_missing_and_unseen_values_by_feature(tmp_path: Any) -> None:
    trained = np.zeros(211, dtype=np.bool_)
    bundle = make_bundle(tmp_path / "bundle", trained_rows=trained)  # nothing was ever trained: every value is unseen
    served = Served(bundle.path).start()
    rows = [{"user": 1, "words": ["a", None, "b"]}, {"user": None, "words": []}, {"price": 2.0}]
    for part in (rows[:1], rows[1:]):
        assert served.client().post("/score", json={"rows": part}).status_code == 200
    found = scraped(served)

    def counts(feature: str) -> list[float]:
        names = ("examples", "missing", "values", "unseen")
        return [value(found, f"muxrec_feature_{name}_total", feature=feature) for name in names]

    assert counts("user") == [3, 2, 1, 1]
    assert counts("words")[:2] == [3, 1]
    assert counts("words")[2:] == [2, 2]
    assert counts("price") == [3, 2, 0, 0]


def test_names_from_requests_are_never_labels(bundle: Bundle) -> None:
    served = Served(bundle.path).start()
    for name in ("a", "b", "c"):
        served.client().get(f"/v2/models/{name}")
        served.client().get(f"/v2/models/{NAME}/versions/{name}")
        served.client().get(f"/{name}")
        served.client().request(name.upper(), "/score")
    labels = {pair for _, pairs in scraped(served) for pair in pairs}
    assert {found for label, found in labels if label in ("model", "version")} == {"", NAME, bundle.model_id}
    assert {found for label, found in labels if label == "endpoint"} == {"model_metadata", "unknown", "score"}


def test_series_of_a_version_end_when_it_is_no_longer_kept() -> None:
    metrics = ServerMetrics()
    versions = [ModelVersion("clicks", name) for name in "abc"]
    for version in versions:
        metrics.add_request(version, "score", 200, None, 0.01)
        metrics.add_request(version, "score", 400, "invalid", 0.01)
        metrics.add_scored(version, np.array([0.5]), {}, {"read": 0.1})
    metrics.set_served({versions[2]: 2.0, versions[1]: 1.0}, is_ready=True)
    labels = {pair for _, pairs in samples(metrics.text()) for pair in pairs}
    assert {found for label, found in labels if label == "version"} == {"b", "c"}
    assert {found for label, found in labels if label == "role"} == {"current", "previous"}


def test_a_refused_bundle_is_counted(tmp_path: Any) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    served = Served(bundle.path).start()
    (bundle.path / "dense.onnx").write_bytes(dense_graph(num_dense=1))
    assert served.client().post(f"/v2/repository/models/{NAME}/load").status_code == 409
    assert value(scraped(served), "muxrec_model_loads_total", outcome="refused") == 1


# --- log --------------------------------------------------------------------------------------------------------------


def lines(caplog: pytest.LogCaptureFixture, event: str) -> list[dict[str, Any]]:
    """The JSON lines of an event."""
    formatted = [JsonFormatter().format(record) for record in caplog.records if record.message == event]
    assert not any("\n" in line for line in formatted)
    return [json.loads(line) for line in formatted]


@pytest.mark.parametrize("path", FORMS)
def test_a_request_is_a_line_with_its_id(bundle: Bundle, path: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    client = Served(bundle.path).start().client()
    client.post(path, content=b'{"no": 1}', headers=JSON | {"X-Request-Id": "abc"})
    (line,) = lines(caplog, "request")
    assert (line["request_id"], line["status"], line["level"]) == ("abc", 400, "info")
    assert "expected" in line["error"]
    assert set(line) >= {"time", "ms", "endpoint", "method", "model", "version"}


def test_a_slow_request_is_told_with_its_stages(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    client = Served(bundle.path, slow_seconds=0.0).start().client()
    caplog.set_level(logging.WARNING)
    client.post("/score", content=b'{"rows": [{}, {}]}', headers=JSON | {"X-Request-Id": "slow-1"})
    (line,) = lines(caplog, "slow_request")
    assert (line["request_id"], line["rows"], line["level"]) == ("slow-1", 2, "warning")
    assert list(line["stages_ms"]) == ["read", "wait", "parse", "features", "network", "reply"]
    assert 0 < sum(line["stages_ms"].values()) <= line["ms"] + 0.1


def test_probes_are_not_logged(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    client = Served(bundle.path).start().client()
    for path in ("/v2/health/live", "/v2/health/ready", "/ping", "/metrics"):
        client.get(path)
    assert lines(caplog, "request") == []


def test_a_traceback_is_inside_its_line() -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError as error:
        record = logging.makeLogRecord({"msg": "failed", "exc_info": (type(error), error, None), "levelname": "ERROR"})
    line = JsonFormatter().format(record)
    assert "\n" not in line
    assert json.loads(line)["traceback"].endswith("ValueError: two\nlines\n")


def test_values_unlike_training_are_one_line_of_warning(
    tmp_path: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coverage_window, "WINDOW", 30)
    untrained = np.zeros(211, dtype=np.bool_)
    served = Served(make_bundle(tmp_path / "bundle", trained_rows=untrained).path, limits=Limits(num_workers=1)).start()

    def warned(*rows: dict[str, Any], times: int = 1, context: dict[str, Any] | None = None) -> list[Any]:
        """The result after so many requests."""
        caplog.clear()
        body: dict[str, Any] = {"rows": rows} if context is None else {"context": context, "candidates": rows}
        for _ in range(times):
            assert served.client().post("/score", json=body).status_code == 200
        served.app.close()  # what has been answered is counted too
        served.app._workers = Workers(Limits(num_workers=1))
        return [vars(one)["found"].partition(";")[0] for one in caplog.records if one.message == "unlike_training"]

    row = {"user": "True", "price": 1, "genres": "a", "item": None, "words": None, "age": 1}
    assert warned(*[row] * 29) == [], "29 rows are no window"
    lines = [f"{name}: 100.0% of the values are unseen, 0.0% in training" for name in ("user", "genres")]
    lines += [f"{name}: 100.0% of the values are missing, 0.0% in training" for name in ("item", "words")]
    assert warned(row) == lines
    assert warned(*[row] * 10, times=3) == [], "said once"
    assert warned(*[{"user": None, "price": 1}] * 10, times=3) == [
        "age: 100.0% of the values are missing, 0.0% in training"
    ]
    assert warned(*[{**row, "age": 1}] * 10, times=6) == [], "what was known in the window before is not said again"
    row = {"user": 1, "price": 1, "genres": "b", "item": "a", "words": ["a"]}
    again = ["age: 100.0% of the values are missing, 0.0% in training"]
    assert warned(*[row] * 30) == again, "the window before had it"
    assert warned(*[{"item": "a"}] * 40, times=2, context={"user": "T"}) == [], "candidates of one user count as one"
