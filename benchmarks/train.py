"""Time of a training step by size of the table, against its floor and the usual ways to train a table.

    python -m benchmarks.train [--sizes 1e5,1e6,1e7,1e8] [--methods floor,muxrec] [--out work/benchmarks/train.md]

The floor is the same network without a table. Contenders that fit in memory together take turns, round by round; a
ratio is the median of the ratios within a round. `benchmarks.contenders` defines the contenders.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple

import typer

from benchmarks.common import (
    MEGABYTE,
    OutOption,
    QuickOption,
    RoundsOption,
    Spread,
    Worker,
    free_bytes,
    in_turn,
    machine,
    markdown,
    parse_sizes,
    ratio,
    report,
    say,
    short,
)
from benchmarks.contenders import METHODS, QUICK, Case
from data.common import run
from features.errors import InputError
from features.line_worker import WorkerError
from recsys.runs.process import prepare_for_training

SIZES = "1e5,1e6,1e7,1e8"
POWER_LAW_ROWS, FINAL_MLP_ROWS = 10_000_000, 1_000_000
POWER_LAW_METHODS = ("floor", "muxrec", "muxrec_rowwise", "dense_fused", "sparse")
FINAL_MLP_METHODS = ("floor", "muxrec", "dense_fused")
PEER = "dense_fused"
PROCESS_BYTES = 500 * MEGABYTE
"""Libraries, network and batches of one process."""
SHARE_OF_FREE = 0.85
"""Part of the free memory that contenders may fill together."""
HEADINGS = (
    "contender",
    "samples/s",
    "ms per step",
    "share of its floor",
    "times dense Adam",
    "peak MB",
    "peak / (12 w + 4) M",
    "end of epoch s",
)


class Block(NamedTuple):
    """One table of the report: contenders on the same case."""

    cases: dict[str, Case]
    """Method to the case that its worker builds; they differ only in the method."""

    @property
    def case(self) -> Case:
        """A case that represents all of them: only the method differs."""
        return next(iter(self.cases.values()))

    @property
    def title(self) -> str:
        """Such as "1e6 rows, mlp, uniform ids"."""
        return f"{short(self.case.num_rows)} rows, {self.case.network}, {self.case.ids} ids"

    def needed_bytes(self, method: str) -> int:
        """Approximate peak memory of a contender."""
        return PROCESS_BYTES + int(METHODS[method].table_copies * self.case.num_rows * self.case.width * 4)

    @property
    def state_bytes(self) -> int:
        """Bytes of the table, two moments, and the last step of each row."""
        return self.case.num_rows * (3 * self.case.width * 4 + 4)


@dataclass
class Measured:
    """Measurements of one contender."""

    skipped: str | None = None
    """Reason for which there are no measurements."""
    build: dict[str, Any] = field(default_factory=dict)
    warm_up: dict[str, Any] = field(default_factory=dict)
    rounds: list[dict[str, Any]] = field(default_factory=list)
    """`steps` and `seconds` of each round."""
    end: dict[str, Any] = field(default_factory=dict)
    """`peak_mb` and `finish_seconds`."""
    references: dict[str, list[float]] = field(default_factory=dict)
    """Contenders that ratios refer to, to their seconds per step in the same rounds."""

    @property
    def step_seconds(self) -> list[float]:
        """One value per round."""
        return [one["seconds"] / one["steps"] for one in self.rounds]


def parse_methods(text: str) -> list[str]:
    """Contenders of a list such as "floor,muxrec", always with their floors; raises `InputError` for an unknown one.

    >>> parse_methods("muxrec")
    ['floor', 'muxrec']
    """
    names = text.split(",")
    for name in names:
        if name not in METHODS:
            raise InputError("unknown contender", found=repr(name), remedy=f"name some of {', '.join(METHODS)}")
    return [name for name in METHODS if name in {"floor", *names, *(METHODS[name].floor for name in names)}]


def blocks_of(sizes: Sequence[int], methods: Sequence[str], **settings: Any) -> list[Block]:
    """Every contender at every size; then a power law and a larger network, each at its size or the largest given."""

    def block(chosen: Sequence[str], num_rows: int, **more: Any) -> Block:
        values = {"num_rows": num_rows, **settings, **more}
        cases = {name: Case.model_validate({"method": name, **values}) for name in chosen if name in methods}
        return Block(cases)

    return [
        *(block(list(METHODS), num_rows) for num_rows in sizes),
        block(POWER_LAW_METHODS, min(POWER_LAW_ROWS, max(sizes)), ids="power law"),
        block(FINAL_MLP_METHODS, min(FINAL_MLP_ROWS, max(sizes)), network="final_mlp"),
    ]


def groups_of(block: Block, free: int) -> Iterator[list[str]]:
    """Contenders that fit in memory together, each group with all floors; those too large by themselves are in none."""
    floors = [method for method in block.cases if not METHODS[method].table_copies]
    floor_bytes = sum(map(block.needed_bytes, floors))
    group: list[str] = []
    for method in block.cases:
        if method in floors or floor_bytes + block.needed_bytes(method) > free:
            continue
        if group and floor_bytes + sum(map(block.needed_bytes, [*group, method])) > SHARE_OF_FREE * free:
            yield [*floors, *group]
            group = []
        group.append(method)
    yield [*floors, *group]


def measure(block: Block, rounds: int) -> dict[str, Measured]:
    """Measurements of all contenders of a block; one that does not fit or fails has a reason instead."""
    free = free_bytes()
    results: dict[str, Measured] = {}
    for group in groups_of(block, free):
        for method, measured in measure_group(block, group, rounds).items():
            if method not in results or not results[method].rounds:
                results[method] = measured  # a floor keeps its first group's rounds
    for method in block.cases:
        if method not in results:
            needed = f"{block.needed_bytes(method) / 2**30:.1f} GB"
            results[method] = Measured(skipped=f"needs about {needed}, {free / 2**30:.1f} GB are free")
    return {method: results[method] for method in block.cases}


def measure_group(block: Block, group: Sequence[str], rounds: int) -> dict[str, Measured]:
    """Start a process for each contender, and let them take turns."""
    results = {method: Measured() for method in group}
    workers: dict[str, Worker] = {}

    def ask(method: str, question: str) -> dict[str, Any]:
        """The answer, or the reason for which the worker ended; the contender is then out."""
        try:
            return workers[method].ask(question)
        except WorkerError as error:
            workers.pop(method).close()
            return {"skipped": str(error)}

    def ask_all(question: str, order: Sequence[str]) -> Iterator[tuple[Measured, dict[str, Any]]]:
        for method in order:
            if results[method].skipped is None:
                answer = ask(method, question)
                results[method].skipped = answer.get("skipped")
                if "skipped" not in answer:
                    yield results[method], answer

    say(f"{block.title}: {', '.join(group)}")
    try:
        for method in group:
            workers[method] = Worker("benchmarks.contenders", block.cases[method].model_dump())
        for measured, answer in ask_all("build", group):
            measured.build = answer
        for measured, answer in ask_all("warm up", group):
            measured.warm_up = answer
        for number in range(rounds):
            say(f"  round {number + 1} of {rounds}")
            for measured, answer in ask_all("round", in_turn(group, number)):
                measured.rounds.append(answer)
        for measured, answer in ask_all("finish", group):
            measured.end = answer
    finally:
        for worker in workers.values():
            worker.close()
    for method in group:
        names = {METHODS[method].floor, PEER}
        results[method].references = {name: results[name].step_seconds for name in group if name in names}
    return results


def lines_of(block: Block, results: dict[str, Measured]) -> Iterator[list[str]]:
    """The rows of a block's table."""
    for method, measured in results.items():
        title = METHODS[method].title
        if measured.skipped is not None:
            yield [title, f"skipped: {measured.skipped}", *[""] * (len(HEADINGS) - 2)]
            continue
        seconds = Spread.of(measured.step_seconds)
        peak = measured.end["peak_mb"]
        yield [
            title,
            f"{block.case.batch_size / seconds.median:,.0f}",
            Spread(*(1000 * value for value in seconds)).text(".1f"),
            ratio(measured.references.get(METHODS[method].floor, []), measured.step_seconds),
            ratio(measured.references.get(PEER, []), measured.step_seconds),
            f"{peak:,.0f}",
            f"{peak * MEGABYTE / block.state_bytes:.2f}" if METHODS[method].table_copies else "",
            f"{measured.end['finish_seconds']:.1f}" if method.startswith("muxrec") else "",
        ]


def main(
    sizes: Annotated[str, typer.Option("--sizes", help="Rows of the table, separated by commas.")] = SIZES,
    methods: Annotated[str, typer.Option("--methods", help="Contenders, separated by commas.")] = ",".join(METHODS),
    rounds: RoundsOption = 5,
    quick: QuickOption = False,
    out: OutOption = None,
) -> None:
    """Measure training steps by size of the table."""
    facts = machine()
    prepare_for_training()
    settings = QUICK if quick else {}
    blocks = blocks_of([2000] if quick else parse_sizes(sizes), parse_methods(methods), **settings)
    results = [measure(block, min(rounds, 2) if quick else rounds) for block in blocks]
    threads = {one.build["threads"] for result in results for one in result.values() if one.build}
    case = blocks[0].case
    facts |= {
        "torch threads": ", ".join(map(str, sorted(threads))),
        "batch": f"{case.batch_size} examples of {case.num_features} features, width {case.width}, 1 probe",
        "ratios": "medians over rounds; spreads are the smallest and the largest round",
    }
    sections = [
        (block.title, markdown(HEADINGS, lines_of(block, result)))
        for block, result in zip(blocks, results, strict=True)
    ]
    rounds_of = {
        block.title: {method: vars(measured) for method, measured in result.items()}
        for block, result in zip(blocks, results, strict=True)
    }
    report("Training steps by size of the table", facts, sections, rounds_of, out)


if __name__ == "__main__":
    run(main)
