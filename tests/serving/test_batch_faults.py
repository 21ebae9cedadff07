import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import serving.batch
from features.errors import InputError
from serving.batch import lineage_of
from serving.bundle import Bundle
from tests.serving.conftest import NAMES, WHOLE, Run, content, make_bundle, raw_frame, table, visible


def test_another_model_is_refused_unless_overwritten(run: Run, tmp_path: Path) -> None:
    run()
    before = content(tmp_path / "out")
    other = make_bundle(tmp_path / "other", table=table() * 2)
    with pytest.raises(InputError, match=rf"expected scores of Linear {other.model_id}; found .*; choose another out"):
        run(bundle=other)
    assert content(tmp_path / "out") == before
    report = run(bundle=other, overwrite=True)
    assert (report.skipped_parts, report.model_id) == (0, other.model_id)
    assert visible(tmp_path / "out") == WHOLE
    assert lineage_of(tmp_path / "out" / NAMES[0])["model_id"] == other.model_id


@pytest.mark.parametrize("changes", [{"keep": ["row", "user"]}, {"keep": []}, {"limit": 50}, {"allow_missing": True}])
def test_other_settings_are_refused_unless_overwritten(run: Run, tmp_path: Path, changes: dict[str, Any]) -> None:
    run()
    before = content(tmp_path / "out")
    with pytest.raises(InputError, match=r"expected settings .*; found .*; choose another output, or overwrite"):
        run(**changes)
    assert content(tmp_path / "out") == before
    assert run(overwrite=True, **changes).skipped_parts == 0


def test_parts_of_other_inputs_are_refused_unless_overwritten(run: Run, inputs: Path, tmp_path: Path) -> None:
    run()
    with pytest.raises(InputError, match=f"expected parts of these 1 inputs; found {NAMES[1]}"):
        run(inputs=[inputs / "a.parquet"])
    run(inputs=[inputs / "a.parquet"], overwrite=True)
    assert visible(tmp_path / "out") == ["_SUCCESS", "_manifest.json", NAMES[0]]


@pytest.mark.parametrize("overwrite", [True, False])
def test_files_of_others_are_never_touched(run: Run, tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious.parquet").write_text("x")
    with pytest.raises(InputError, match=r"expected an empty or a scored directory; found precious\.parquet"):
        run(overwrite=overwrite)
    assert content(tmp_path / "out") == {"precious.parquet": b"x"}


def test_an_input_inside_the_output_is_refused(run: Run, inputs: Path) -> None:
    with pytest.raises(InputError, match=r"holds an input; found .*a\.parquet"):
        run(out=inputs, overwrite=True)
    assert visible(inputs) == ["a.parquet", "b.parquet", "c d!.parquet"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keep": ["row", "nothing"]}, r"expected a column 'nothing' to keep; found columns row, user"),
        ({"keep": ["row", "score"]}, "the column 'score' is the output's own"),
        ({"keep": ["row", "row"]}, "keep: expected different columns"),
        ({"keep": "row"}, r"keep: expected a list of columns; found 'row'; write \['row'\]"),
        ({"limit": 0}, "limit: expected at least 1 row; found 0"),
        ({"inputs": ["/nowhere/*.parquet"]}, "no file matches"),
        ({"bundle": "/nowhere"}, "expected a bundle directory"),
    ],
)
def test_a_request_is_checked_before_anything_is_written(
    run: Run, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        run(**changes)
    assert not (tmp_path / "out").exists()


def test_a_feature_that_is_not_there(run: Run, inputs: Path, tmp_path: Path) -> None:
    """Found before the first file is scored, though it is the last one that lacks the column."""
    raw_frame(7).drop("item").write_parquet(inputs / "z.parquet")
    with pytest.raises(InputError, match=r"z\.parquet: expected a column 'item'"):
        run()
    assert not (tmp_path / "out").exists()
    assert run(allow_missing=True).rows == 154
    raw_frame(7).select("row").write_parquet(inputs / "z.parquet")
    with pytest.raises(InputError, match=r"z\.parquet: expected a column 'user'"):
        run(allow_missing=True, out=tmp_path / "other")


def test_a_value_that_cannot_be_scored_is_located(run: Run, inputs: Path, tmp_path: Path) -> None:
    raw = raw_frame(40).with_columns(user=pl.when(pl.col("row") == 33).then(0.5).otherwise(pl.col("user")))
    raw.write_parquet(inputs / "b.parquet")
    with pytest.raises(InputError, match=r"b\.parquet: column 'user': expected .*; found the number 0.5 in row 34;"):
        run()
    assert visible(tmp_path / "out") == ["_manifest.json", NAMES[0]]
    text = raw_frame(40).drop("words").with_columns(age=pl.lit("old"))
    text.write_csv(tmp_path / "x.csv")
    with pytest.raises(InputError, match=r"x\.csv: column 'age': expected a number; found 'old' in row 1;"):
        run(inputs=[tmp_path / "x.csv"], out=tmp_path / "x", allow_missing=True)


def test_a_manifest_that_is_none(run: Run, tmp_path: Path) -> None:
    run()
    for text in ("", "{}", "[" * 10_000, "7"):
        (tmp_path / "out" / "_manifest.json").write_text(text)
        with pytest.raises(InputError, match=r"expected a scoring manifest; found .*; choose another output"):
            run()
    assert run(overwrite=True).rows == 147


def test_an_output_that_cannot_be_written(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match="cannot write"):
            run(out=out)


FULL = """
import resource, signal, sys
from features.errors import InputError
from serving.batch import score_files
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, resource.RLIM_INFINITY))
try:
    score_files({bundle!r}, [{inputs!r}], {out!r}, keep=["row"], progress=False)
except InputError as error:
    sys.exit("InputError: " + str(error))
"""


def test_a_full_disk_leaves_no_half_part(run: Run, bundle: Bundle, inputs: Path, tmp_path: Path) -> None:
    raw_frame(30_000).write_parquet(inputs / "b.parquet")
    code = FULL.format(bundle=str(bundle.path), inputs=str(inputs), out=str(tmp_path / "out"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "InputError: cannot write" in done.stderr
    assert "found File too large; free space" in done.stderr
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["_manifest.json", NAMES[0]]


def test_lost_rows_are_noticed(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    score = serving.batch._Job.score
    monkeypatch.setattr(serving.batch._Job, "score", lambda *arguments: score(*arguments).head(15))
    with pytest.raises(RuntimeError, match="read 100 rows and wrote 94"):
        run()
    assert visible(tmp_path / "out") == ["_manifest.json"]
