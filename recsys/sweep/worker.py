"""A process that trains the trials of a sweep, one after the other: `python -m recsys.sweep.worker`.

It is told and tells by lines of JSON. In: `{"experiment", "data", "out", "track", "tags", "store"}` is a trial,
`{"prune"}` the answer to an epoch. Out: `{"epoch": record}`, then `{"end": "complete" | "pruned" | "failed"}` with
`metrics` or `error`. Where its input ends it stops at once, as by an interrupt: whoever started it is gone, or was
interrupted.
"""

import _thread
import json
import os
import queue
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Any, TextIO

from features.errors import InputError
from recsys.runs.process import prepare_for_training

Message = dict[str, Any]


class Line:
    """The two ends of the conversation with the sweep."""

    def __init__(self, output: TextIO) -> None:
        self._output = output
        self._messages: queue.Queue[Message | None] = queue.Queue()
        self.is_training = threading.Event()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        for text in sys.stdin:
            self._messages.put(json.loads(text))
        self._messages.put(None)
        if self.is_training.is_set():
            _thread.interrupt_main()

    def hear(self) -> Message | None:
        """The next message; None where there will be no more."""
        return self._messages.get()

    def say(self, message: Message) -> None:
        """Send a message; what cannot be written as JSON goes as its text."""
        self._output.write(json.dumps(message, default=str) + "\n")
        self._output.flush()


def train_trial(request: Message, line: Line) -> Message:
    """Train one trial, asking after each epoch whether to go on; how it ended."""
    from recsys.config import validated
    from recsys.runs.train import StopTrial, train_run
    from recsys.tracking.store import tracking_uri

    if request["store"] not in (None, tracking_uri()):  # a sweep may go on from another folder
        os.environ["MLFLOW_TRACKING_URI"] = request["store"]

    def on_epoch(record: dict[str, Any]) -> None:
        line.say({"epoch": record})
        answer = line.hear()
        if answer is None:
            raise KeyboardInterrupt
        if answer["prune"]:
            raise StopTrial

    try:
        metrics = train_run(
            validated(request["experiment"], "trial"),
            Path(request["data"]),
            Path(request["out"]),
            track=request["track"],
            tags=request["tags"],
            on_epoch=on_epoch,
        )
    except StopTrial:
        return {"end": "pruned"}
    except InputError as error:
        return {"end": "failed", "error": str(error)}
    except Exception as error:  # a defect of ours or a full disk: the other trials go on, and the log has it all
        traceback.print_exc()
        return {"end": "failed", "error": f"{type(error).__name__}: {error}"}
    return {"end": "complete", "metrics": metrics}


def main() -> None:
    """Train what is asked for until there is nothing more."""
    # An interrupt may come from the thread that listens; where a shell has us ignore it, Python would not see that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    prepare_for_training()
    # Lines are all that the standard output may hold: what a library prints goes to the log.
    output = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    line = Line(output)
    try:
        while (request := line.hear()) is not None:
            line.is_training.set()
            ended = train_trial(request, line)
            line.is_training.clear()
            line.say(ended)
    except (KeyboardInterrupt, BrokenPipeError):
        # Whoever could hear of it is gone; the run directory can be resumed. Nothing at exit may hang on that.
        os._exit(1)


if __name__ == "__main__":
    main()
