"""One request of 1, 100 and 1,000 candidates, and many rows: the scorer against onnxruntime alone, torch and MLflow.

    python -m benchmarks.serve [--sizes 1,100,1000] [--out work/benchmarks/serve.md]

The floor is onnxruntime on prepared inputs. Contenders are separate processes (`benchmarks.scorers`) with one thread
each, and take turns. A time is the median over rounds of a round's median, a ratio the median of the ratios within
rounds.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from importlib.metadata import distribution
from pathlib import Path
from typing import Annotated, Any
from urllib.request import urlopen

import typer
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmarks.common import (
    MEGABYTE,
    ROOT,
    OutOption,
    QuickOption,
    RoundsOption,
    Spread,
    Worker,
    in_turn,
    machine,
    markdown,
    parse_sizes,
    ratio,
    report,
    say,
)
from benchmarks.requests import CASES, requests
from benchmarks.scorers import METHODS
from data.common import run
from features.errors import InputError

ALLOWANCE = 0.3e-3
"""Seconds that a request may take beyond 1.5 times the floor."""
REQUEST_METHODS = ("floor", "rows", "context", "torch", "pyfunc", "serve", "mlflow")
BATCH_METHODS = ("floor", "rows", "file")
LOADED = "context"
STAGES = ("features", "table", "network")
STARTED = {"seconds": ".2f", "table_mb": ".1f", "rest_mb": ".0f"}
SERVERS = {
    "serve": ("-m", "experiments", "serve", "{bundle}", "--port", "{port}", "--log-level", "warning"),
    "mlflow": ("-m", "mlflow", "models", "serve", "-m", "{model}", "-p", "{port}", "--env-manager", "local"),
}
MAKE = """
from pathlib import Path
from benchmarks.requests import CASES
from benchmarks.untrained import write_bundle_of
write_bundle_of(CASES[{case!r}], Path({bundle!r}))
import mlflow.pyfunc
artifacts = {{"bundle": {bundle!r}}}
mlflow.pyfunc.save_model({model!r}, python_model={loader!r}, artifacts=artifacts, pip_requirements=[])
"""

Rounds = dict[str, list[dict[str, Any]]]
"""Contender to its answers, one per round."""

# Code of a new process up to its first score. All of it is in the timed part.
STARTS = {
    "Scorer": """
from serving.scorer import Scorer
Scorer({bundle!r}, num_threads=1).score({rows!r})
""",
    "eager torch": """
from benchmarks.requests import CASES
from benchmarks.untrained import ranker_of
import torch, polars as pl
from features.encode import encode
from recsys.dataset import batch_of
registry = CASES[{case!r}].registry
torch.sigmoid(ranker_of(CASES[{case!r}])(batch_of(encode(pl.DataFrame({rows!r}), registry), registry)))
""",
    "MLflow pyfunc": """
import mlflow.pyfunc, pandas as pd
mlflow.pyfunc.load_model({model!r}).predict(pd.DataFrame({rows!r}))
""",
}
TIMED = """
import time
import tomllib
began = time.perf_counter()
{code}
seconds = time.perf_counter() - began
import json
table = resident = 0
is_table = False
for line in open("/proc/self/smaps"):
    name, _, value = line.partition(" ")
    if not name.endswith(":"):
        is_table = line.rstrip().endswith("table.safetensors")
    elif name == "Rss:":
        resident += int(value.split()[0])
        table += int(value.split()[0]) * is_table
print(json.dumps({{"seconds": seconds, "table_mb": table / 1024, "rest_mb": (resident - table) / 1024}}))
"""


def main(
    sizes: Annotated[str, typer.Option("--sizes", help="Numbers of candidates per request.")] = "1,100,1000",
    rows: Annotated[str, typer.Option("--rows", help="Rows of the batch.")] = "131072",
    case: Annotated[list[str] | None, typer.Option("--case", help=f"Of {', '.join(CASES)}; all by default.")] = None,
    rounds: RoundsOption = 5,
    quick: QuickOption = False,
    out: OutOption = None,
) -> None:
    """Measure requests, load, batches, starts and memory."""
    facts = machine() | {"threads": "one for requests; for batches one per core"}
    numbers, num_rows = ([1, 20], 600) if quick else (parse_sizes(sizes), parse_sizes(rows)[0])
    sections: list[tuple[str, str]] = []
    document: dict[str, Any] = {}
    for name in case or CASES:
        if name not in CASES:
            raise InputError("unknown --case", found=repr(name), remedy=f"use {' or '.join(CASES)}")
        with tempfile.TemporaryDirectory(prefix="muxrec-bench-") as folder:
            measured = document[name] = _measure(name, Path(folder), numbers, num_rows, 1 if quick else rounds, quick)
        sections += [
            (f"{name}: one request of {size}", _request_table(measured[f"requests {size}"])) for size in numbers
        ]
        loads = {size: measured[f"load {size}"][LOADED] for size in numbers}
        sections.append((f"{name}: half of saturation, at random moments", _load_table(loads)))
        sections.append((f"{name}: {num_rows:,} rows", _batch_table(measured["batch"])))
        sections.append((f"{name}: a new process", _start_table(measured["start"])))
    sections.append(("Base install", _install_table()))
    report("Scoring", facts, sections, document, out)


def _measure(
    case: str, folder: Path, sizes: list[int], num_rows: int, num_rounds: int, quick: bool
) -> dict[str, Rounds]:
    """All rounds of a case, by question."""
    say(f"{case}: making the model")
    shared: dict[str, Any] = {"case": case, **_write_models(case, folder)}
    shared |= {"seconds": 0.05, "min_requests": 5} if quick else {}
    measured = {"start": _starts(shared, num_rounds)}
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for method in REQUEST_METHODS:
            url = stack.enter_context(_server(method, shared)) if method in SERVERS else ""
            settings = {**shared, "method": method, "url": url}
            workers[method] = stack.enter_context(closing(Worker("benchmarks.scorers", settings)))
        for size in sizes:
            measured[f"requests {size}"] = _turns(workers, f"requests {size}", num_rounds, case)
            measured[f"load {size}"] = _turns({LOADED: workers[LOADED]}, f"load {size}", num_rounds, case)
    with ExitStack() as stack:
        workers = {}
        for method in BATCH_METHODS:
            settings = {**shared, "method": method, "num_threads": 0}
            workers[method] = stack.enter_context(closing(Worker("benchmarks.scorers", settings)))
        measured["batch"] = _turns(workers, f"batch {num_rows}", num_rounds, case)
    return measured


def _turns(workers: Mapping[str, Worker], question: str, num_rounds: int, case: str) -> Rounds:
    answers: Rounds = {method: [] for method in workers}
    for number in range(num_rounds):
        say(f"{case}: {question}, round {number + 1} of {num_rounds}")
        for method in in_turn(list(workers), number):
            answers[method].append(workers[method].ask(question))
    return answers


def _write_models(case: str, folder: Path) -> dict[str, str]:
    """Write the bundle and the MLflow model, in a separate process, as that takes much memory."""
    paths = {"bundle": str(folder / "bundle"), "model": str(folder / "model")}
    code = MAKE.format(case=case, loader=str(ROOT / "recsys" / "tracking" / "bundle_pyfunc.py"), **paths)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return paths


def _starts(settings: Mapping[str, str], num_rounds: int) -> Rounds:
    rows = requests(CASES[settings["case"]], 1, number=1)[0].rows
    answers: Rounds = {name: [] for name in STARTS}
    for number in range(num_rounds):
        say(f"{settings['case']}: new processes, round {number + 1} of {num_rounds}")
        for name in in_turn(list(STARTS), number):
            code = TIMED.format(code=STARTS[name].format(rows=rows, **settings))
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
            if done.returncode:
                raise RuntimeError(done.stderr)
            answers[name].append(json.loads(done.stdout.splitlines()[-1]))
    return answers


@contextmanager
def _server(method: str, settings: Mapping[str, str]) -> Iterator[str]:
    """Start a server on a free local port; yields its URL once it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, *(part.format(port=port, **settings) for part in SERVERS[method])]
    with tempfile.TemporaryFile() as log:
        # In its own process group, as MLflow starts further processes.
        path = {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])}  # uvicorn's
        process = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=ROOT, start_new_session=True, env={**os.environ, **path}
        )
        try:
            for _ in range(600):
                with suppress(OSError), urlopen(f"http://127.0.0.1:{port}/ping", timeout=5) as response:
                    if response.status == 200:
                        break
                if process.poll() is not None:
                    log.seek(0)
                    raise RuntimeError(log.read().decode()[-2000:])
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _request_table(rounds: Rounds) -> str:
    """Milliseconds of each contender and of its stages, relative to the floor and the target."""
    lines: list[list[str]] = []
    for method, answers in rounds.items():
        p50 = [one["p50"] for one in answers]
        floors = [one["p50"] for one in rounds["floor"]]
        within = Spread.of(mine / (1.5 * floor + ALLOWANCE) for mine, floor in zip(p50, floors, strict=True))
        stages = [
            f"{1000 * Spread.of(one[stage] for one in answers).median:.3f}" if stage in answers[0] else ""
            for stage in STAGES
        ]
        spread, p99 = Spread.of(1000 * one for one in p50), Spread.of(1000 * one["p99"] for one in answers)
        lines.append(
            [
                METHODS[method].title,
                spread.text(".3f"),
                f"{p99.median:.3f}",
                ratio(p50, floors),
                within.text(".2f"),
                *stages,
            ]
        )
    headings = ["contender", "p50 ms", "p99 ms", "times the floor", "share of 1.5 floor + 0.3 ms", *STAGES]
    return markdown(headings, lines)


def _load_table(loads: Mapping[int, list[dict[str, Any]]]) -> str:
    lines: list[list[str]] = []
    for size, answers in loads.items():
        rates = Spread.of(one["saturation"] for one in answers)
        quantiles = [f"{1000 * Spread.of(one[q] for one in answers).median:.3f}" for q in ("p50", "p95", "p99")]
        tail = Spread.of(one["p99"] / one["p50"] for one in answers)
        lines.append([str(size), rates.text(), *quantiles, tail.text(".2f")])
    return markdown(["candidates", "saturation, requests/s", "p50 ms", "p95 ms", "p99 ms", "p99 / p50"], lines)


def _batch_table(rounds: Rounds) -> str:
    floors = [one["rate"] for one in rounds["floor"]]
    titles = {method: METHODS[method].title for method in rounds} | {"rows": "Scorer.score(frame)"}
    lines = [
        [
            titles[method],
            Spread.of(one["rate"] for one in answers).text(),
            ratio((one["rate"] for one in answers), floors),
        ]
        for method, answers in rounds.items()
    ]
    return markdown(["contender", "rows/s", "share of the floor"], lines)


def _start_table(rounds: Rounds) -> str:
    lines = [
        [name, *(Spread.of(one[key] for one in answers).text(form) for key, form in STARTED.items())]
        for name, answers in rounds.items()
    ]
    return markdown(["contender", "import to first score, s", "table, resident MB", "all else, resident MB"], lines)


def _install_table() -> str:
    """Packages that scoring needs, with the size of their installed files."""
    sizes = dict(sorted(_base_install().items(), key=lambda item: -item[1]))
    total = [f"{len(sizes)} packages", f"{sum(sizes.values()) / MEGABYTE:,.0f}"]
    return markdown(["package", "MB"], [total, *([name, f"{size / MEGABYTE:,.1f}"] for name, size in sizes.items())])


def _base_install() -> dict[str, int]:
    """Distribution to bytes: this project's base requirements and theirs, without compiled Python files."""
    sizes: dict[str, int] = {}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    waiting = [Requirement(line) for line in project["dependencies"]]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name in sizes or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        found = distribution(name)
        files = [Path(str(file.locate())) for file in found.files or [] if file.suffix != ".pyc"]
        sizes[name] = sum(file.stat().st_size for file in files if file.is_file())
        waiting += [Requirement(line) for line in found.requires or []]
    return sizes


if __name__ == "__main__":
    run(main)
