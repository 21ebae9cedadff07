"""The studies of compression: which runs they plan and in what order, what is done once, and what is a result."""

import csv
import os
from collections.abc import Mapping
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from experiments.studies import compression, runner
from experiments.studies.compression import BUDGETS, COMPRESSION, METHODS, frontier_cells
from experiments.studies.runner import RunError, RunStore, StudyRun, plan, train_missing
from experiments.studies.table_kinds import SEEDS, Cell, StudyData
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
        *(f"{method} int4@{budget:g}" for method in ("smaller table", "magnitude") for budget in (0.1, 0.5)),
    )
    runs = plan(chosen, data, 2)
    assert [run.name for run in runs[:6]] == [
        "movielens mlp collisionless@1 seed 1",
        "movielens mlp smaller table int4@0.1 seed 1",
        "movielens mlp magnitude int4@0.1 seed 1",
        "movielens mlp smaller table int4@0.5 seed 1",
        "movielens mlp magnitude int4@0.5 seed 1",
        "frappe mlp collisionless@1 seed 1",
    ]
    assert len(runs) == 2 * 2 * (1 + 4)


def test_the_plain_command_does_what_the_pages_show(study_data):
    values = {
        "frappe": ["user", "item", "daytime", "weekday", "isweekend", "homework", "cost", "weather", "country", "city"],
        "movielens": ["user_id", "item_id", "age", "gender", "occupation", "zip_code"],
    }
    for name, features in values.items():
        data = {name: study_data._replace(num_values=dict.fromkeys(features, 100))}
        path = Path(__file__).parents[3] / "docs" / "results" / f"frontier_{name}.csv"
        lines = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
        label = "label" if "label" in lines[0] else "method"  # as earlier versions called it
        shown = {(line[label], line["table_dtype"], float(line["budget"]), int(line["seed"])) for line in lines}
        runs = plan(COMPRESSION[f"frontier_{name}"].cells(data), data)
        assert {(run.cell.label, run.cell.table_dtype, run.cell.budget, run.seed) for run in runs} == shown
    assert all(any(label in pattern for label in METHODS) for pattern in SEEDS if pattern.startswith("movielens * "))


def test_a_budget_is_a_share_of_the_collisionless_fp32_table(study_data, small):
    """A row of 16 floats for each value, and for the missing and the unseen one of each feature."""
    rows = sum(count + 2 for count in study_data.num_values.values())
    (smaller,) = cells_like({"movielens": study_data}, "smaller table int4@0.1")
    assert smaller.compression is not None
    assert smaller.compression["target_bytes"] == int(0.1 * table_bytes(rows, 16, "fp32"))
    assert smaller.settings["embedding.num_rows"] == 4 * rows  # of 4 floats: the same bytes
    (magnitude,) = cells_like({"movielens": study_data}, "magnitude int4@0.1")
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
    assert train_missing(runs, processes) == []
    assert [words[0] for words in processes.words].count("prune") == 5
    larger, half = (run for run in runs if run.cell.label == "magnitude" and run.cell.budget != 0.1)
    assert processes.store.record(larger) == processes.store.record(half) is not None


def test_every_method_of_the_study_is_a_compressor_with_these_settings():
    for method in METHODS.values():
        assert method.compressor in COMPRESSORS
        COMPRESSORS[method.compressor].Config.model_validate(method.options.get("settings", {}))
    assert {method.compressor for method in METHODS.values()} == set(COMPRESSORS)


def test_the_search_alone_and_the_papers_optembed_are_two_curves(study_data, small):
    search, paper = cells_like({"movielens": study_data}, "width search int4@0.1", "OptEmbed int4@0.1")
    assert search.compression is not None
    resolved = [Compression.model_validate(cell.compression) for cell in (search, paper)]
    settings = [one.model_dump()["settings"] for one in resolved]
    assert [(own["supernet"], one.start) for own, one in zip(settings, resolved, strict=True)] == [
        (False, "finetune"),
        (True, "rewind"),
    ]
    assert settings[0] | {"supernet": True} == settings[1]
    plain = {"method": "optembed", "target_bytes": search.compression["target_bytes"], "table_dtype": "int4"}
    assert resolved[0] == Compression.model_validate({**plain, "settings": {"rows_a_value": None}})
    assert paper.prune_arguments()[-3:] == [
        "compression.settings.rows_a_value=null",
        "compression.settings.supernet=true",
        "compression.start=rewind",
    ]


def test_the_compression_is_part_of_a_runs_identity(study_data, small, tmp_path):
    store, run = RunStore(tmp_path), run_like(study_data, "magnitude int4@0.1")
    assert run.cell.compression is not None
    more = {**run.cell.compression, "target_bytes": run.cell.compression["target_bytes"] + 1}
    others = [
        run_like(study_data, "frequency cut-off int4@0.1"),  # from the same base
        run._replace(cell=run.cell._replace(compression={**run.cell.compression, "table_dtype": "int8"})),
        run._replace(cell=run.cell._replace(compression=more)),
        run._replace(seed=2),
        run._replace(cell=run.cell._replace(compression=None)),
    ]
    assert len({store.path(one) for one in (run, *others)}) == 6
    assert {store.path(one.base) for one in others if one.seed == 1} == {store.path(run.base)}


# Doing


def test_a_second_call_does_only_what_is_missing(study_data, small, processes):
    data = {"movielens": study_data}
    cells = cells_like(data, "collisionless@1", "magnitude int4@0.1", "magnitude int4@0.01", "low-bit rows int4@0.5")
    size = cells[2].prune_arguments()[3]
    processes.errors[f"--target-bytes {size}"] = RunError("9 bytes are too few; found 99 (exit code 2; all of it)", 2)
    for _ in range(2):
        assert train_missing(plan(cells, data, 1), processes) == []
        assert [words[0] for words in processes.words] == ["train", "train", "prune", "prune", "prune"]
    assert train_missing(plan(cells, data, 2), processes) == []
    assert processes.trained == ["seed=1", "seed=1", "seed=2", "seed=2"]
    assert len(processes.words) == 10


def test_a_budget_out_of_reach_is_a_result_and_other_errors_are_not(study_data, small, processes):
    run = run_like(study_data, "magnitude int4@0.1")
    processes.do(run.base)
    processes.errors["prune"] = RunError("no such method")
    with pytest.raises(RunError):
        processes.do(run)
    assert processes.store.record(run) is None
    processes.errors["prune"] = RunError("12 bytes are too few; found 99")
    processes.do(run)
    assert processes.store.record(run) == {"unreachable": "12 bytes are too few; found 99"}


def test_a_base_is_trained_once_and_pruned_with_the_methods_settings(study_data, small, processes):
    data = {"movielens": study_data}
    runs = plan(cells_like(data, *(f"frequency cut-off int4@{budget:g}" for budget in BUDGETS)), data, 1)
    processes.workers = 2
    assert train_missing(runs, processes) == []
    assert [words[0] for words in processes.words].count("train") == 1
    words = next(words for words in processes.words if words[0] == "prune")
    assert words[1] == str(processes.store.path(runs[0].base))
    assert words[words.index("--method") + 1] == "frequency"
    assert "compression.settings.rows_a_value=null" in words
    targets = {words[words.index("--target-bytes") + 1] for words in processes.words if words[0] == "prune"}
    assert targets == {run.cell.prune_arguments()[3] for run in runs}


def test_a_default_that_changed_makes_another_run(study_data, small, processes):
    run = run_like(study_data, "magnitude int4@0.1")
    assert train_missing([run], processes) == []
    path = processes.store.path(run) / "experiment.yaml"
    path.write_text(path.read_text().replace("learning_rate_share: 0.1", "learning_rate_share: 0.3"))
    assert processes.store.record(run) is None


def test_the_folders_that_nothing_reads_again_go(study_data, small, processes):
    run = run_like(study_data, "magnitude int4@0.1")
    (processes.store.path(run) / "checkpoint").mkdir(parents=True)  # cut off before
    assert train_missing([run], processes) == []
    assert not (processes.store.path(run) / "checkpoint").exists()
    assert (processes.store.record(run) or {})["seconds"] == 4.0


# The command


@pytest.mark.slow
def test_the_command_end_to_end(movielens, small, tmp_path, monkeypatch, capsys):
    """A method from a dataset to a page; a second call trains nothing."""
    work, out = tmp_path / "work", tmp_path / "out"
    monkeypatch.setattr(compression, "METHODS", {"low-bit rows": METHODS["low-bit rows"]})
    monkeypatch.setattr(compression, "BUDGETS", (0.5,))
    arguments = ["studies", "--data", str(movielens), "--study", "frontier_movielens"]
    arguments += ["--work", str(work), "--out", str(out), "--seeds", "1", "--workers", "1", "--track"]
    for _ in range(2):
        monkeypatch.setattr("sys.argv", arguments)
        with pytest.raises(SystemExit) as ended:
            runner.main()
        said = capsys.readouterr().err
        assert ended.value.code == 0, said
    assert said.splitlines()[-1] == "3 runs, 3 of them done before"
    assert len(list((work / "runs").glob("*/metrics.json"))) == 3
    reference, *pruned = csv.DictReader((out / "frontier_movielens.csv").read_text().splitlines())
    assert (reference["label"], {line["label"] for line in pruned}) == ("collisionless", {"low-bit rows"})
    for line in pruned:
        asked = int(line["command"].split("--target-bytes ")[1].split()[0])
        assert int(line["embedding_bytes"]) <= asked < int(reference["embedding_bytes"])
    assert "| low-bit rows int4 | 0.5x |" in (out / "frontier_movielens.md").read_text()
    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    experiment = client.get_experiment_by_name("movielens-1m")
    assert experiment is not None
    logged = client.search_runs([experiment.experiment_id])
    assert sorted(run.data.tags["stage"] for run in logged) == ["prune", "prune", "train"]
    assert {run.info.status for run in logged} == {"FINISHED"}
