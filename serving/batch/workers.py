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
    threads = {"POLARS_MAX_THREADS": str(job.num_threads)}
    workers = [
        LineWorker("serving.batch.workers", environment=threads, pass_fds=[lock])
        for _ in range(min(num_workers, len(parts)))
    ]
    idle: queue.SimpleQueue[LineWorker] = queue.SimpleQueue()
    for worker in workers:
        idle.put(worker)

    def ensure(part: Part) -> tuple[str, bool]:
        worker = idle.get()
        try:
            return part.name, worker.ask([job.model_dump_json(), part.model_dump_json()])
        except WorkerError as error:
            raise _failure(part, error) from None
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


def _failure(part: Part, error: WorkerError) -> Exception:
    if error.signal_name is None:
        return RuntimeError(f"{part.file}: a scoring process {error}; its traceback is above")
    remedy = "memory may have run out: give fewer `workers`, and start again"
    return InputError(f"{part.file}: expected a scoring process to finish it", found=error.signal_name, remedy=remedy)


if __name__ == "__main__":
    LineServer().run(lambda request: ensure_part(*request))
