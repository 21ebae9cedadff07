"""WorkerProcess: the sweep's end of the conversation with a process that trains trials (recsys.sweep.worker)."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

STOP_SECONDS = 30.0
"""Time that a process has to end by itself."""


class WorkerError(Exception):
    """The process ended in the middle of a trial; says how, and its last line."""


class WorkerProcess:
    """A training process; it ends when its input does, so also where this process is killed."""

    def __init__(self, log: Path, num_threads: int, lock: int) -> None:
        """`lock` is a descriptor that the process holds as long as it lives."""
        self.log = log
        threads = dict.fromkeys(("OMP_NUM_THREADS", "POLARS_MAX_THREADS"), str(num_threads))
        with log.open("a", encoding="utf-8") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "recsys.sweep.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**threads, **os.environ},
                pass_fds=(lock,),
                start_new_session=True,  # an interrupt from the keyboard is for the sweep, which ends its processes
            )

    def train(self, request: dict[str, Any], should_prune: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Have a trial trained; its end. Raises `WorkerError`."""
        self._say(request)
        assert self._process.stdout is not None
        for line in self._process.stdout:
            message = json.loads(line)
            if "end" in message:
                return message
            self._say({"prune": should_prune(message["epoch"])})
        code = self.wait()
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        cause = f"signal {-code}" if code < 0 else f"exit code {code}"
        raise WorkerError(f"the training process died ({cause}); {lines[-1] if lines else 'it said nothing'}")

    def _say(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        # Where nobody reads any more, the end of its output says so next.
        with contextlib.suppress(BrokenPipeError, ValueError):
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()

    def stop(self) -> None:
        """Tell it that there is nothing more: it ends at once, whatever it does."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError, ValueError):
            self._process.stdin.close()

    def wait(self) -> int:
        """Its exit code, once it ended or was made to."""
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
        with self._process, contextlib.suppress(BrokenPipeError):  # closes the pipes
            self.stop()
        return self._process.returncode
