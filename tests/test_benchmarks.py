"""Contenders of the benchmarks do the same work, and each command fills its tables; no timing is judged."""

import json
import re
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import torch

from benchmarks.common import Worker, WorkerError, in_turn, parse_sizes
from benchmarks.contenders import METHODS, Case, DenseAdam, Muxrec, Source, SparseAdam
from benchmarks.lowering import CONTENDERS, FLOOR, NAMES, work
from benchmarks.train import PROCESS_BYTES, blocks_of, groups_of, parse_methods
from features.errors import InputError

ROOT = Path(__file__).parents[1]
MANY = 1 << 60


def run(name: str, out: Path, *arguments: str) -> dict[str, list[list[str]]]:
    """Run a benchmark with --quick; heading to the cells of its table, the line of headings left out."""
    command = [sys.executable, "-m", f"benchmarks.{name}", "--quick", "--out", str(out), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    text = out.read_text(encoding="utf-8")
    assert done.stdout.strip() == text.strip()
    sections = dict(re.findall(r"^## (.+)\n\n((?:\|.*\n)+)", text, flags=re.MULTILINE))
    return {
        heading: [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
        for heading, table in sections.items()
    }


@pytest.mark.slow
def test_training_steps(tmp_path):
    tables = run("train", tmp_path / "train.md", "--methods", "muxrec")
    titles = [METHODS[method].title for method in ("floor", "muxrec")]
    assert {heading: [line[0] for line in table] for heading, table in tables.items()} == {
        "2e3 rows, mlp, uniform ids": titles,
        "2e3 rows, mlp, power law ids": titles,
        "2e3 rows, final_mlp, uniform ids": titles,
    }
    for table in tables.values():
        assert float(table[0][3]) == 1, "the floor is its own floor"
        assert all(float(line[1].replace(",", "")) > 0 for line in table)
    document = json.loads((tmp_path / "train.json").read_text(encoding="utf-8"))
    assert {"CPU", "OMP_NUM_THREADS", "torch threads"} <= set(document["facts"])
    for block in document["rounds"].values():
        assert all(len(one["rounds"]) == 2 and one["rounds"][0]["steps"] >= 2 for one in block.values())


@pytest.mark.slow
def test_loader(tmp_path):
    (table,) = run("load", tmp_path / "load.md").values()
    assert [line[0].partition(":")[0].partition(",")[0] for line in table[:4]] == ["floor", "Split", "Split", "step"]
    assert table[0][4] == "1.00"


@pytest.mark.slow
def test_preparing(tmp_path):
    tables = run("prepare", tmp_path / "prepare.md")
    assert list(tables) == ["1e3 rows", "3e3 rows", "Peak memory by rows"]
    for table in tables.values():
        assert [line[0] for line in table] == list(CONTENDERS)


def small_case(method: str) -> Case:
    return Case(method=method, num_rows=40, batch_size=16, num_features=3, width=4)


def started_alike(method: str) -> tuple[Muxrec, DenseAdam]:
    """muxrec, and another contender with the same weights."""
    ours = METHODS["muxrec"].build(small_case("muxrec"))
    theirs = METHODS[method].build(small_case(method))
    assert isinstance(ours, Muxrec)
    assert isinstance(theirs, DenseAdam)
    theirs.network.load_state_dict(ours.ranker.network.state_dict())
    with torch.no_grad():
        theirs.table.weight.copy_(ours.ranker.embedding.table)
    return ours, theirs


@pytest.mark.parametrize("method", ["dense", "dense_fused"])
def test_muxrec_and_dense_adam_train_the_same_model(method):
    ours, theirs = started_alike(method)
    start = ours.ranker.embedding.table.clone()
    source = Source(small_case(method))
    for number in range(20):
        draw = source.draw()
        losses = []
        for contender in (ours, theirs):
            torch.manual_seed(number)  # of the dropout
            losses.append(contender.step(contender.ready(draw)))
        assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    ours.finish()
    table, other = ours.ranker.embedding.table, theirs.table.weight.detach()
    assert (table - other).abs().mean() < 0.005 * (table - start).abs().mean()


def test_sparse_adam_reads_the_same_rows_and_leaves_the_others_alone():
    ours, theirs = started_alike("sparse")
    assert isinstance(theirs, SparseAdam)
    draw = Source(small_case("sparse")).draw()
    before = theirs.table.weight.detach().clone()
    losses = []
    for contender in (ours, theirs):
        torch.manual_seed(0)
        losses.append(contender.step(contender.ready(draw)))
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    moved = (theirs.table.weight.detach() != before).any(dim=1).nonzero().flatten()
    assert moved.tolist() == draw.rows.unique().tolist()


@pytest.mark.parametrize("ids", ["uniform", "power law"])
def test_draws_repeat_and_reach_most_rows(ids):
    case = Case(method="floor", num_rows=500, ids=ids)
    first, again = Source(case).draw(), Source(case).draw()
    assert torch.equal(first.tokens, again.tokens)
    assert first.rows.shape == (case.batch_size, case.num_features)
    counts = first.rows.flatten().bincount(minlength=500)
    assert (counts > 0).float().mean() > 0.95
    # The most frequent value of each feature takes a seventh of its reads, or no more than the others do.
    assert (counts.max() / counts.float().mean() > 5) == (ids == "power law")


def test_contenders_that_fit_together_take_turns():
    (block, *_) = blocks_of([1000], list(METHODS))
    assert list(groups_of(block, MANY)) == [[*sorted(METHODS, key=lambda name: not name.startswith("floor"))]]


def test_contenders_that_do_not_fit_together_run_beside_the_floors():
    (block, *_) = blocks_of([100_000_000], ["floor", "muxrec", "dense", "sparse"])
    table = 100_000_000 * 16 * 4
    free = int(3.2 * table) + 2 * PROCESS_BYTES
    assert list(groups_of(block, free)) == [["floor", "muxrec"], ["floor", "sparse"]]
    assert list(groups_of(block, PROCESS_BYTES)) == [["floor"]]


def test_lists_of_the_command_line():
    assert parse_methods("muxrec_bf16") == ["floor", "floor_bf16", "muxrec_bf16"]
    for wrong in ("", "muxrec,adam"):
        with pytest.raises(InputError, match="contender"):
            parse_methods(wrong)
    for wrong in ("", "0", "ten", "inf"):
        with pytest.raises(InputError, match="numbers of rows"):
            parse_sizes(wrong)


def test_everybody_is_first_once():
    orders = [in_turn(["a", "b", "c"], number) for number in range(3)]
    assert sorted(order[0] for order in orders) == ["a", "b", "c"]
    assert all(sorted(order) == ["a", "b", "c"] for order in orders)


def raw_file(directory: Path, values: list[str]) -> Path:
    """A raw file whose 26 columns are all `values`, half of the labels 1."""
    labels = [number % 2 for number in range(len(values))]
    path = directory / "raw.parquet"
    pl.DataFrame({"label": labels, **dict.fromkeys(NAMES, values)}).write_parquet(path)
    return path


def test_a_vocabulary_counts_from_the_most_frequent_value(tmp_path):
    raw = raw_file(tmp_path, ["rare", "often", "often", "rare", "often", "once"])
    work("vocabulary: a counter and a dictionary", str(raw), str(tmp_path / "out"))
    written = pl.read_parquet(tmp_path / "out" / "*.parquet")
    assert [written[name].to_list() for name in NAMES] == [[2, 1, 1, 2, 1, 3]] * len(NAMES)


@pytest.mark.parametrize("name", [name for name in CONTENDERS if name != FLOOR])
def test_everybody_tells_the_same_values_apart(name, tmp_path):
    values = [f"v{number * number % 37}" for number in range(400)]
    raw = raw_file(tmp_path, values)
    done = work(name, str(raw), str(tmp_path / "out"))
    written = pl.read_parquet(tmp_path / "out" / "**" / "*.parquet")
    assert written.height == len(values)
    counts = sorted(written[NAMES[3]].value_counts()["count"].to_list())
    assert counts == sorted(pl.Series(values).value_counts()["count"].to_list())
    assert done["seconds"] > 0


def test_a_worker_has_a_peak_of_its_own(tmp_path):
    raw = raw_file(tmp_path, ["a", "b"] * 50)
    ballast = b"x" * (600 << 20)
    worker = Worker("benchmarks.lowering", {"method": FLOOR, "raw": str(raw), "out": str(tmp_path / "out")})
    try:
        assert worker.ask("run")["peak_mb"] < 400
    finally:
        worker.close()
    assert len(ballast) == 600 << 20


def test_a_worker_that_ends_says_why(tmp_path):
    missing = {"method": FLOOR, "raw": str(tmp_path / "none.parquet"), "out": str(tmp_path / "out")}
    worker = Worker("benchmarks.lowering", missing)
    with pytest.raises(WorkerError, match=r"none\.parquet|No such file"):
        worker.ask("run")
    worker.close()
    worker = Worker("benchmarks.lowering", missing)
    worker._process.kill()
    with pytest.raises(WorkerError, match="signal 9"):
        worker.ask("run")
    worker.close()
