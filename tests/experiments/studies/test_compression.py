"""The frontier study: which points it plans and in what order, what it does not do twice, and what it reports."""

import csv
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from experiments.studies import compression, frontier_points, table_kinds
from experiments.studies.compression import Bench, curves_of
from experiments.studies.frontier_figures import time_scorers
from experiments.studies.frontier_points import METHODS, Choice, Point, bases_of, points_of
from experiments.studies.frontier_report import csv_of
from experiments.studies.runner import Processes, Results, RunError, train_missing
from experiments.studies.table_kinds import read_facts
from features.errors import InputError
from recsys.compression import COMPRESSORS
from recsys.config import Compression
from serving.bundle.table import table_bytes

CHOICE = Choice(("smaller table", "magnitude"), (0.1, 0.5), ("int8", "fp32"), 2)


@pytest.fixture
def small(monkeypatch):
    """Networks that are trained in a second stand for the tuned ones."""
    settings = {"model.hidden": [8], "trainer.epochs": 1, "trainer.batch_size": 512}
    for data in ("movielens", "frappe"):
        monkeypatch.setitem(table_kinds.NETWORKS, (data, "mlp"), ("mlp", settings))
        monkeypatch.setitem(frontier_points.MODELS, data, "mlp")


def record_of(point: Point, auc: float = 0.8, **changes: Any) -> dict[str, Any]:
    """A line of results.jsonl with made-up figures."""
    test = {"auc": auc, "logloss": 0.5}
    return {
        "experiment": point.experiment.model_dump(mode="json"),
        "dataset_digest": point.facts.info.digest,
        "compression": point.compression,
        "metrics": {"valid": {**test, "auc": auc + 0.01}, "test": test, "perf": {"epochs": 3}},
        **{"embedding_bytes": point.target_bytes - 7, "bundle_bytes": 10_000, "scorer_us_per_row": 1.5},
        **{"seconds": 3.0, "base_seconds": 5.0, **changes},
    }


# Planning


def test_the_points_that_say_most_come_first(facts, small):
    points = points_of({"movielens": facts, "frappe": facts}, CHOICE)
    assert [point.name for point in points[:11]] == [
        "movielens collisionless seed 1",
        "movielens smaller table int8@0.1 seed 1",
        "movielens magnitude int8@0.1 seed 1",
        "movielens smaller table fp32@0.1 seed 1",
        "movielens magnitude fp32@0.1 seed 1",
        "movielens smaller table int8@0.5 seed 1",
        "movielens magnitude int8@0.5 seed 1",
        "movielens smaller table fp32@0.5 seed 1",
        "movielens magnitude fp32@0.5 seed 1",
        "frappe collisionless seed 1",
        "frappe smaller table int8@0.1 seed 1",
    ]
    assert len(points) == 2 * 2 * (1 + 8)
    # The reference and the base `wide` are the same under both names; the shape of `unified` is another one.
    assert len({point.key for point in points}) == len(points) - 2 * (1 + 4)


def test_a_budget_is_a_share_of_the_collisionless_fp32_table(facts, small):
    """A row of 16 floats for each value, and for the missing and the unseen one of each feature."""
    rows = sum(count + 2 for count in facts.num_values.values())
    point = points_of({"movielens": facts}, CHOICE)[1]
    assert point.target_bytes == int(0.1 * table_bytes(rows, 16, "fp32"))
    cells, _ = bases_of(facts, "movielens")
    assert cells["wide"].settings["embedding.num_rows"] == 32 * rows
    assert cells["unified"].settings["embedding.num_rows"] == 4 * rows  # of 4 floats: the same bytes


def test_budgets_that_all_rows_fit_in_are_one_run(facts, small, tmp_path):
    """Half the bytes are enough for all rows of half bytes; a smaller table has other rows at each budget."""
    choice = Choice(("magnitude", "smaller table"), (0.8, 0.5, 0.1), ("int4",), 1)
    points = [point for point in points_of({"movielens": facts}, choice) if point.method]
    keys = {(point.method, point.budget): point.key for point in points}
    assert keys["magnitude", 0.8] == keys["magnitude", 0.5] != keys["magnitude", 0.1]
    assert len(set(keys.values())) == 5
    kept, trained = Results(tmp_path / "results.jsonl"), list[Point]()

    def train(point: Point) -> dict[str, Any]:
        trained.append(point)
        return record_of(point)

    assert train_missing(points, kept, train, 1, lambda line: None) == []
    assert len(trained) == 5
    magnitude = next(curve for curve in curves_of(points, kept) if curve.method == "magnitude")
    assert magnitude.records[0.8] == magnitude.records[0.5]


def test_every_method_of_the_study_is_a_compressor_with_these_settings():
    for method in METHODS.values():
        assert method.compressor in COMPRESSORS
        COMPRESSORS[method.compressor].Config.model_validate(method.settings)
    assert {method.compressor for method in METHODS.values()} == set(COMPRESSORS)


def test_the_search_alone_and_the_papers_optembed_are_two_curves(facts, small, tmp_path):
    """The search keeps the identity that it had when it was called OptEmbed."""
    choice = CHOICE._replace(methods=("width search", "OptEmbed"), budgets=(0.1,), dtypes=("int8",))
    search, paper = (point.compression for point in points_of({"movielens": facts}, choice)[1:3])
    assert search is not None
    assert paper is not None
    budget = {"target_bytes": search["target_bytes"], "table_dtype": "int8"}
    settings = {"rows_a_value": None}
    before = Compression.model_validate({"method": "optembed", **budget, "settings": settings}).model_dump(mode="json")
    assert search == before
    assert (search["settings"]["supernet"], search["start"]) == (False, "finetune")
    assert {key: value for key, value in paper.items() if value != search[key]} == {
        "settings": {**search["settings"], "supernet": True},
        "start": "rewind",
    }
    processes = Fake(tmp_path, RunError("1 bytes are too few", 2))
    Bench(tmp_path, processes).run(points_of({"movielens": facts}, choice)[2])
    assert processes.words[1][-3:] == [
        "compression.settings.rows_a_value=null",
        "compression.settings.supernet=true",
        "compression.start=rewind",
    ]


def test_what_a_point_is_compressed_by_is_part_of_its_identity(facts, small):
    point = points_of({"movielens": facts}, CHOICE)[2]
    others = [
        point._replace(method="frequency cut-off"),  # from the same base
        point._replace(dtype="fp32"),
        point._replace(target_bytes=point.target_bytes + 1),
        point._replace(seed=2),
        point._replace(method=None),
    ]
    assert len({one.key for one in (point, *others)}) == 6
    assert {one.base_key for one in others if one.seed == 1} == {point.base_key}


# Doing


def test_a_second_call_does_only_what_is_missing(facts, small, tmp_path):
    path, done = tmp_path / "results.jsonl", []

    def run(point: Point) -> dict[str, Any]:
        done.append(point.name)
        if point.method == "magnitude" and point.budget == 0.1:
            return {**record_of(point), "metrics": None, "unreachable": "too few bytes"}
        return record_of(point)

    points = points_of({"movielens": facts}, CHOICE)
    for _ in range(2):
        assert train_missing(points, Results(path), run, 1, lambda line: None) == []
        assert done == [point.name for point in points]
    more = points_of({"movielens": facts}, CHOICE._replace(seeds=3))
    train_missing(more, Results(path), run, 1, lambda line: None)
    assert [name for name in done if name.endswith("seed 3")] == done[len(points) :]


class Fake(Processes):
    """Commands that end as they are told."""

    def __init__(self, work: Path, error: RunError | None = None) -> None:
        super().__init__(work, threads=1, keep_runs=False)
        self.error = error
        self.words: list[list[str]] = []

    def run(self, words, log):
        """Note the words; a training leaves metrics behind."""
        self.words.append(list(words))
        out = Path(words[words.index("--out") + 1])
        if words[0] == "train":
            out.mkdir(parents=True)
            (out / "run.json").write_text("{}")
            (out / "metrics.json").write_text(json.dumps({"perf": {"train_seconds": 4.0}}))
        elif self.error:
            raise self.error


def test_a_budget_out_of_reach_is_a_result_and_other_errors_are_not(facts, small, tmp_path):
    point = points_of({"movielens": facts}, CHOICE)[2]
    refused = RunError("12 bytes are too few; found 99 (exit code 2; all of it in x.log)", 2)
    record = Bench(tmp_path / "a", Fake(tmp_path / "a", refused)).run(point)
    assert record["unreachable"] == "12 bytes are too few; found 99"
    assert "metrics" not in record
    for error in (RunError("no such method", 2), RunError("12 bytes are too few", 1)):
        with pytest.raises(RunError):
            Bench(tmp_path / "b", Fake(tmp_path / "b", error)).run(point)


def test_a_base_is_trained_once_and_pruned_with_the_methods_settings(facts, small, tmp_path):
    processes = Fake(tmp_path, RunError("1 bytes are too few", 2))
    bench = Bench(tmp_path, processes)
    points = [
        p
        for p in points_of({"movielens": facts}, CHOICE._replace(methods=("frequency cut-off",)))
        if p.method == "frequency cut-off" and p.seed == 1
    ]
    for point in points:
        bench.run(point)
    assert [words[0] for words in processes.words] == ["train", *["prune"] * 4]
    words = processes.words[1]
    assert words[1] == str(tmp_path / "bases" / points[0].base_key)
    assert words[words.index("--target-bytes") + 1] == str(points[0].target_bytes)
    assert words[words.index("--method") + 1] == "frequency"
    assert "compression.settings.rows_a_value=null" in words


class Prunes(Fake):
    """A prune leaves a run behind, as a fake has it: metrics, and the bundle of another run."""

    def __init__(self, work: Path, bundle: Path) -> None:
        super().__init__(work)
        self.bundle = bundle

    def run(self, words, log):
        super().run(words, log)
        out = Path(words[words.index("--out") + 1])
        if words[0] == "prune":
            out.mkdir(parents=True, exist_ok=True)
            (out / "run.json").write_text("{}")
            (out / "metrics.json").write_text('{"test": {"auc": 0.5}, "perf": {"epochs": 1}}')
        shutil.copytree(self.bundle, out / "bundle")


def test_times_are_those_of_whole_points_and_the_scorer_waits_for_the_trainings(facts, small, run, tmp_path):
    points = [p._replace(target_bytes=10**6) for p in points_of({"movielens": facts}, CHOICE)[1:3]]
    kept = Results(tmp_path / "results.jsonl")
    bench = Bench(tmp_path, Prunes(tmp_path, run / "bundle"))
    (tmp_path / "runs" / points[1].key).mkdir(parents=True)  # cut off before
    said: list[str] = []
    assert train_missing(points, kept, bench.run, 1, said.append) == []
    whole, resumed = (kept.records[point.key] for point in points)
    assert whole["seconds"] >= 0
    assert resumed["seconds"] is None
    assert "resumed" in said[-1]
    assert not any("scorer_us_per_row" in record for record in (whole, resumed))
    assert not (tmp_path / "runs" / points[0].key).exists()
    # In the next call, as if the study was killed here.
    times: dict[str, float] = {}
    kept = Results(tmp_path / "results.jsonl")
    time_scorers(points, kept, tmp_path, lambda point, time: times.update({point.key: time}))
    assert {key: record["scorer_us_per_row"] for key, record in kept.records.items()} == times
    assert len(times) == 2
    assert all(0 < time < 10_000 for time in times.values())
    assert list((tmp_path / "bundles").iterdir()) == []


# The command


def test_an_unknown_method_is_refused():
    with pytest.raises(InputError, match="unknown method; found 'nonsense'; use some of smaller table"):
        compression._checked(["nonsense"], list(METHODS), "method")


@pytest.mark.slow
def test_the_command_end_to_end(movielens, small, tmp_path, monkeypatch, capsys):
    """A method from a dataset to a page; a second call trains nothing."""
    work, out = tmp_path / "work", tmp_path / "out"
    arguments = ["frontier", "--data", str(movielens), "--work", str(work), "--out", str(out)]
    arguments += ["--methods", "low-bit rows", "--budgets", "0.5", "--dtypes", "int8", "--seeds", "1", "--workers", "1"]
    for _ in range(2):
        monkeypatch.setattr("sys.argv", arguments)
        with pytest.raises(SystemExit) as ended:
            compression.main()
        said = capsys.readouterr().err
        assert ended.value.code == 0, said
    assert "2 runs, 2 of them done before" in said
    kept = Results(work / "results.jsonl")
    assert len(kept.records) == 2
    for record in kept.records.values():
        if record["compression"] and "metrics" in record:
            assert record["embedding_bytes"] <= record["compression"]["target_bytes"]
            assert 0 < record["scorer_us_per_row"] < 10_000
    lines = list(csv.DictReader((out / "frontier_movielens.csv").read_text().splitlines()))
    assert {line["method"] for line in lines} == {"collisionless", "low-bit rows"}
    assert (out / "frontier_movielens.md").exists()
    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    study = client.get_experiment_by_name("frontier")
    assert study is not None
    runs = client.search_runs([study.experiment_id])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert sorted(path.path for path in client.list_artifacts(parent.info.run_id)) == sorted(
        path.name for path in out.iterdir()
    )
    nested = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(nested) == 2
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert all(run.data.metrics["perf/embedding_bytes"] > 0 for run in nested)
    choice = Choice(("low-bit rows",), (0.5,), ("int8",), 1)
    assert csv_of(curves_of(points_of({"movielens": read_facts(movielens)}, choice), kept)).count("\n") == 3
