import json
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from features.errors import InputError
from serving.bundle import Bundle
from serving.bundle.row_sets import pack_bits
from serving.bundle.table import StoredTable
from tests.floats import floats
from tests.serving.bundle.table_cases import Case, cases
from tests.serving.conftest import LAYOUT, reseal, table

Fresh = Callable[..., Bundle]


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"rows": table()[:-1]}, r"tensor 'rows' to be F32 \[211, 5\]; found float32 \[210, 5\]"),
        ({"rows": table()[:, :4]}, r"found float32 \[211, 4\]"),
        ({"rows": table().astype(np.float16)}, r"found float16 \[211, 5\]"),
        ({"table": table()}, "expected tensors rows for fp32; found table"),
        ({"rows": table(), "scale": table()[:, 0]}, "expected tensors rows for fp32; found rows, scale"),
        ({"rows": table(), "trained_rows": np.zeros(26, np.uint8)}, r"'trained_rows' to be U8 \[27\]"),
        ({"rows": table(), "kept_rows": np.zeros(27, np.uint8)}, r"tensor 'rows' to be F32 \[0, 5\]; found float32"),
        ({"rows": table().astype(np.float64)}, "expected a sound entry for tensor 'rows'"),
    ],
)
@pytest.mark.parametrize("verify", [True, False])
def test_a_table_of_another_shape(fresh: Fresh, tensors: Any, message: str, verify: bool) -> None:
    path = fresh().path
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, path / "table.safetensors")
    reseal(path)
    with pytest.raises(InputError, match=message):
        Bundle.open(path, verify=verify)


def header(entries: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


SOUND = {"dtype": "F32", "shape": [1, 1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected a header of 2 to"),
        (b"\x02\0\0", "expected a header of 2 to"),
        (header({"rows": SOUND}, b"\0\0\0\0", length=2**63), rf"found {2**63} in a file of \d+ bytes"),
        (header({"rows": SOUND}, b"\0\0\0\0", length=10_000), r"found 10000 in a file of \d+ bytes"),
        (struct.pack("<Q", 2**21) + b"[" * 2**21, "expected a header of 2 to 1048576 bytes; found 2097152"),
        (struct.pack("<Q", 60_000) + b"[" * 60_000, "expected a header in JSON"),
        (struct.pack("<Q", 4) + b"\xff\xff\xff\xff", "expected a header in JSON"),
        (header([1]), "expected a header of tensors"),
        (header({"rows": SOUND}, b"\0\0"), "cut off"),
        (header({"rows": SOUND}, b"\0" * 9), "expected 4 bytes of tensors; found 9"),
        (header({"rows": {**SOUND, "shape": [2, 1]}}, b"\0" * 4), "sound entry"),
        (header({"rows": {**SOUND, "shape": [-1, -1]}}, b"\0" * 4), "sound entry"),
        (header({"rows": {**SOUND, "shape": [2**62, 2**62]}}, b"\0" * 4), "sound entry"),
        (header({"rows": {**SOUND, "shape": [True, 1]}}, b"\0" * 4), "sound entry"),
        (header({"rows": {**SOUND, "data_offsets": [4, 0]}}, b"\0" * 4), "sound entry"),
        (header({"rows": {**SOUND, "data_offsets": [0]}}, b"\0" * 4), "sound entry"),
        (header({"rows": {**SOUND, "dtype": "O"}}, b"\0" * 4), "sound entry"),
        (header({"rows": {**SOUND, "dtype": [1]}}, b"\0" * 4), "sound entry"),
        (header({"rows": 7}), "sound entry"),
        (header({}), "found none"),
    ],
)
def test_a_hostile_table(fresh: Fresh, content: bytes, message: str) -> None:
    path = fresh().path
    (path / "table.safetensors").write_bytes(content)
    reseal(path)
    with pytest.raises(InputError, match=message):
        Bundle.open(path)


def damaged(tensors: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Tensors with some changed, and those of value None left out."""
    together = tensors | {
        name: change(tensors[name]) if callable(change) else change for name, change in changes.items()
    }
    return {name: np.ascontiguousarray(tensor) for name, tensor in together.items() if tensor is not None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codebook": None}, "expected tensors codebook, rows for int4; found columns, kept"),
        ({"codebook": lambda a: a[:-1]}, r"tensor 'codebook' to be F16 \[256, 2\]; found float16 \[255, 2\]"),
        ({"codebook": lambda a: a.astype(np.float32)}, r"tensor 'codebook' to be F16 \[256, 2\]; found float32"),
        ({"rows": lambda a: a.view(np.int8)}, r"tensor 'rows' to be U8 \[2000, 3\]; found int8"),
        ({"rows.1": None}, "expected tensors codebook, rows for int4; found codebook, columns"),
        ({"rows.1": lambda a: a[:-1]}, r"tensor 'rows.1' to be U8 \[600, 2\]; found uint8 \[599, 2\]"),
        ({"rows.2": lambda a: a[:, :-1]}, r"tensor 'rows.2' to be U8 \[300, 1\]; found uint8 \[300, 0\]"),
        ({"rows.3": np.zeros((300, 1), np.uint8)}, "expected tensors codebook, rows for int4; found"),
        ({"columns": None}, r"tensor 'rows' to be U8 \[2000, 6\]; found uint8 \[2000, 3\]"),
        ({"columns": np.array([6, 4], np.uint16)}, "expected tensors codebook, rows for int4; found"),
        (
            {"columns": np.array([6, 4, 3], np.uint16)},
            r"columns of blocks that add up to 12 at most; found \[6, 4, 3\]",
        ),
        ({"columns": np.array([6, 0, 2], np.uint16)}, "columns of blocks"),
        ({"columns": np.array([], np.uint16)}, "columns of blocks"),
        ({"columns": np.ones(13, np.uint16)}, r"tensor 'columns' to be U16 \[12\]; found uint16 \[13\]"),
        ({"columns": np.ones((3, 1), np.uint16)}, r"tensor 'columns' to be U16 \[3\]; found uint16 \[3, 1\]"),
        ({"columns": np.array([6, 4, 2], np.uint8)}, r"tensor 'columns' to be U16 \[3\]; found uint8"),
        ({"kept_positions": lambda a: a[:-1]}, r"'kept_positions' to hold 2000 of 30000 positions; found \d+ bytes"),
        ({"kept_positions": lambda a: a[None]}, r"'kept_positions' to be U8 \[\d+\]; found uint8 \[1, \d+\]"),
        ({"kept_positions": lambda a: a * 0}, "'kept_positions' to hold 2000 positions; found 0"),
        ({"kept_positions": lambda a: a * 0 + 255}, r"'kept_positions' to hold 2000 positions; found \d+"),
        ({"kept_rows": np.zeros(3750, np.uint8)}, "expected tensors codebook, rows for int4; found"),
        ({"kept_rows.1": lambda a: a * 0}, r"tensor 'rows.1' to be U8 \[0, 2\]; found uint8 \[600, 2\]"),
        ({"kept_rows.1": np.zeros(251, np.uint8)}, r"tensor 'kept_rows.1' to be U8 \[250\]; found uint8 \[251\]"),
        ({"kept_rows.7": np.zeros(6, np.uint8)}, "expected tensors codebook, rows for int4; found"),
        ({"scale": np.zeros(2000, np.float32)}, "expected tensors codebook, rows for int4; found"),
    ],
)
def test_a_damaged_table_of_blocks(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    """2,000 of 30,000 rows, of 6, 10 or 12 columns."""
    row_widths = np.zeros(30_000, dtype=np.int64)
    row_widths[np.random.default_rng(0).permutation(30_000)[:2000]] = np.repeat([6, 10, 12], [1400, 300, 300])
    case = Case("int4", np.ones((30_000, 12), dtype=np.float32), row_widths, None)
    case.write(tmp_path / "table")
    save_file(damaged(load_file(tmp_path / "table"), changes), tmp_path / "table")
    with pytest.raises(InputError, match=message):
        StoredTable(tmp_path / "table", case.layout, "int4")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"rotation": None},
            "expected tensors codebook, groups, rotation, rows for opq3; found codebook, groups, rows",
        ),
        ({"rotation": lambda a: a[:-1]}, r"tensor 'rotation' to be F16 \[5, 5\]; found float16 \[4, 5\]"),
        ({"codebook": lambda a: a[:, :-1]}, r"tensor 'codebook' to be F16 \[256, 5\]; found float16 \[256, 4\]"),
        ({"groups": np.array([2, 2], np.uint16)}, r"groups that add up to 5; found \[2, 2\]"),
        ({"groups": np.array([5, 0], np.uint16)}, r"groups that add up to 5; found \[5, 0\]"),
        ({"groups": np.array([2, 2, 1], np.uint16)}, r"tensor 'groups' to be U16 \[2\]; found uint16 \[3\]"),
        ({"columns": np.array([5], np.uint16)}, None),
        ({"columns": np.array([4], np.uint16)}, "expected tensors codebook, groups, rotation, rows for opq3"),
        ({"columns": np.array([4, 1], np.uint16), "rows.1": np.zeros((211, 1), np.uint8)}, "expected tensors codebook"),
    ],
)
def test_a_damaged_table_of_rotated_rows(tmp_path: Path, changes: dict[str, Any], message: str | None) -> None:
    case = Case("opq3", table(), None, None)
    case.write(tmp_path / "table")
    save_file(damaged(load_file(tmp_path / "table"), changes), tmp_path / "table")
    if message is None:
        StoredTable(tmp_path / "table", case.layout, "opq3")
        return
    with pytest.raises(InputError, match=message):
        StoredTable(tmp_path / "table", case.layout, "opq3")


def test_a_claim_of_wide_rotated_rows_takes_no_memory(tmp_path: Path) -> None:
    layout = LAYOUT.model_copy(update={"num_rows": 1, "width": 4096})
    save_file({name: np.zeros(1, np.uint8) for name in ("codebook", "rotation", "groups", "rows")}, tmp_path / "table")
    with pytest.raises(InputError, match="opq4 rows of up to 128 columns; found 4096"):
        StoredTable(tmp_path / "table", layout, "opq4")


@settings(max_examples=300, deadline=None)
@given(case=cases(), places=st.lists(st.tuples(floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4))
def test_a_table_with_other_bytes_is_refused_or_read(
    case: Case, places: list[tuple[float, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Any file gives an error of one line, or rows of the right shape for every row number."""
    path = tmp_path_factory.mktemp("table") / "table"
    case.write(path)
    content = bytearray(path.read_bytes())
    for place, value in places:
        content[int(place * len(content))] = value
    path.write_bytes(content)
    num_rows, width = case.table.shape
    try:
        stored = StoredTable(path, case.layout, case.dtype)
    except InputError:
        return
    with np.errstate(all="ignore"):
        assert stored.gather(np.arange(num_rows)).shape == (num_rows, width)
    assert stored.is_trained(np.arange(num_rows)).shape == (num_rows,)


def test_a_claim_of_many_rows_takes_no_memory(tmp_path: Path) -> None:
    """A file of some hundred bytes may say that it is all that is stored of 2 billion rows, and it may be right."""
    case = Case("fp32", np.zeros((1, 4), dtype=np.float32), np.zeros(1, dtype=np.int64), None)
    layout = case.layout.model_copy(update={"num_rows": 2**31})
    num_high = 1 + ((2**31 - 1) >> 31) + 1
    tensors = {
        "rows": np.ones((1, 4), np.float32),
        "kept_positions": np.concatenate([pack_bits(np.arange(num_high) == 0), np.array([5, 0, 0, 0], np.uint8)]),
    }
    save_file(tensors, tmp_path / "table")
    tracemalloc.start()
    stored = StoredTable(tmp_path / "table", layout, "fp32")
    assert stored.gather(np.array([5, 6, 2**31 - 1])).tolist() == [[1.0] * 4, [0.0] * 4, [0.0] * 4]
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
