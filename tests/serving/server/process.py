"""`muxrec serve` as a process: its log lines, requests to it, and clients that keep it busy."""

import http.client
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from serving.bundle import Bundle
from serving.scorer import Scorer

ROOT = Path(__file__).parents[3]
HEAVY = ("torch", "torchrec", "fbgemm_gpu", "pandas", "mlflow", "pyarrow", "matplotlib", "sklearn", "scipy")
START = """
import sys
from experiments.__main__ import main
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
from experiments.__main__ import main
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
    """Clients that post over connections that they keep, until they are told to stop; every fault is kept."""

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


def scores_of(versions: list[Bundle]) -> dict[str, list[float]]:
    return {
        bundle.model_id: Scorer(bundle, num_threads=1).score(ROWS, allow_missing=True).tolist() for bundle in versions
    }
