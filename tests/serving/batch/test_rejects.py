"""Rows that cannot be scored: all others are, and nothing is lost."""

import json
from pathlib import Path

import numpy as np
import onnx
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper

import serving.batch.drafts
from features.errors import InputError
from serving.batch.drafts import rejected_path
from serving.batch.rejects import faults_of
from serving.bundle import Bundle
from serving.scorer import Scorer
from tests.serving.conftest import MARKS, ROUNDING, Run, content, dense_graph, make_bundle, name_of, raw_frame, visible

BAD_ROWS = {3: "user", 17: "user", 18: "price", 33: "user"}


def spoiled(num_rows: int = 40, seed: int = 1) -> pl.DataFrame:
    """Rows of which some hold a number that is no category, and one a number that float32 cannot hold."""
    row = pl.col("row")
    return raw_frame(num_rows, seed=seed).with_columns(
        user=pl.when(row.is_in([3, 17, 33])).then(row + 0.5).otherwise(pl.col("user")),
        price=pl.when(row.is_in([17, 18])).then(1e39).otherwise(pl.col("price")),
    )


def rejected_of(out: Path, file: Path) -> pl.DataFrame:
    return pl.read_parquet(rejected_path(out, name_of(file)))


@given(st.integers(0, 300).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, max(0, n - 1)), max_size=n))))
def test_faults_of_finds_every_faulty_row_and_no_other(case: tuple[int, set[int]]) -> None:
    num_rows, faulty = case
    faulty = {row for row in faulty if row < num_rows}
    checked = np.zeros(num_rows, dtype=np.int64)

    def check(start: int, stop: int) -> None:
        assert 0 <= start < stop <= num_rows
        checked[start:stop] += 1
        first = min((row for row in faulty if start <= row < stop), default=None)
        if first is not None:
            raise InputError("no fault", found=str(first), row=first - start)

    assert faults_of(num_rows, check) == {row: f"no fault; found {row}" for row in faulty}
    assert (checked >= 1).all()


def test_faults_of_a_frame_full_of_them_needs_a_check_a_row() -> None:
    spans: list[int] = []

    def check(start: int, stop: int) -> None:
        spans.append(stop - start)
        raise InputError("no fault", found="one", row=0)

    assert len(faults_of(5_000, check)) == len(spans) == 5_000
    assert sum(spans[1:]) == 4_999


def test_every_other_row_is_scored(run: Run, bundle: Bundle, inputs: Path, tmp_path: Path, names: list[str]) -> None:
    raw = spoiled()
    raw.write_parquet(inputs / "b.parquet")
    report = run(max_rejected=4 / 147)
    assert (report.rows_in, report.rows, report.rows_rejected, report.parts) == (147, 143, 4, 3)
    assert visible(tmp_path / "out") == sorted([*MARKS, "_rejected", *names])
    good = raw.filter(~pl.col("row").is_in([*BAD_ROWS]))
    part = pl.read_parquet(tmp_path / "out" / names[1])
    assert part["row"].equals(good["row"])
    assert np.abs(part["score"].to_numpy() - Scorer(bundle).score(good)).max() <= ROUNDING
    rejected = rejected_of(tmp_path / "out", inputs / "b.parquet")
    assert rejected["_row"].to_list() == [row + 1 for row in BAD_ROWS]
    for reason, feature in zip(rejected["_reason"], BAD_ROWS.values(), strict=True):
        assert reason.startswith(f"column {feature!r}: expected")
    assert "found the number 33.5" in rejected["_reason"][3]
    # Whole rows as they were read, so that they can be repaired and scored.
    assert rejected.drop("_row", "_reason").equals(raw[[*BAD_ROWS]].select(rejected.columns[2:]))
    assert set(rejected.columns[2:]) == set(raw.columns)
    manifest = json.loads((tmp_path / "out" / "_manifest.json").read_text())
    assert [manifest[total] for total in ("rows_in", "rows_out", "rows_rejected")] == [147, 143, 4]
    assert manifest["parts"][names[1]]["first_rejected"] == f"{rejected['_reason'][0]} in row 4"


def test_too_many_rejected_rows_leave_everything_but_success(run: Run, inputs: Path, tmp_path: Path) -> None:
    spoiled().write_parquet(inputs / "b.parquet")
    message = (
        r"out: expected at most 0\.000% rejected rows; found 4 of 147 \(2\.721%\), first .*b\.parquet: .*in row 4; "
    )
    with pytest.raises(InputError, match=message):
        run()
    before = content(tmp_path / "out")
    assert "_SUCCESS" not in before
    assert "_manifest.json" in before
    with pytest.raises(InputError, match=r"at most 2\.700% rejected rows"):
        run(max_rejected=0.027)
    report = run(max_rejected=0.028)
    assert (report.skipped_parts, report.rows_rejected) == (3, 4)
    assert content(tmp_path / "out") == before | {"_SUCCESS": b""}
    with pytest.raises(InputError, match=r"at most 0\.000%"):
        run()
    assert content(tmp_path / "out") == before, "a stricter job takes the mark away"


def test_a_mended_input_leaves_no_rejected_rows(run: Run, inputs: Path, tmp_path: Path, names: list[str]) -> None:
    spoiled().write_parquet(inputs / "b.parquet")
    run(max_rejected=1)
    raw_frame(40, seed=1).write_parquet(inputs / "b.parquet")
    assert run().skipped_parts == 2
    assert sorted(content(tmp_path / "out")) == sorted([*MARKS, *names])


def test_lost_rejected_rows_are_made_again(run: Run, inputs: Path, tmp_path: Path, names: list[str]) -> None:
    spoiled().write_parquet(inputs / "b.parquet")
    run(max_rejected=1)
    before = content(tmp_path / "out")
    rejected_path(tmp_path / "out", names[1]).unlink()
    assert run(max_rejected=1).skipped_parts == 2
    assert content(tmp_path / "out") == before


def test_overwriting_takes_rejected_rows_along(run: Run, inputs: Path, tmp_path: Path) -> None:
    spoiled().write_parquet(inputs / "b.parquet")
    run(max_rejected=1)
    run(inputs=[inputs / "a.parquet"], overwrite=True)
    assert len(content(tmp_path / "out")) == 3


@pytest.mark.parametrize("spill_rows", [1, 7, 65_536])
def test_a_file_of_nothing_else(
    run: Run, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spill_rows: int
) -> None:
    monkeypatch.setattr(serving.batch.drafts, "_SPILL_ROWS", spill_rows)
    raw_frame(40, seed=1).with_columns(user=pl.col("row") + 0.5).write_parquet(inputs / "b.parquet")
    report = run(inputs=[inputs / "b.parquet"], max_rejected=1)
    assert (report.rows, report.rows_rejected, report.score_mean) == (0, 40, None)
    assert rejected_of(tmp_path / "out", inputs / "b.parquet")["_row"].to_list() == [*range(1, 41)]
    assert not [name for name in content(tmp_path / "out") if name.startswith(".")]


def test_rows_of_a_csv_file(run: Run, bundle: Bundle, tmp_path: Path) -> None:
    raw = raw_frame(30, seed=4).drop("words", "genres").with_columns(pl.all().cast(pl.String))
    raw = raw.with_columns(age=pl.when(pl.int_range(30) == 21).then(pl.lit("old")).otherwise(pl.col("age")))
    raw.write_csv(tmp_path / "x.csv")
    report = run(inputs=[tmp_path / "x.csv"], allow_missing=True, max_rejected=1)
    assert (report.rows, report.rows_rejected) == (29, 1)
    rejected = rejected_of(tmp_path / "out", tmp_path / "x.csv")
    assert rejected.select("_row", "_reason", "age").row(0) == (
        22,
        "column 'age': expected a number; found 'old'",
        "old",
    )


def test_a_column_of_another_type_is_not_a_matter_of_rows(run: Run, inputs: Path, tmp_path: Path) -> None:
    raw_frame(40).with_columns(price=pl.lit(["cheap"])).write_parquet(inputs / "b.parquet")
    with pytest.raises(InputError, match=r"b\.parquet: column 'price': expected a number; found a list"):
        run(max_rejected=1)
    assert len(content(tmp_path / "out")) == 1


def test_a_logit_that_is_no_number(run: Run, inputs: Path, tmp_path: Path) -> None:
    """3e38 is a number that float32 holds and no feature refuses; this network makes inf - inf of it."""
    golden = raw_frame(1).drop("row").with_columns(probability=0.5)
    bundle = make_bundle(tmp_path / "overflow", dense_onnx=overflowing_graph(), golden=golden)
    raw = raw_frame(40, seed=1).with_columns(age=pl.when(pl.col("row").is_in([5, 6, 20])).then(3e38).otherwise(0.0))
    raw.write_parquet(inputs / "b.parquet")
    report = run(bundle=bundle, inputs=[inputs / "b.parquet"], max_rejected=1)
    assert (report.rows, report.rows_rejected) == (37, 3)
    rejected = rejected_of(tmp_path / "out", inputs / "b.parquet")
    assert rejected["_row"].to_list() == [6, 7, 21]
    assert set(rejected["_reason"]) == {"expected a logit that is a number; found NaN"}


def overflowing_graph() -> bytes:
    """The linear network with d - d in the place of d, where d is infinite for a large age."""
    model = onnx.load_from_string(dense_graph())
    weights = next(constant for constant in model.graph.initializer if constant.name == "v")
    weights.CopyFrom(numpy_helper.from_array(np.array([[0.0], [1e10]], dtype=np.float32), "v"))
    position, add = next((k, node) for k, node in enumerate(model.graph.node) if node.output[0] == "s")
    add.input[1] = "n"
    model.graph.node.insert(position, helper.make_node("Sub", ["d", "d"], ["n"]))
    return model.SerializeToString()
