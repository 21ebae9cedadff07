"""`muxrec serve` as a process: a rolling switch under load, the end on SIGTERM, and how it fails to start.

    SWITCHES=100 pytest -s tests/serving/server/test_process.py -k rolling

switches so often, between refused bundles, and says how many requests were answered; four times is the default.
"""

import contextlib
import http.client
import importlib.util
import json
import os
import shutil
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from experiments.__main__ import main
from serving.bundle import Bundle
from tests.serving.server.process import BODY, HEADERS, HEAVY, START, Load, scores_of

pytestmark = pytest.mark.slow

SWITCHES = int(os.environ.get("SWITCHES", "4"))


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
        *(
            ("expected a served name that a URL can hold; found ", [versions[0].path, "--name", name])
            for name in ("", "a/b", ".", "..", "a\nb", "a\x7f", "\udce9")
        ),
        ("expected a served name that a URL can hold; found ''", ["/"]),
        ("expected a served name that a URL can hold; found '..'", [".."]),
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
