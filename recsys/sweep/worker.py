"""A process that trains the trials of a sweep, one after the other: `python -m recsys.sweep.worker`.

A request is `{"experiment", "data", "out", "track", "tags", "store"}`. After each epoch the worker asks back with the
epoch's record, and the reply says whether to prune the trial. The answer is `{"end": "complete" | "pruned" | "failed"}`
with `metrics` or `error`. When its input ends, the worker stops at once, as by an interrupt.
"""

import _thread
import os
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from features.errors import InputError
from features.line_worker import LineServer, LineWorker
from recsys.runs.process import prepare_for_training


def start_worker(log: Path, num_threads: int, lock: int) -> LineWorker:
    """Start a training process, which appends its standard error to `log` and holds the descriptor `lock` open."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "POLARS_MAX_THREADS"), str(num_threads))
    return LineWorker(
        "recsys.sweep.worker",
        log=log.open("a+", encoding="utf-8", errors="replace"),
        environment={**threads, **os.environ},
        pass_fds=[lock],
    )


def train_trial(request: dict[str, Any], should_prune: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Train one trial, asking after each epoch whether to prune it; how it ended."""
    from recsys.config import validated
    from recsys.runs.train import StopTrial, train_run
    from recsys.tracking.store import tracking_uri

    if request["store"] not in (None, tracking_uri()):  # a sweep may be continued from another folder
        os.environ["MLFLOW_TRACKING_URI"] = request["store"]

    def on_epoch(record: dict[str, Any]) -> None:
        if should_prune(record):
            raise StopTrial

    try:
        metrics = train_run(
            validated(request["experiment"], "trial"),
            Path(request["data"]),
            Path(request["out"]),
            track=request["track"],
            report=False,
            tags=request["tags"],
            on_epoch=on_epoch,
        )
    except StopTrial:
        return {"end": "pruned"}
    except InputError as error:
        return {"end": "failed", "error": str(error)}
    except Exception as error:  # a defect of ours or a full disk: the other trials go on, and the log has the traceback
        traceback.print_exc()
        return {"end": "failed", "error": f"{type(error).__name__}: {error}"}
    return {"end": "complete", "metrics": metrics}


def main() -> None:
    """Train the trials that are asked for until there are no more."""
    # The listening thread interrupts the main one. A shell may have us ignore interrupts; then Python would miss it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    prepare_for_training()
    server = LineServer(stop=_thread.interrupt_main)
    server.run(lambda request: train_trial(request, server.ask))


if __name__ == "__main__":
    main()
