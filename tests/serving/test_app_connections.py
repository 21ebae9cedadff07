"""Connections of a server process that send nothing, too little or nonsense, and whoever else wants to be served."""

import contextlib
import http.client
import socket
import time
from typing import Any

import pytest

from serving.bundle import Bundle
from tests.serving.process import START, Load, scores_of

pytestmark = pytest.mark.slow

# Four connections at a time instead of 900.
FEW_START = (
    """
import serving.server.run as run
run.MAX_CONNECTIONS = 4
"""
    + START
)


def test_silent_connections_are_closed_and_shut_nobody_out(serve: Any, versions: list[Bundle]) -> None:
    server = serve(versions[0].path, "--timeout", "1", start=FEW_START).start()
    silent = [socket.create_connection(("127.0.0.1", server.port), timeout=10) for _ in range(4)]
    silent[1].sendall(b"GET /v2 HTTP/1.1\r\nHost")
    silent[2].sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
    assert silent[2].recv(65536).startswith(b"HTTP/1.1 503"), "all places are taken"
    begun = time.monotonic()
    while time.monotonic() < begun + 0.6:
        silent[3].sendall(b"G")  # never the whole of a head
        time.sleep(0.2)
    for connection in silent:
        with connection, contextlib.suppress(ConnectionResetError):  # a socket's own timeout is another error
            while connection.recv(65536):
                pass
    assert time.monotonic() - begun < 5
    assert server.get("/v2/health/ready")[0] == 200


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
