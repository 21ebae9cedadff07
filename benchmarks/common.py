"""Shared by the benchmarks: worker processes, medians with their spread, tables, the machine.

Each contender has its own process, and so its own peak memory. The rounds of all contenders take turns: a
disturbance of the machine then affects all of them, and the ratios inside a round hardly change.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import psutil
import typer

from data.synthetic import Planted, planted_rows
from features.errors import InputError
from features.line_worker import LineServer, LineWorker, scratch_log

ROOT = Path(__file__).resolve().parents[1]
MEGABYTE = 1 << 20
DISTRIBUTIONS = ("torch", "torchrec", "fbgemm-gpu-cpu", "polars", "pyarrow", "pandas", "numpy")

RAW = Planted(num_features=26, num_distinct=100_000)
"""Rows that look like a click log's: 26 text columns, power law."""

OutOption = Annotated[Path | None, typer.Option("--out", help="Write the tables here too, and all rounds to .json.")]
QuickOption = Annotated[bool, typer.Option("--quick", help="Tiny sizes, only to check that it runs.")]
RoundsOption = Annotated[int, typer.Option("--rounds", min=1, help="How often each contender is timed.")]


class Spread(NamedTuple):
    """Median, smallest and largest of some rounds."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(values: Iterable[float]) -> "Spread":
        """The spread of at least one value.

        >>> Spread.of([3.0, 1.0, 2.0])
        Spread(median=2.0, low=1.0, high=3.0)
        """
        ordered = list(values)
        return Spread(statistics.median(ordered), min(ordered), max(ordered))

    def text(self, form: str = ",.0f") -> str:
        """Such as "2 (1-3)".

        >>> Spread(2.0, 1.0, 3.5).text(".1f")
        '2.0 (1.0-3.5)'
        """
        return f"{self.median:{form}} ({self.low:{form}}-{self.high:{form}})"


class Worker(LineWorker):
    """A worker that runs `module` with one argument, and `serve` in it."""

    def __init__(self, module: str, argument: Mapping[str, Any]) -> None:
        super().__init__(module, json.dumps(argument), log=scratch_log())

    def close(self) -> None:
        """Kill the process and wait, so that its memory is free again."""
        self.kill()
        super().close()


def serve(answer: Callable[[str], dict[str, Any]]) -> None:
    """Answer the questions that this worker is asked."""
    # If memory runs out after all, the system ends this process and no other.
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="utf-8")
    LineServer().run(answer)


def peak_mb() -> float:
    """Largest resident size of this process so far, in MB.

    Not `ru_maxrss`: Linux counts what the starting process held at that moment into it.
    """
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def free_bytes() -> int:
    """Memory that new processes may take."""
    return psutil.virtual_memory().available


def write_raw(path: Path, start: int, stop: int) -> None:
    """Rows `start` to `stop` of `RAW` as parquet."""
    planted_rows(RAW, start, stop).sink_parquet(path)


def in_turn(names: Sequence[str], number: int) -> list[str]:
    """The contenders in the order of round `number`: each comes first once, so that none always follows the same one.

    >>> in_turn(["a", "b", "c"], 1)
    ['b', 'c', 'a']
    """
    start = number % max(len(names), 1)
    return [*names[start:], *names[:start]]


def ratio(own: Iterable[float], other: Iterable[float]) -> str:
    """Median of the ratios inside the rounds; empty if the two did not take turns.

    >>> ratio([2.0, 4.0, 3.0], [1.0, 1.0, 1.0]), ratio([2.0], [])
    ('3.00', '')
    """
    ratios = [mine / theirs for mine, theirs in zip(own, other, strict=False)]
    return f"{statistics.median(ratios):.2f}" if ratios else ""


def markdown(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; the first column is aligned left, the others right.

    >>> print(markdown(["what", "rows/s"], [["a", "10"]]))
    | what | rows/s |
    |---|--:|
    | a | 10 |
    """
    lines = [list(headings), *map(list, rows)]
    ruler = "|---|" + "--:|" * (len(headings) - 1)
    texts = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([texts[0], ruler, *texts[1:]])


def short(number: int) -> str:
    """A size as it is typed.

    >>> short(1_000_000), short(2500)
    ('1e6', '2500')
    """
    digits = str(number).rstrip("0")
    zeros = len(str(number)) - len(digits)
    return f"{digits}e{zeros}" if zeros > 2 else str(number)


def parse_sizes(text: str) -> list[int]:
    """Sizes of a list such as "1e5,1e6"; raises `InputError`.

    >>> parse_sizes("1e5,2500")
    [100000, 2500]
    """
    try:
        sizes = [int(float(part)) for part in text.split(",")]
    except (ValueError, OverflowError):
        sizes = [0]
    if min(sizes) < 1:
        raise InputError("expected numbers of rows", found=repr(text), remedy="such as 1e5,1e6")
    return sizes


def machine() -> dict[str, str]:
    """Facts of the machine that the figures depend on."""
    try:
        cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        model = next(line.partition(":")[2].strip() for line in cpuinfo.splitlines() if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor() or "unknown"
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude=*"], capture_output=True, text=True, cwd=ROOT
    )
    return {
        "CPU": f"{model}, {os.cpu_count()} logical cores, {psutil.virtual_memory().total / 2**30:.0f} GB",
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "packages": ", ".join(filter(None, map(_installed, DISTRIBUTIONS))),
        "commit": commit.stdout.strip() or "unknown",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "not set: a thread per core"),
        "load before": f"{os.getloadavg()[0]:.2f}",
    }


def _installed(name: str) -> str:
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return ""


def report(
    title: str, facts: Mapping[str, str], sections: Sequence[tuple[str, str]], rounds: Any, out: Path | None
) -> None:
    """Print the tables as Markdown; with `out`, write them there, and facts and rounds next to it as .json."""
    lines = [f"# {title}", "", *(f"- {name}: {value}" for name, value in facts.items())]
    for heading, table in sections:
        lines += ["", f"## {heading}", "", table]
    text = "\n".join(lines) + "\n"
    print(text)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")
        document = {"title": title, "facts": dict(facts), "rounds": rounds}
        out.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def say(message: str) -> None:
    """A line of progress on standard error."""
    print(message, file=sys.stderr, flush=True)
