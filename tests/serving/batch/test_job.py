import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

import serving.batch.parts
from features.errors import InputError
from features.files import sha256_of
from features.io.readers import expand
from serving.batch.job import lineage_of
from serving.bundle.bundle import Bundle
from serving.bundle.manifest import installed_version
from serving.scorer import Scorer
from tests.serving.conftest import MARKS, ROUNDING, Run, content, raw_frame, visible


def test_every_row_is_scored_in_its_place(
    run: Run, bundle: Bundle, inputs: Path, tmp_path: Path, names: list[str]
) -> None:
    report = run(keep=["words", "row", "user"])
    assert visible(tmp_path / "out") == sorted(file.name for file in (tmp_path / "out").iterdir()) == [*MARKS, *names]
    assert (report.rows, report.parts, report.skipped_parts) == (147, 3, 0)
    assert (report.path, report.model_id) == (tmp_path / "out", bundle.model_id)
    assert report.seconds > 0
    scorer = Scorer(bundle)
    every: list[float] = []
    for name, file in zip(names, sorted(inputs.iterdir()), strict=True):
        part, raw = pl.read_parquet(tmp_path / "out" / name), pl.read_parquet(file)
        assert part.drop("score").equals(raw.select("words", "row", "user"))
        assert part.schema["score"] == pl.Float64
        assert np.abs(part["score"].to_numpy() - scorer.score(raw)).max() <= ROUNDING
        every += part["score"].to_list()
    assert report.score_mean == pytest.approx(np.mean(every))
    assert report.score_quantiles["min"] == min(every)
    assert report.score_quantiles["max"] == max(every)
    assert report.score_quantiles["p50"] == pytest.approx(np.median(every), rel=0.01)
    # Readers of the directory see the parts alone.
    assert pq.read_table(tmp_path / "out").num_rows == 147
    assert [file.name for file in expand(tmp_path / "out")] == names


def test_lineage(run: Run, bundle: Bundle, inputs: Path, tmp_path: Path, names: list[str]) -> None:
    report = run(inputs=[inputs / "a.parquet"])
    manifest = json.loads((tmp_path / "out" / "_manifest.json").read_text())
    config = '{"allow_missing": false, "keep": ["row"], "limit": null}'
    expected = {
        "model": "Linear",
        "model_id": bundle.model_id,
        "run_id": "abc",
        "version": installed_version(),
        "config": config,
        "config_hash": hashlib.sha256(config.encode()).hexdigest()[:16],
        "input": str(inputs / "a.parquet"),
        "input_sha256": sha256_of(inputs / "a.parquet"),
    }
    part = tmp_path / "out" / names[0]
    found = lineage_of(part)
    entry = json.loads(found.pop("part"))
    assert found == expected
    assert {key: manifest[key] for key in ("model", "model_id", "run_id", "config_hash")} == {
        key: expected[key] for key in ("model", "model_id", "run_id", "config_hash")
    }
    assert manifest["config"] == json.loads(config)
    assert [manifest[total] for total in ("rows_in", "rows_out", "rows_rejected")] == [100, 100, 0]
    assert manifest["parts"] == {names[0]: {**entry, "bytes": part.stat().st_size}}
    coverage = entry.pop("coverage")
    assert entry == {
        "input": expected["input"],
        "input_sha256": expected["input_sha256"],
        "row_limit": None,
        "rows_in": 100,
        "rows_out": 100,
        "rows_rejected": 0,
        "first_rejected": None,
    }
    raw = pl.read_parquet(inputs / "a.parquet")
    missing = {name: raw[name].null_count() for name in ("user", "price", "genres", "item", "words", "age")}
    assert {name: counts["missing"] for name, counts in coverage.items()} == missing
    assert {counts["num_examples"] for counts in coverage.values()} == {100}
    assert report.missing_rates == {name: count / 100 for name, count in missing.items()}


def test_text_files_score_like_parquet(run: Run, tmp_path: Path) -> None:
    """csv, csv.gz and ndjson of the same rows; what is kept stays as it was written."""
    raw = raw_frame(50, seed=8).with_columns(words=None, price=pl.col("price").round(3))
    folder = tmp_path / "text"
    folder.mkdir()
    raw.write_parquet(folder / "1.parquet")
    # The lists of a csv file are text with a separator; `words` has none declared, so it is left out.
    flat = raw.drop("words").with_columns(price=pl.col("price").map_elements("{:.4f}".format, return_dtype=pl.String))
    flat.write_csv(folder / "2.csv", null_value="")
    (folder / "3.csv.gz").write_bytes(gzip.compress((folder / "2.csv").read_bytes()))
    raw.write_ndjson(folder / "4.ndjson")
    run(inputs=[folder], keep=["row", "price"], allow_missing=True)
    parts = [pl.read_parquet(part) for part in sorted((tmp_path / "out").glob("part-*"))]
    assert [len(part) for part in parts] == [50] * 4
    # In a csv file an empty text and a missing value are the same, so these rows may differ.
    same = raw.select(pl.all_horizontal(pl.col("item", "genres").fill_null("x") != "")).to_series()
    for part in parts[1:]:
        assert np.abs((part["score"] - parts[0]["score"]).filter(same).to_numpy()).max() <= ROUNDING
    assert parts[1]["price"].equals(flat["price"])
    assert parts[2].equals(parts[1])


def test_the_size_of_chunks_in_the_input_changes_nothing(
    run: Run, inputs: Path, tmp_path: Path, names: list[str]
) -> None:
    run(inputs=[inputs / "a.parquet"])
    before = content(tmp_path / "out")[names[0]]
    scores = pl.read_parquet(before)
    pl.read_parquet(inputs / "a.parquet").write_parquet(inputs / "a.parquet", row_group_size=50)
    run(inputs=[inputs / "a.parquet"])
    assert pl.read_parquet(tmp_path / "out" / names[0]).equals(scores)


def test_files_without_rows_make_parts_without_rows(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "none"
    folder.mkdir()
    raw_frame(0).write_parquet(folder / "1.parquet")
    raw_frame(0).drop("words").write_csv(folder / "2.csv")
    report = run(inputs=[folder], keep=["row", "age"], allow_missing=True)
    assert (report.rows, report.parts, report.score_mean, report.score_quantiles) == (0, 2, None, {})
    schemas = [pl.read_parquet_schema(part) for part in sorted((tmp_path / "out").glob("part-*"))]
    assert schemas == [
        {"row": pl.Int64, "age": pl.Int16, "score": pl.Float64},
        {"row": pl.String, "age": pl.String, "score": pl.Float64},
    ]


@pytest.mark.parametrize("limit", [1, 99, 100, 101, 141, 147, 1000])
def test_limit_counts_rows_over_all_files(run: Run, tmp_path: Path, limit: int) -> None:
    for skipped in (0, 1 if limit <= 100 else 2 if limit <= 140 else 3):
        report = run(limit=limit)
        assert (report.rows, report.skipped_parts) == (min(limit, 147), skipped)
        rows = pl.concat([pl.read_parquet(part) for part in sorted((tmp_path / "out").glob("part-*"))])["row"]
        assert rows.to_list() == [*range(100), *range(40), *range(7)][:limit]


def test_a_part_beyond_the_limit_goes(run: Run, inputs: Path, tmp_path: Path, names: list[str]) -> None:
    assert run(limit=120).rows == 120
    raw_frame(130).write_parquet(inputs / "a.parquet")
    report = run(limit=120)
    assert (report.rows, report.parts) == (120, 1)
    assert visible(tmp_path / "out") == ["_SUCCESS", "_manifest.json", names[0]]


def test_a_part_that_the_limit_now_cuts_elsewhere_is_scored_again(
    run: Run, inputs: Path, tmp_path: Path, names: list[str]
) -> None:
    assert run(limit=120).rows == 120
    raw_frame(90).write_parquet(inputs / "a.parquet")
    assert run(limit=120).rows == 120
    assert [len(pl.read_parquet(tmp_path / "out" / name)) for name in names[:2]] == [90, 30]


# --- resuming ---------------------------------------------------------------------------------------------------------


def test_a_finished_run_is_not_repeated(run: Run, tmp_path: Path, names: list[str]) -> None:
    first = run()
    before, times = content(tmp_path / "out"), {file: file.stat().st_mtime_ns for file in (tmp_path / "out").iterdir()}
    again = run()
    assert (again.rows, again.parts, again.skipped_parts) == (147, 3, 3)
    assert (again.score_quantiles, again.score_mean) == (first.score_quantiles, first.score_mean)
    assert content(tmp_path / "out") == before
    for name in ["_SUCCESS", *names]:
        assert (tmp_path / "out" / name).stat().st_mtime_ns == times[tmp_path / "out" / name]


class CrashError(Exception):
    """Not an error that the job knows."""


@pytest.mark.parametrize("error", [CrashError, KeyboardInterrupt, InputError])
def test_a_run_that_breaks_off_is_taken_up_again(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], names: list[str]
) -> None:
    run(out=tmp_path / "whole")
    score, calls = serving.batch.parts.score_rows, 0

    def failing(*arguments: Any, **settings: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 9:  # the second chunk of the second file
            raise error("pulled the plug")
        return score(*arguments, **settings)

    monkeypatch.setattr(serving.batch.parts, "score_rows", failing)
    with pytest.raises(error):
        run()
    assert [*content(tmp_path / "out")] == [names[0]]
    monkeypatch.setattr(serving.batch.parts, "score_rows", score)
    report = run()
    assert (report.rows, report.skipped_parts) == (147, 1)
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_marks_that_are_lost_come_back(run: Run, tmp_path: Path) -> None:
    """Killed between the last part and the manifest, or before `_SUCCESS`."""
    run()
    before = content(tmp_path / "out")
    (tmp_path / "out" / "_SUCCESS").unlink()
    assert run().skipped_parts == 3
    assert content(tmp_path / "out") == before
    (tmp_path / "out" / "_SUCCESS").unlink()
    (tmp_path / "out" / "_manifest.json").write_text("[")
    assert run().skipped_parts == 3
    assert content(tmp_path / "out") == before


def test_changed_and_new_inputs_are_scored(run: Run, inputs: Path, tmp_path: Path, names: list[str]) -> None:
    run()
    before = content(tmp_path / "out")
    raw_frame(41, seed=77).write_parquet(inputs / "b.parquet")
    raw_frame(5, seed=78).write_parquet(inputs / "d.parquet")
    report = run()
    assert (report.rows, report.parts, report.skipped_parts) == (153, 4, 2)
    after = content(tmp_path / "out")
    assert [name for name in names if before[name] != after[name]] == [names[1]]
    assert len(pl.read_parquet(tmp_path / "out" / names[1])) == 41


def test_success_goes_before_work_begins(run: Run, inputs: Path, tmp_path: Path, names: list[str]) -> None:
    run()
    raw_frame(7).with_columns(user=[["a list"]]).write_parquet(inputs / "c d!.parquet")
    with pytest.raises(InputError, match=r"c d!\.parquet: column 'user': expected one value per row; found a list"):
        run()
    assert visible(tmp_path / "out") == names


def test_a_damaged_part_is_scored_again(run: Run, tmp_path: Path, names: list[str]) -> None:
    run()
    before = content(tmp_path / "out")
    (tmp_path / "out" / names[1]).write_bytes(before[names[1]][:-5])
    (tmp_path / "out" / names[2]).unlink()
    assert run().skipped_parts == 1
    assert content(tmp_path / "out") == before
