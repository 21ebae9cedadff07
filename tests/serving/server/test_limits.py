"""Limits of a request: bytes, rows, time and concurrency; every slot that is taken is freed."""

import asyncio
import dataclasses
import json
import re
import threading
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import Any, TypeVar

import httpx
import pytest

from features.errors import InputError
from serving.bundle import Bundle
from serving.scorer import Scorer
from serving.server.limits import Limits, RefusedError, Workers, read_body
from tests.serving.server.app import FORMS, JSON, NAME, Served

T = TypeVar("T")
SCORE = {"content": b'{"rows": [{}]}', "headers": JSON}
SMALL = Limits(max_body_bytes=1000, max_rows=5, max_concurrent=3, num_workers=2, timeout_seconds=0.5)


@pytest.fixture
def served(bundle: Bundle) -> Iterator[Served]:
    one = Served(bundle.path, limits=SMALL).start()
    yield one
    one.app.close()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Scoring that waits until the event is set."""
    event, encode = threading.Event(), Scorer.encode

    def wait(self: Scorer, *arguments: Any, **settings: Any) -> Any:
        event.wait(30)
        return encode(self, *arguments, **settings)

    monkeypatch.setattr(Scorer, "encode", wait)
    yield event
    event.set()


def http(served: Served) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(served.app), base_url="http://server")


async def settled(served: Served) -> None:
    """Wait until nothing runs: as many new requests as there are places are taken in."""
    for _ in range(200):
        async with http(served) as client:
            answers = await asyncio.gather(*(client.post("/score", **SCORE) for _ in range(SMALL.max_concurrent)))
        if [answer.status_code for answer in answers] == [200] * SMALL.max_concurrent:
            return
        await asyncio.sleep(0.02)
    pytest.fail("places were lost")


async def slots_free(served: Served) -> None:
    """Wait until every slot is free: a request is counted after its answer, and holds its slot until then."""
    for _ in range(200):
        if served.app._workers._slots._value == SMALL.max_concurrent:
            return
        await asyncio.sleep(0.02)
    pytest.fail("slots were lost")


@pytest.mark.parametrize("name", sorted(field.name for field in dataclasses.fields(Limits)))
def test_limits_are_positive(name: str) -> None:
    with pytest.raises(InputError, match=f"expected a positive {name}; found 0"):
        Limits(**{name: 0})


def test_a_chunk_of_the_scorer_is_the_largest_request() -> None:
    with pytest.raises(InputError, match="expected max_rows of at most"):
        Limits(max_rows=10**6)


# --- bytes and rows ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", FORMS)
def test_a_body_has_a_largest_size(served: Served, path: str) -> None:
    for num_bytes, is_closed in ((1001, False), (8000, False), (8001, True), (10**30, True)):
        headers = JSON | {"Content-Length": str(num_bytes)}
        answer = served.client().post(path, content=b" " * min(num_bytes, 9000), headers=headers)
        assert answer.status_code == 413
        assert answer.headers.get("connection") == ("close" if is_closed else None)
        assert re.match(r"expected a body of at most 1000 bytes; found \d+; send fewer rows", answer.json()["error"])
    assert served.client().post(path, content=b"{}".ljust(1000), headers=JSON).status_code == 400


def test_a_body_without_a_length_is_read_no_further_than_allowed(served: Served) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 1
            yield b"x" * 100

    async def send() -> httpx.Response:
        async with http(served) as client:
            return await client.post("/score", content=endless(), headers=JSON)

    answer = asyncio.run(send())
    assert (answer.status_code, answer.headers["connection"]) == (413, "close")
    assert "found 8100 and more" in answer.json()["error"]
    assert sent == 81


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/score", {"rows": [{}] * 6}),
        ("/score", {"context": {}, "candidates": [{}] * 6}),
        ("/invocations", {"instances": [{}] * 6}),
        ("/invocations", {"inputs": {"user": [1] * 6}}),
        ("/invocations", {"dataframe_split": {"columns": ["user"], "data": [[1]] * 6}}),
        (f"/v2/models/{NAME}/infer", {"inputs": [{"name": "user", "datatype": "INT8", "shape": [6], "data": [1] * 6}]}),
    ],
)
def test_a_request_has_a_largest_number_of_rows(served: Served, path: str, body: Any) -> None:
    answer = served.client().post(path, json=body)
    assert answer.status_code == 413, answer.text
    assert answer.json()["error"].startswith("expected at most 5 rows per request; found ")


def test_rows_that_need_no_data_take_no_memory(served: Served) -> None:
    body = {"inputs": [{"name": "words", "datatype": "BYTES", "shape": [2**23, 0], "data": []}]}
    answer, peak = traced(lambda: served.client().post(f"/v2/models/{NAME}/infer", json=body))
    assert answer.status_code == 413
    assert peak < 2**22


def test_no_more_of_a_body_is_kept_than_allowed() -> None:
    messages = [{"type": "http.request", "body": bytes(100_000), "more_body": k < 70} for k in range(71)]
    left = iter(messages)

    async def receive() -> dict[str, Any]:
        return next(left)

    def read() -> None:
        with pytest.raises(RefusedError, match="found 7100000"):
            asyncio.run(read_body(receive, None, Limits(max_body_bytes=1_000_000)))

    assert traced(read)[1] < 2_500_000


def traced(call: Callable[[], T]) -> tuple[T, int]:
    """The result of a call, and its peak of bytes."""
    tracemalloc.start()
    try:
        return call(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_csv_has_a_largest_number_of_rows(served: Served) -> None:
    answer = served.client().post("/invocations", content=b"user\n" + b"7\n" * 6, headers={"Content-Type": "text/csv"})
    assert answer.status_code == 413


def test_csv_has_a_largest_number_of_columns(bundle: Bundle) -> None:
    served = Served(bundle.path, limits=Limits(max_columns=3)).start()
    csv = {"Content-Type": "text/csv"}
    for header in (b"user,b,c,d", b"\n\nuser,b,c,d", b'user,"b\n",c,d', b'user,"b,\n""\n",c,d', b'"user,b,c,d'):
        answer = served.client().post("/invocations", content=header + b"\n", headers=csv)
        assert answer.status_code == 413, header
        assert answer.json()["error"].startswith("expected at most 3 columns; found 4; leave out columns")
    for header in (b"user,b,c", b'user,"b\n",c', b'user,"b""\n",c'):
        answer = served.client().post("/invocations", content=header + b"\n7,,\n", headers=csv)
        assert answer.status_code == 200, answer.text


def test_a_list_has_a_largest_number_of_values(bundle: Bundle) -> None:
    served = Served(bundle.path, limits=Limits(max_list_values=3)).start()
    for path, rows in (("words", ["a"] * 4), ("genres", "a|b|c|d")):
        assert served.client().post("/score", json={"rows": [{}, {path: rows[:3]}]}).status_code == 200
        answer = served.client().post("/score", json={"rows": [{}, {path: rows}]})
        assert answer.status_code == 400
        assert f"column {path!r}: expected at most 3 values per list; found 4 in row 2" in answer.json()["error"]


# --- time and company -------------------------------------------------------------------------------------------------


def test_more_requests_than_places_are_sent_away_and_the_loop_stays_free(served: Served, gate: threading.Event) -> None:
    async def run() -> None:
        async with http(served) as client:
            held = [asyncio.create_task(client.post("/score", **SCORE)) for _ in range(3)]
            await asyncio.sleep(0.1)
            begun = time.monotonic()
            answer = await client.post("/score", **SCORE)
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            assert answer.json()["error"].startswith("expected at most 3 requests at a time; found one more; try again")
            assert (await client.get("/v2/health/live")).status_code == 200
            assert time.monotonic() - begun < 0.3
            gate.set()
            assert [(await one).status_code for one in held] == [200] * 3
        await settled(served)

    asyncio.run(run())


def test_a_late_answer_is_an_error_and_its_place_is_held_until_the_work_ends(
    served: Served, gate: threading.Event
) -> None:
    async def run() -> None:
        async with http(served) as client:
            late = await asyncio.gather(*(client.post("/score", **SCORE) for _ in range(3)))
            assert [one.status_code for one in late] == [503] * 3
            assert late[0].json()["error"].startswith("expected an answer within 0.5 s; found a busy server; try again")
            # Two of the three still run; the third was waiting for a worker and has been dropped.
            left = await asyncio.gather(*(client.post("/score", **SCORE) for _ in range(2)))
            errors = sorted(one.json()["error"].split()[1] for one in left)
            assert errors == ["an", "at"], "expected an answer within ..., expected at most ..."
            gate.set()
        await settled(served)

    asyncio.run(run())


def test_a_slow_body_is_not_waited_for(served: Served) -> None:
    async def slow() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(5)
        yield b"}"

    async def run() -> None:
        async with http(served) as client:
            answer = await client.post("/score", content=slow(), headers=JSON)
            assert (answer.status_code, answer.headers["connection"]) == (408, "close")
            assert "found a body that had not arrived" in answer.json()["error"]
        await settled(served)

    asyncio.run(run())


def test_slow_bodies_take_no_place_and_hold_what_they_have_sent(served: Served) -> None:
    """Three places, and room for three of the largest bodies: 3,000 bytes."""
    stop = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b" " * 900
        await stop.wait()
        yield b'{"rows": [{}]}'

    async def run() -> None:
        async with http(served) as client:
            waiting = [asyncio.create_task(client.post("/score", content=slow(), headers=JSON)) for _ in range(3)]
            await asyncio.sleep(0.1)
            assert (await client.post("/score", **SCORE)).status_code == 200
            answer = await client.post("/score", content=b" " * 900, headers=JSON)
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            assert answer.json()["error"] == "expected fewer bytes of requests at a time; try again, or add a server"
            await slots_free(served)
            stop.set()
            assert [(await one).status_code for one in waiting] == [200] * 3
            assert (await client.post("/score", content=b" " * 900, headers=JSON)).status_code == 400
        await settled(served)

    asyncio.run(run())


def test_a_client_that_leaves_gives_its_place_back(served: Served) -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        pytest.fail(f"sent {message} to nobody")

    scope = {"type": "http", "method": "POST", "path": "/score", "headers": [(b"content-type", b"application/json")]}
    scope |= {"query_string": b"", "client": ("127.0.0.1", 1), "raw_path": b"/score", "root_path": ""}

    async def run() -> None:
        for _ in range(10):
            await served.app(dict(scope), receive, send)
        await settled(served)

    asyncio.run(run())
    assert (
        b'muxrec_request_failures_total{endpoint="score",model="clicks",reason="disconnected"' in served.metrics.text()
    )


def test_an_error_of_ours_is_answered_without_its_details(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(self: Scorer, *arguments: Any, **settings: Any) -> Any:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(Scorer, "encode", fail)
    answer = served.client().post("/score", **SCORE | {"headers": JSON | {"X-Request-Id": "r-1"}})
    assert answer.status_code == 500
    assert answer.json() == {"error": "an error of the server; look for request r-1 in the server's log"}
    (record,) = [one for one in caplog.records if one.message == "internal_error"]
    assert record.exc_info is not None
    assert "secret detail" in str(record.exc_info[1])
    monkeypatch.undo()
    asyncio.run(settled(served))


def test_a_panic_of_a_library_is_an_error_like_another(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    class Panic(BaseException):
        """As polars raises them: no `Exception`."""

    def fail(self: Scorer, *arguments: Any, **settings: Any) -> Any:
        raise Panic

    monkeypatch.setattr(Scorer, "encode", fail)
    assert served.client().post("/score", **SCORE).status_code == 500
    monkeypatch.undo()
    asyncio.run(settled(served))


def test_places_are_counted_under_threads() -> None:
    workers = Workers(Limits(max_concurrent=4, num_workers=2))
    ends = [threading.Event() for _ in range(5)]

    def work(end: threading.Event) -> tuple[bool, Callable[[], None]]:
        return end.wait(10), lambda: None

    async def run() -> None:
        running = [asyncio.create_task(workers.run(partial(work, end))) for end in ends[:4]]
        await asyncio.sleep(0)  # they start
        for _ in range(2):
            with pytest.raises(RefusedError):
                workers.check_free()
        with pytest.raises(RefusedError):
            await workers.run(partial(work, ends[4]))
        ends[0].set()
        assert await running[0]
        await asyncio.sleep(0.1)  # its slot is free once its counting is done
        workers.check_free()
        running.append(asyncio.create_task(workers.run(partial(work, ends[4]))))
        await asyncio.sleep(0)
        with pytest.raises(RefusedError):
            workers.check_free()
        for end in ends:
            end.set()
        assert await asyncio.gather(*running) == [True] * 5

    asyncio.run(run())
    workers.close()


def test_many_requests_at_once_score_as_they_do_alone(bundle: Bundle) -> None:
    served = Served(bundle.path, limits=Limits(num_workers=4)).start()
    bodies = [{"rows": [{"user": k, "price": k / 3, "words": ["w1"] * (k % 4)}] * (1 + k % 7)} for k in range(60)]
    alone = [served.client().post("/score", json=body).json() for body in bodies]

    async def run() -> list[Any]:
        async with http(served) as client:
            return [one.json() for one in await asyncio.gather(*(client.post("/score", json=body) for body in bodies))]

    assert asyncio.run(run()) == alone
    assert len({json.dumps(one) for one in alone}) > 30


def test_a_token_is_asked_for_everywhere_but_by_probes(bundle: Bundle) -> None:
    client = Served(bundle.path, token="correct horse").start().client()
    for path in ("/v2/health/live", "/v2/health/ready", "/ping", "/health"):
        assert client.get(path).status_code == 200
    for path in ("/v2", "/metrics", "/docs", "/openapi.json", f"/v2/models/{NAME}", "/nothing", "/version"):
        for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "correct horse"}):
            answer = client.get(path, headers=header)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    good = {"Authorization": "Bearer correct horse"}
    assert client.get("/v2", headers=good).status_code == 200
    assert client.post("/score", json={"rows": [{}]}).status_code == 401
    assert client.post("/score", json={"rows": [{}]}, headers=good).status_code == 200
    assert client.post(f"/v2/repository/models/{NAME}/load").status_code == 401
    elsewhere = Served(bundle.path, token="correct horse").start().client("10.0.0.9")
    assert elsewhere.post(f"/v2/repository/models/{NAME}/load", headers=good).json()["outcome"] == "unchanged"
