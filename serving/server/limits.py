"""Bounds on the cost of requests, and the errors for requests that exceed them or cannot be served."""

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar

from features.errors import InputError
from serving.scorer import CHUNK_ROWS, Encoded

Reason = Literal[
    "invalid",
    "unauthorised",
    "not_found",
    "too_large",
    "overloaded",
    "timeout",
    "not_ready",
    "disconnected",
    "internal",
]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
T = TypeVar("T")

READ_ANYWAY_FACTOR = 8
"""A body of up to this many times the largest size is read to its end before it is refused."""

CLOSE = {"Connection": "close"}
_SEVERAL_REQUESTS = "send several requests, or use `muxrec score` for files"


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of one server; raises `InputError` unless all are positive."""

    max_body_bytes: int = 2**22
    """A body is parsed in one piece while other requests wait for the interpreter: about 20 ms for 4 MB."""
    max_rows: int = 10_000
    """Rows, or candidates, of a request."""
    max_columns: int = 4096
    """Columns of a csv: each takes memory to read, and only a few bytes of header to send."""
    max_list_values: int = 10_000
    """Values in one list; the scorer takes one step per value."""
    timeout_seconds: float = 10.0
    """Limit from the first byte of a request to its answer."""
    max_concurrent: int = 64
    """Scoring requests that wait or run at a time; as many bodies of the largest size fit in memory."""
    num_workers: int = 2
    """Requests that are scored at a time."""

    def __post_init__(self) -> None:
        if self.max_rows > CHUNK_ROWS:
            expected = f"expected max_rows of at most {CHUNK_ROWS}"
            raise InputError(expected, found=str(self.max_rows), remedy=_SEVERAL_REQUESTS)
        for field in fields(self):
            if not getattr(self, field.name) > 0:
                found = str(getattr(self, field.name))
                raise InputError(f"expected a positive {field.name}", found=found, remedy="choose another number")

    def check_num_rows(self, found: int) -> None:
        """Raise `RefusedError` for too many rows."""
        if found > self.max_rows:
            expected = f"expected at most {self.max_rows} rows per request"
            raise RefusedError(413, "too_large", expected, found=str(found), remedy=_SEVERAL_REQUESTS)

    def check_num_columns(self, found: int) -> None:
        """Raise `RefusedError` for a csv of too many columns."""
        if found > self.max_columns:
            expected, remedy = f"expected at most {self.max_columns} columns", "leave out columns that are not features"
            raise RefusedError(413, "too_large", expected, found=str(found), remedy=remedy)


class RefusedError(Exception):
    """A request that is answered with an error: what was expected, what was found, and the remedy.

    >>> RefusedError(503, "overloaded", "expected fewer requests").headers
    {'Retry-After': '1'}
    """

    def __init__(
        self,
        status: int,
        reason: Reason,
        expected: str,
        *,
        found: str | None = None,
        remedy: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(" ".join(str(InputError(expected, found=found, remedy=remedy)).split()))
        self.status = status
        self.reason: Reason = reason
        self.headers = dict(headers or {}) | ({"Retry-After": "1"} if status == 503 else {})


class Bodies:
    """Counts the bytes of all bodies in memory. A slow client holds only the bytes that it has sent."""

    def __init__(self, limits: Limits) -> None:
        self._left = limits.max_concurrent * limits.max_body_bytes

    @contextmanager
    def held(self) -> Iterator[Callable[[int], None]]:
        """A function that reserves bytes for one request, and raises `RefusedError` if there is no room.

        The bytes are released at the end of the context.
        """
        held = 0

        def hold(num_bytes: int) -> None:
            nonlocal held
            if num_bytes > self._left:
                expected, remedy = "expected fewer bytes of requests at a time", "try again, or add a server"
                raise RefusedError(503, "overloaded", expected, remedy=remedy, headers=CLOSE)
            self._left -= num_bytes
            held += num_bytes

        try:
            yield hold
        finally:
            self._left += held


async def read_body(
    receive: Receive, content_length: str | None, limits: Limits, hold: Callable[[int], None] = lambda num_bytes: None
) -> bytes:
    """Body of a request, of which at most `max_body_bytes` are kept; raises `RefusedError` if it is larger.

    A body that is somewhat too large is still read to its end: a client that is cut off while sending sees a broken
    connection instead of the answer.
    """
    max_read = READ_ANYWAY_FACTOR * limits.max_body_bytes
    if content_length is not None and content_length.isdecimal() and int(content_length[:20]) > max_read:
        raise _too_large(content_length[:20], limits, is_read=False)
    body, found = bytearray(), 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionAbortedError
        part = message.get("body", b"")
        found += len(part)
        if found <= limits.max_body_bytes:
            hold(len(part))
            body += part
        is_read = not message.get("more_body", False)
        if found > max_read or (is_read and found > limits.max_body_bytes):
            raise _too_large(str(found) + ("" if is_read else " and more"), limits, is_read=is_read)
        if is_read:
            return bytes(body)


def _too_large(found: str, limits: Limits, *, is_read: bool) -> RefusedError:
    remedy = "send fewer rows per request, or raise --max-body"
    expected = f"expected a body of at most {limits.max_body_bytes} bytes"
    return RefusedError(413, "too_large", expected, found=found, remedy=remedy, headers={} if is_read else CLOSE)


def check_lists(encoded: Encoded, limits: Limits) -> None:
    """Raise `InputError` for a list of too many values."""
    for batch in (encoded.examples, encoded.context):
        for name, lengths in batch.lengths.items() if batch is not None else ():
            found = int(lengths.max(initial=0))
            if found > limits.max_list_values:
                row = int(lengths.argmax()) if batch is encoded.examples else None
                expected = f"column {name!r}: expected at most {limits.max_list_values} values per list"
                raise InputError(expected, found=str(found), remedy="send the latest ones", row=row)


class Workers:
    """Threads that score, with a bounded number of slots for requests that run or wait.

    A request holds its slot from its body's last byte until its work ends, even if its client has left or was told that
    it timed out. So clients cannot make the work in progress exceed its bound.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._slots = threading.BoundedSemaphore(limits.max_concurrent)
        self._pool = ThreadPoolExecutor(limits.num_workers, thread_name_prefix="scorer")

    def check_free(self) -> None:
        """Raise `RefusedError` if all slots are taken."""
        self._acquire()
        self._slots.release()

    def close(self) -> None:
        """Wait for running work, and start no more."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    async def run(self, work: Callable[[], tuple[T, Callable[[], None]]]) -> T:
        """Run `work` in a worker; returns its result, after which the worker calls the function returned with it.

        So the caller has the answer before it is counted. Work that has not started when the caller is cancelled is
        dropped. Raises `RefusedError` if all slots are taken.
        """
        self._acquire()
        answer: Future[T] = Future()

        def job() -> None:
            if not answer.set_running_or_notify_cancel():
                return
            try:
                result, afterwards = work()
            except Exception as error:
                answer.set_exception(error)
            except BaseException as error:  # polars' panics are no `Exception`
                panic = RuntimeError(f"{type(error).__name__}: {error}")
                panic.__cause__ = error
                answer.set_exception(panic)
            else:
                answer.set_result(result)
                afterwards()

        running = self._pool.submit(job)
        running.add_done_callback(lambda _: self._slots.release())
        try:
            return await asyncio.wrap_future(answer)
        except asyncio.CancelledError:
            running.cancel()
            raise

    def _acquire(self) -> None:
        if not self._slots.acquire(blocking=False):
            expected = f"expected at most {self._limits.max_concurrent} requests at a time"
            raise RefusedError(503, "overloaded", expected, found="one more", remedy="try again, or add a server")
