import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from features.errors import InputError
from serving.bundle import Bundle, dequantize, quantize_rows
from serving.scorer import Scorer
from serving.table import pack_bits
from tests.serving.conftest import LAYOUT, make_bundle, raw_frame, reseal, table

Fresh = Callable[..., Bundle]


def test_quantization_errors_are_bounded() -> None:
    rows = np.random.default_rng(0).normal(0, 1, (500, 9)).astype(np.float32) * np.logspace(-6, 3, 500)[:, None]
    rows = rows.astype(np.float32)
    largest = np.abs(rows).max(axis=1, keepdims=True)
    assert (np.abs(dequantize(*quantize_rows(rows, "int8")) - rows) <= largest / 254 * 1.0001).all()
    assert (np.abs(dequantize(*quantize_rows(rows, "fp16")) - rows) <= np.abs(rows) * 2**-11 + 2**-25).all()
    assert np.array_equal(dequantize(*quantize_rows(rows, "fp32")), rows)


@pytest.mark.parametrize("value", [0.0, 1e-45, 1e-38, 1e-30, 3e38])
def test_int8_of_extreme_rows(value: float) -> None:
    rows = np.array([[value, -value, 0.0]], dtype=np.float32)
    back = dequantize(*quantize_rows(rows, "int8"))
    assert np.isfinite(back).all()
    assert np.abs(back - rows).max() <= max(value / 254, 1.5e-36)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "int8"])
def test_rows_that_are_no_numbers_are_refused(value: float, dtype: Any) -> None:
    with pytest.raises(InputError, match="table rows must be finite numbers"):
        quantize_rows(np.array([[0.0, 1.0], [value, 0.0]]), dtype)


def test_fp16_overflow_is_refused() -> None:
    with pytest.raises(InputError, match="fp16 rows hold up to 65504; found 70000; use int8 or fp32"):
        quantize_rows(np.array([[70_000.0]]), "fp16")


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_pruned_rows_take_no_space(tmp_path: Path, dtype: Any, share: float) -> None:
    full = make_bundle(tmp_path / "full", table_dtype=dtype)
    pruned = table()
    pruned[np.random.default_rng(1).random(len(pruned)) < share] = 0
    trained = pruned.any(axis=1)
    small = make_bundle(tmp_path / "small", table_dtype=dtype, table=pruned, trained_rows=pack_bits(trained))
    every = np.arange(LAYOUT.num_rows)[::-1]
    assert np.array_equal(small.table.gather(every), dequantize(*quantize_rows(pruned, dtype))[::-1])
    assert np.array_equal(small.table.is_trained(every), trained[::-1])
    assert len(small.table.rows) == trained.sum()
    if share:
        assert small.num_bytes < full.num_bytes - 0.8 * share * (LAYOUT.num_rows * LAYOUT.width)
    assert Scorer(small).verify() < 1e-6


def test_a_table_larger_than_one_block(tmp_path: Path) -> None:
    layout = LAYOUT.model_copy(update={"num_rows": 70_001})
    rows = np.random.default_rng(2).normal(0, 0.1, (70_001, 5)).astype(np.float32)
    rows[::3] = 0
    golden = raw_frame(2).drop("row").with_columns(probability=0.5)
    settings = {"layout": layout, "table": rows, "golden": golden, "table_dtype": "int8"}
    read = make_bundle(tmp_path / "bundle", **settings).table
    assert np.array_equal(read.gather(np.arange(70_001)), dequantize(*quantize_rows(rows, "int8")))


def test_opening_maps_the_rows(fresh: Fresh) -> None:
    rows = fresh().table.rows
    assert isinstance(rows.base, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        rows[0, 0] = 1


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"rows": table()[:-1]}, r"tensor 'rows' to be F32 \[211, 5\]; found float32 \[210, 5\]"),
        ({"rows": table()[:, :4]}, r"found float32 \[211, 4\]"),
        ({"rows": table().astype(np.float16)}, r"found float16 \[211, 5\]"),
        ({"table": table()}, "expected tensors rows for fp32; found table"),
        ({"rows": table(), "scale": table()[:, 0]}, "expected tensors rows for fp32; found rows, scale"),
        ({"rows": table(), "trained_rows": np.zeros(26, np.uint8)}, r"'trained_rows' to be U8 \[27\]"),
        ({"rows": table(), "kept_rows": np.zeros(27, np.uint8)}, "expected 0 stored rows; found 211"),
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
