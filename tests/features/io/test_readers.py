"""Readers: the same values from every format, in order, at any chunk size; and a clear error for a bad file."""

import gzip
import json
from contextlib import nullcontext
from pathlib import Path

import polars as pl
import pytest

from features.encode import encode_frame
from features.errors import InputError
from features.io.csv_format import CsvFormat
from features.io.readers import check_out_of_inputs, columns_of, expand, read_chunks
from features.registry import FeatureRegistry

FORMATS = ["parquet", "pq", "csv", "csv.gz", "CSV", "tsv", "tsv.gz", "ndjson", "jsonl", "json", "ndjson.gz", "JSON.GZ"]
REGISTRY = FeatureRegistry.of(
    features={
        "user": "categorical",
        "item": "categorical",
        "genres": {"type": "categorical_list", "separator": "|"},
        "price": {"type": "numeric", "transform": "none"},
        "bucket": {"type": "numeric", "transform": "log_square"},
    }
)
# Values that have the same tokens in every format.
FRAME = pl.DataFrame(
    {
        "user": [7, -12, None, 2**62, 0],
        "item": ["plain", 'quote " and, comma', "line\nbreak", None, "日本 \U0001f600"],
        "genres": ["Drama", "Drama|Sci-Fi", None, "a||b", " x "],
        "price": [1.5, None, -3.25, 0.1, 1e-12],
        "bucket": [3, 0, None, 1000, -1],
    }
)


def write(directory: Path, kind: str, frame: pl.DataFrame, name: str = "part") -> Path:
    path = directory / f"{name}.{kind}"
    if kind in ("parquet", "pq"):
        frame.write_parquet(path)
        return path
    separator = "\t" if kind.startswith("tsv") else ","
    is_text = kind.lower().startswith(("csv", "tsv"))
    content = (frame.write_csv(separator=separator) if is_text else frame.write_ndjson()).encode()
    path.write_bytes(gzip.compress(content) if kind.lower().endswith("gz") else content)
    return path


def read(path: Path, **options) -> pl.DataFrame:
    return pl.concat(read_chunks(path, **options))


def refusal(path: Path, **options) -> str:
    with pytest.raises(InputError) as caught:
        list(read_chunks(path, **options))
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_the_same_tokens(tmp_path: Path, kind: str):
    raw = read(write(tmp_path, kind, FRAME))
    assert encode_frame(raw, REGISTRY).equals(encode_frame(FRAME, REGISTRY))


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("chunk_rows", [1, 7, 1000])
def test_chunks_are_of_the_size_asked_for_and_in_order(tmp_path: Path, kind: str, chunk_rows: int):
    frame = pl.DataFrame({"n": range(60), "text": [f"t{n * 7919 % 61}" for n in range(60)]})
    path = write(tmp_path, kind, frame)
    chunks = list(read_chunks(path, chunk_rows=chunk_rows))
    assert [len(chunk) for chunk in chunks[:-1]] == [chunk_rows] * (len(chunks) - 1)
    assert 0 < len(chunks[-1]) <= chunk_rows
    assert pl.concat(chunks).cast({"n": pl.Int64}).equals(frame)


def test_row_groups_of_a_parquet_file_do_not_show(tmp_path: Path):
    frame = pl.DataFrame({"n": range(1000)})
    frame.write_parquet(tmp_path / "a.parquet", row_group_size=37)
    chunks = list(read_chunks(tmp_path / "a.parquet", chunk_rows=300))
    assert [len(chunk) for chunk in chunks] == [300, 300, 300, 100]
    assert pl.concat(chunks).equals(frame)


@pytest.mark.parametrize("kind", FORMATS)
def test_columns_come_in_the_order_asked_for(tmp_path: Path, kind: str):
    path = write(tmp_path, kind, FRAME)
    assert columns_of(path) == FRAME.columns
    assert read(path, columns=["price", "user"]).columns == ["price", "user"]
    message = refusal(path, columns=["user", "nobody"])
    assert "expected a column 'nobody'; found columns user, item, genres, price, bucket; correct the reg" in message


def test_csv_text_is_kept_to_the_letter(tmp_path: Path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'a,b\n007, x \n"",1e3\n,NaN\nTrue,null\n')
    assert read(path).to_dict(as_series=False) == {"a": ["007", "", None, "True"], "b": [" x ", "1e3", "NaN", "null"]}


def test_csv_dialects(tmp_path: Path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'\xef\xbb\xbfa,b\r\n"x\r\ny",1\r\n"say ""hi""",2\r\n"p,q",3')
    assert read(path).to_dict(as_series=False) == {
        "a": ["x\r\ny", 'say "hi"', "p,q"],
        "b": ["1", "2", "3"],
    }


@pytest.mark.parametrize("opener", [lambda data: data, gzip.compress])
def test_gzip_is_known_by_its_bytes(tmp_path: Path, opener):
    for name in ("a.csv", "a.csv.gz"):
        (tmp_path / name).write_bytes(opener(b"a,b\n1,\n"))
        assert read(tmp_path / name).rows() == [("1", None)]


def test_a_column_of_nulls_at_the_end_is_not_ragged(tmp_path: Path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'a,b\n1,\n"x,\ny",\n3,"4"\n')
    assert read(path, columns=["a"])["a"].to_list() == ["1", "x,\ny", "3"]
    path.write_bytes(b"a\n1\n\n3\n")
    assert read(path)["a"].to_list() == ["1", None, "3"]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"a,b,c\n1,2,3\n4,5\n6,7,8\n", "expected 3 fields per row; found 2 in line 3"),
        (b"a,b,c\n1,2,3\n4,5,6,7\n", "expected 3 fields per row; found 4 in line 3"),
        (b'a,b,c\n"x\n\ny",2,3\n"z\n",5\n', "expected 3 fields per row; found 2 in line 5"),
        (b'a,b,c\n"1,1",2,3\n4,5', "expected 3 fields per row; found 2 in line 3"),
        (b"a,b\n1,2\n\n3,4\n", "expected 2 fields per row; found 1 in line 3"),
        (b'a,b\n1,2\n"3,4\n5,6\n', "expected quotes in pairs; found one in the row of line 3 that is never closed"),
        (b"a,b\n1,\xe9\n", "found invalid utf-8 sequence; save it as UTF-8"),
        (b"a,b,a\n1,2,3\n", "column names must be unique; found 'a' twice; rename one of them"),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "csv.gz"])
def test_a_bad_csv_file(tmp_path: Path, kind: str, content: bytes, found: str):
    path = tmp_path / f"a.{kind}"
    path.write_bytes(gzip.compress(content) if kind == "csv.gz" and content else content)
    for columns in (None, ["a"]):  # the fault is seen for any choice of columns
        assert found.replace("csv file", f"{kind} file") in refusal(path, columns=columns)


def test_a_ragged_row_is_found_across_blocks_of_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("features.io.csv_check.BLOCK_BYTES", 5)
    path = tmp_path / "a.csv"
    path.write_bytes(b'a,b\n"one, \n two",1\n22222222222,\n' * 2 + b"3\n4,5\n")
    assert "expected 2 fields per row; found 1 in line 9; correct or remove that line" in refusal(path)


def test_ndjson_keys_and_types_are_those_of_all_lines(tmp_path: Path):
    """A type that first appears in the last line is read correctly: nothing is guessed from the first lines."""
    path = tmp_path / "a.ndjson"
    rows = [{"z": 1, "a": None, "tags": []}] * 120_000 + [{"z": 2.5, "a": "x", "tags": ["t"], "late": 7}]
    path.write_text("\n".join(map(json.dumps, rows)))
    raw = read(path)
    assert raw.columns == ["z", "a", "tags", "late"]
    assert raw.row(-1) == (2.5, "x", ["t"], 7)
    path.write_text('{"z": 1}\n' * 3 + '{"z": "x"}\n')
    assert read(path)["z"].to_list() == ["1", "1", "1", "x"]


def test_an_array_of_objects_is_rows_too(tmp_path: Path):
    path = tmp_path / "a.json"
    path.write_text('[{"a": 1},\n {"a": 2.5, "b": "x"}]')
    assert read(path).rows() == [(1.0, None), (2.5, "x")]


def test_ndjson_values(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"u": 18446744073709551615, "b": true, "l": ["x", null]}\r\n\n{"b": null, "l": null}\n')
    assert read(path).rows() == [(2**64 - 1, True, ["x", None]), (None, None, None)]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b'{"a": 1}\n{"a": 2', "expected a readable ndjson file; found Syntax"),
        (b'[{"a": 1}', "expected a readable ndjson file; found"),
        (b'{"a": true}\n{"a": 1}\n', "with values of one type under each name"),
        (b'\xef\xbb\xbf{"a": 1}\n', "expected ndjson; found a byte order mark; save it without one"),
        ('{"a": "é"}\n'.encode("latin-1"), "save it as UTF-8"),
        (b"hello\n", "expected a readable ndjson file"),
    ],
)
def test_a_bad_ndjson_file(tmp_path: Path, content: bytes, found: str):
    path = tmp_path / "a.ndjson"
    path.write_bytes(content)
    assert found in refusal(path)


def test_a_truncated_file(tmp_path: Path):
    frame = pl.DataFrame({"n": [n * 7919 % 104_729 for n in range(50_000)]})
    for kind in ("parquet", "csv.gz"):
        path = write(tmp_path, kind, frame)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        assert f"expected a readable {kind} file; found" in refusal(path)


def test_a_file_of_another_kind(tmp_path: Path):
    (tmp_path / "a.parquet").write_text("a,b\n1,2\n")
    assert "expected a readable parquet file" in refusal(tmp_path / "a.parquet")
    (tmp_path / "a.xlsx").write_text("a,b\n1,2\n")
    assert "expected a file that ends in .parquet, .pq, .csv, .tsv, .ndjson, .jsonl, .json" in refusal(
        tmp_path / "a.xlsx"
    )
    assert "no such file; check the path" in refusal(tmp_path / "none.csv")


@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_without_rows(tmp_path: Path, kind: str):
    path = write(tmp_path, kind, FRAME.clear())
    assert list(read_chunks(path)) == []
    path.write_bytes(b"")
    assert list(read_chunks(path, columns=["user"])) == columns_of(path) == []


@pytest.mark.parametrize("end", ["", "\n", "\n\n", "\r\n\r\n\r\n"])
@pytest.mark.parametrize("pack", [lambda data: data, gzip.compress])
@pytest.mark.parametrize(
    ("content", "rows"), [("a,b\n1,2\n,", 2), ("a,b\n,\n1,2\n,\n,", 4), ('a,b\n1,""', 1), ("a,b", 0), ("", 0)]
)
def test_blank_lines_at_the_end_are_no_rows(tmp_path: Path, content: str, rows: int, end: str, pack):
    path = tmp_path / "a.csv"
    path.write_bytes(pack((content + end).encode()))
    for chunk_rows in (1, 100):
        assert sum(map(len, read_chunks(path, chunk_rows=chunk_rows))) == rows


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "tsv"])
def test_separators_and_null_values_of_delimited_text(tmp_path: Path, kind: str):
    separator = "\t" if kind == "tsv" else ";"
    content = "a;b\n1,5;NA\n?;x\n".replace(";", separator).encode()
    (tmp_path / f"a.{kind}").write_bytes(gzip.compress(content) if kind == "csv.gz" else content)
    csv = CsvFormat(separator=";", null_values=("NA", "?"))
    assert read(tmp_path / f"a.{kind}", csv=csv).rows() == [("1,5", None), (None, "x")]
    (tmp_path / f"a.{kind}").write_text(f"a{separator}b\n1\n2{separator}3\n")
    assert "expected 2 fields per row; found 1 in line 2" in refusal(tmp_path / f"a.{kind}", csv=csv)


def test_a_megabyte_of_text_is_a_value(tmp_path: Path):
    frame = pl.DataFrame({"a": ["x" * 2**20, "short"], "b": [None, "y"]})
    for kind in FORMATS:
        assert read(write(tmp_path, kind, frame)).equals(frame)


def test_expand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("b.csv", "a.csv", "_SUCCESS", ".a.csv.tmp", "_tmp/x.csv", "deep/c.parquet", "README.txt", "x[1].csv"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("a\n1\n")

    def names(patterns) -> list[str]:
        return [str(file.relative_to(tmp_path)) for file in expand(patterns)]

    assert names(tmp_path) == ["a.csv", "b.csv", "deep/c.parquet", "x[1].csv"]
    assert names(str(tmp_path / "*.csv")) == ["a.csv", "b.csv", "x[1].csv"]
    assert names(str(tmp_path / "**" / "*.parquet")) == ["deep/c.parquet"]
    assert names([tmp_path / "b.csv", str(tmp_path / "*.csv"), tmp_path]) == [
        "b.csv",
        "a.csv",
        "x[1].csv",
        "deep/c.parquet",
    ]
    assert names(tmp_path / "x[1].csv") == ["x[1].csv"]  # a file that is there is no glob
    assert names(str(tmp_path / "d*")) == ["deep/c.parquet"]  # a directory that a glob finds is one to read
    monkeypatch.chdir(tmp_path)
    assert expand("deep") == [Path("deep/c.parquet")]


def test_no_file_of_a_directory_is_skipped_in_silence(tmp_path: Path):
    root = tmp_path / "log"
    root.mkdir()
    for kind in FORMATS:
        write(root, kind, FRAME, kind.replace(".", "-"))
    (tmp_path / "elsewhere").mkdir()
    write(tmp_path / "elsewhere", "csv", FRAME)
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "linked" / "again").symlink_to(root)  # a circle
    assert sum(len(read(file)) for file in expand(root)) == (len(FORMATS) + 1) * len(FRAME)
    (root / "part.orc").write_bytes(b"ORC")
    with pytest.raises(InputError, match=r"log: expected files of .parquet, .* alone; found part.orc; convert or"):
        expand(root)
    (root / "part.orc").unlink()
    (root / "gone.csv").symlink_to(root / "none.csv")
    assert "gone.csv: no such file" in refusal(root / "gone.csv")
    assert root / "gone.csv" in expand(root)


@pytest.mark.parametrize(
    ("inputs", "out", "is_read"),
    [
        ("log", "log/out", True),
        ("log", "log", True),
        ("log", "log/_out", False),
        ("log", "out", False),
        ("log/a.csv", "log/out", False),
        ("log/*.csv", "log/out", False),
        ("log/**/*.parquet", "log/out", True),
        ("log/*/*.parquet", "log/out", True),
        ("log/*/*/*.parquet", "log/out", True),  # day=1/part.parquet
        ("log/*", "log/out", True),
        ("log/day=*", "log/out", False),
    ],
)
def test_an_output_that_a_second_run_would_read(tmp_path: Path, monkeypatch, inputs: str, out: str, is_read: bool):
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "a.csv").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="an output that is not an input too") if is_read else nullcontext():
        check_out_of_inputs(Path(out), [inputs])


@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_is_read_to_the_letter_of_its_name(kind, tmp_path):
    """`[1]` in a path is not a pattern, even if it would match another file."""
    names = {"part[1]": [1], "part1": [2], "part*": [3], "part?": [4]}
    for directory in (tmp_path, tmp_path / "[ab]"):
        directory.mkdir(exist_ok=True)
        for name, values in names.items():
            write(directory, kind, pl.DataFrame({"n": values, "m": values}), name)
    (tmp_path / "a").mkdir()
    write(tmp_path / "a", kind, pl.DataFrame({"other": [9]}), "part1")
    for directory in (tmp_path, tmp_path / "[ab]"):
        for name, values in names.items():
            path = directory / f"{name}.{kind}"
            assert columns_of(path) == ["n", "m"]
            assert read(path)["n"].cast(pl.Int64).to_list() == values


@pytest.mark.parametrize("pattern", ["none.csv", "*.parquet", "empty"])
def test_expand_refuses_a_pattern_without_files(tmp_path: Path, pattern: str):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no file matches '.*'; name a file, directory or glob of .parquet, .pq"):
        expand(tmp_path / pattern)


def test_reading_can_stop_early(tmp_path: Path):
    path = write(tmp_path, "parquet", pl.DataFrame({"n": range(100_000)}))
    chunks = read_chunks(path, chunk_rows=10)
    assert next(chunks)["n"].to_list() == list(range(10))
    chunks.close()


def test_a_link_to_a_file_beside_it_is_read_once(tmp_path: Path):
    write(tmp_path, "csv", FRAME, "a")
    (tmp_path / "b.csv").symlink_to(tmp_path / "a.csv")
    assert expand(tmp_path) == expand(str(tmp_path / "*.csv")) == [tmp_path / "a.csv"]


def test_an_output_reached_by_a_link_is_an_input_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "in").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "in")
    monkeypatch.chdir(tmp_path / "in")
    for out, pattern in (
        ("sc", "../in/*"),
        ("../in/sc", "../lin*"),
        ("sc", str(tmp_path / "link")),
        ("sc", "../lin*/**"),
    ):
        with pytest.raises(InputError, match="an output that is not an input too"):
            check_out_of_inputs(Path(out), [pattern])
    check_out_of_inputs(Path("../out"), ["../in/*", "../link", "."])


def test_objects_without_a_key_are_no_empty_file(tmp_path: Path):
    (tmp_path / "a.ndjson").write_text("{}\n" * 5)
    assert "expected columns; found objects without a key" in refusal(tmp_path / "a.ndjson")
    (tmp_path / "bom.csv").write_bytes(b"\xef\xbb\xbf")
    assert list(read_chunks(tmp_path / "bom.csv")) == []
