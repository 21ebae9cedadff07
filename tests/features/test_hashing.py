"""The hash contract: golden vectors, three implementations that agree, uniform and independent rows."""

from itertools import takewhile
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from features.errors import InputError
from features.hashing import (
    MAX_NUM_ROWS,
    MISSING_TOKEN,
    hash_text,
    mix64,
    rows_of_tokens,
    salt,
    token_of_text,
    tokens_of_texts,
)
from features.registry import FeatureRegistry

MASK = 2**64 - 1
UINT64 = st.integers(0, MASK)

# Text to token. A change here makes every model ever trained read other rows: it needs a new format version.
GOLDEN_TOKENS = [
    ("", 0x2D06800538D394C2),
    ("missing", 0x2E941AD2515F4FBF),
    ("0", 0x1982E3A7BB241055),
    ("7", 0x06EED105B82285FA),
    ("-1", 0xBC25A7B612CBA21F),
    ("12", 0x7ECD2E572C949F74),
    ("true", 0x40BBD512750B7629),
    ("false", 0x43E71BBE0316E682),
    ("9007199254740993", 0xF28E589174572A41),
    ("-9223372036854775808", 0xED867B9F25E14491),
    ("18446744073709551615", 0x9131AB7296C23377),
    ("Ünïcödé", 0x315D1C81360C8BB8),
    ("日本語", 0x11FEC42C806050B7),
    ("\U0001d4b3", 0x8B95E207118AD427),
    ("line\nbreak", 0xA8F312EB3848A2FC),
    # xxh3 has another code path for each of these lengths in bytes.
    ("a" * 17, 0x39127B6816C5F92A),
    ("ab" * 65, 0x867C09ECEF8429FD),
    ("abc" * 81, 0xB52B919F3C37493A),
    ("x" * 2**20, 0x11EA1C8AD3937333),
]

# (seed, key, view, probe), its salt, the rows of the token of "7" and those of a missing value, for GOLDEN_SIZES.
GOLDEN_ROWS = [
    (
        (0, "user", "main", 0),
        0xD2A541255EF994CA,
        [0, 1, 501, 501511, 1076988506],
        [0, 1, 792, 792948, 1702844937],
    ),
    ((0, "user", "main", 1), 0x2881AE34E166FAF0, [0, 0, 273, 273834, 588055493], [0, 0, 421, 421885, 905992126]),
    ((0, "user", "main", 11), 0x14F11042214BA491, [0, 0, 386, 386587, 830190298], [0, 0, 435, 435032, 934225473]),
    ((0, "user", "fs1", 0), 0x28335CC430E3F685, [0, 0, 261, 261275, 561085521], [0, 0, 57, 57499, 123478574]),
    ((0, "item", "main", 0), 0xE18CA0B2D3027529, [0, 0, 251, 251485, 540060965], [0, 1, 729, 729786, 1567204061]),
    ((7, "user", "main", 0), 0x2C17263205AEFD97, [0, 0, 480, 480073, 1030950145], [0, 0, 471, 471453, 1012438861]),
    ((-1, "user", "main", 0), 0x348D40758CB001C8, [0, 0, 50, 50755, 108997522], [0, 0, 488, 488089, 1048164255]),
    ((0, "größe", "main", 0), 0xA57784162D1E1163, [0, 1, 542, 542287, 1164553288], [0, 1, 572, 572206, 1228804815]),
]
GOLDEN_SIZES = [1, 2, 1000, 10**6, 2**31]


def tokens_of(texts: list[str | None]) -> list[int]:
    return pl.DataFrame({"a": texts}, schema={"a": pl.String}).select(token_of_text(pl.col("a")))["a"].to_list()


def reference_mix(value: int) -> int:
    """splitmix64's finaliser with Python's integers, written from the paper rather than from the module."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


def reference_row(token: int, slot_salt: int, num_rows: int) -> int:
    return ((reference_mix(token ^ slot_salt) >> 32) * num_rows) >> 32


@pytest.mark.parametrize(("text", "token"), GOLDEN_TOKENS, ids=[repr(text[:12]) for text, _ in GOLDEN_TOKENS])
def test_token_is_the_golden_one_and_what_xxhash_says(text: str, token: int):
    assert xxhash.xxh3_64_intdigest(text.encode()) == token
    assert hash_text(text) == token
    assert tokens_of([text, text]) == tokens_of_texts([text, text]).tolist() == [token, token]


def test_missing_has_a_token_of_its_own():
    assert xxhash.xxh3_64_intdigest(b"\xffmissing") == MISSING_TOKEN
    assert tokens_of([None]) == tokens_of_texts([None]).tolist() == [MISSING_TOKEN]
    assert tokens_of_texts([]).shape == (0,)
    assert MISSING_TOKEN not in tokens_of([text for text, _ in GOLDEN_TOKENS])


@settings(deadline=None)
@given(st.lists(st.one_of(st.none(), st.text()), max_size=9))
def test_columns_and_python_texts_have_the_tokens_that_xxhash_says(texts: list[str | None]):
    expected = [MISSING_TOKEN if text is None else xxhash.xxh3_64_intdigest(text.encode()) for text in texts]
    tokens = tokens_of_texts(texts)
    assert tokens.dtype == np.uint64
    assert tokens.tolist() == tokens_of(texts) == expected


@pytest.mark.parametrize(("slot", "slot_salt", "rows_of_7", "rows_of_missing"), GOLDEN_ROWS)
def test_salt_and_rows_are_the_golden_ones(slot, slot_salt, rows_of_7, rows_of_missing):
    assert salt(*slot) == slot_salt
    assert salt(*slot) == xxhash.xxh3_64_intdigest("\x1f".join(map(str, slot)).encode())
    tokens = np.array([hash_text("7"), MISSING_TOKEN], dtype=np.uint64)
    salts = np.array([slot_salt], dtype=np.uint64)
    for num_rows, *expected in zip(GOLDEN_SIZES, rows_of_7, rows_of_missing, strict=True):
        assert rows_of_tokens(tokens, salts, num_rows).tolist() == expected


@settings(max_examples=200, deadline=None)
@given(
    st.lists(UINT64, min_size=1, max_size=20), st.lists(UINT64, min_size=1, max_size=3), st.integers(1, MAX_NUM_ROWS)
)
def test_numpy_and_big_integers_agree(tokens: list[int], salts: list[int], num_rows: int):
    expected = [[reference_row(token, one, num_rows) for token in tokens] for one in salts]
    rows = rows_of_tokens(np.array(tokens, dtype=np.uint64), np.array(salts, dtype=np.uint64)[:, None], num_rows)
    assert rows.dtype == np.int64
    assert rows.tolist() == expected
    assert all(0 <= row < num_rows for row in np.ravel(rows))


def test_extreme_tokens_reach_the_ends_of_the_largest_table():
    tokens = np.array([0, MASK, 2**63, 2**32 - 1], dtype=np.uint64)
    expected = [reference_row(int(token), MASK, MAX_NUM_ROWS) for token in tokens]
    assert rows_of_tokens(tokens, np.array([MASK], dtype=np.uint64), MAX_NUM_ROWS).tolist() == expected


@settings(deadline=None)
@given(st.lists(UINT64, min_size=1))
def test_mixing_loses_nothing(values: list[int]):
    mixed = mix64(np.array(values, dtype=np.uint64))
    assert mixed.tolist() == [reference_mix(value) for value in values]
    assert len(set(mixed.tolist())) == len(set(values))


@pytest.mark.parametrize("num_rows", [0, -3, MAX_NUM_ROWS + 1])
def test_impossible_table_sizes_are_refused(num_rows: int):
    tokens = np.array([1], dtype=np.uint64)
    with pytest.raises(
        InputError, match=rf"num_rows must be between 1 and 2147483648; found {num_rows}; set embedding"
    ):
        rows_of_tokens(tokens, tokens, num_rows)


def test_salt_depends_on_each_part_and_on_nothing_else():
    base = (3, "user", "main", 1)
    others = [(4, "user", "main", 1), (3, "item", "main", 1), (3, "user", "fs1", 1), (3, "user", "main", 2)]
    assert len({salt(*slot) for slot in [base, *others]}) == 5
    assert salt(*base) == salt(*base)
    # The separators keep the parts apart.
    assert salt(1, "1user", "main", 0) != salt(11, "user", "main", 0)
    assert salt(0, "user", "main", 11) != salt(0, "user", "main1", 1)


def chi_square(counts: np.ndarray) -> float:
    """Standard scores of the chi-square statistic against equal expectations; normal for many cells."""
    expected = counts.sum() / counts.size
    freedom = counts.size - 1
    return float((((counts - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom))


def natural_tokens(kind: str) -> np.ndarray:
    """Typical values: consecutive numbers, and texts that differ in one or two characters."""
    texts = [str(n) for n in range(120_000)] if kind == "numbers" else [f"user_{n:08x}@shop" for n in range(120_000)]
    return np.array(tokens_of([*texts]), dtype=np.uint64)


@pytest.mark.parametrize("kind", ["numbers", "texts"])
@pytest.mark.parametrize("num_rows", [997, 1024])
def test_rows_are_uniform(kind: str, num_rows: int):
    salts = np.array(
        [salt(0, "user", view, probe) for view, probe in [("main", 0), ("main", 1), ("fs1", 0)]], np.uint64
    )
    for rows in rows_of_tokens(natural_tokens(kind), salts[:, None], num_rows):
        assert abs(chi_square(np.bincount(rows, minlength=num_rows))) < 5


@pytest.mark.parametrize("kind", ["numbers", "texts"])
@pytest.mark.parametrize(
    "other", [(0, "user", "main", 1), (0, "user", "fs1", 0), (0, "item", "main", 0), (1, "user", "main", 0)]
)
def test_two_slots_are_independent(kind: str, other: tuple[int, str, str, int]):
    """C11: the joint counts of two probes, views, features or seeds are uniform too."""
    salts = np.array([salt(0, "user", "main", 0), salt(*other)], dtype=np.uint64)
    first, second = rows_of_tokens(natural_tokens(kind), salts[:, None], 31)
    assert abs(chi_square(np.bincount(first * 31 + second, minlength=31 * 31))) < 5


def test_two_probes_share_a_row_as_often_as_chance_says():
    salts = np.array([salt(0, "user", "main", probe) for probe in (0, 1)], dtype=np.uint64)
    first, second = rows_of_tokens(natural_tokens("numbers"), salts[:, None], 50)
    expected = 120_000 / 50
    assert abs((first == second).sum() - expected) < 5 * np.sqrt(expected)


def test_tokens_know_no_feature_and_no_table():
    """The output of prepare does not depend on the table."""
    registry = FeatureRegistry.of(features={"a": "categorical", "b": "categorical"}, seed=5)
    frame = pl.DataFrame({"a": ["x"], "b": ["x"]})
    tokens = frame.select([feature.encode(pl.String()) for feature in registry.token_features])
    assert tokens.row(0) == (hash_text("x"), hash_text("x"))


DOCUMENT = (Path(__file__).parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")


def table_rows(header: str) -> list[list[str]]:
    lines = DOCUMENT.split(f"| {header} |\n")[1].splitlines()[1:]
    return [[cell.strip().strip("`") for cell in line.split("|")[1:-1]] for line in takewhile(bool, lines)]


def test_the_vectors_of_the_document():
    """docs/formats.md is the specification for a second implementation."""
    tokens = table_rows("text | token")
    assert len(tokens) == 8
    for text, token in tokens:
        assert hash_text(text) == int(token, 16)
    rows = table_rows("seed | key | view | probe | salt | text | M | row")
    assert len(rows) == 9
    for seed, key, view, probe, slot_salt, text, num_rows, row in rows:
        assert salt(int(seed), key, view, int(probe)) == int(slot_salt, 16)
        assert reference_row(hash_text(text), int(slot_salt, 16), int(num_rows)) == int(row)
    assert f"`{MISSING_TOKEN:016x}`" in DOCUMENT
