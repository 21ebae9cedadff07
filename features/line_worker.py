"""Worker processes that receive requests and send answers as lines of JSON.

`LineWorker` is the asking side. The worker is a separate module, started by `python -P -m`, whose `main` calls
`LineServer().run(function)`. A worker ends when its standard input does, even in the middle of its work, so it never
outlives its parent, even one that was killed.
"""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Self

from features.errors import InputError

STOP_SECONDS = 30.0
"""Time that a worker has to end by itself once its input has ended."""


class WorkerError(Exception):
    """A worker ended before it answered.

    >>> str(WorkerError(-9)), str(WorkerError(1, "MemoryError"))
    ('ended by signal 9 (SIGKILL)', 'ended with exit code 1; MemoryError')
    """

    def __init__(self, code: int, last_line: str = "") -> None:
        self.last_line = last_line[:200]
        """Last line of its standard error; empty if that is not captured."""
        self.signal_name = signal.Signals(-code).name if code < 0 else None
        ending = f"by signal {-code} ({self.signal_name})" if code < 0 else f"with exit code {code}"
        super().__init__(f"ended {ending}" + (f"; {self.last_line}" if last_line else ""))


class LineWorker:
    """A worker process, as a context that ends it. It imports from where this process does, and inherits `pass_fds`."""

    def __init__(
        self,
        module: str,
        *arguments: str,
        log: IO[str] | None = None,
        environment: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
    ) -> None:
        """`log`: open file for its standard error, closed with the worker; None: our own standard error."""
        paths = os.pathsep.join(str(Path(path).absolute()) for path in sys.path)
        self._log = log
        self._process = subprocess.Popen(
            # -P: the files in the working directory are data, not code.
            [sys.executable, "-P", "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            encoding="utf-8",
            env={**os.environ, **(environment or {}), "PYTHONPATH": paths},
            pass_fds=pass_fds if os.name == "posix" else (),
            start_new_session=True,  # Ctrl-C is for this process, which ends its workers
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input, self._output = self._process.stdin, self._process.stdout

    def ask(self, request: Any, reply: Callable[[Any], Any] | None = None) -> Any:
        """The answer to a request; `reply` answers what the worker asks back meanwhile (`LineServer.ask`).

        Raises the `InputError` that the worker raised, and `WorkerError` if it ended instead of answering.
        """
        self._send(request)
        for line in self._output:
            message = json.loads(line)
            if "question" not in message:
                return unpack(message)
            assert reply is not None
            self._send(reply(message["question"]))
        raise WorkerError(self._wait(), self._last_line())

    def stop(self) -> None:
        """Let the worker end, even in the middle of its work, without waiting for it."""
        with contextlib.suppress(BrokenPipeError):
            self._input.close()

    def kill(self) -> None:
        """End the worker at once."""
        self._process.kill()

    def close(self) -> None:
        """Stop the worker, kill it if it does not end by itself, and free its pipes."""
        self.stop()
        self._wait()
        self._output.close()
        if self._log:
            self._log.close()

    def _send(self, message: Any) -> None:
        with contextlib.suppress(BrokenPipeError, ValueError):  # it has ended, which the end of its output says next
            self._input.write(json.dumps(message, default=str) + "\n")
            self._input.flush()

    def _wait(self) -> int:
        try:
            return self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def _last_line(self) -> str:
        if self._log is None:
            return ""
        self._log.seek(0)
        return next(iter(reversed(self._log.read().splitlines())), "")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def ask_once(module: str, request: Any) -> Any:
    """The answer of a worker that is started for one request; raises like `LineWorker.ask`."""
    with LineWorker(module, log=scratch_log()) as worker:
        return worker.ask(request)


def scratch_log() -> IO[str]:
    """A temporary file for a worker's standard error; a pipe that is not read would block the worker once full."""
    return tempfile.TemporaryFile(mode="w+", encoding="utf-8", errors="replace")


class LineServer:
    """The worker's end of the conversation. `stop` is called when the input ends in the middle of a request."""

    def __init__(self, stop: Callable[[], object] = lambda: os._exit(1)) -> None:
        # Libraries print to standard output, from C too. That goes to standard error, so only answers are left here.
        self._output = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        self._stop = stop
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._is_busy = False
        threading.Thread(target=self._listen, daemon=True).start()

    def run(self, function: Callable[[Any], Any]) -> None:
        """Answer each request by `function` of it until there are no more."""
        try:
            while (line := self._lines.get()) is not None:
                message = pack(function, json.loads(line))
                self._is_busy = False
                self._send(message)
        except (KeyboardInterrupt, BrokenPipeError):
            os._exit(1)  # the parent is gone, and nothing at exit may wait for it

    def ask(self, question: Any) -> Any:
        """The parent's reply to a question, in the middle of a request; raises `KeyboardInterrupt` if it is gone."""
        self._send({"question": question})
        if (line := self._lines.get()) is None:
            raise KeyboardInterrupt
        return json.loads(line)

    def _send(self, message: Mapping[str, Any]) -> None:
        self._output.write(json.dumps(message, default=str) + "\n")
        self._output.flush()

    def _listen(self) -> None:
        for line in sys.stdin:
            self._is_busy = True
            self._lines.put(line)
        if self._is_busy:
            self._stop()
        self._lines.put(None)


def pack(function: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
    """The result of a function, or the `InputError` that it raises, in a form that another process can read.

    >>> unpack(pack(max, 3, 5))
    5
    """
    try:
        return {"answer": function(*arguments)}
    except InputError as error:
        return {"error": {"expected": error.expected, "found": error.found, "remedy": error.remedy}}


def unpack(message: Mapping[str, Any]) -> Any:
    """The answer that `pack` packed; raises the `InputError` that it caught."""
    if "error" in message:
        raise InputError(**message["error"])
    return message["answer"]
