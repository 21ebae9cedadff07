"""The files that a job reads, the columns in their paths, and the output as readers see it."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow.dataset
import pyarrow.parquet
import pytest

from features.errors import InputError
from serving.batch.inputs import plan_parts
from serving.bundle import Bundle
from serving.scorer import Scorer
from tests.serving.conftest import REGISTRY, ROUNDING, Run, content, name_of, raw_frame, visible


@pytest.fixture
def hive(tmp_path: Path) -> Path:
    """Four files below `day=` and `place=`, of 30, 20, 10 and 5 rows, without a column `item`."""
    root = tmp_path / "hive"
    for seed, (day, place, num_rows) in enumerate([(1, "a", 30), (1, "b%2Fc", 20), (2, "a", 10)]):
        folder = root / f"day={day}" / f"place={place}"
        folder.mkdir(parents=True)
        raw_frame(num_rows, seed=seed).drop("item").write_parquet(folder / "x.parquet")
    null = root / "day=2" / "place=__HIVE_DEFAULT_PARTITION__"
    null.mkdir()
    raw_frame(5, seed=9).drop("item").write_ndjson(null / "x.ndjson")
    return root


def names_of(out: Path) -> list[str]:
    return sorted(name for name in content(out) if name.endswith(".parquet"))


def test_the_output_mirrors_partitions_and_any_reader_takes_it(run: Run, hive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = run(inputs=[hive], keep=["row", "day"], allow_missing=True)
    assert (report.rows, report.parts) == (65, 4)
    folders = ["day=1/place=a", "day=1/place=b%2Fc", "day=2/place=__HIVE_DEFAULT_PARTITION__", "day=2/place=a"]
    files = [hive / folder / ("x.ndjson" if "HIVE" in folder else "x.parquet") for folder in folders]
    assert names_of(out) == [f"{folder}/{name_of(file)}" for folder, file in zip(folders, files, strict=True)]
    for name in names_of(out):  # what the path says is not said again
        assert pl.read_parquet(out / name, hive_partitioning=False).columns == ["row", "score"]
    expected = {(1, 50), (2, 15)}
    frames = {
        "polars": pl.read_parquet(f"{out}/**/part-*.parquet", hive_partitioning=True).to_pandas(),
        # Without `place`, since Arrow cannot give pandas a dictionary with null.
        "pandas": pd.read_parquet(out, columns=["day", "score"]),
        "arrow": pyarrow.dataset.dataset(out, partitioning="hive").to_table().to_pandas(),
        "parquet": pyarrow.parquet.read_table(out, columns=["day", "score"]).to_pandas(),
    }
    for reader, frame in frames.items():
        assert set(frame.groupby(frame["day"].astype(int)).size().items()) == expected, reader
        assert len(frame["score"]) == frame["score"].between(0, 1).sum() == 65, reader


def test_readers_do_not_take_rejected_rows_for_scores(run: Run, inputs: Path, tmp_path: Path) -> None:
    raw_frame(40).with_columns(user=pl.lit(0.5)).write_parquet(inputs / "b.parquet")
    assert run(max_rejected=1).rows == 107
    out = tmp_path / "out"
    assert pl.read_parquet(f"{out}/**/part-*.parquet").height == pl.read_parquet(f"{out}/*.parquet").height == 107
    assert len(pd.read_parquet(out)) == pyarrow.dataset.dataset(out).count_rows() == 107


def test_a_partition_is_a_column_of_the_model(run: Run, bundle: Bundle, tmp_path: Path) -> None:
    """`item` as text, `age` as a number; null where the path says so."""
    raw = raw_frame(20, seed=3)
    folder = tmp_path / "in" / "parts" / "item=i%C3%9F" / "age=041"
    folder.mkdir(parents=True)
    raw.drop("item", "age").write_parquet(folder / "x.parquet")
    null = tmp_path / "in" / "parts" / "item=__HIVE_DEFAULT_PARTITION__" / "age=2.5"
    null.mkdir(parents=True)
    raw.drop("item", "age").write_parquet(null / "x.parquet")
    run(inputs=[tmp_path / "in" / "parts"])
    scores = [pl.read_parquet(tmp_path / "out" / name)["score"].to_numpy() for name in names_of(tmp_path / "out")]
    meant = [
        raw.with_columns(item=pl.lit(None, dtype=pl.String), age=pl.lit(2.5)),
        raw.with_columns(item=pl.lit("iß"), age=pl.lit(41)),
    ]
    for found, frame in zip(scores, meant, strict=True):
        assert np.abs(found - Scorer(bundle, num_threads=1).score(frame)).max() <= ROUNDING


def test_a_file_that_contradicts_its_path_is_refused(run: Run, bundle: Bundle, tmp_path: Path) -> None:
    """The same value in both is one column, however it is typed; another value is a mistake that scores would hide."""
    folder = tmp_path / "log" / "age=041" / "item=a"
    folder.mkdir(parents=True)
    raw = raw_frame(20, seed=3).with_columns(item=pl.lit("a"), age=pl.lit(41.0))
    raw.write_parquet(folder / "x.parquet")
    run(inputs=[tmp_path / "log"])
    (name,) = names_of(tmp_path / "out")
    scores = pl.read_parquet(tmp_path / "out" / name)["score"].to_numpy()
    assert np.array_equal(scores, Scorer(bundle, num_threads=1).score(raw))
    for wrong in ({"item": pl.lit("b")}, {"age": pl.lit(42)}, {"item": pl.lit(None, dtype=pl.String)}):
        raw.with_columns(**wrong).write_parquet(folder / "x.parquet")
        with pytest.raises(InputError, match=r"expected '(item|age)' to be '(a|041)', as its path says; found"):
            run(inputs=[tmp_path / "log"], overwrite=True)


def test_a_partition_that_is_no_number_rejects_its_rows(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "text" / "age=old"
    folder.mkdir(parents=True)
    raw_frame(3).drop("age").write_parquet(folder / "x.parquet")
    with pytest.raises(InputError, match=r"3 of 3 .*column 'age': expected a number; found 'old' in row 1;"):
        run(inputs=[tmp_path / "text"])


@pytest.mark.parametrize(
    ("pattern", "folder"),
    [
        ("hive", "day=1/place=a"),
        ("hive/day=1", "place=a"),
        ("hive/day=1/place=a", ""),
        ("hive/day=1/place=a/x.parquet", ""),
        ("hive/*/place=a/*.parquet", "day=1/place=a"),
        ("hive/day=1/*/x.parquet", "place=a"),
    ],
)
def test_what_the_user_named_is_not_mirrored(hive: Path, tmp_path: Path, pattern: str, folder: str) -> None:
    """So `--input logs/day=1 --out scores/day=1` does what one expects; the columns are there all the same."""
    part = plan_parts([tmp_path / pattern], REGISTRY, keep=["day"], allow_missing=True)[0]
    assert part.columns[-1] == "day"
    assert part.name == "/".join(filter(None, [folder, name_of(hive / "day=1/place=a/x.parquet")]))


def test_a_kept_partition_that_the_output_does_not_mirror_is_written(run: Run, hive: Path, tmp_path: Path) -> None:
    run(inputs=[hive / "day=1"], keep=["day", "place", "row"], allow_missing=True)
    (part, *_) = names_of(tmp_path / "out")
    assert part.startswith("place=a/")
    frame = pl.read_parquet(tmp_path / "out" / part, hive_partitioning=False)
    assert frame.schema == {"day": pl.String, "row": pl.Int64, "score": pl.Float64}
    assert set(frame["day"]) == {"1"}


def test_names_follow_from_their_own_input_alone(run: Run, inputs: Path, tmp_path: Path) -> None:
    """A file that comes late, or is named in another way, changes no other part."""
    run()
    before = content(tmp_path / "out")
    raw_frame(9, seed=9).write_parquet(inputs / "aa.parquet")
    assert run(inputs=[f"{inputs}/*.parquet"]).skipped_parts == 3
    after = content(tmp_path / "out")
    assert {name: after[name] for name in before if name.startswith("part-")}.items() <= before.items()
    assert len(after) == len(before) + 1


def test_files_of_one_name_stay_apart(run: Run, tmp_path: Path) -> None:
    for folder, num_rows in (("x", 5), ("y", 6)):
        (tmp_path / folder).mkdir()
        raw_frame(num_rows).write_parquet(tmp_path / folder / "part-00000.parquet")
    assert run(inputs=[tmp_path / "x", tmp_path / "y"], keep=[]).rows == 11
    assert len(visible(tmp_path / "out")) == 4


def test_a_file_that_two_inputs_name_is_scored_once(run: Run, inputs: Path) -> None:
    assert run(inputs=[inputs, inputs / "a.parquet", f"{inputs}/*.parquet"]).rows == 147


def test_a_name_that_is_no_text(run: Run, inputs: Path, tmp_path: Path) -> None:
    (inputs / os.fsdecode(b"\xff.parquet")).write_bytes((inputs / "a.parquet").read_bytes())
    with pytest.raises(InputError, match=r"expected a file name in UTF-8; found .*\\xff\.parquet'; rename"):
        run()
    assert not (tmp_path / "out").exists()


def test_memory_does_not_grow_with_a_file(bundle: Bundle, tmp_path: Path) -> None:
    """Eight times the rows, the same peak."""
    code = """
import resource, sys
from serving.batch.job import score_files
score_files(sys.argv[1], [sys.argv[2]], sys.argv[3], keep=["row"], progress=False)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    peaks = []
    for num_rows in (60_000, 480_000):
        file = tmp_path / f"{num_rows}.parquet"
        small = raw_frame(20_000)
        pl.concat([small] * (num_rows // 20_000)).write_parquet(file, row_group_size=20_000)
        arguments = [str(bundle.path), str(file), str(tmp_path / f"out{num_rows}")]
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout) / 1024)
    assert peaks[1] < peaks[0] + 60, f"MB: {peaks}"


def test_files_without_rows_are_parts_without_rows(run: Run, tmp_path: Path) -> None:
    """Zero bytes and a header alone have no rows; the good files next to them are scored."""
    folder = tmp_path / "log"
    folder.mkdir()
    raw_frame(20).write_parquet(folder / "good.parquet")
    raw_frame(0).write_parquet(folder / "none.parquet")
    (folder / "header.csv").write_text("row,user,price,genres,item,words,age\n")
    for name in ("zero.csv", "zero.parquet", "zero.ndjson", "zero.tsv.gz"):
        (folder / name).touch()
    (folder / "blank.jsonl").write_text("\n\n")
    report = run(inputs=[folder], keep=["row"], allow_missing=True)
    assert (report.rows, report.rows_rejected, report.parts) == (20, 0, 8)
    out = tmp_path / "out"
    frames = [pl.read_parquet(out / name) for name in names_of(out)]
    assert all(frame.columns == ["row", "score"] for frame in frames)
    assert sum(map(len, frames)) == 20
    assert (out / "_SUCCESS").exists()
    assert run(inputs=[folder], keep=["row"], allow_missing=True).skipped_parts == 8
    assert run(inputs=[folder], keep=["row"], allow_missing=True, limit=5, overwrite=True).rows == 5
