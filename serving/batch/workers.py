"""Processes that make parts side by side: `python -m serving.batch.workers` reads a job, then parts, a line of JSON
each.

A worker ends when its standard input does, in the middle of a part, too. So none outlives the job that started it, even
one that was killed.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from features.errors import InputError
from serving.batch.inputs import Part
from serving.batch.parts import Job, PartScorer


def score_in_processes(job: Job, parts: Sequence[Part], num_workers: int, lock: int) -> Iterator[tuple[str, bool]]:
    """Name of each part when it is there, and whether it was there before; in the order in which they end.

    `lock`: a file descriptor for the workers to inherit. Raises the first `InputError` of a worker, and one for a
    worker that was killed, after all workers have ended.
    """
    workers = [_Worker(job, lock) for _ in range(min(num_workers, len(parts)))]
    idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    for worker in workers:
        idle.put(worker)

    def bring(part: Part) -> tuple[str, bool]:
        worker = idle.get()
        try:
            return part.name, worker.bring(part)
        finally:
            idle.put(worker)  # a dead one, too: whoever gets it learns so, and does not wait for ever

    try:
        with ThreadPoolExecutor(max(1, len(workers))) as pool:
            futures = [pool.submit(bring, part) for part in parts]
            try:
                for future in as_completed(futures):
                    yield future.result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
                for worker in workers:
                    worker.kill()
    finally:
        for worker in workers:
            worker.close()


class _Worker:
    """A process that is asked by a line, and answers by a line."""

    def __init__(self, job: Job, lock: int) -> None:
        paths = os.pathsep.join(str(Path(path).absolute()) for path in sys.path)
        # -P: what stands in the working directory is data, not code.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "serving.batch.workers"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": paths, "POLARS_MAX_THREADS": str(job.num_threads)},
            pass_fds=[lock] if os.name == "posix" else [],
        )
        self._send(job.model_dump_json())

    def bring(self, part: Part) -> bool:
        self._send(part.model_dump_json())
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._failure(part)
        return was_there(json.loads(line))

    def _send(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended; reading its answer tells how

    def _failure(self, part: Part) -> Exception:
        code = self._process.wait()
        if code >= 0:
            return RuntimeError(
                f"a scoring process ended with exit code {code} over {part.file}; its traceback is above"
            )
        remedy = "the memory may not suffice: give fewer `workers`, and start again"
        name = signal.Signals(-code).name
        return InputError(f"{part.file}: expected a scoring process to finish it", found=f"{name}", remedy=remedy)

    def kill(self) -> None:
        self._process.kill()  # a part in the making is a draft, and deleted by the next job

    def close(self) -> None:
        self.kill()
        self._process.communicate()


def answer(bring: Callable[[], bool]) -> dict[str, Any]:
    """What `PartScorer.bring` did, in a form that leaves the process; `was_there` reads it."""
    try:
        return {"was_there": bring()}
    except InputError as error:
        return {"expected": error.expected, "found": error.found, "remedy": error.remedy}


def was_there(answer: Mapping[str, Any]) -> bool:
    """What `bring` handed back in the other process; raises the `InputError` that it raised there."""
    if "expected" in answer:
        raise InputError(answer["expected"], found=answer["found"], remedy=answer["remedy"])
    return answer["was_there"]


def main() -> None:
    """Answer lines of standard input until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the job, which ends its workers
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(lines,), daemon=True).start()
    job = Job.model_validate_json(lines.get())
    scorer: PartScorer | None = None
    while True:
        part = Part.model_validate_json(lines.get())

        def bring(part: Part = part) -> bool:
            nonlocal scorer
            scorer = scorer or PartScorer(job)
            return scorer.bring(part)

        sys.stdout.write(json.dumps(answer(bring)) + "\n")
        sys.stdout.flush()


def _listen(lines: "queue.SimpleQueue[str]") -> None:
    for line in sys.stdin:
        lines.put(line)
    os._exit(0)


if __name__ == "__main__":
    main()
