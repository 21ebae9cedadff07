"""The pages of the studies: means, spreads, Welch's t-test, figures, and the lines of results.csv."""

import csv
import math
import shlex
import statistics
from pathlib import Path
from typing import Any

import pytest

from experiments.studies.page import Result, csv_lines, draw, study_page, write_study
from experiments.studies.table_kinds import Cell, Study
from recsys.evaluation.significance import welch, welch_interval

SMALL = {"model.hidden": [8], "trainer.epochs": 1, "trainer.batch_size": 512, "embedding.width": 4}
CELLS = [
    Cell("frappe", "mlp", "hashed", 0.5, "mlp", {**SMALL, "embedding.num_rows": 150}),
    Cell("frappe", "mlp", "unified", 0.5, "mlp", {**SMALL, "embedding.num_rows": 300}, ("hashed",)),
]


def study_of(*cells: Cell) -> Study:
    """A study with the given cells."""
    return Study("A title", "A question?", ("frappe",), lambda data: list(cells))


def record_of(auc: float) -> dict[str, Any]:
    """Made-up figures of a run."""
    return {
        **{"test_auc": auc, "test_logloss": 0.5, "test_gauc": auc - 0.1, "test_ece": 0.01, "valid_auc": auc + 0.01},
        **{"rows": 300, "width": 4, "table_bytes": 4800, "network_parameters": 77, "epochs": 3},
        **{"embedding_bytes": 5000, "bundle_bytes": 9000},
    }


def result_of(cell: Cell, *aucs: float) -> Result:
    """A cell with one finished run for each AUC."""
    return Result(cell, {seed: record_of(auc) for seed, auc in enumerate(aucs, 1)})


def read_csv(path: Path) -> list[dict[str, str]]:
    """Lines of a csv file by column."""
    return list(csv.DictReader(path.read_text().splitlines()))


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
    assert welch_interval([1.0], second) is None
    # An interval that just reaches 0 is where p is 5%.
    low, high = welch_interval(second, first) or (0.0, 0.0)
    assert (low + high) / 2 == pytest.approx(3)
    assert welch([one - low for one in second], first) == pytest.approx(0.05)


def test_a_cell_is_compared_at_its_own_budget_where_there_is_one(study_data):
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
    page = study_page("tiny", study_of(), cells, {"frappe": study_data})
    low, high = welch_interval([0.80, 0.84], [0.70, 0.74]) or (0.0, 0.0)
    assert f"| unified | 0.5x | hashed | 0.5x | +0.1000 | {low:+.4f} to {high:+.4f} |" in page
    assert "| unified | 0.5x | full | 1x | -0.0900 | " in page
    assert page.partition("## Differences")[2].count("| unified |") == 2


def test_the_page_holds_means_spreads_and_one_command_a_row(study_data):
    full = result_of(CELLS[0], 0.71, 0.73)
    page = study_page("tiny", study_of(*CELLS), [full, Result(CELLS[1], {})], {"frappe": study_data})
    header, _, row = [line for line in page.splitlines() if line.startswith("|")][:3]
    cells = dict(zip(header.strip("| ").split(" | "), row.strip("| ").split(" | "), strict=True))
    spread = statistics.stdev([0.71, 0.73])
    assert cells["test AUC"] == f"0.7200 ± {spread:.4f}"
    assert cells["gAUC"] == f"0.6200 ± {spread:.4f}"
    assert cells["ECE"] == "0.0100 ± 0.0000"
    assert (cells["size"], cells["embedding"], cells["bundle"], cells["runs"]) == ("0.5x", "5 kB", "9 kB", "2")
    assert "Not run yet: frappe mlp unified@0.5." in page
    assert "train 3,000" in page
    assert "python -m experiments.studies.runner --data work/frappe --study tiny" in page
    assert str(study_data.directory) not in page


def test_of_one_size_the_best_on_validation_comes_first_and_what_cannot_be_last(study_data):
    how = {"method": "robe", "target_bytes": 10, "table_dtype": "int8"}
    cells = [CELLS[0]._replace(label=name, against=("full",), compression=how) for name in ("none", "worse", "better")]
    results = [
        Result(cells[0], {1: {"unreachable": "too few"}}),
        *(result_of(cells[1], 0.7), result_of(cells[2], 0.8)),
        result_of(CELLS[0]._replace(label="full", budget=1.0), 0.6),
    ]
    page = study_page("tiny", study_of(), results, {"frappe": study_data}, "tiny.csv")
    names = [line.split(" | ")[1] for line in page.splitlines() if line.startswith("| frappe mlp |")]
    assert names == ["full", "better int8", "worse int8", "none int8", "better int8", "worse int8"]
    assert "| none int8 | 0.5x |  |  | 1 | cannot |" in page
    lines = csv_lines("tiny", results)
    assert [line.get("unreachable") for line in lines] == ["too few", None, None, None]
    assert lines[1]["command"].endswith(
        "&& muxrec prune work/run --method robe --target-bytes 10 --table-dtype int8 --out work/pruned --no-track"
    )


def test_metrics_that_no_run_has_are_no_columns(study_data):
    result = result_of(CELLS[0], 0.71)
    for record in result.records.values():
        del record["test_gauc"]  # type: ignore[attr-defined]
    page = study_page("tiny", study_of(*CELLS), [result], {"frappe": study_data})
    assert "gAUC" not in page
    assert "test_gauc" not in csv_lines("tiny", [result])[0]


def test_lines_of_other_studies_stay_in_the_csv(study_data, tmp_path):
    first, second = study_of(CELLS[0]), study_of(CELLS[1])
    results_of = {"b": [result_of(CELLS[0], 0.71, 0.73)], "a": [result_of(CELLS[1], 0.75)]}
    write_study(tmp_path, "b", first, results_of["b"], {"frappe": study_data})
    write_study(tmp_path, "a", second, results_of["a"], {"frappe": study_data})
    one_by_one = (tmp_path / "results.csv").read_bytes()
    lines = read_csv(tmp_path / "results.csv")
    assert [(line["study"], line["seed"], line["test_auc"]) for line in lines] == [
        ("a", "1", "0.75"),
        ("b", "1", "0.71"),
        ("b", "2", "0.73"),
    ]
    assert shlex.split(lines[1]["command"])[:4] == ["muxrec", "train", "mlp", "model.hidden=[8]"]
    write_study(tmp_path, "b", first, results_of["b"], {"frappe": study_data})
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
