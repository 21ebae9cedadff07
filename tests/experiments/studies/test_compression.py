"""The studies of compression: which runs they plan and in what order, what is done once, and what is a result."""

import csv
import os
from collections.abc import Mapping
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from experiments.studies import compression, runner
from experiments.studies.compression import BUDGETS, COMPRESSION, METHODS, SEEDS, frontier_cells
from experiments.studies.runner import SCORER_TIME, RunError, RunStore, StudyRun, plan, time_scorers, train_missing
from experiments.studies.table_kinds import Cell, StudyData
from recsys.compression import COMPRESSORS
from recsys.config import Compression
from serving.bundle.table_plan import table_bytes


def cells_like(data: Mapping[str, StudyData], *names: str) -> list[Cell]:
    """Cells of the frontiers by `METHOD TYPE@BUDGET`, in the order of the study."""
    cells = [cell for name in data for cell in frontier_cells(data, name)]
    return [cell for cell in cells if cell.name.removeprefix(f"{cell.panel} ") in names]


def run_like(study_data: StudyData, name: str) -> StudyRun:
    """The first run of a cell of MovieLens' frontier."""
    return StudyRun(cells_like({"movielens": study_data}, name)[0], 1, study_data)


# Planning


def test_the_runs_that_say_most_come_first(study_data, small):
    data = {"movielens": study_data, "frappe": study_data}
    chosen = cells_like(
        data,
        "collisionless@1",
        *(f"{method} {dtype}@{budget:g}" for method in ("smaller table", "magnitude") for dtype in ("int8", "fp32")
          for budget in (0.1, 0.5)),
    )  # fmt: skip
    runs = plan(chosen, data, 2, "*")
    assert [run.name for run in plan(chosen, data, 2, "* *")[:11]] == [
        "movielens mlp collisionless@1 seed 1",
        "movielens mlp smaller table int8@0.1 seed 1",
        "movielens mlp magnitude int8@0.1 seed 1",
        "movielens mlp smaller table fp32@0.1 seed 1",
        "movielens mlp magnitude fp32@0.1 seed 1",
        "movielens mlp smaller table int8@0.5 seed 1",
        "movielens mlp magnitude int8@0.5 seed 1",
        "movielens mlp smaller table fp32@0.5 seed 1",
        "movielens mlp magnitude fp32@0.5 seed 1",
        "frappe mlp collisionless@1 seed 1",
        "frappe mlp smaller table int8@0.1 seed 1",
    ]
    assert len(plan(chosen, data, 2, "* *")) == 2 * 2 * (1 + 8)
    assert {run.cell.name for run in runs} == {
        "movielens mlp collisionless@1",
        "movielens mlp smaller table int8@0.1",  # the only one of these types on a page
        "frappe mlp collisionless@1",
    }


def test_the_plain_command_does_what_the_pages_show(study_data):
    values = {
        "frappe": ["user", "item", "daytime", "weekday", "isweekend", "homework", "cost", "weather", "country", "city"],
        "movielens": ["user_id", "item_id", "age", "gender", "occupation", "zip_code"],
    }
    for name, features in values.items():
        data = {name: study_data._replace(num_values=dict.fromkeys(features, 100))}
        path = Path(__file__).parents[3] / "docs" / "results" / f"frontier_{name}.csv"
        lines = csv.DictReader(path.read_text(encoding="utf-8").splitlines())
        shown = {(line["method"], line["table_dtype"], float(line["budget"]), int(line["seed"])) for line in lines}
        runs = plan(COMPRESSION[f"frontier_{name}"].cells(data), data)
        assert {(run.cell.label, run.cell.dtype, run.cell.budget, run.seed) for run in runs} == shown
    assert all(any(label in pattern for label in METHODS) for pattern in SEEDS if pattern.startswith("movielens"))


def test_a_budget_is_a_share_of_the_collisionless_fp32_table(study_data, small):
    """A row of 16 floats for each value, and for the missing and the unseen one of each feature."""
    rows = sum(count + 2 for count in study_data.num_values.values())
    (smaller,) = cells_like({"movielens": study_data}, "smaller table int8@0.1")
    assert smaller.compression is not None
    assert smaller.compression["target_bytes"] == int(0.1 * table_bytes(rows, 16, "fp32"))
    assert smaller.settings["embedding.num_rows"] == 4 * rows  # of 4 floats: the same bytes
    (magnitude,) = cells_like({"movielens": study_data}, "magnitude int8@0.1")
    assert magnitude.settings["embedding.num_rows"] == 32 * rows


def test_budgets_that_all_rows_fit_in_are_one_run(study_data, small, processes, monkeypatch):
    """Half the bytes are enough for all rows of half bytes; a smaller table has other rows at each budget."""
    budgets = (0.8, 0.5, 0.1)
    monkeypatch.setattr(compression, "BUDGETS", budgets)
    names = [f"{method} int4@{budget:g}" for method in ("magnitude", "smaller table") for budget in budgets]
    data = {"movielens": study_data}
    runs = plan(cells_like(data, *names), data, 1)
    paths = {(run.cell.label, run.cell.budget): processes.store.path(run) for run in runs}
    assert paths["magnitude", 0.8] == paths["magnitude", 0.5] != paths["magnitude", 0.1]
    assert len(set(paths.values())) == 5
    assert train_missing(runs, processes, 1) == []
    assert [words[0] for words in processes.words].count("prune") == 5
    larger, half = (run for run in runs if run.cell.label == "magnitude" and run.cell.budget != 0.1)
    assert processes.store.record(larger) == processes.store.record(half) is not None


def test_every_method_of_the_study_is_a_compressor_with_these_settings():
    for method in METHODS.values():
        assert method.compressor in COMPRESSORS
        COMPRESSORS[method.compressor].Config.model_validate(method.settings)
    assert {method.compressor for method in METHODS.values()} == set(COMPRESSORS)


def test_the_search_alone_and_the_papers_optembed_are_two_curves(study_data, small):
    search, paper = cells_like({"movielens": study_data}, "width search int8@0.1", "OptEmbed int8@0.1")
    assert search.compression is not None
    resolved = [Compression.model_validate(cell.compression) for cell in (search, paper)]
    settings = [one.model_dump()["settings"] for one in resolved]
    assert [(own["supernet"], one.start) for own, one in zip(settings, resolved, strict=True)] == [
        (False, "finetune"),
        (True, "rewind"),
    ]
    assert settings[0] | {"supernet": True} == settings[1]
    plain = {"method": "optembed", "target_bytes": search.compression["target_bytes"], "table_dtype": "int8"}
    assert resolved[0] == Compression.model_validate({**plain, "settings": {"rows_a_value": None}})
    assert paper.prune_arguments()[-3:] == [
        "compression.settings.rows_a_value=null",
        "compression.settings.supernet=true",
        "compression.start=rewind",
    ]


def test_the_compression_is_part_of_a_runs_identity(study_data, small, tmp_path):
    store, run = RunStore(tmp_path), run_like(study_data, "magnitude int8@0.1")
    assert run.cell.compression is not None
    more = {**run.cell.compression, "target_bytes": run.cell.compression["target_bytes"] + 1}
    others = [
        run_like(study_data, "frequency cut-off int8@0.1"),  # from the same base
        run_like(study_data, "magnitude fp32@0.1"),
        run._replace(cell=run.cell._replace(compression=more)),
        run._replace(seed=2),
        run._replace(cell=run.cell._replace(compression=None)),
    ]
    assert len({store.path(one) for one in (run, *others)}) == 6
    assert {store.base(one) for one in others if one.seed == 1} == {store.base(run)}


# Doing


def test_a_second_call_does_only_what_is_missing(study_data, small, processes):
    data = {"movielens": study_data}
    cells = cells_like(data, "collisionless@1", "magnitude int4@0.1", "magnitude int4@0.01", "low-bit rows int4@0.5")
    size = cells[2].prune_arguments()[3]
    processes.errors[f"--target-bytes {size}"] = RunError("9 bytes are too few; found 99 (exit code 2; all of it)", 2)
    for _ in range(2):
        assert train_missing(plan(cells, data, 1), processes, 1) == []
        assert [words[0] for words in processes.words] == ["train", "train", "prune", "prune", "prune"]
    assert train_missing(plan(cells, data, 2), processes, 1) == []
    assert processes.trained == ["seed=1", "seed=1", "seed=2", "seed=2"]
    assert len(processes.words) == 10


def test_a_budget_out_of_reach_is_a_result_and_other_errors_are_not(study_data, small, processes):
    run = run_like(study_data, "magnitude int8@0.1")
    processes.errors["prune"] = RunError("12 bytes are too few; found 99 (exit code 2; all of it in x.log)", 2)
    processes.train(run)
    assert processes.store.record(run) == {
        **{"unreachable": "12 bytes are too few; found 99", "seconds": 0.0},
        "base_seconds": 4.0,
    }
    run = run_like(study_data, "magnitude fp32@0.1")
    for error in (RunError("no such method", 2), RunError("12 bytes are too few", 1)):
        processes.errors["prune"] = error
        with pytest.raises(RunError):
            processes.train(run)
        assert processes.store.record(run) is None


def test_a_base_is_trained_once_and_pruned_with_the_methods_settings(study_data, small, processes):
    data = {"movielens": study_data}
    runs = plan(cells_like(data, *(f"frequency cut-off int8@{budget:g}" for budget in BUDGETS)), data, 1, "* *")
    assert train_missing(runs, processes, 2) == []
    assert [words[0] for words in processes.words].count("train") == 1
    words = next(words for words in processes.words if words[0] == "prune")
    assert words[1] == str(processes.store.base(runs[0]))
    assert words[words.index("--method") + 1] == "frequency"
    assert "compression.settings.rows_a_value=null" in words
    targets = {words[words.index("--target-bytes") + 1] for words in processes.words if words[0] == "prune"}
    assert targets == {run.cell.prune_arguments()[3] for run in runs}


def test_a_default_that_changed_makes_another_run(study_data, small, processes):
    run = run_like(study_data, "magnitude int8@0.1")
    processes.train(run)
    path = processes.store.path(run) / "experiment.yaml"
    path.write_text(path.read_text().replace("learning_rate_share: 0.1", "learning_rate_share: 0.3"))
    assert processes.store.record(run) is None


def test_times_are_those_of_whole_runs_and_the_scorer_waits_for_the_trainings(
    study_data, small, processes, monkeypatch, capsys
):
    whole, resumed = (run_like(study_data, f"magnitude int8@{budget}") for budget in (0.1, 0.01))
    (processes.store.path(resumed) / "checkpoint").mkdir(parents=True)  # cut off before
    assert train_missing([whole, resumed], processes, 1) == []
    records = [processes.store.record(run) or {} for run in (whole, resumed)]
    assert records[0]["seconds"] >= 0
    assert records[1]["seconds"] is None
    assert not any(SCORER_TIME in record for record in records)
    assert not (processes.store.path(resumed) / "checkpoint").exists()
    # In the next call, as if this one was killed here.
    store = RunStore(processes.store.folder.parent)
    time_scorers([whole, resumed], store)
    times = [(store.record(run) or {})[SCORER_TIME] for run in (whole, resumed)]
    assert all(0 < time < 10_000 for time in times)
    monkeypatch.setattr(runner, "scorer_microseconds", lambda bundle: pytest.fail("timed again"))
    time_scorers([whole, resumed], store)


# The command


@pytest.mark.slow
def test_the_command_end_to_end(movielens, small, tmp_path, monkeypatch, capsys):
    """A method from a dataset to a page; a second call trains nothing."""
    work, out = tmp_path / "work", tmp_path / "out"
    monkeypatch.setattr(compression, "METHODS", {"low-bit rows": METHODS["low-bit rows"]})
    monkeypatch.setattr(compression, "BUDGETS", (0.5,))
    arguments = ["studies", "--data", str(movielens), "--study", "frontier_movielens"]
    arguments += ["--work", str(work), "--out", str(out), "--seeds", "1", "--workers", "1", "--track", "--cells"]
    for _ in range(2):
        monkeypatch.setattr("sys.argv", [*arguments, "*[s8]@*"])
        with pytest.raises(SystemExit) as ended:
            runner.main()
        said = capsys.readouterr().err
        assert ended.value.code == 0, said
    assert said.splitlines()[-1] == "2 runs, 2 of them done before"
    assert len(list((work / "runs").glob("*/metrics.json"))) == 2
    reference, pruned = csv.DictReader((out / "frontier_movielens.csv").read_text().splitlines())
    assert (reference["method"], pruned["method"]) == ("collisionless", "low-bit rows")
    assert int(pruned["embedding_bytes"]) <= int(pruned["target_bytes"]) < int(reference["embedding_bytes"])
    assert all(0 < float(line["scorer_us_per_row"]) < 10_000 for line in (reference, pruned))
    assert "| low-bit rows | **" in (out / "frontier_movielens.md").read_text()
    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    experiment = client.get_experiment_by_name("movielens-1m")
    assert experiment is not None
    logged = client.search_runs([experiment.experiment_id])
    assert sorted(run.data.tags["stage"] for run in logged) == ["prune", "train"]
    assert {run.info.status for run in logged} == {"FINISHED"}
