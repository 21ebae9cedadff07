"""Contenders of the benchmarks do the same work, and each command fills its tables; timings are not tested."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from benchmarks.common import Worker, in_turn, parse_sizes
from benchmarks.contenders import METHODS, Case, DenseAdam, Muxrec, Source, SparseAdam
from benchmarks.peer_models import Rows, lines_of, tables
from benchmarks.prepare import CONTENDERS, FLOOR, NAMES, work
from benchmarks.requests import CASES, requests
from benchmarks.scorers import METHODS as SCORERS
from benchmarks.scorers import Contender
from benchmarks.train import PROCESS_BYTES, blocks_of, groups_of, parse_methods
from benchmarks.untrained import write_bundle_of
from features.encode import EncodedBatch
from features.errors import InputError
from features.line_worker import WorkerError

ROOT = Path(__file__).parents[1]
MANY = 1 << 60


def run(name: str, out: Path, *arguments: str) -> dict[str, list[list[str]]]:
    """Run a benchmark with --quick; returns heading to the cells of its table, without the line of headings."""
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
@pytest.mark.parametrize("case", CASES)
def test_ways_to_score_give_the_same_scores(tmp_path, case):
    """Of the contenders without a server: all of them are timed on the same answer."""
    write_bundle_of(CASES[case], tmp_path / "bundle")
    answers = {}
    for method in ("rows", "context", "torch"):
        contender = Contender(method=method, case=case, bundle=str(tmp_path / "bundle"))
        score, ready = SCORERS[method].build(contender, requests(CASES[case], 9, number=2))
        answers[method] = np.concatenate([score(request) for request in ready])
    logits, ready = SCORERS["floor"].build(contender, requests(CASES[case], 9, number=2))
    answers["floor"] = np.concatenate([1 / (1 + np.exp(-logits(inputs)[0])) for inputs in ready])
    for method, scores in answers.items():
        np.testing.assert_allclose(scores, answers["rows"], rtol=0, atol=1e-6, err_msg=method)
    assert answers["rows"].std() > 1e-4, "equal scores would test nothing"


def test_requests_have_every_feature():
    for case in CASES.values():
        for size in (1, 5):
            for request in requests(case, size, number=3):
                assert len(request.rows) == len(request.candidates) == size
                assert all(row.keys() == case.features.keys() for row in request.rows)
                assert request.context.keys() == set(case.shared)


@pytest.mark.slow
def test_scoring(tmp_path):
    tables = run("serve", tmp_path / "serve.md", "--case", "frappe")
    titles = [SCORERS[method].title for method in ("floor", "rows", "context", "torch", "pyfunc", "serve", "mlflow")]
    for size in (1, 20):
        table = tables[f"frappe: one request of {size}"]
        assert [line[0] for line in table] == titles
        assert table[0][3] == "1.00"
        assert [bool(line[5]) for line in table] == [False, True, True, False, False, False, False]
    assert [line[0] for line in tables["frappe: half of saturation, at random moments"]] == ["1", "20"]
    assert tables["frappe: 600 rows"][0][2] == "1.00"
    assert [line[0] for line in tables["frappe: a new process"]] == ["Scorer", "eager torch", "MLflow pyfunc"]
    packages = [line[0] for line in tables["Base install"]]
    assert {"numpy", "polars", "onnxruntime", "xxhash"} <= set(packages)
    assert not {"torch", "pandas", "mlflow", "pyarrow"} & set(packages)
    assert packages[0] == f"{len(packages) - 1} packages"


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
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
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


def test_each_contender_is_first_once():
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
def test_all_contenders_distinguish_the_same_values(name, tmp_path):
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
    worker = Worker("benchmarks.prepare", {"method": FLOOR, "raw": str(raw), "out": str(tmp_path / "out")})
    try:
        assert worker.ask("run")["peak_mb"] < 400
    finally:
        worker.close()
    assert len(ballast) == 600 << 20


def test_a_worker_that_ends_says_why(tmp_path):
    missing = {"method": FLOOR, "raw": str(tmp_path / "none.parquet"), "out": str(tmp_path / "out")}
    worker = Worker("benchmarks.prepare", missing)
    with pytest.raises(WorkerError, match=r"none\.parquet|No such file"):
        worker.ask("run")
    worker.close()
    worker = Worker("benchmarks.prepare", missing)
    worker._process.kill()
    with pytest.raises(WorkerError, match="signal 9"):
        worker.ask("run")
    worker.close()


@pytest.mark.slow
def test_tracking_costs(tmp_path):
    """One round without and with MLflow; the cost itself is not tested."""
    tables = run("tracking", tmp_path / "tracking.md", "--name", "logistic_regression", "--rounds", "1")
    assert [line[0] for line in tables["Seconds"]] == ["whole command, s", "processor, s", "training steps, s"]
    assert float(tables["Share"][1][1].split()[0]) > 0, "the tracker counted something"


def test_peers_read_what_the_model_reads():
    """Codes by how often train has a value, -1 for one that it lacks; flags of lists; lines for Vowpal Wabbit."""

    def rows(users: list[int], tags: list[int], lengths: list[int]) -> Rows:
        tokens = {"user": np.array(users, np.uint64), "tags": np.array(tags, np.uint64)}
        dense = np.arange(len(users), dtype=np.float32)[:, None]
        encoded = EncodedBatch(num_examples=len(users), tokens=tokens, lengths={"tags": np.array(lengths)}, dense=dense)
        return Rows(encoded, np.zeros(len(users), np.float32))

    train, other = tables(rows([7, 9, 9], [1, 2, 2], [0, 1, 2]), [rows([9, 5], [1], [0, 1])], ("price",))
    assert train.codes["user"].tolist() == [1, 0, 0]
    assert other.codes["user"].tolist() == [0, -1]
    assert {name: column.tolist() for name, column in train.numbers.items()} == {
        "tags_0": [0, 0, 1],  # value 2
        "tags_1": [0, 1, 0],
        "price": [0, 1, 2],
    }
    assert list(lines_of(rows([7], [1, 2], [2]), ("price",))) == ["-1 |A t7 |B t1 t2 |C x:0"]
