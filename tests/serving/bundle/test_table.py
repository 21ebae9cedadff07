import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from safetensors.numpy import load_file

from features.errors import InputError
from serving.bundle.bundle import Bundle
from serving.bundle.row_sets import pack_bits
from serving.bundle.table import quantized_rows, write_table
from serving.bundle.table_plan import table_bytes
from serving.scorer import Scorer
from tests.serving.bundle.plain_table import read_table
from tests.serving.bundle.table_cases import DTYPES, Case, cases
from tests.serving.conftest import LAYOUT, make_bundle, table

Fresh = Callable[..., Bundle]


@settings(max_examples=150, deadline=None)
@given(case=cases())
def test_what_is_read_is_what_was_written(case: Case, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("table") / "table.safetensors"
    stored, served = case.write(path), quantized_rows(case.table, case.dtype, case.row_widths)
    num_rows, width = case.table.shape
    every = np.random.default_rng(0).permutation(num_rows)
    assert np.array_equal(stored.gather(every), served[every])
    assert not served[~case.kept].any(), "what is not kept reads as 0"
    kept = np.where(case.kept, case.table, 0)
    if case.dtype in ("fp32", "fp16"):
        assert np.array_equal(served, kept.astype(np.float16) if case.dtype == "fp16" else kept)
    plain, is_trained = read_table(path, num_rows, width, case.dtype)
    if case.dtype.startswith("opq"):
        assert np.allclose(np.float32(plain), served, rtol=0, atol=1e-6)
    else:
        assert np.array_equal(np.float32(plain), served)
    if "kept_rows" in load_file(path) or "kept_positions" in load_file(path) or case.trained is not None:
        assert stored.is_trained(every).tolist() == [is_trained[row] for row in every]
    if case.trained is not None:
        stays = case.stored_widths > 0
        assert np.array_equal(stored.is_trained(every)[stays[every]], case.trained[every][stays[every]])
    assert stored.num_stored in ((case.stored_widths > 0).sum(), num_rows)


@settings(max_examples=150, deadline=None)
@given(case=cases())
def test_the_size_is_known_before(case: Case, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("table") / "table.safetensors"
    case.write(path)
    num_rows, width = case.table.shape
    settings = {"has_trained_rows": "trained_rows" in load_file(path)}
    if case.row_widths is None:
        settings |= {"num_kept": int((case.stored_widths > 0).sum())}
    else:
        settings |= {"row_widths": case.stored_widths}
    assert table_bytes(num_rows, width, case.dtype, **settings) == path.stat().st_size


@pytest.mark.parametrize(
    ("dtype", "row_widths"),
    [("int8", [0, 0, 3]), ("int4", None), ("int4", [0, 0, 0, 6]), ("int2", [4, 8, 12]), ("int1", [0, 8, 16])],
)
def test_rounding_a_rounded_table_changes_nothing(dtype: Any, row_widths: list[int] | None) -> None:
    """So a table that a run has rounded, to train on under it, is exported as it is."""
    generator = np.random.default_rng(3)
    rows = generator.normal(0, 0.1, (1_600, 16)).astype(np.float32)
    widths = None if row_widths is None else generator.choice(row_widths, len(rows))
    once = quantized_rows(rows, dtype, widths)
    assert not np.array_equal(once, rows)
    assert np.array_equal(quantized_rows(once, dtype, widths), once)


def test_a_plain_table_is_that_of_format_version_1(tmp_path: Path) -> None:
    """Byte for byte, so that bundles keep their identity; the reference is put together by hand."""
    rows = table()
    rows[::2] = 0
    trained = np.arange(len(rows)) % 4 == 1
    write_table(tmp_path / "table", rows, "fp32", pack_bits(trained))
    entries = {"rows": ("F32", [105, 5], 2100), "kept_rows": ("U8", [27], 27), "trained_rows": ("U8", [27], 27)}
    place, described = 0, {}
    for name, (dtype, shape, size) in entries.items():
        described[name] = {"dtype": dtype, "shape": shape, "data_offsets": [place, place + size]}
        place += size
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    content = rows[1::2].tobytes() + pack_bits(rows.any(axis=1)).tobytes() + pack_bits(trained).tobytes()
    assert (tmp_path / "table").read_bytes() == struct.pack("<Q", len(text)) + text + content


def test_the_bitmap_of_trained_rows_stays_away_where_it_says_nothing_new(tmp_path: Path) -> None:
    rows, row_widths = table(), np.where(np.arange(211) % 3 == 0, 4, 0)
    for trained, is_written in [(row_widths > 0, False), (np.ones(211, bool), False), (np.arange(211) > 0, True)]:
        case = Case("int8", rows, row_widths, trained)
        stored = case.write(tmp_path / "table")
        assert ("trained_rows" in load_file(tmp_path / "table")) == is_written
        expected = trained if is_written else row_widths > 0
        assert np.array_equal(stored.is_trained(np.arange(211)), expected)


def test_bytes_go_down_with_every_cell_that_is_pruned(tmp_path: Path) -> None:
    """10,000 rows of 16: what is stored costs its cells, a bitmap where rows differ, and little else."""
    generator, rows = np.random.default_rng(0), np.ones((10_000, 16), dtype=np.float32)
    widths = generator.choice([0, 4, 8, 16], 10_000)
    cells, kept = int(widths.sum()), [int((widths > start).sum()) for start in (0, 4, 8)]
    bitmaps = 1250 + -(-kept[0] // 8) + -(-kept[1] // 8)
    for dtype, num_bytes in [
        ("fp32", 4 * cells),
        ("fp16", 2 * cells),
        ("int8", cells + 512),
        ("int4", cells // 2 + 1024),
    ]:
        case = Case(dtype, rows, widths, None)
        case.write(tmp_path / "table")
        assert num_bytes + bitmaps <= (tmp_path / "table").stat().st_size <= num_bytes + bitmaps + 700


def test_few_rows_of_many_cost_some_bits_each() -> None:
    """A bit for each of a million rows would be 125,000 bytes; 1,000 positions take 2 + log2(1000) bits each."""
    widths = np.zeros(1_000_000, dtype=np.int64)
    widths[::1000] = 16
    assert table_bytes(1_000_000, 16, "int8", widths) - 16_000 - 512 <= 1_000 * 12 / 8 + 300


def test_nearly_equal_widths_share_a_block(tmp_path: Path) -> None:
    """500 bytes of bitmap to save 20 times 4 bytes are a bad bargain, but rows that end inside of a byte need one."""
    rows, widths = np.ones((4_000, 16), dtype=np.float32), np.full(4_000, 16)
    widths[:20] = 12
    for dtype, narrow, num_blocks in [("int8", 12, 1), ("int4", 12, 1), ("int4", 11, 2), ("fp32", 11, 1)]:
        widths[:20] = narrow
        stored = Case(dtype, rows, widths, None).write(tmp_path / "table")
        assert ("rows.1" in load_file(tmp_path / "table")) == (num_blocks == 2)
        assert np.array_equal(stored.gather(np.arange(4_000)) != 0, np.arange(16) < widths[:, None])


@pytest.mark.parametrize(("dtype", "row_bytes"), [("fp32", 20), ("fp16", 10), ("int8", 5), ("int4", 3)])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_pruned_rows_take_no_space(tmp_path: Path, dtype: Any, row_bytes: int, share: float) -> None:
    full = make_bundle(tmp_path / "full", table_dtype=dtype)
    pruned = table()
    pruned[np.random.default_rng(1).random(len(pruned)) < share] = 0
    trained = pruned.any(axis=1)
    small = make_bundle(tmp_path / "small", table_dtype=dtype, table=pruned, trained_rows=pack_bits(trained))
    every = np.arange(LAYOUT.num_rows)[::-1]
    assert np.array_equal(small.table.gather(every), quantized_rows(pruned, dtype)[::-1])
    assert np.array_equal(small.table.is_trained(every), trained[::-1])
    assert small.table.num_stored == trained.sum()
    if share:
        assert (
            small.num_bytes < full.num_bytes - 0.8 * share * LAYOUT.num_rows * row_bytes + 150
        )  # of bitmap and manifest
    assert Scorer(small).verify() < 1e-6


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_bundle_of_rows_of_different_widths(tmp_path: Path, dtype: Any) -> None:
    row_widths = np.random.default_rng(1).choice([0, 5] if dtype.startswith("opq") else [0, 2, 4, 5], LAYOUT.num_rows)
    facts = {"method": "magnitude", "bytes": {"before": 4220, "after": 1000}, "auc": [0.75, 0.74]}
    bundle = make_bundle(tmp_path / "bundle", table_dtype=dtype, row_widths=row_widths, compression=facts)
    manifest = bundle.manifest
    assert (manifest.format_version, manifest.num_stored) == (2, bundle.table.num_stored)
    if dtype == "fp32":  # elsewhere so small a table is smaller with all rows in it
        assert manifest.num_stored == (row_widths > 0).sum()
    assert manifest.compression == facts
    assert manifest.table_bytes == (bundle.path / "table.safetensors").stat().st_size
    assert Scorer(bundle).verify() < 1e-6
    assert Bundle.open(bundle.path).manifest == manifest


def test_a_bundle_says_no_more_than_older_readers_know(tmp_path: Path) -> None:
    for changes, version in [
        ({}, 1),
        ({"table_dtype": "fp16"}, 1),
        ({"table_dtype": "int8"}, 2),
        ({"compression": {}}, 2),
    ]:
        path = make_bundle(tmp_path / "bundle", overwrite=True, **changes).path
        document = json.loads((path / "manifest.json").read_text())
        assert document["format_version"] == version
        assert {"num_stored", "compression"} & set(document) == (
            {*changes} & {"compression"} | ({"num_stored"} if version == 2 else set())
        )


def test_a_table_larger_than_one_chunk(tmp_path: Path) -> None:
    rows = np.random.default_rng(2).normal(0, 0.1, (70_001, 5)).astype(np.float32)
    rows[::3] = 0
    for dtype, row_widths in [("int8", None), ("fp16", np.arange(70_001) % 6)]:
        stored = Case(dtype, rows, row_widths, None).write(tmp_path / "table")
        assert np.array_equal(stored.gather(np.arange(70_001)), quantized_rows(rows, dtype, row_widths))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_that_are_no_numbers_are_refused(tmp_path: Path, value: float, dtype: Any) -> None:
    rows = np.array([[0.0, 1.0], [value, 0.0]])
    with pytest.raises(InputError, match="table rows must be finite numbers"):
        write_table(tmp_path / "table", rows, dtype)
    assert not quantized_rows(rows, dtype, np.array([2, 0]))[1].any(), "what is pruned may be anything"


def test_rotated_rows_are_whole_and_not_too_wide() -> None:
    with pytest.raises(InputError, match="opq2 rows are stored with all their columns; found rows of 1 of 2; use int4"):
        quantized_rows(np.ones((3, 2)), "opq2", np.array([2, 1, 0]))
    with pytest.raises(InputError, match="opq rows have up to 128 columns; found 129; use int4"):
        quantized_rows(np.ones((3, 129)), "opq2")


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_values_that_are_too_large_are_refused(dtype: Any) -> None:
    with pytest.raises(InputError, match=f"{dtype} rows hold up to 65504; found 70000; use fp32"):
        quantized_rows(np.array([[70_000.0]]), dtype)


def test_opening_maps_the_rows(fresh: Fresh) -> None:
    bundle = fresh()
    with (bundle.path / "table.safetensors").open("r+b") as file:  # what the file holds now is what is read now
        file.seek(-4, 2)
        file.write(struct.pack("<f", 7.0))
    assert bundle.table.gather(np.array([LAYOUT.num_rows - 1]))[0, -1] == 7.0
