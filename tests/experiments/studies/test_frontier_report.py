"""The pages of the frontier: what is chosen by validation, what test says of it, and what could not be."""

import csv
import statistics
import xml.etree.ElementTree as ET
from typing import Any, cast

import pytest

from experiments.studies.frontier_report import Curve, dots_of, write_frontier


def curve(method: str, dtype: str, aucs: dict[float, list[float]], valid: float = 0.0) -> Curve:
    """A curve with made-up figures: budget to the AUC of each seed."""
    records = {
        budget: {
            seed: {
                "metrics": {"test": {"auc": auc, "logloss": 0.4}, "valid": {"auc": auc + valid, "logloss": 0.4}},
                **{
                    "embedding_bytes": int(budget * 10_000),
                    "bundle_bytes": 20_000,
                    "target_bytes": int(budget * 10_000),
                },
                **{"seconds": 3.0, "base_seconds": 5.0, "scorer_us_per_row": 1.5},
            }
            for seed, auc in enumerate(values, 1)
        }
        for budget, values in aucs.items()
    }
    return Curve("movielens", method, dtype, records)


CURVES = [
    curve("collisionless", "fp32", {1.0: [0.9, 0.9]}),
    curve("better on test", "fp32", {0.1: [0.89, 0.895], 0.5: [0.899, 0.8995]}),
    curve("better on test", "int8", {0.1: [0.88, 0.881]}, valid=0.1),
    curve("other", "fp32", {0.5: [0.8, 0.81], 0.1: [0.7, 0.71]}),
    Curve("movielens", "too large", "fp32", {0.1: {1: {"unreachable": "no", "target_bytes": 1000}}}),
]


def test_validation_chooses_the_type_of_rows():
    dots = {(dot.method, dot.budget): dot for dot in dots_of(CURVES)}
    assert dots["better on test", 0.1].dtype == "int8"
    assert dots["better on test", 0.1].auc == pytest.approx(0.8805)
    assert dots["better on test", 0.1].spread == pytest.approx(statistics.stdev([0.88, 0.881]))
    assert dots["better on test", 0.5].dtype == "fp32"
    assert not any(method == "too large" for method, _ in dots)


def test_validation_chooses_the_winner_and_test_judges_it(facts, tmp_path):
    """`lucky` is better on test, `half done` on validation with fewer seeds; neither is called best."""
    curves = [
        curve("collisionless", "fp32", {1.0: [0.9, 0.9]}),
        curve("lucky", "int8", {0.1: [0.8998, 0.9]}),
        curve("chosen", "int8", {0.1: [0.88, 0.89]}, valid=0.05),
        curve("half done", "int8", {0.1: [0.8999]}, valid=0.09),
    ]
    write_frontier(tmp_path, curves, {"movielens": facts})
    page = (tmp_path / "frontier_movielens.md").read_text()
    assert "- 1/10: chosen in int8, -0.0150 of collisionless; lucky in int8 comes next (+0.0149, p " in page
    assert "is missed: chosen in int8 gives up 0.0150." in page
    assert "| chosen | **0.8850" in page
    assert page.count("**") == 2
    assert "post hoc" in page


def test_differences_are_over_the_seeds_that_both_have(facts, tmp_path):
    curves = [curve("collisionless", "fp32", {1.0: [0.9, 0.8]}), curve("m", "int8", {0.1: [0.89]})]
    write_frontier(tmp_path, curves, {"movielens": facts})
    page = (tmp_path / "frontier_movielens.md").read_text()
    assert "- 1/10: m in int8, -0.0100 of collisionless." in page
    assert "is missed: m in int8 gives up 0.0100." in page


def test_a_resumed_point_has_no_time_and_a_figure_may_be_missing(facts, tmp_path):
    curves = [curve("collisionless", "fp32", {1.0: [0.9]}), curve("m", "int8", {0.1: [0.89, 0.88]})]
    first, second = cast(list[dict[str, Any]], list(curves[1].records[0.1].values()))
    first["seconds"], second["seconds"] = None, 7.0
    for record in (first, second):
        del record["scorer_us_per_row"]
    write_frontier(tmp_path, curves, {"movielens": facts})
    page = (tmp_path / "frontier_movielens.md").read_text()
    assert "| 7 s | 5 s |  |" in page
    lines = list(csv.DictReader((tmp_path / "frontier_movielens.csv").read_text().splitlines()))
    assert [line["seconds"] for line in lines if line["method"] == "m"] == ["", "7.0"]


def test_more_seeds_come_before_a_better_score():
    curves = [curve("m", "fp32", {0.1: [0.8, 0.8]}), curve("m", "int8", {0.1: [0.9]})]
    assert [dot.dtype for dot in dots_of(curves)] == ["fp32"]


def test_the_page_says_what_is_best_what_cannot_be_and_whether_the_target_is_met(facts, tmp_path):
    write_frontier(tmp_path, CURVES, {"movielens": facts})
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


def test_a_figure_is_the_same_every_time_and_names_its_curves(facts, tmp_path):
    drawn = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        write_frontier(folder, CURVES, {"movielens": facts})
        drawn.append((folder / "frontier_movielens.svg").read_text())
    assert drawn[0] == drawn[1]
    texts = [element.text for element in ET.fromstring(drawn[0]).iter() if element.tag.endswith("text")]
    assert {"better on test", "other", "collisionless fp32"} <= set(texts)
    assert "too large" not in texts


def test_nothing_is_written_without_a_reference(facts, tmp_path):
    write_frontier(tmp_path, CURVES[1:], {"movielens": facts})
    assert list(tmp_path.iterdir()) == []
