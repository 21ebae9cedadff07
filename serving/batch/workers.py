"""Processes that make the parts of a scoring job side by side; `python -m serving.batch.workers` is one of them."""

import queue
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import lru_cache

from features.errors import InputError
from features.line_worker import LineServer, LineWorker, WorkerError
from serving.batch.inputs import Part
from serving.batch.parts import Job, PartScorer


def score_in_processes(job: Job, parts: Sequence[Part], num_workers: int, lock: int) -> Iterator[tuple[str, bool]]:
    """Name of each part once it is made, in the order in which they end, and whether an earlier run had made it.

    `lock`: a file descriptor for the workers to inherit. Raises the first `InputError` of a worker, and one for a
    worker that was killed, after all workers have ended.
    """
    workers: list[LineWorker] = []
    idle: queue.SimpleQueue[LineWorker] = queue.SimpleQueue()
    for _ in range(min(num_workers, len(parts))):
        threads = {"POLARS_MAX_THREADS": str(job.num_threads)}
        workers.append(LineWorker("serving.batch.workers", environment=threads, pass_fds=[lock]))
        idle.put(workers[-1])

    def ensure(part: Part) -> tuple[str, bool]:
        worker = idle.get()
        try:
            return part.name, worker.ask([job.model_dump_json(), part.model_dump_json()])
        except WorkerError as error:
            if error.signal_name is None:
                raise RuntimeError(f"{part.file}: a scoring process {error}; its traceback is above") from None
            expected = f"{part.file}: expected a scoring process to finish it"
            remedy = "memory may have run out: give fewer `workers`, and start again"
            raise InputError(expected, found=error.signal_name, remedy=remedy) from None
        finally:
            idle.put(worker)  # a dead one, too: the next part then fails, instead of waiting for a worker for ever

    try:
        with ThreadPoolExecutor(max(1, len(workers))) as pool:
            futures = [pool.submit(ensure, part) for part in parts]
            try:
                for future in as_completed(futures):
                    yield future.result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
                for worker in workers:
                    worker.kill()  # a part in the making is a draft, and deleted by the next job
    finally:
        for worker in workers:
            worker.kill()
            worker.close()


def ensure_part(job: str, part: str) -> bool:
    """Make a part of a job unless an earlier run has made it, which is True; both as JSON."""
    return _scorer(job).ensure_part(Part.model_validate_json(part))


@lru_cache(maxsize=1)
def _scorer(job: str) -> PartScorer:
    return PartScorer(Job.model_validate_json(job))


if __name__ == "__main__":
    LineServer().run(lambda request: ensure_part(*request))
