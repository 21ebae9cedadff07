"""The command that makes docs/results: what it trains and does not train again, its tables, and its statistics."""

import csv
import json
import math
import shlex
import shutil
import statistics
import sys
import threading
import time
from pathlib import Path

import pytest

from experiments.runs import RUNS
from experiments.studies import runner, table_kinds
from experiments.studies.page import Result, comparisons, csv_lines, draw, study_page, welch, write_results
from experiments.studies.runner import Job, Results, RunError, key_of, plan, train_missing
from experiments.studies.table_kinds import (
    STUDIES,
    Cell,
    Shape,
    Study,
    collisionless_rows,
    read_facts,
    table,
    tuned,
)
from features.errors import InputError
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


def study_of(*cells: Cell) -> Study:
    """A study with the given cells."""
    return Study("A title", "A question?", ("frappe",), lambda facts: list(cells))


def record_of(cell: Cell, seed: int, auc: float, digest: str = "d") -> dict:
    """A line of results.jsonl with made-up figures."""
    test = {"auc": auc, "logloss": 0.5, "gauc": auc - 0.1, "ece": 0.01}
    return {
        "experiment": cell.experiment(seed).model_dump(mode="json"),
        "dataset_digest": digest,
        "metrics": {"valid": {**test, "auc": auc + 0.01}, "test": test, "perf": {"epochs": 3, "samples_per_s": 1234.5}},
        **{"rows": 300, "width": 4, "probes": 4, "table_bytes": 4800, "network_parameters": 77, "seconds": 1.0},
    }


def result_of(cell: Cell, *aucs: float) -> Result:
    """A cell with one finished run for each AUC."""
    return Result(cell, {seed: record_of(cell, seed, auc) for seed, auc in enumerate(aucs, 1)})


def read_csv(path: Path) -> list[dict[str, str]]:
    """Lines of a csv file by column."""
    return list(csv.DictReader(path.read_text().splitlines()))


# Planning and training


def test_a_cell_leads_to_the_experiment_of_its_own_command(muxrec, dataset, tmp_path):
    cell = CELLS[0]
    arguments = shlex.split(shlex.join(cell.arguments(7)))
    assert muxrec("train", *arguments, "--data", dataset, "--out", tmp_path / "r", "--no-track", "--json").code == 0
    assert runner.RunDirectory(tmp_path / "r").experiment() == cell.experiment(7)


def test_a_second_call_trains_only_what_is_missing(facts, tmp_path):
    trained: list[tuple[str, int]] = []

    def train(job: Job) -> dict:
        trained.append((job.cell.label, job.experiment.seed))
        return record_of(job.cell, job.experiment.seed, 0.7, job.dataset_digest)

    kept, data = tmp_path / "results.jsonl", {"frappe": facts}
    jobs, failures = plan({"s": study_of(*CELLS)}, data, 2)
    assert failures == []
    assert train_missing(jobs, Results(kept), train, 1, lambda line: None) == []
    assert trained == [("hashed", 1), ("unified", 1), ("hashed", 2), ("unified", 2)]
    trained.clear()
    jobs, _ = plan({"s": study_of(*CELLS)}, data, 3)
    train_missing(jobs, Results(kept), train, 1, lambda line: None)
    assert trained == [("hashed", 3), ("unified", 3)]
    assert sorted(Results(kept).of(CELLS[0], facts)) == [1, 2, 3]


def test_a_run_that_two_studies_share_is_done_once(facts):
    same = CELLS[0]._replace(label="another name")
    jobs, _ = plan({"s": study_of(*CELLS), "t": study_of(same)}, {"frappe": facts}, 1)
    assert len(jobs) == 2


def test_other_data_or_another_setting_is_another_run(facts):
    experiment = CELLS[0].experiment(1)
    changed = CELLS[0]._replace(settings={**CELLS[0].settings, "embedding.l2": 0.123}).experiment(1)
    keys = {key_of(experiment, "a"), key_of(experiment, "b"), key_of(changed, "a"), key_of(CELLS[0].experiment(2), "a")}
    assert len(keys) == 4


def test_a_line_counts_where_a_setting_came_later_and_not_where_a_default_changed(facts, tmp_path):
    record = record_of(CELLS[0], 1, 0.7, facts.info.digest)
    del record["experiment"]["negative_rate"]  # a line from before there was this setting
    path = tmp_path / "results.jsonl"
    path.write_text(json.dumps(record) + "\n")
    assert list(Results(path).of(CELLS[0], facts)) == [1]
    record["experiment"]["trainer"]["patience"] += 1  # as if the default had been another one then
    path.write_text(json.dumps(record) + "\n")
    assert Results(path).of(CELLS[0], facts) == {}


def test_a_line_of_settings_that_there_are_no_more_is_kept_but_not_used(facts, tmp_path):
    old = record_of(CELLS[0], 1, 0.7)
    old["experiment"]["gone"] = 1
    path = tmp_path / "results.jsonl"
    path.write_text(json.dumps(old) + "\n")
    kept = Results(path)
    job = Job(CELLS[1], CELLS[1].experiment(1), facts.directory, "d")
    kept.add(job, record_of(CELLS[1], 1, 0.7))
    assert json.loads(path.read_text().splitlines()[0]) == old
    assert kept.of(CELLS[0], facts) == {}


def test_a_failed_run_is_reported_and_the_others_go_on(facts, tmp_path):
    said: list[str] = []

    def train(job: Job) -> dict:
        if job.cell.label == "hashed" and job.experiment.seed == 1:
            raise RunError("killed")
        return record_of(job.cell, job.experiment.seed, 0.7, job.dataset_digest)

    jobs, _ = plan({"s": study_of(*CELLS)}, {"frappe": facts}, 2)
    kept = Results(tmp_path / "results.jsonl")
    assert train_missing(jobs, kept, train, 2, said.append) == ["frappe mlp hashed@0.5 seed 1: killed"]
    assert len(kept.records) == 3
    assert len([line for line in said if "FAILED" in line]) == 1


def test_a_cell_with_a_wrong_setting_is_one_failure_and_the_others_are_planned(facts):
    wrong = CELLS[0]._replace(settings={"embedding.widht": 4})
    jobs, failures = plan({"s": study_of(wrong, CELLS[1])}, {"frappe": facts}, 2)
    assert [job.cell for job in jobs] == [CELLS[1]] * 2
    assert len(failures) == 1
    assert "embedding.width" in failures[0]


@pytest.mark.slow
def test_the_command_trains_reports_and_resumes(monkeypatch, frappe, tmp_path, capsys):
    broken = Cell("frappe", "final_mlp", "broken", 1.0, "final_mlp", {"model.num_heads": 7, "trainer.epochs": 1})
    monkeypatch.setattr(runner, "STUDIES", {"tiny": study_of(CELLS[1], broken)})
    arguments = ["--data", frappe, "--work", tmp_path / "w", "--out", tmp_path / "o", "--seeds", 1]

    def call() -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["results", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            runner.main()
        return int(ended.value.code or 0), capsys.readouterr().err

    code, said = call()
    assert code == 1  # num_heads does not divide the widths
    assert "frappe mlp unified@0.5 seed 1: test auc" in said
    assert "num_heads" in said.splitlines()[-1]
    (line,) = read_csv(tmp_path / "o" / "results.csv")
    run = runner.Results(tmp_path / "w" / "results.jsonl").of(CELLS[1], read_facts(frappe))[1]
    assert float(line["test_auc"]) == pytest.approx(run["metrics"]["test"]["auc"], abs=1e-6)
    assert (line["rows"], line["width"], line["table_bytes"]) == ("300", "4", str(300 * 4 * 4))
    # One hidden layer of 8 with batch norm over 6 features, of which four read 4 probes, one 1; and the number.
    inputs = (4 + 4 + 1 + 4 + 4) * 4 + 16
    assert int(line["network_parameters"]) == 16 + (inputs + 1) * 8 + 2 * 8 + 9
    assert list((tmp_path / "w" / "runs").glob("*/")) == []  # the directories are gone, the log of the failure is not
    assert (tmp_path / "o" / "tiny.png").stat().st_size > 1000
    before = (tmp_path / "o" / "tiny.md").read_bytes()
    monkeypatch.setattr(runner, "STUDIES", {"tiny": study_of(CELLS[1])})
    monkeypatch.setattr(runner.Processes, "train", lambda self, job: pytest.fail("trained again"))
    assert call()[0] == 0
    assert (tmp_path / "o" / "tiny.md").read_bytes() != before  # no cell is absent now


def test_what_a_user_gets_wrong_is_one_line(monkeypatch, tmp_path, capsys, dataset, frappe):
    for arguments, words in (
        (["--study", "nonsense"], "unknown study"),
        (["--study", "precision", "--data", frappe], "study precision needs data of movielens; give its directory"),
        ([], "no study has its data"),
        (["--data", tmp_path / "nothing"], "expected a dataset"),
        (["--data", dataset], "expected data of a study; found 'dataset'; give one of each: data.frappe, data.movie"),
        (["--data", frappe, "--data", frappe], "expected one dataset of frappe; found 'frappe'"),
    ):
        monkeypatch.setattr(sys, "argv", ["results", "--work", str(tmp_path), *map(str, arguments)])
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


def test_the_processes_of_a_study_keep_its_lock(tmp_path, monkeypatch):
    script = tmp_path / "muxrec"
    script.write_text(f"#!/bin/sh\ntouch {tmp_path}/begun\nwhile [ ! -e {tmp_path}/enough ]; do sleep 0.05; done\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    with locked_directory(tmp_path / "work") as lock:
        processes = runner.Processes(tmp_path / "work", threads=1, keep_runs=False, lock=lock)
        thread = threading.Thread(target=processes.run, args=(["train"], tmp_path / "log"))
        thread.start()
        while not (tmp_path / "begun").exists():
            time.sleep(0.02)
    try:  # the study has ended, the process has not
        with pytest.raises(InputError, match="no other process"), locked_directory(tmp_path / "work"):
            pass
    finally:
        (tmp_path / "enough").touch()
        thread.join()
    with locked_directory(tmp_path / "work"):
        pass


# Cells


@pytest.mark.parametrize("settings", [{}, {"fs1_context": ["f02", "x00"], "fs2_context": ["f00", "f03"]}])
def test_collisionless_rows_are_those_of_the_table_that_is_trained(dataset, facts, settings):
    train = Split(dataset, "train")
    vocabulary = vocabulary_of(distinct_tokens(train.tokens()))
    config = RUNS["final_mlp"]().model.model_copy(update={k: tuple(v) for k, v in settings.items()})
    embedding = RUNS["final_mlp"]().embedding.model_copy(update={"kind": "collisionless", "probes": 1})
    ranker, _ = build_ranker(
        train.registry, "final_mlp", config, embedding, seed=1, learning_rate=0.1, vocabulary=vocabulary
    )
    assert collisionless_rows(facts, "final_mlp", settings) == ranker.embedding.table.shape[0]


@pytest.mark.parametrize("name", list(STUDIES))
def test_the_cells_of_a_study_are_distinct_valid_and_name_each_other(name, facts):
    values = {
        "frappe": ["user", "item", "daytime", "weekday", "isweekend", "homework", "cost", "weather", "country", "city"],
        "movielens": ["user_id", "item_id", "age", "gender", "occupation", "zip_code"],
    }
    made = {data: facts._replace(num_values=dict.fromkeys(names, 100)) for data, names in values.items()}
    cells = STUDIES[name].cells(made)
    assert len({cell.name for cell in cells}) == len(cells)
    assert {cell.data for cell in cells} == set(STUDIES[name].data)
    for cell in cells:
        cell.experiment(1)
        labels = {other.label for other in cells if (other.data, other.model) == (cell.data, cell.model)}
        assert set(cell.against) <= labels - {cell.label}


def test_tables_of_one_budget_have_equal_bytes():
    collisionless, rows = 1000 * 16, 1000
    for kind, probes, width in (("hashed", 1, 16), ("unified", 1, 16), ("unified", 4, 4), ("unified", 8, 4)):
        for budget in (1.0, 0.5, 0.1):
            settings = table(kind, Shape(probes, width), budget, rows)
            floats = settings["embedding.num_rows"] * settings["embedding.width"]
            assert floats == collisionless * budget
            assert (settings["embedding.probes"], settings["embedding.width"]) == (probes, width)


def test_a_later_pattern_of_tuned_settings_wins(monkeypatch):
    monkeypatch.setattr(
        table_kinds, "TUNED", {"frappe mlp *": {"embedding.l2": 0.1, "seed": 3}, "*hashed@0.5": {"embedding.l2": 0.2}}
    )
    assert tuned(CELLS[0]).settings["embedding.l2"] == 0.2
    assert tuned(CELLS[1]).settings["embedding.l2"] == 0.1
    assert tuned(CELLS[0]._replace(data="other", budget=1.0)) == CELLS[0]._replace(data="other", budget=1.0)


# Statistics, tables and figures


def test_welch_on_numbers_done_by_hand():
    # Means 2 and 5, variances 1 and 4, three values each: t = 3 / sqrt(5/3), 25/9 / (1/18 + 16/18) = 50/17 degrees of
    # freedom. The p-value is the t density integrated numerically, twice the upper tail.
    first, second = [1.0, 2.0, 3.0], [3.0, 5.0, 7.0]
    t, freedom = 3 / math.sqrt(5 / 3), 50 / 17
    scale = math.gamma((freedom + 1) / 2) / (math.sqrt(freedom * math.pi) * math.gamma(freedom / 2))
    step = t / 20_000
    inside = sum(
        scale * (1 + ((number + 0.5) * step) ** 2 / freedom) ** (-(freedom + 1) / 2) * step for number in range(20_000)
    )
    assert welch(first, second) == pytest.approx(1 - 2 * inside, abs=1e-6)
    assert welch(second, first) == welch(first, second)
    assert welch([1.0, 1.0], [2.0, 2.0]) is None  # nothing varies
    assert welch([1.0], second) is None


def test_a_cell_is_compared_at_its_own_budget_where_there_is_one():
    def cell(label: str, budget: float, *against: str) -> Cell:
        return CELLS[0]._replace(label=label, budget=budget, against=against)

    cells = [
        result_of(cell("full", 1.0), 0.9, 0.9, 0.93),
        result_of(cell("hashed", 1.0), 0.80, 0.82),
        result_of(cell("hashed", 0.5), 0.70, 0.74),
        result_of(cell("unified", 0.5, "hashed", "full"), 0.80, 0.84),
        result_of(cell("hashed", 0.5)._replace(model="other"), 0.1, 0.1),
        result_of(cell("unified", 0.1, "hashed")),  # no run yet
    ]
    found = [(one.reference.cell.name, one.difference, one.p) for one in comparisons(cells)]
    assert [name for name, _, _ in found] == ["frappe mlp hashed@0.5", "frappe mlp full@1"]
    assert found[0][1] == pytest.approx(0.10)
    assert found[1][1] == pytest.approx(0.82 - 0.91)
    assert found[0][2] == welch([0.80, 0.84], [0.70, 0.74])


def test_the_page_holds_means_spreads_and_one_command_a_row(facts):
    full = result_of(CELLS[0], 0.71, 0.73)
    page = study_page("tiny", study_of(*CELLS), [full, Result(CELLS[1], {})], {"frappe": facts})
    header, _, row = [line for line in page.splitlines() if line.startswith("|")][:3]
    cells = dict(zip(header.strip("| ").split(" | "), row.strip("| ").split(" | "), strict=True))
    spread = statistics.stdev([0.71, 0.73])
    assert cells["test AUC"] == f"0.7200 ± {spread:.4f}"
    assert cells["gAUC"] == f"0.6200 ± {spread:.4f}"
    assert cells["ECE"] == "0.0100 ± 0.0000"
    assert (cells["size"], cells["table"], cells["network"], cells["runs"]) == ("0.5x", "5 kB", "77", "2")
    assert "Not run yet: frappe mlp unified@0.5." in page
    assert "3,000 (label rate" in page
    assert page.count("muxrec train mlp") == 1
    assert "seed=1 --data work/frappe --out work/run" in page
    assert str(facts.directory) not in page


def test_the_page_tells_settings_that_all_runs_of_a_panel_share(facts):
    both = [result_of(CELLS[0], 0.71, 0.73), result_of(CELLS[1], 0.72)]
    page = study_page("tiny", study_of(*CELLS), both, {"frappe": facts})
    (line,) = [line for line in page.splitlines() if line.startswith("**Settings")]
    assert "`model.hidden=[8]`" in line
    assert "`embedding.width=4`" in line
    assert "num_rows" not in line  # 150 and 300
    assert "seed" not in line


def test_metrics_that_no_run_has_are_no_columns(facts):
    result = result_of(CELLS[0], 0.71)
    for record in result.records.values():
        del record["metrics"]["test"]["gauc"]
    page = study_page("tiny", study_of(*CELLS), [result], {"frappe": facts})
    assert "gAUC" not in page
    assert csv_lines("tiny", [result])[0]["test_gauc"] == ""


def test_lines_of_other_studies_stay_in_the_csv(facts, tmp_path):
    first, second = study_of(CELLS[0]), study_of(CELLS[1])
    results_of = {"b": [result_of(CELLS[0], 0.71, 0.73)], "a": [result_of(CELLS[1], 0.75)]}
    write_results(tmp_path, {"b": first}, {"b": results_of["b"]}, {"frappe": facts})
    write_results(tmp_path, {"a": second}, {"a": results_of["a"]}, {"frappe": facts})
    one_by_one = (tmp_path / "results.csv").read_bytes()
    lines = read_csv(tmp_path / "results.csv")
    assert [(line["study"], line["seed"], line["test_auc"]) for line in lines] == [
        ("a", "1", "0.750000"),
        ("b", "1", "0.710000"),
        ("b", "2", "0.730000"),
    ]
    assert shlex.split(lines[1]["command"])[:4] == ["muxrec", "train", "mlp", "model.hidden=[8]"]
    write_results(tmp_path, {"a": second, "b": first}, results_of, {"frappe": facts})
    assert (tmp_path / "results.csv").read_bytes() == one_by_one


def test_a_figure_of_curves_and_dots_is_the_same_again(tmp_path):
    line = [result_of(CELLS[0]._replace(budget=budget), 0.7 + budget / 10, 0.71) for budget in (1.0, 0.5, 0.1)]
    level = CELLS[0]._replace(label="full", settings={"embedding.kind": "collisionless"}, budget=1.0)
    point = CELLS[0]._replace(label="other", budget=1.0)
    for name in ("a.png", "b.png"):
        draw(tmp_path / name, [*line, result_of(level, 0.8), result_of(point, 0.75)])
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    draw(tmp_path / "c.png", line)
    assert (tmp_path / "c.png").read_bytes() != (tmp_path / "a.png").read_bytes()
