"""The command that makes docs/results: which runs it plans, what it trains and does not train again."""

import csv
import json
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from experiments.runs import RUNS
from experiments.studies import runner, table_kinds
from experiments.studies.runner import STUDIES, Processes, RunError, RunStore, key_of, plan, results_of, train_missing
from experiments.studies.table_kinds import TABLE_KINDS, Cell, Study, StudyData, collisionless_rows, table_cell
from features.errors import InputError
from recsys.config import with_overrides
from recsys.dataset import Split
from recsys.evaluation.collisions import distinct_tokens, vocabulary_of
from recsys.ranker import build_ranker
from recsys.runs import train
from recsys.runs.process import locked_directory

SMALL = {"model.hidden": [8], "trainer.epochs": 1, "trainer.batch_size": 512, "embedding.width": 4}
CELLS = [
    Cell("frappe", "mlp", "hashed", 0.5, "mlp", {**SMALL, "embedding.num_rows": 150}),
    Cell("frappe", "mlp", "unified", 0.5, "mlp", {**SMALL, "embedding.num_rows": 300}, ("hashed",)),
]

COLUMNS = {
    "frappe": ["user", "item", "daytime", "weekday", "isweekend", "homework", "cost", "weather", "country", "city"],
    "movielens": ["user_id", "item_id", "age", "gender", "occupation", "zip_code"],
}


def study_of(*cells: Cell) -> Study:
    """A study with the given cells."""
    return Study("A title", "A question?", ("frappe",), lambda data: list(cells))


def read_csv(path: Path) -> list[dict[str, str]]:
    """Lines of a csv file by column."""
    return list(csv.DictReader(path.read_text().splitlines()))


# Planning and training


def test_a_cell_leads_to_the_experiment_of_its_own_command(muxrec, dataset, tmp_path):
    cell = CELLS[0]
    arguments = shlex.split(shlex.join(cell.train_arguments(7)))
    assert muxrec("train", *arguments, "--data", dataset, "--out", tmp_path / "r", "--no-track", "--json").code == 0
    assert runner.RunDirectory(tmp_path / "r").experiment() == cell.experiment(7)


def test_a_second_call_trains_only_what_is_missing(study_data, processes, monkeypatch):
    data = {"frappe": study_data}
    runs = plan(CELLS, data, 2)
    assert [run.name for run in runs] == [
        "frappe mlp hashed@0.5 seed 1",
        "frappe mlp unified@0.5 seed 1",
        "frappe mlp hashed@0.5 seed 2",
        "frappe mlp unified@0.5 seed 2",
    ]
    assert train_missing(runs, processes) == []
    assert processes.trained == ["seed=1", "seed=1", "seed=2", "seed=2"]
    processes.store = RunStore(processes.store.folder.parent)  # as another call of the command has it
    assert train_missing(plan(CELLS, data, 3), processes) == []
    assert processes.trained[4:] == ["seed=3", "seed=3"]
    (hashed, _) = results_of(study_of(*CELLS), data, processes.store, seeds=3)
    assert sorted(hashed.records) == [1, 2, 3]
    monkeypatch.setitem(table_kinds.SEEDS, "frappe mlp *", 1)
    (hashed, _) = results_of(study_of(*CELLS), data, processes.store)
    assert sorted(hashed.records) == [1]  # a study shows as many seeds as it declares


def test_a_run_that_two_studies_share_is_done_once(study_data, processes):
    same = CELLS[0]._replace(label="another name")
    train_missing(plan([*CELLS, same], {"frappe": study_data}, 1), processes)
    assert len(processes.trained) == 2


def test_seeds_and_a_pattern_choose_the_runs(study_data, monkeypatch):
    monkeypatch.setattr(table_kinds, "SEEDS", {"frappe *": 3, "*hashed@0.5": 2})  # a later pattern wins
    data: dict[str, StudyData] = {"frappe": study_data}
    assert [(run.cell.label, run.seed) for run in plan(CELLS, data)] == [
        *(("hashed", 1), ("unified", 1), ("hashed", 2), ("unified", 2), ("unified", 3)),
    ]
    assert [run.cell.label for run in plan(CELLS, data, 1)] == ["hashed", "unified"]
    assert [run.cell.label for run in plan(CELLS, data, 1, "* unified@*")] == ["unified"]
    assert CELLS[0]._replace(data="other").num_seeds == 2
    assert CELLS[1]._replace(data="other").num_seeds == 1


def test_other_data_or_another_setting_is_another_run():
    experiment = CELLS[0].experiment(1)
    changed = CELLS[0]._replace(settings={**CELLS[0].settings, "embedding.l2": 0.123}).experiment(1)
    keys = {key_of(experiment, "a"), key_of(experiment, "b"), key_of(changed, "a"), key_of(CELLS[0].experiment(2), "a")}
    assert len(keys) == 4


def test_a_run_counts_where_a_setting_came_later_and_not_where_a_default_changed(study_data, processes):
    (run,) = plan(CELLS[:1], {"frappe": study_data}, 1)
    processes.do(run)
    path = processes.store.path(run)
    work = processes.store.folder.parent
    settings = yaml.safe_load((path / "experiment.yaml").read_text())
    del settings["negative_rate"]  # a run from before there was this setting
    older = path.rename(path.with_name("0" * 16))  # its key was another one then
    (older / "experiment.yaml").write_text(yaml.safe_dump(settings))
    assert RunStore(work).path(run) == older
    assert RunStore(work).record(run) is not None
    settings["trainer"]["patience"] += 1  # as if the default had been another one then
    (older / "experiment.yaml").write_text(yaml.safe_dump(settings))
    assert RunStore(work).record(run) is None


def test_a_run_with_settings_that_no_longer_exist_is_kept_but_not_used(study_data, processes):
    first, second = plan(CELLS, {"frappe": study_data}, 1)
    processes.do(first)
    path = processes.store.path(first)
    with (path / "experiment.yaml").open("a") as file:
        file.write("gone: 1\n")
    store = processes.store = RunStore(processes.store.folder.parent)
    processes.do(second)
    assert path.is_dir()
    assert store.record(second) is not None


def test_a_failed_run_is_reported_and_the_others_go_on(study_data, processes, capsys):
    processes.errors["embedding.num_rows=150 seed=1"] = RunError("killed")
    runs, processes.workers = plan(CELLS, {"frappe": study_data}, 2), 2
    assert train_missing(runs, processes) == ["frappe mlp hashed@0.5 seed 1: killed"]
    assert [run.name for run in runs if processes.store.record(run) is None] == ["frappe mlp hashed@0.5 seed 1"]
    assert capsys.readouterr().err.count("FAILED") == 1


@pytest.mark.slow
def test_the_command_trains_reports_and_resumes(monkeypatch, frappe, tmp_path, capsys):
    broken = Cell("frappe", "final_mlp", "broken", 1.0, "final_mlp", {"model.num_heads": 7, "trainer.epochs": 1})
    monkeypatch.setattr(runner, "STUDIES", {"tiny": study_of(CELLS[1], broken)})
    arguments = ["--data", frappe, "--work", tmp_path / "w", "--out", tmp_path / "o", "--seeds", 1]

    def call() -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["studies", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            runner.main()
        return int(ended.value.code or 0), capsys.readouterr().err

    code, said = call()
    assert code == 1  # num_heads does not divide the widths
    assert "frappe mlp unified@0.5 seed 1: test auc" in said
    assert "num_heads" in said.splitlines()[-1]
    (line,) = read_csv(tmp_path / "o" / "results.csv")
    (run,) = (tmp_path / "w" / "runs").glob("*/metrics.json")
    assert float(line["test_auc"]) == pytest.approx(json.loads(run.read_text())["test"]["auc"], abs=1e-6)
    assert (line["rows"], line["width"], line["table_bytes"]) == ("300", "4", str(300 * 4 * 4))
    # One hidden layer of 8 with batch norm over 6 features, of which four read 4 probes, one 1; and the number.
    inputs = (4 + 4 + 1 + 4 + 4) * 4 + 16
    assert int(line["network_parameters"]) == 16 + (inputs + 1) * 8 + 2 * 8 + 9
    assert len(list((tmp_path / "w" / "runs").glob("*.log"))) == 1  # of the failure
    assert (tmp_path / "o" / "tiny.png").stat().st_size > 1000
    before = (tmp_path / "o" / "tiny.md").read_bytes()
    monkeypatch.setattr(runner, "STUDIES", {"tiny": study_of(CELLS[1])})
    monkeypatch.setattr(Processes, "do", lambda self, run: pytest.fail("trained again"))
    assert call()[0] == 0
    assert (tmp_path / "o" / "tiny.md").read_bytes() != before  # no cell is absent now


def test_a_users_mistake_is_one_line(monkeypatch, tmp_path, capsys, dataset, frappe):
    for arguments, words in (
        (["--study", "nonsense", "--data", frappe], "expected one of the studies frappe_ladder, "),
        (["--study", "precision", "--data", frappe], "found precision on data of frappe; give --data work/frappe"),
        ([], "found any on data of none"),
        (["--data", tmp_path / "nothing"], "expected a dataset"),
        (["--data", dataset], "expected one dataset each of frappe, movielens, with a test split"),
        (["--data", frappe, "--data", frappe], "expected one dataset each of frappe, movielens"),
    ):
        monkeypatch.setattr(sys, "argv", ["studies", "--work", str(tmp_path), *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            runner.main()
        assert ended.value.code == 2
        assert words in capsys.readouterr().err


def test_one_process_at_a_time_works_in_a_folder(tmp_path):
    with locked_directory(tmp_path), pytest.raises(InputError, match="no other process"), locked_directory(tmp_path):
        pass
    with locked_directory(tmp_path):
        pass


def test_a_run_directory_belongs_to_one_process(run, dataset, muxrec, tmp_path, monkeypatch):
    """A second command on it ends with one line; when the first one has gone, the next goes on."""
    monkeypatch.setattr(train, "LOCK_TIMEOUT_SECONDS", 0.2)
    out = tmp_path / "run"
    shutil.copytree(run, out)
    (out / "metrics.json").unlink()
    half_written = out / ".x.tmp"
    half_written.write_text("")
    command = ("train", "--config", out / "experiment.yaml", "--data", dataset, "--out", out, "--no-track", "--json")
    with locked_directory(out):
        result = muxrec(*command)
        assert (result.code, result.err.count("\n")) == (2, 1)
        assert "expected no other process at work" in result.err
        assert half_written.exists()  # it may be the other's
    assert muxrec(*command).code == 0
    assert not half_written.exists()


# Cells


@pytest.mark.parametrize("settings", [{}, {"fs1_context": ["f02", "x00"], "fs2_context": ["f00", "f03"]}])
def test_collisionless_rows_are_those_of_the_table_that_is_trained(dataset, study_data, settings):
    train = Split(dataset, "train")
    vocabulary = vocabulary_of(distinct_tokens(train.tokens()))
    changes = [f"model.{key}={json.dumps(names)}" for key, names in settings.items()]
    experiment = with_overrides(RUNS["final_mlp"](), changes)
    embedding = experiment.embedding.model_copy(update={"kind": "collisionless", "probes": 1})
    ranker, _ = build_ranker(
        train.registry, "final_mlp", experiment.model, embedding, seed=1, learning_rate=0.1, vocabulary=vocabulary
    )
    assert collisionless_rows(study_data, experiment) == ranker.embedding.table.shape[0]


@pytest.mark.parametrize("name", list(STUDIES))
def test_the_cells_of_a_study_are_distinct_valid_and_name_each_other(name, study_data):
    made = {data: study_data._replace(num_values=dict.fromkeys(names, 100)) for data, names in COLUMNS.items()}
    cells = STUDIES[name].cells(made)
    assert len({cell.name for cell in cells}) == len(cells)
    assert {cell.data for cell in cells} == set(STUDIES[name].data)
    for cell in cells:
        cell.experiment(1)
        labels = {other.label for other in cells if (other.data, other.model) == (cell.data, cell.model)}
        assert cell.label not in cell.against
        assert labels & set(cell.against) or not cell.against or "dense" in cell.label


def test_the_plain_command_does_what_the_pages_show(study_data):
    data = {name: study_data._replace(num_values=dict.fromkeys(names, 100)) for name, names in COLUMNS.items()}
    shown: dict[str, set[tuple[str, ...]]] = {}
    for line in read_csv(Path(__file__).parents[3] / "docs" / "results" / "results.csv"):
        run = (line["data"], line["model"], line["label"], line["budget"], line["seed"])
        shown.setdefault(line["study"], set()).add(run)
    for name, study in TABLE_KINDS.items():
        planned = {(*run.cell[:3], str(run.cell.budget or ""), str(run.seed)) for run in plan(study.cells(data), data)}
        assert planned == shown[name]


def test_tables_of_one_budget_have_equal_bytes(study_data):
    data = {"frappe": study_data._replace(num_values=dict.fromkeys(COLUMNS["frappe"], 98))}
    collisionless = 12 * 100 * 16  # of the ten features, user and item are those of a gate as well
    for kind, probes, width in (("hashed", 1, 16), ("unified", 1, 16), ("unified", 4, 4), ("unified", 8, 4)):
        for budget in (1.0, 0.5, 0.1):
            settings = table_cell(data, ("frappe", "final_mlp"), f"{kind} {probes}x{width}", budget).settings
            floats = settings["embedding.num_rows"] * settings["embedding.width"]
            assert floats == collisionless * budget
            assert (settings["embedding.probes"], settings["embedding.width"]) == (probes, width)
