"""The pages of the frontier: what is chosen by validation, what test says of it, and what could not be."""

import csv
import statistics
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from experiments.studies.frontier_page import best_types, write_frontier
from experiments.studies.page import Result
from experiments.studies.table_kinds import Cell, Study, StudyData


def curve(method: str, dtype: str, aucs: dict[float, list[float]], valid: float = 0.0) -> list[Result]:
    """The results of a method with made-up figures: budget to the AUC of each seed."""
    return [
        Result(
            cell(method, dtype, budget),
            {
                seed: {
                    **{"test_auc": auc, "valid_auc": auc + valid, "test_logloss": 0.4, "valid_logloss": 0.4},
                    **{"embedding_bytes": int(budget * 10_000), "bundle_bytes": 20_000, "rows": 155, "width": 16},
                    **{"seconds": 3.0, "base_seconds": 5.0, "scorer_us_per_row": 1.5},
                }
                for seed, auc in enumerate(values, 1)
            },
        )
        for budget, values in aucs.items()
    ]


def cell(method: str, dtype: str, budget: float) -> Cell:
    """A cell of a frontier; the reference where the method is called so."""
    how = {"method": "robe", "target_bytes": int(budget * 10_000), "table_dtype": dtype}
    return Cell("movielens", "mlp", method, budget, "mlp", {}, compression=None if method == "collisionless" else how)


def write(out: Path, curves: Sequence[list[Result]], study_data: StudyData) -> None:
    """Write the report of a study with these curves."""
    study = Study("Movielens: quality", "What?", ("movielens",), lambda data: [], 0.0005)
    write_frontier(
        out, "frontier_movielens", study, [one for curve in curves for one in curve], {"movielens": study_data}
    )


CURVES = [
    curve("collisionless", "fp32", {1.0: [0.9, 0.9]}),
    curve("better on test", "fp32", {0.1: [0.89, 0.895], 0.5: [0.899, 0.8995]}),
    curve("better on test", "int8", {0.1: [0.88, 0.881]}, valid=0.1),
    curve("other", "fp32", {0.5: [0.8, 0.81], 0.1: [0.7, 0.71]}),
    [Result(cell("too large", "fp32", 0.1), {1: {"unreachable": "no", "base_seconds": 5.0}})],
]


def test_validation_chooses_the_type_of_rows():
    dots = {(dot.cell.label, dot.cell.budget): dot for dot in best_types([one for curve in CURVES for one in curve])}
    assert dots["better on test", 0.1].cell.dtype == "int8"
    assert dots["better on test", 0.1].auc == pytest.approx(0.8805)
    assert dots["better on test", 0.1].spread == pytest.approx(statistics.stdev([0.88, 0.881]))
    assert dots["better on test", 0.5].cell.dtype == "fp32"
    assert not any(method == "too large" for method, _ in dots)


def test_validation_chooses_the_winner_and_test_judges_it(study_data, tmp_path):
    """`lucky` is better on test, `half done` on validation with fewer seeds; neither is called best."""
    curves = [
        curve("collisionless", "fp32", {1.0: [0.9, 0.9]}),
        curve("lucky", "int8", {0.1: [0.8998, 0.9]}),
        curve("chosen", "int8", {0.1: [0.88, 0.89]}, valid=0.05),
        curve("half done", "int8", {0.1: [0.8999]}, valid=0.09),
    ]
    write(tmp_path, curves, study_data)
    page = (tmp_path / "frontier_movielens.md").read_text()
    assert "- 1/10: chosen in int8, -0.0150 of collisionless; lucky in int8 comes next (+0.0149, p " in page
    assert "is missed: chosen in int8 gives up 0.0150." in page
    assert "| chosen | **0.8850" in page
    assert page.count("**") == 2
    assert "post hoc" in page


def test_differences_are_over_the_seeds_that_both_have(study_data, tmp_path):
    curves = [curve("collisionless", "fp32", {1.0: [0.9, 0.8]}), curve("m", "int8", {0.1: [0.89]})]
    write(tmp_path, curves, study_data)
    page = (tmp_path / "frontier_movielens.md").read_text()
    assert "- 1/10: m in int8, -0.0100 of collisionless." in page
    assert "is missed: m in int8 gives up 0.0100." in page


def test_a_resumed_point_has_no_time_and_a_figure_may_be_missing(study_data, tmp_path):
    curves = [curve("collisionless", "fp32", {1.0: [0.9]}), curve("m", "int8", {0.1: [0.89, 0.88]})]
    first, second = cast(list[dict[str, Any]], list(curves[1][0].records.values()))
    first["seconds"], second["seconds"] = None, 7.0
    for record in (first, second):
        del record["scorer_us_per_row"]
    write(tmp_path, curves, study_data)
    page = (tmp_path / "frontier_movielens.md").read_text()
    assert "| 7 s | 5 s |  |" in page
    lines = list(csv.DictReader((tmp_path / "frontier_movielens.csv").read_text().splitlines()))
    assert [line["seconds"] for line in lines if line["method"] == "m"] == ["", "7.0"]


def test_more_seeds_come_before_a_better_score():
    curves = [curve("m", "fp32", {0.1: [0.8, 0.8]}), curve("m", "int8", {0.1: [0.9]})]
    assert [point.cell.dtype for point in best_types([one for curve in curves for one in curve])] == ["fp32"]


def test_the_page_says_what_is_best_what_cannot_be_and_whether_the_target_is_met(study_data, tmp_path):
    write(tmp_path, CURVES, study_data)
    page = (tmp_path / "frontier_movielens.md").read_text()
    assert "| better on test | 0.8992 ± 0.0004 fp32 | **0.8805 ± 0.0007 int8** |" in page.replace(
        "**0.8992 ± 0.0004 fp32**", "0.8992 ± 0.0004 fp32"
    )
    assert "| too large | not run | cannot |" in page
    assert "Types of rows that were tried: fp32 (other, too large); fp32 and int8 (better on test)." in page
    assert "- 1/10: better on test in int8, -0.0195 of collisionless; other in fp32 comes next (-0.1755, p 0.0" in page
    assert "for at most 0.0005 of AUC, is missed: better on test in int8 gives up 0.0195." in page
    lines = list(csv.DictReader((tmp_path / "frontier_movielens.csv").read_text().splitlines()))
    assert len(lines) == 2 + 4 + 2 + 4 + 1
    assert [line["reached"] for line in lines if line["method"] == "too large"] == ["False"]
    (line,) = [one for one in lines if (one["table_dtype"], one["seed"]) == ("int8", "2")]
    assert (line["test_auc"], line["embedding_bytes"], line["budget"]) == ("0.881000", "1000", "0.1")


def test_a_figure_is_the_same_every_time_and_names_its_curves(study_data, tmp_path):
    drawn = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        write(folder, CURVES, study_data)
        drawn.append((folder / "frontier_movielens.svg").read_text())
    assert drawn[0] == drawn[1]
    texts = [element.text for element in ET.fromstring(drawn[0]).iter() if element.tag.endswith("text")]
    assert {"better on test", "other", "collisionless fp32"} <= set(texts)
    assert "too large" not in texts


def test_nothing_is_written_without_a_reference(study_data, tmp_path):
    write(tmp_path, CURVES[1:], study_data)
    assert list(tmp_path.iterdir()) == []
