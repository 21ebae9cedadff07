"""Ray Data as the engine of a scoring job: its actors make the parts, on every machine that sees the files.

Needs the extra `[ray]`; nothing else imports ray. The cluster is that of `RAY_ADDRESS`, or else this machine.
"""

import json
import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any

from features.line_worker import pack, unpack
from serving.batch.inputs import Part
from serving.batch.parts import Job
from serving.batch.workers import ensure_part


class PartActor:
    """An actor that is asked by a row with a part as JSON and answers by a row; `job` is JSON, too."""

    def __init__(self, job: str) -> None:
        self._job = job

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """The `part`, and the `answer` for it as a worker process gives it."""
        return {"part": row["item"], "answer": json.dumps(pack(ensure_part, self._job, row["item"]))}


def score_on_ray(job: Job, parts: Sequence[Part], *, num_workers: int) -> Iterator[tuple[str, bool]]:
    """Name of each part once it is made, and whether an earlier run had made it.

    Bundle, inputs and output have to be on a file system that all machines mount at the same path. Raises the first
    `InputError` of an actor.
    """
    import ray
    import ray.data

    if not parts:
        return
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    is_ours = not ray.is_initialized()
    if is_ours:
        ray.init(os.environ.get("RAY_ADDRESS", "local"), log_to_driver=False, logging_level=logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    there = job.model_copy(update={"bundle": job.bundle.absolute(), "out": job.out.absolute(), "num_threads": 1})
    items = [part.model_copy(update={"file": part.file.absolute()}).model_dump_json() for part in parts]
    try:
        answers = ray.data.from_items(items, override_num_blocks=len(items)).map(
            PartActor,  # pyright: ignore[reportArgumentType]  (a class whose objects are such functions)
            fn_constructor_args=[there.model_dump_json()],
            compute=ray.data.ActorPoolStrategy(size=min(num_workers, len(items))),
            num_cpus=1,
            runtime_env={"env_vars": {"POLARS_MAX_THREADS": "1"}},
        )
        for row in answers.iter_rows():
            yield Part.model_validate_json(row["part"]).name, unpack(json.loads(row["answer"]))
    finally:
        if is_ours:
            ray.shutdown()
