import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import serving.batch.parts
from features.errors import InputError
from serving.batch.job import lineage_of
from serving.bundle import Bundle
from tests.serving.conftest import MARKS, Run, content, make_bundle, raw_frame, table, visible


def test_another_model_is_refused_unless_overwritten(run: Run, tmp_path: Path, names: list[str]) -> None:
    run()
    before = content(tmp_path / "out")
    other = make_bundle(tmp_path / "other", table=table() * 2)
    with pytest.raises(InputError, match=rf"expected scores of Linear {other.model_id}; found .*; choose another out"):
        run(bundle=other)
    assert content(tmp_path / "out") == before
    report = run(bundle=other, overwrite=True)
    assert (report.skipped_parts, report.model_id) == (0, other.model_id)
    assert visible(tmp_path / "out") == [*MARKS, *names]
    assert lineage_of(tmp_path / "out" / names[0])["model_id"] == other.model_id


@pytest.mark.parametrize("changes", [{"keep": ["row", "user"]}, {"keep": []}, {"limit": 50}, {"allow_missing": True}])
def test_other_settings_are_refused_unless_overwritten(run: Run, tmp_path: Path, changes: dict[str, Any]) -> None:
    run()
    before = content(tmp_path / "out")
    (key, value) = next(iter(changes.items()))
    found = rf"found {key}: .*, not {re.escape(repr(value))}; choose another output, or overwrite"
    with pytest.raises(InputError, match=rf"expected scores by the same settings; {found}"):
        run(**changes)
    assert content(tmp_path / "out") == before
    assert run(overwrite=True, **changes).skipped_parts == 0


def test_parts_of_other_inputs_are_refused_unless_overwritten(
    run: Run, inputs: Path, tmp_path: Path, names: list[str]
) -> None:
    run()
    with pytest.raises(InputError, match=f"expected parts of these 1 inputs; found {names[1]}"):
        run(inputs=[inputs / "a.parquet"])
    run(inputs=[inputs / "a.parquet"], overwrite=True)
    assert visible(tmp_path / "out") == ["_SUCCESS", "_manifest.json", names[0]]


@pytest.mark.parametrize("overwrite", [True, False])
def test_files_of_others_are_never_touched(run: Run, tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious.parquet").write_text("x")
    with pytest.raises(InputError, match=r"expected an empty or a scored directory; found precious\.parquet"):
        run(overwrite=overwrite)
    assert content(tmp_path / "out") == {"precious.parquet": b"x"}


def test_an_input_inside_the_output_is_refused(run: Run, inputs: Path) -> None:
    with pytest.raises(InputError, match=r"expected an output that is not an input too; found .*/in', which names it"):
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
        ({"workers": 0}, "workers: expected at least 1 process; found 0"),
        ({"max_rejected": 1.5}, "max_rejected: expected a share from 0 to 1; found 1.5"),
        ({"max_rejected": float("nan")}, "max_rejected: expected a share from 0 to 1; found nan"),
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


def test_parts_of_another_program_are_never_touched(run: Run, tmp_path: Path) -> None:
    """Spark's parts have such names, too."""
    (tmp_path / "out").mkdir()
    raw_frame(3).write_parquet(tmp_path / "out" / "part-00000-a.parquet")
    before = content(tmp_path / "out")
    for overwrite in (True, False):
        with pytest.raises(InputError, match=r"expected an empty or a scored directory; found part-00000-a\.parquet"):
            run(overwrite=overwrite)
    assert content(tmp_path / "out") == before


def test_an_input_that_changes_meanwhile_makes_no_part(
    run: Run, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: list[str]
) -> None:
    score = serving.batch.parts.score_rows

    def appending(*arguments: Any, **settings: Any) -> Any:
        with (inputs / "b.parquet").open("ab") as file:
            file.write(b"x")
        return score(*arguments, **settings)

    run(inputs=[inputs / "a.parquet"])
    monkeypatch.setattr(serving.batch.parts, "score_rows", appending)
    with pytest.raises(InputError, match=r"b\.parquet: expected an unchanged file; found one that changed"):
        run()
    assert [*content(tmp_path / "out")] == [names[0]]


def test_an_output_that_cannot_be_written(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match="cannot write"):
            run(out=out)


FULL = """
import resource, signal, sys
from features.errors import InputError
from serving.batch.job import score_files
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, resource.RLIM_INFINITY))
try:
    score_files({bundle!r}, [{inputs!r}], {out!r}, keep=["row"], progress=False)
except InputError as error:
    sys.exit("InputError: " + str(error))
"""


def test_a_full_disk_leaves_no_half_part(
    run: Run, bundle: Bundle, inputs: Path, tmp_path: Path, names: list[str]
) -> None:
    raw_frame(30_000).write_parquet(inputs / "b.parquet")
    code = FULL.format(bundle=str(bundle.path), inputs=str(inputs), out=str(tmp_path / "out"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "InputError: cannot write" in done.stderr
    assert "found File too large; free space" in done.stderr
    assert [*content(tmp_path / "out")] == [names[0]]


def test_an_input_that_goes_meanwhile(
    run: Run, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: list[str]
) -> None:
    score = serving.batch.parts.score_rows

    def deleting(*arguments: Any, **settings: Any) -> Any:
        (inputs / "b.parquet").unlink(missing_ok=True)
        return score(*arguments, **settings)

    monkeypatch.setattr(serving.batch.parts, "score_rows", deleting)
    with pytest.raises(InputError, match=r"b\.parquet: expected a readable file; found No such file or directory"):
        run()
    assert [*content(tmp_path / "out")] == [names[0]]


def test_lost_rows_are_noticed(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    score = serving.batch.parts.score_rows

    def losing(*arguments: Any, **settings: Any) -> Any:
        whole = score(*arguments, **settings)
        return whole._replace(good=whole.good.head(15), probabilities=whole.probabilities[:15])

    monkeypatch.setattr(serving.batch.parts, "score_rows", losing)
    with pytest.raises(RuntimeError, match="read 100 rows, rejected 0 and wrote 94"):
        run()
    assert visible(tmp_path / "out") == []
