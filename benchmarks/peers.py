"""Quality and cost side by side: muxrec's defaults and LightGBM, CatBoost and Vowpal Wabbit on the same splits.

    pip install '.[peers]'
    python -m benchmarks.peers --data DATASET... [--seeds 1,2,3] [--out peers.md]

Every contender has a process of its own, reads the same encoded train, valid and test, and stops by the validation AUC
(`benchmarks.peer_models` has the peers' settings; muxrec is `muxrec train` without further settings). Seconds are those
of the process, imports included; memory is its peak.
"""

import json
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from benchmarks.common import ROOT, OutOption, Spread, machine, markdown, peak_mb, report, say
from benchmarks.peer_models import PEERS, Rows
from data.common import run
from features.errors import InputError
from recsys.dataset import Split
from recsys.evaluation.metrics import METRICS, evaluate
from recsys.evaluation.predictions import Predictions

MUXREC = ("final_mlp", "logistic_regression")
SHOWN = ("auc", "logloss", "ece")


class Result(NamedTuple):
    """One contender on one dataset with one seed."""

    metrics: dict[str, float]
    """Of test."""
    seconds: float
    peak_mb: float


def measure(peer: str, data: Path, seed: int) -> dict[str, Any]:
    """Train a peer in this process; metrics of test and peak memory."""
    splits = {name: Split(data, name) for name in ("train", "valid", "test")}
    train, valid, test = (Rows.of(split) for split in splits.values())
    dense = tuple(feature.name for feature in splits["train"].registry.dense_features)
    probabilities = PEERS[peer](train, valid, test, dense, seed)
    return {"metrics": evaluate(Predictions.of(test.labels, probabilities)), "peak_mb": peak_mb()}


def contend(name: str, data: Path, seed: int) -> Result:
    """Run one contender in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="muxrec-peers-") as folder:
        if name in MUXREC:
            command = ["experiments", "train", name, f"seed={seed}", "--out", f"{folder}/run", "--no-track"]
            command += ["--no-report", "--json"]
        else:
            command = ["benchmarks.peers", "--peer", name, "--seeds", str(seed)]
        began = time.perf_counter()
        arguments = [sys.executable, "-m", *command, "--data", str(data.absolute())]
        done = subprocess.run(arguments, capture_output=True, text=True, check=False, cwd=ROOT)
        seconds = time.perf_counter() - began
        if done.returncode:
            raise RuntimeError(f"{name} failed on {data}:\n{done.stderr}")
        answer = json.loads(done.stdout.splitlines()[-1])
    if name in MUXREC:
        return Result(answer["test"], seconds, answer["perf"]["peak_memory_mb"])
    return Result(answer["metrics"], seconds, answer["peak_mb"])


def table_of(results: dict[str, list[Result]]) -> str:
    """One line per contender: medians, with the smallest and largest where there are several seeds."""
    lines: list[list[str]] = []
    for name, runs in results.items():
        cells = [Spread.of(one.metrics[metric] for one in runs).text(".4f") for metric in SHOWN]
        cells += [Spread.of(one.seconds for one in runs).text(".1f"), Spread.of(one.peak_mb for one in runs).text()]
        lines.append([name, *cells])
    return markdown(("", *(f"test {METRICS[name].title}" for name in SHOWN), "seconds", "peak MB"), lines)


def main(
    data: Annotated[list[Path], typer.Option(help="Dataset directory with valid and test; may be repeated.")],
    seeds: Annotated[str, typer.Option(help="Seeds, separated by commas.")] = "1,2,3",
    out: OutOption = None,
    peer: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Compare muxrec with its peers."""
    numbers = [int(seed) for seed in seeds.split(",")]
    if peer is not None:
        print(json.dumps(measure(peer, data[0], numbers[0])))
        return
    lacking = [name for name in ("lightgbm", "catboost", "vowpalwabbit") if find_spec(name) is None]
    if lacking:
        raise InputError("expected the peers", found=f"no {lacking[0]}", remedy="pip install '.[peers]'")
    facts, sections, rounds = machine(), [], {}
    for directory in data:
        results: dict[str, list[Result]] = {name: [] for name in (*MUXREC, *PEERS)}
        for seed in numbers:
            for name, runs in results.items():
                runs.append(contend(name, directory, seed))
                say(f"{directory.name}, {name}, seed {seed}: test AUC {runs[-1].metrics['auc']:.4f}")
        info = Split(directory, "train").info
        train = info.splits["train"]
        sections.append((f"{directory.name}: {train.rows:,} rows, {train.label_rate:.2%} ones", table_of(results)))
        rounds[directory.name] = {name: [one._asdict() for one in runs] for name, runs in results.items()}
    report("Peers", facts, sections, rounds, out)


if __name__ == "__main__":
    run(main)
