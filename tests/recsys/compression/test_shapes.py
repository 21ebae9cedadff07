"""Methods that only change the table's shape: the largest table that fits the budget, measured in the file itself."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from features.addressing import rows_of
from features.errors import InputError
from features.layout import TableLayout
from features.registry import FeatureRegistry
from recsys.compression import COMPRESSORS, Budget, TrainingStats, ValueCounts
from recsys.embedding.table import EmbeddingConfig
from serving.bundle.row_sets import pack_bits
from serving.bundle.table import write_table

SHAPES = ("smaller", "hashed", "quotient_remainder", "robe")
FEATURES = {"user": 900, "item": 300, "day": 7}
REGISTRY = FeatureRegistry.of(features=dict.fromkeys(FEATURES, "categorical"))
RUN = EmbeddingConfig(num_rows=5000, width=4, probes=3)

random = np.random.default_rng(3)
TOKENS = {name: np.sort(random.integers(0, 2**63, count, dtype=np.uint64)) for name, count in FEATURES.items()}
STATS = TrainingStats(
    {"main": tuple(FEATURES)},
    {name: ValueCounts(tokens, np.ones(len(tokens), np.int64)) for name, tokens in TOKENS.items()},
)


def layout_of(embedding: EmbeddingConfig, registry: FeatureRegistry = REGISTRY) -> TableLayout:
    """The layout that a ranker would have."""
    return TableLayout.of(
        registry,
        **{name: getattr(embedding, name) for name in ("num_rows", "width", "probes", "kind", "block")},
        views=STATS.views,
        num_values={name: len(tokens) for name, tokens in TOKENS.items()},
    )


def file_bytes(path: Path, embedding: EmbeddingConfig, dtype: Any, registry: FeatureRegistry = REGISTRY) -> int:
    """Bytes of a trained table with these settings, with a bitmap of the rows that training read where one is kept."""
    layout = layout_of(embedding, registry)
    is_read = np.zeros(layout.num_rows, dtype=np.bool_)
    for name, tokens in TOKENS.items():
        is_read[rows_of(layout, None, name, tokens)] = True
    table = np.random.default_rng(1).normal(size=(layout.num_rows, layout.width)).astype(np.float32)
    write_table(path, table, dtype, pack_bits(is_read))
    return path.stat().st_size


@pytest.mark.parametrize("dtype", ["fp32", "int8", "int4"])
@pytest.mark.parametrize("num_bytes", [9_000, 30_000])
@pytest.mark.parametrize("method", SHAPES)
def test_the_table_fills_its_budget_and_no_more(method: str, num_bytes: int, dtype: Any, tmp_path: Path):
    compressor = COMPRESSORS[method](COMPRESSORS[method].Config(), Budget(num_bytes, dtype))
    assert compressor.replaces_table
    embedding = compressor.reshape(RUN, STATS)
    size = file_bytes(tmp_path / "table", embedding, dtype)
    more = embedding.model_copy(update={"num_rows": int(embedding.num_rows * 1.05) + 8})
    assert 0.9 * num_bytes < size <= num_bytes < file_bytes(tmp_path / "more", more, dtype)


@pytest.mark.parametrize("method", SHAPES)
def test_no_budget_is_exceeded_where_ranges_have_rows_that_nobody_reads(method: str, tmp_path: Path):
    """Far fewer rows than values: then all rows of a shared table are read, those of a range of 7 days are not."""
    for num_bytes in range(1200, 4000, 50):
        compressor = COMPRESSORS[method](COMPRESSORS[method].Config(), Budget(num_bytes, "int8"))
        assert file_bytes(tmp_path / "table", compressor.reshape(RUN, STATS), "int8") <= num_bytes


@pytest.mark.parametrize("dtype", ["fp32", "int8"])
@pytest.mark.parametrize("num_bytes", range(12_000, 30_000, 2000))
def test_a_smaller_table_counts_the_probes_of_the_registry(num_bytes: int, dtype: Any, tmp_path: Path):
    """One read of each value: with thrice as many, as the run has, all rows would seem to be read."""
    stats = STATS._replace(probes=dict.fromkeys(FEATURES, 1))
    features = {name: {"type": "categorical", "probes": 1} for name in FEATURES}
    compressor = COMPRESSORS["smaller"](COMPRESSORS["smaller"].Config(), Budget(num_bytes, dtype))
    embedding = compressor.reshape(RUN, stats)
    size = file_bytes(tmp_path / "table", embedding, dtype, FeatureRegistry.of(features=features))
    assert 0.8 * num_bytes < size <= num_bytes


@pytest.mark.parametrize("method", SHAPES)
def test_no_table_is_that_small(method: str):
    compressor = COMPRESSORS[method](COMPRESSORS[method].Config(), Budget(20, "fp32"))
    with pytest.raises(InputError, match="20 bytes are too few; found a table of one row is larger"):
        compressor.reshape(RUN, STATS)


@pytest.mark.parametrize(
    ("method", "kind", "width", "probes"),
    [
        ("smaller", "unified", 4, 3),
        ("hashed", "hashed", 16, 1),
        ("quotient_remainder", "quotient_remainder", 8, 2),
        ("robe", "robe", 1, 16),
    ],
)
def test_what_a_value_reads(method: str, kind: str, width: int, probes: int):
    compressor = COMPRESSORS[method](COMPRESSORS[method].Config(), Budget(9_000, "int8"))
    embedding = compressor.reshape(RUN, STATS)
    assert (embedding.kind, embedding.width, embedding.probes) == (kind, width, probes)
    changed = {"kind", "num_rows", "width", "probes", "block"}
    assert embedding.model_dump(exclude=changed) == RUN.model_dump(exclude=changed)  # how it is trained stays


def test_quotient_and_remainder_tell_more_values_apart_than_rows():
    """s * s combinations of 2 s rows; a row alone is shared by many."""
    compressor = COMPRESSORS["quotient_remainder"](COMPRESSORS["quotient_remainder"].Config(), Budget(9_000, "fp32"))
    layout = layout_of(compressor.reshape(RUN, STATS))
    rows = rows_of(layout, None, "user", TOKENS["user"])  # [2, 900]
    assert len(set(rows[0].tolist())) < 200
    distinct = {(int(remainder), int(quotient)) for remainder, quotient in rows.T}
    s = layout.ranges["main", "user"][1] // 2
    assert len(distinct) == pytest.approx(s * s * (1 - (1 - 1 / (s * s)) ** 900), rel=0.02)  # as many as by chance


def test_a_value_of_robe_reads_blocks_that_wrap_around():
    config = COMPRESSORS["robe"].Config(floats=10, block=4)
    embedding = COMPRESSORS["robe"](config, Budget(2_000, "fp32")).reshape(RUN, STATS)
    layout = layout_of(embedding)
    rows = rows_of(layout, None, "user", TOKENS["user"]).T
    assert rows.shape == (900, 10)
    for first, last in ((0, 4), (4, 8), (8, 10)):
        steps = np.diff(rows[:, first:last], axis=1) % layout.num_rows
        assert (steps == 1).all()
    assert (np.diff(rows[:, :4], axis=1) < 0).any()  # some block runs over the end
