"""`muxrec serve` as a process: a rolling switch under load, the end on SIGTERM, and how it fails to start.

    SWITCHES=100 pytest -s tests/serving/test_app_process.py -k rolling

switches so often, between refused bundles, and says how many requests were answered; four times is the default.
"""

import contextlib
import http.client
import importlib.util
import json
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow.tracking import MlflowClient

from experiments.cli import main
from serving.bundle import Bundle
from serving.scorer import Scorer
from tests.serving.conftest import make_bundle, table

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SWITCHES = int(os.environ.get("SWITCHES", "4"))
HEAVY = ("torch", "torchrec", "fbgemm_gpu", "pandas", "mlflow", "pyarrow", "matplotlib", "sklearn", "scipy")
START = """
import sys
from experiments.cli import main
main()
"""
# Where these are not installed, a server starts, reloads and ends all the same.
BLOCKED_START = f"""
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in {HEAVY!r}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Block())
from experiments.cli import main
main()
"""
ROWS = [{"user": k, "age": 3 * k, "genres": "a|b"} for k in range(5)]
BODY = json.dumps({"rows": ROWS})
HEADERS = {"Content-Type": "application/json"}


class Server:
    """A process, its log lines as they come, and requests to it."""

    def __init__(
        self, *arguments: object, environment: dict[str, str] | None = None, start: str = BLOCKED_START
    ) -> None:
        command = [sys.executable, "-c", start, "serve", *map(str, arguments)]
        environ = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environ)
        self.lines: list[str] = []
        self._queue: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as stream:
            for line in stream:
                self.lines.append(line.rstrip("\n"))
                self._queue.put(line)
        self._queue.put(None)

    def event(self, name: str, seconds: float = 60) -> dict[str, Any]:
        """Wait for an event in the log."""
        end = time.monotonic() + seconds
        while (line := self._queue.get(timeout=max(0.1, end - time.monotonic()))) is not None:
            if line.startswith("{") and json.loads(line)["event"] == name:
                return json.loads(line)
        pytest.fail(f"no {name}: {self.lines}")

    def start(self) -> "Server":
        """Wait until it is ready."""
        self.port = int(self.event("listening")["port"])
        self.event("ready")
        return self

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)

    def get(self, path: str) -> tuple[int, bytes]:
        connection = self.connect()
        connection.request("GET", path)
        answer = connection.getresponse()
        found = answer.status, answer.read()
        connection.close()
        return found

    def wait(self, seconds: float = 60) -> int:
        """Exit code; standard error is read to its end."""
        code = self.process.wait(seconds)
        while self._queue.get(timeout=seconds) is not None:
            pass
        return code


class Load:
    """Clients that post over connections that they keep, until they are told to stop; whatever is wrong is kept."""

    def __init__(self, server: Server, expected: dict[str, list[float]], num_clients: int = 4) -> None:
        self.seen: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._server, self._expected, self._stop = server, expected, threading.Event()
        self._threads = [threading.Thread(target=self._post) for _ in range(num_clients)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End after the request that each client is at."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _post(self) -> None:
        connection = self._server.connect()
        while not self._stop.is_set():
            try:
                connection.request("POST", "/score", BODY, HEADERS)
                answer = connection.getresponse()
                text = answer.read()
                document = json.loads(text)
                if answer.status != 200 or document["scores"] != self._expected[document["version"]]:
                    self.wrong.append(f"{answer.status}: {text!r}")
                else:
                    self.seen[document["version"]] += 1
            except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
                self.wrong.append(f"{type(error).__name__}: {error}")
                connection.close()
        connection.close()


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> list[Bundle]:
    """Three models whose scores differ."""
    folder = tmp_path_factory.mktemp("versions")
    return [make_bundle(folder / f"v{k}", table=np.float32(k + 1) * table()) for k in range(3)]


@pytest.fixture
def serve() -> Iterator[Any]:
    """Start servers that end with the test."""
    servers: list[Server] = []

    def start(*arguments: object, **settings: Any) -> Server:
        servers.append(Server(*(arguments if "--port" in arguments else (*arguments, "--port", 0)), **settings))
        return servers[-1]

    yield start
    for server in servers:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()


def scores_of(versions: list[Bundle]) -> dict[str, list[float]]:
    return {
        bundle.model_id: Scorer(bundle, num_threads=1).score(ROWS, allow_missing=True).tolist() for bundle in versions
    }


def point(link: Path, target: Path) -> None:
    """Make a symbolic link lead somewhere else, in one step."""
    link.with_suffix(".new").symlink_to(target)
    link.with_suffix(".new").replace(link)


def test_a_rolling_switch_under_load_fails_no_request(serve: Any, versions: list[Bundle], tmp_path: Path) -> None:
    link, expected = tmp_path / "current", scores_of(versions)
    damaged = Path(shutil.copytree(versions[1].path, tmp_path / "damaged"))
    with (damaged / "table.safetensors").open("r+b") as file:
        file.write(b"\0\0\0\0")
    point(link, versions[0].path)
    server = serve(link, "--name", "clicks", "--watch", "0.05", "--log-level", "info").start()
    load = Load(server, expected)
    for k in range(1, SWITCHES + 1):
        point(link, damaged)
        server.event("model_refused")
        point(link, versions[k % 3].path)
        assert server.event("model_loaded")["version"] == versions[k % 3].model_id
        before = load.seen[versions[k % 3].model_id]
        while load.seen[versions[k % 3].model_id] < before + 20 and not load.wrong:
            time.sleep(0.01)
    load.stop()
    sys.stdout.write(f"{SWITCHES} switches, {sum(load.seen.values())} requests, {len(load.wrong)} failed\n")
    assert load.wrong == []
    assert set(load.seen) == set(expected)
    assert server.get("/v2/health/ready")[0] == 200
    server.process.send_signal(signal.SIGINT)
    assert server.wait() == 0


def test_after_sigterm_whoever_watches_readiness_loses_nothing(serve: Any, versions: list[Bundle]) -> None:
    server = serve(versions[0].path, "--drain", "1").start()
    load = Load(server, scores_of(versions[:1]))
    while sum(load.seen.values()) < 50 and not load.wrong:
        time.sleep(0.01)
    server.process.send_signal(signal.SIGTERM)
    while server.get("/v2/health/ready")[0] == 200:  # as a balancer does
        time.sleep(0.02)
    assert server.get("/v2/health/live")[0] == 200
    load.stop()
    assert load.wrong == []
    assert server.wait() == 0
    assert json.loads(server.lines[-1])["event"] == "stopped"
    with pytest.raises(ConnectionRefusedError):
        server.get("/v2/health/live")


def test_what_has_begun_is_finished_after_sigterm(serve: Any, versions: list[Bundle]) -> None:
    server = serve(versions[0].path, "--drain", "0").start()
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as half:
        head = (
            f"POST /score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(BODY)}\r\n\r\n"
        )
        half.sendall((head + BODY[:10]).encode())
        time.sleep(0.3)
        server.process.send_signal(signal.SIGTERM)
        server.event("draining")
        time.sleep(0.5)
        with pytest.raises(ConnectionRefusedError):
            server.get("/v2/health/live")
        half.sendall(BODY[10:].encode())
        answer = http.client.HTTPResponse(half)
        answer.begin()
        (scores,) = scores_of(versions[:1]).values()
        assert (answer.status, json.loads(answer.read())["scores"]) == (200, scores)
    assert server.wait() == 0


SLOW_START = (
    """
import time
import serving.server.hosting as hosting
warm = hosting._check_and_warm
hosting._check_and_warm = lambda scorer: (time.sleep(1.5), warm(scorer))
"""
    + START
)


def test_it_is_live_before_it_is_ready(serve: Any, versions: list[Bundle]) -> None:
    server = serve(versions[0].path, start=SLOW_START)
    server.port = int(server.event("listening")["port"])
    assert server.get("/v2/health/live")[0] == 200
    assert server.get("/v2/health/ready")[0] == 503
    server.event("ready")
    assert server.get("/v2/health/ready")[0] == 200


HEAVY_AT_THE_END = (
    f"""
import atexit, sys
atexit.register(lambda: sys.stderr.write("heavy: %s" % [name for name in {HEAVY!r} if name in sys.modules]))
"""
    + START
)


def test_an_alias_is_followed_and_mlflow_stays_out_of_the_process(
    serve: Any, versions: list[Bundle], tmp_path: Path
) -> None:
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = MlflowClient(store)
    client.create_registered_model("clicks")
    for bundle in versions[:2]:
        shutil.copytree(bundle.path, tmp_path / bundle.model_id / "bundle")
        client.create_model_version("clicks", str(tmp_path / bundle.model_id))
    client.set_registered_model_alias("clicks", "champion", "1")
    environment = {"MLFLOW_TRACKING_URI": store, "MUXREC_CACHE": str(tmp_path / "cache")}
    server = serve("models:/clicks@champion", "--watch", 0, environment=environment, start=HEAVY_AT_THE_END).start()

    def load() -> dict[str, Any]:
        connection = server.connect()
        connection.request("POST", "/v2/repository/models/clicks/load")
        document = json.loads(connection.getresponse().read())
        connection.close()
        return document

    client.set_registered_model_alias("clicks", "champion", "2")
    assert load() == {"name": "clicks", "version": versions[1].model_id, "outcome": "loaded"}
    client.delete_registered_model_alias("clicks", "champion")
    assert "no such model, version or alias" in load()["error"]
    assert server.get("/v2/health/ready")[0] == 200
    server.process.send_signal(signal.SIGINT)
    assert server.wait() == 0
    assert server.lines[-1] == "heavy: []"


def test_a_first_bundle_that_is_refused_is_one_line_and_exit_code_2(
    serve: Any, versions: list[Bundle], tmp_path: Path
) -> None:
    damaged = Path(shutil.copytree(versions[0].path, tmp_path / "damaged"))
    with (damaged / "table.safetensors").open("r+b") as file:
        file.write(b"\0\0\0\0")
    server = serve(damaged)
    assert server.wait() == 2
    assert server.lines[-1].startswith(f"muxrec: {damaged}")
    assert "expected sha256" in server.lines[-1]
    assert all(line.startswith("{") for line in server.lines[:-1])


def test_mistakes_of_the_command_are_one_line(
    versions: list[Bundle], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for message, arguments in (
        ("expected a version of a registered model", ["models:/only-a-name"]),
        ("expected a positive max_rows", [versions[0].path, "--max-rows", "0"]),
        ("expected max_rows of at most 16384", [versions[0].path, "--max-rows", "20000"]),
        ("unknown --log-level", [versions[0].path, "--log-level", "loud"]),
    ):
        monkeypatch.setattr(sys, "argv", ["muxrec", "serve", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"muxrec: {message}")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err.splitlines() == [
        "muxrec: serve needs the server packages; found no starlette; pip install '.[server]'"
    ]


def test_what_the_machine_refuses_is_one_line(serve: Any, versions: list[Bundle]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        cases = {
            "MUXREC_SERVE_TOKEN: expected 8": serve(versions[0].path, environment={"MUXREC_SERVE_TOKEN": "short"}),
            f"cannot listen on 127.0.0.1 port {number}; found ": serve(versions[0].path, "--port", number),
        }
        for message, server in cases.items():
            assert server.wait() == 2, server.lines
            assert server.lines == [server.lines[0]]
            assert server.lines[0].startswith(f"muxrec: {message}")


def test_who_sends_too_much_is_answered(serve: Any, versions: list[Bundle]) -> None:
    server = serve(versions[0].path, "--max-body", 100_000).start()
    connection = server.connect()
    for num_bytes, status in ((100_001, 413), (700_000, 413), (99_000, 400)):
        connection.request("POST", "/score", b" " * num_bytes, HEADERS)
        answer = connection.getresponse()
        assert (answer.status, list(json.loads(answer.read()))) == (status, ["error"])
    connection.close()
    with contextlib.suppress(OSError):  # cut off while it sends
        connection.request("POST", "/score", b" " * 50_000_000, HEADERS)
        with connection.getresponse() as answer:
            assert answer.status == 413
    connection.close()
    assert server.get("/v2/health/ready")[0] == 200


def test_an_answer_does_not_wait_for_an_acknowledgement(serve: Any, versions: list[Bundle]) -> None:
    """Head and body of an answer are two packets; with Nagle's algorithm the second waits 40 ms for the client."""
    server = serve(versions[0].path).start()
    connection, seconds = server.connect(), []
    for _ in range(20):
        begun = time.perf_counter()
        connection.request("POST", "/score", BODY, HEADERS)
        assert connection.getresponse().read()
        seconds.append(time.perf_counter() - begun)
    connection.close()
    assert min(seconds[2:]) < 0.035


def test_idle_and_broken_connections_do_no_harm(serve: Any, versions: list[Bundle]) -> None:
    server = serve(versions[0].path, "--timeout", "1").start()
    idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(50)]
    for junk in (
        b"\x16\x03\x01\x02",
        b"GET /v2 HTTP/1.1\r\n" + b"x: " + b"y" * 100_000,
        b"POST /score HTTP/1.1\r\n\r\n",
        b"\r\n" * 99,
    ):
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(junk)
    assert server.get("/v2/health/ready")[0] == 200
    for connection in idle:
        connection.close()
    load = Load(server, scores_of(versions[:1]), num_clients=2)
    while sum(load.seen.values()) < 10 and not load.wrong:
        time.sleep(0.01)
    load.stop()
    assert load.wrong == []
