"""The contenders of `benchmarks.serve`: ways to score the same requests, each in its own process.

    python -m benchmarks.scorers '{"method": "rows", "case": "frappe", "bundle": "folder"}'

It answers lines of "requests SIZE", "load SIZE" or "batch ROWS". Times are in seconds; B rows of a request.
"""

import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
import polars as pl
from pydantic import BaseModel, ConfigDict, PrivateAttr

from benchmarks.common import serve
from benchmarks.requests import CASES, Request, requests
from serving.batch.job import score_files
from serving.bundle.bundle import open_session
from serving.scorer import Scorer

FEW_ROWS = 512
"""Rows per block of the floor's batch; larger blocks take longer per row."""

Score = Callable[[Any], Any]


class Contender(BaseModel):
    """One way to score, and for how long to time it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str
    """Key into METHODS."""
    case: str
    """Key into CASES."""
    bundle: str
    model: str = ""
    """The bundle as an MLflow model."""
    url: str = ""
    """The server's, for the two methods that use one."""
    num_threads: int = 1
    """Threads of onnxruntime and torch; 0: one per core."""
    seconds: float = 1.0
    """Length of a round."""
    min_requests: int = 20
    _kept: dict[int, tuple[Score, list[Any]]] = PrivateAttr(default_factory=dict)

    def requests(self, size: int) -> dict[str, Any]:
        """Median and 99th percentile of sequential requests, and medians of the stages if there are any."""
        score, ready = self._ready(size)
        for request in ready:
            score(request)
        seconds: list[float] = []
        began = time.perf_counter()
        while len(seconds) < self.min_requests or time.perf_counter() - began < self.seconds:
            start = time.perf_counter()
            score(ready[len(seconds) % len(ready)])
            seconds.append(time.perf_counter() - start)
        answer = {"p50": float(np.median(seconds)), "p99": float(np.quantile(seconds, 0.99)), "number": len(seconds)}
        return answer | (self._stages(ready) if self.method in ("rows", "context") else {})

    def load(self, size: int) -> dict[str, Any]:
        """Requests per second with one caller per core, and latencies at half of that rate with random arrivals."""
        score, ready = self._ready(size)
        num_callers = len(os.sched_getaffinity(0))
        saturation = _closed_loop(score, ready, num_callers, self.seconds)
        latencies = _open_loop(score, ready, num_callers, saturation / 2, max(self.seconds, 200 / saturation))
        quantiles = {f"p{q}": float(np.quantile(latencies, q / 100)) for q in (50, 95, 99)}
        return {"saturation": saturation, "number": len(latencies), **quantiles}

    def batch(self, num_rows: int) -> dict[str, Any]:
        """Rows per second of a frame, or of a file."""
        request = requests(CASES[self.case], num_rows, number=1)[0]
        frame, scorer = pl.DataFrame(request.rows), Scorer(self.bundle, num_threads=self.num_threads or None)
        if self.method == "file":
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "raw.parquet"
                frame.write_parquet(path)
                start = time.perf_counter()
                score_files(self.bundle, [path], Path(folder) / "out", progress=False)
                return {"rate": num_rows / (time.perf_counter() - start)}
        work: Callable[[], Any] = lambda: scorer.score(frame)  # noqa: E731
        if self.method == "floor":
            embedded = scorer.embed(scorer.encode(frame))
            session = open_session(scorer.bundle.dense_onnx, num_threads=self.num_threads or None)
            blocks = [{"embedded": embedded[k : k + FEW_ROWS]} for k in range(0, num_rows, FEW_ROWS)]
            work = lambda: [session.run(["logit"], block) for block in blocks]  # noqa: E731
        work()
        start = time.perf_counter()
        work()
        return {"rate": num_rows / (time.perf_counter() - start)}

    def _ready(self, size: int) -> tuple[Score, list[Any]]:
        """The function that scores a request, and requests of this size; prepared before the timing."""
        if size not in self._kept:
            made = requests(CASES[self.case], size)
            self._kept[size] = METHODS[self.method].build(self, made)
        return self._kept[size]

    def _stages(self, ready: Sequence[Request]) -> dict[str, float]:
        """Medians of the stages of `score`: features, table lookup, and the rest."""
        scorer = Scorer(self.bundle, num_threads=self.num_threads or None)
        stages: list[tuple[float, ...]] = []
        for number in range(max(self.min_requests, 100)):
            request = ready[number % len(ready)]
            arguments = (request.rows,) if self.method == "rows" else (request.context, request.candidates)
            marks = [time.perf_counter()]
            encoded = scorer.encode(*arguments)
            marks.append(time.perf_counter())
            scorer.embed(encoded)
            marks.append(time.perf_counter())
            scorer.score_encoded(encoded)  # reads the table again
            marks.append(time.perf_counter())
            features, table, whole = np.diff(marks)
            stages.append((features, table, whole - table))
        return dict(zip(("features", "table", "network"), np.median(stages, axis=0).tolist(), strict=True))


class Method(NamedTuple):
    """A way to score."""

    title: str
    build: Callable[[Contender, list[Request]], tuple[Score, list[Any]]]
    """From the requests to (a function that scores one, the requests in the form that it takes)."""


def _floor(contender: Contender, made: list[Request]) -> tuple[Score, list[Any]]:
    scorer = Scorer(contender.bundle)
    session = open_session(scorer.bundle.dense_onnx, num_threads=contender.num_threads or None)
    inputs = [{"embedded": scorer.embed(scorer.encode(request.rows))} for request in made]
    return lambda ready: session.run(["logit"], ready), inputs


def _rows(contender: Contender, made: list[Request]) -> tuple[Score, list[Any]]:
    scorer = Scorer(contender.bundle, num_threads=contender.num_threads or None)
    return lambda request: scorer.score(request.rows), made


def _context(contender: Contender, made: list[Request]) -> tuple[Score, list[Any]]:
    scorer = Scorer(contender.bundle, num_threads=contender.num_threads or None)
    return lambda request: scorer.score(request.context, request.candidates), made


def _torch(contender: Contender, made: list[Request]) -> tuple[Score, list[Any]]:
    """Eager torch after the same encoding."""
    import torch  # here, since no other method loads it

    from benchmarks.untrained import ranker_of
    from features.encode import encode_values
    from recsys.dataset import batch_of

    if contender.num_threads:
        torch.set_num_threads(contender.num_threads)
    ranker, registry = ranker_of(CASES[contender.case]), CASES[contender.case].registry
    names = [feature.name for feature in registry.features]

    def score(request: Request) -> Any:
        columns = {name: [row.get(name) for row in request.rows] for name in names}
        batch = batch_of(encode_values(columns, registry, len(request.rows)), registry)
        with torch.inference_mode():
            return torch.sigmoid(ranker(batch)).numpy()

    return score, made


def _pyfunc(contender: Contender, made: list[Request]) -> tuple[Score, list[Any]]:
    """The bundle under MLflow's `predict`, in this process, from the frame that MLflow's server would make."""
    import mlflow.pyfunc
    import pandas as pd

    model = mlflow.pyfunc.load_model(contender.model)
    return model.predict, [pd.DataFrame(request.rows) for request in made]


def _http(path: str, body: Callable[[Request], dict[str, Any]]) -> Any:
    def build(contender: Contender, made: list[Request]) -> tuple[Score, list[Any]]:
        address = urlsplit(contender.url)
        connection = HTTPConnection(address.hostname or "", address.port, timeout=60)
        headers = {"Content-Type": "application/json"}

        def ask(ready: bytes) -> HTTPResponse:
            connection.request("POST", path, ready, headers)
            return connection.getresponse()

        def score(ready: bytes) -> bytes:
            try:
                response = ask(ready)
            except ConnectionError:  # the server closes idle connections, as between two rounds
                connection.close()
                response = ask(ready)
            content = response.read()
            assert response.status == 200, content[:300]
            return content

        return score, [json.dumps(body(request)).encode() for request in made]

    return build


def _split_body(request: Request) -> dict[str, Any]:
    columns = list(request.rows[0])
    return {"dataframe_split": {"columns": columns, "data": [[row[name] for name in columns] for row in request.rows]}}


METHODS = {
    "floor": Method("onnxruntime alone, input ready", _floor),
    "rows": Method("Scorer.score(rows)", _rows),
    "context": Method("Scorer.score(context, candidates)", _context),
    "torch": Method("eager torch, same encoding", _torch),
    "pyfunc": Method("MLflow pyfunc of the bundle, no server", _pyfunc),
    "serve": Method("muxrec serve, rows over HTTP", _http("/score", lambda request: {"rows": request.rows})),
    "mlflow": Method("mlflow models serve, rows over HTTP", _http("/invocations", _split_body)),
    "file": Method("score_files, parquet to parquet", _rows),
}


def _closed_loop(score: Score, ready: Sequence[Any], num_callers: int, seconds: float) -> float:
    """Requests per second of callers that each send the next request after an answer (closed loop)."""
    counts = [0] * num_callers
    end = time.perf_counter() + seconds

    def call(caller: int) -> None:
        while time.perf_counter() < end:
            score(ready[(caller + counts[caller]) % len(ready)])
            counts[caller] += 1

    began = time.perf_counter()
    _together(call, num_callers)
    return sum(counts) / (time.perf_counter() - began)


def _open_loop(score: Score, ready: Sequence[Any], num_callers: int, rate: float, seconds: float) -> list[float]:
    """Latencies, waiting included, of requests that arrive at random, whether or not others are done (open loop)."""
    gaps = np.random.default_rng(1).exponential(1 / rate, max(20, int(rate * seconds)))
    arrivals = (time.perf_counter() + 0.05 + np.cumsum(gaps)).tolist()
    latencies = [0.0] * len(arrivals)
    numbers, lock = iter(range(len(arrivals))), threading.Lock()

    def call(caller: int) -> None:
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            time.sleep(max(0.0, arrivals[number] - time.perf_counter()))
            score(ready[number % len(ready)])
            latencies[number] = time.perf_counter() - arrivals[number]

    _together(call, num_callers)
    return latencies


def _together(call: Callable[[int], None], num_callers: int) -> None:
    threads = [threading.Thread(target=call, args=(caller,)) for caller in range(num_callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def main(argument: str) -> None:
    """Answer "requests SIZE", "load SIZE" and "batch ROWS"."""
    contender = Contender.model_validate_json(argument)

    def answer(question: str) -> dict[str, Any]:
        name, size = question.split()
        return {"requests": contender.requests, "load": contender.load, "batch": contender.batch}[name](int(size))

    serve(answer)


if __name__ == "__main__":
    main(sys.argv[1])
