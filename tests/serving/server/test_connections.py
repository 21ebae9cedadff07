"""Connections of a server process that send nothing, too little or nonsense, and other clients meanwhile."""

import contextlib
import http.client
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serving.bundle import Bundle
from tests.serving.server.process import BODY, HEADERS, START, Load, Server, scores_of

pytestmark = pytest.mark.slow

# Four connections at a time instead of 900.
FEW_START = (
    """
import serving.server.run as run
run.MAX_CONNECTIONS = 4
"""
    + START
)
# And a request of seven rows takes until a file is there.
GATED_AND_FEW_START = (
    """
import os, time
from pathlib import Path
from serving.scorer import Scorer
encode = Scorer.encode
def slowly(self, rows, *arguments, **settings):
    while len(rows) == 7 and not Path(os.environ["GATE"]).exists():
        time.sleep(0.01)
    return encode(self, rows, *arguments, **settings)
Scorer.encode = slowly
"""
    + FEW_START
)
# 128 connections, for a process may not have more than 256 files open.
FEW_FILES_START = (
    """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
"""
    + START
)
HALF_A_BODY = (
    b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 5000\r\n\r\n" + b'{"rows"'
)
PROBES = ("/ping", "/health", "/v2/health/live", "/v2/health/ready")


@contextlib.contextmanager
def connections(server: Server, count: int, data: bytes = b"") -> Iterator[list[socket.socket]]:
    """Connections that send something, and then nothing more."""
    with contextlib.ExitStack() as stack:
        made = []
        for _ in range(count):
            made.append(stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=30)))
            made[-1].sendall(data)
        yield made


def check_served(server: Server) -> None:
    """Probes and scoring are answered."""
    assert [server.get(path)[0] for path in PROBES] == [200] * 4
    connection = server.connect()
    connection.request("POST", "/score", BODY, HEADERS)
    assert connection.getresponse().status == 200
    connection.close()


def test_silent_connections_are_closed(serve: Any, versions: list[Bundle]) -> None:
    server = serve(versions[0].path, "--timeout", "1").start()
    silent = [socket.create_connection(("127.0.0.1", server.port), timeout=10) for _ in range(3)]
    silent[1].sendall(b"GET /v2 HTTP/1.1\r\nHost")
    begun = time.monotonic()
    while time.monotonic() < begun + 0.6:
        silent[2].sendall(b"G")  # never the whole of a head
        time.sleep(0.2)
    for connection in silent:
        with connection, contextlib.suppress(ConnectionResetError):  # a socket's own timeout is another error
            while connection.recv(65536):
                pass
    assert time.monotonic() - begun < 5
    assert server.get("/v2/health/ready")[0] == 200


def test_slow_clients_keep_no_one_out(serve: Any, versions: list[Bundle]) -> None:
    """More half heads and half bodies than requests may run at a time."""
    server = serve(versions[0].path).start()
    with connections(server, 70, HALF_A_BODY), connections(server, 70, HALF_A_BODY[:40]):
        check_served(server)


@pytest.mark.parametrize(
    "data", [b"", b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n", HALF_A_BODY], ids=["idle", "kept", "slow"]
)
def test_more_connections_than_files_keep_no_one_out(serve: Any, versions: list[Bundle], data: bytes) -> None:
    server = serve(versions[0].path, "--timeout", "60", start=FEW_FILES_START).start()
    with connections(server, 300, data) as made:
        check_served(server)
        made[0].settimeout(10)
        with contextlib.suppress(ConnectionResetError):
            while made[0].recv(65536):
                pass  # closed: it has waited longest


def test_room_is_made_by_who_waits_and_not_by_who_is_served(serve: Any, versions: list[Bundle], tmp_path: Path) -> None:
    environment = {"GATE": str(tmp_path / "gate")}
    server = serve(versions[0].path, start=GATED_AND_FEW_START, environment=environment).start()
    served = server.connect()
    served.request("POST", "/score", json.dumps({"rows": [{}] * 7}), HEADERS)
    while b"muxrec_requests_in_flight 2.0" not in server.get("/metrics")[1]:
        time.sleep(0.01)
    with connections(server, 20):
        assert server.get("/ping")[0] == 200
        (tmp_path / "gate").touch()
        answer = served.getresponse()
        assert (answer.status, len(json.loads(answer.read())["scores"])) == (200, 7)
    served.close()


@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_a_request_that_says_its_length_twice_ends_the_connection(
    serve: Any, versions: list[Bundle], version: str
) -> None:
    server = serve(versions[0].path).start()
    length = "Content-Length: 4\r\n" if version == "1.1" else ""
    head = f"POST /score HTTP/{version}\r\nHost: x\r\nContent-Type: application/json\r\n{length}"
    chunked = 'Transfer-Encoding: chunked\r\n\r\nd\r\n{"rows":[{}]}\r\n0\r\n\r\n'
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall((head + chunked + "GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n").encode())
        answers = b""
        while part := connection.recv(65536):
            answers += part
    assert answers.count(b"HTTP/1.1 ") == 1, "what follows is not taken for a request"
    assert answers.startswith(b"HTTP/1.1 400 ")
    assert b"expected Content-Length or Transfer-Encoding; found Transfer-Encoding" in answers


def test_a_connection_that_was_answered_may_be_idle_for_longer(serve: Any, versions: list[Bundle]) -> None:
    server = serve(versions[0].path, "--timeout", "0.5").start()
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:

        def ask(head: bytes, body: bytes = b"") -> int:
            connection.sendall(head)
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            answer.read()
            connection.sendall(body)
            return answer.status

        get = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"
        unread = b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n"
        for head, body, status in ((get, b"", 200), (unread, b"body", 404), (get, b"", 200)):
            assert ask(head, body) == status
            time.sleep(1)
        connection.sendall(get[:-4])
        begun = time.monotonic()
        assert connection.recv(1) == b""
        assert time.monotonic() - begun < 3


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
