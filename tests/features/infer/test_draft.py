"""Registry drafts: sensible guesses, warnings about traps, and a file that loads unchanged."""

import string
from datetime import date, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from features.dataset.prepare import prepare
from features.errors import InputError
from features.infer.column_facts import label_auc
from features.infer.draft import draft_registry
from features.registry import FeatureRegistry
from tests.features.infer.drafts import draft_of
from tests.floats import floats

NUM_ROWS = 600
INTEGER = "{type: categorical, value_type: integer}"
BOOLEAN = "{type: categorical, value_type: boolean}"
RANDOM = np.random.default_rng(7)
CLICK = RANDOM.random(NUM_ROWS) < 0.3
GENRES = ["Drama", "Comedy", "Horror", "Action", "Noir", "Western"]


def choice(values: list, size: int = NUM_ROWS) -> list:
    return [values[n] for n in RANDOM.integers(0, len(values), size)]


def missing(values: list, share: float) -> list:
    return [None if gone else value for value, gone in zip(values, RANDOM.random(len(values)) < share, strict=True)]


# Column to (values, what its line must begin with, what its reason must hold).
COLUMNS: dict[str, tuple[list, str, str]] = {
    "click": (CLICK.astype(int).tolist(), "label: click", "by its name"),
    "user_id": (choice(list(range(90))), f"  user_id: {INTEGER}", "codes, by its name"),
    "row": (list(range(5000, 5000 + NUM_ROWS)), f"  # row: {INTEGER}", "row identifier: 600 values in 600 rows"),
    "hash": ([f"{n * 7919:08x}" for n in range(NUM_ROWS)], "  # hash: categorical", "row identifier"),
    "title": ([f"The {n}th film of all" for n in range(NUM_ROWS)], "  # title: categorical", "free text: derive words"),
    "app": (["shop"] * NUM_ROWS, "  # app: categorical", "constant: 'shop' in every row"),
    "nothing": ([None] * NUM_ROWS, "  # nothing: categorical", "column without a value"),
    "rating": (
        (CLICK * 2 + 1 + RANDOM.integers(0, 2, NUM_ROWS)).tolist(),
        f"  # rating: {INTEGER}",
        "target in disguise",
    ),
    "dwell": ((CLICK * 9 + RANDOM.random(NUM_ROWS)).tolist(), "  # dwell: {type: numeric", "target in disguise: alone"),
    "answer": (np.where(CLICK, "yes", "no").tolist(), "  # answer: categorical", "target in disguise"),
    "seen_at": (
        [datetime(2024, 1, 1) + timedelta(minutes=n) for n in range(NUM_ROWS)],
        "  # seen_at:",
        "derive its hour",
    ),
    "day": (choice([date(2024, 1, n + 1) for n in range(20)]), "  # day:", "moment in time"),
    "ts": ([1_700_000_000 + 977 * n for n in range(NUM_ROWS)], "  # ts:", "moment in time"),
    "written": (choice([f"2024-03-{n:02d} 10:00:00" for n in range(1, 29)]), "  # written:", "moment in time"),
    "hour": (choice([f"141021{n:02d}" for n in range(24)]), "  # hour:", "moment in time"),
    "conversion": ((CLICK & (RANDOM.random(NUM_ROWS) < 0.2)).astype(int).tolist(), "  # conversion:", "outcome too"),
    "propensity_score": (RANDOM.random(NUM_ROWS).tolist(), "  # propensity_score: numeric", "tells of the policy"),
    "weight": (RANDOM.random(NUM_ROWS).tolist(), "  # weight: numeric", "reserved name"),
    "shown": (choice([True, False]), f"  shown: {BOOLEAN}", "true or false"),
    "gender": (choice(["F", "M"]), "  gender: categorical", "text, 2 values"),
    "age_group": (choice([1, 18, 25, 35, 45, 50, 56]), f"  age_group: {INTEGER}", "whole numbers, 7 values"),
    "days": (choice(list(range(30, 90))), "  days: {type: numeric, transform: standardize}", "if these are codes: cat"),
    "visits": (
        np.minimum(RANDOM.pareto(1.0, NUM_ROWS), 500).astype(int).tolist(),
        "  visits: {type: numeric, transform: log1p}",
        "counts: mostly small",
    ),
    "pandas": (missing([float(n) for n in choice([1, 2, 3, 4])], 0.2), f"  pandas: {INTEGER}", "% missing"),
    "price": (RANDOM.lognormal(1, 1.5, NUM_ROWS).tolist(), "  price: {type: numeric, transform: log1p}", "heavy tail"),
    "score": (
        RANDOM.normal(0, 1, NUM_ROWS).tolist(),
        "  score: {type: numeric, transform: standardize}",
        "numbers from -",
    ),
    "rare": (missing(choice([0.25, 0.5, 0.125]), 0.97), "  rare: {type: numeric", "MOSTLY MISSING: 9"),
    "genres": (
        ["|".join(RANDOM.permutation(GENRES)[: RANDOM.integers(1, 4)]) for _ in range(NUM_ROWS)],
        '  genres: {type: categorical_list, separator: "|"}',
        "6 values in",
    ),
    "tags": (
        [", ".join(RANDOM.permutation(GENRES)[: RANDOM.integers(0, 4)]) for _ in range(NUM_ROWS)],
        '  tags: {type: categorical_list, separator: ", "}',
        "of the rows hold ', '",
    ),
    "place": (choice([f"Town{n}, Land" for n in range(200)]), "  place: categorical", "text, "),
    "code": (choice(["007", "012", "100"]), "  code: categorical", "text, 3 values"),
    "json": (choice(["[1, 2]", "[3]", "[4, 5]"]), "  # json:", "written as text"),
}
NATIVE: dict[str, tuple[list, str, str]] = {
    "items": (choice([["a", "b"], [], ["c"]]), "  items: categorical_list", "lists (List(String))"),
    "struct": ([{"x": 1}] * NUM_ROWS, "  # struct:", "unsupported type Struct"),
    "nested": ([[[1]]] * NUM_ROWS, "  # nested:", "unsupported type List(List(Int64))"),
    "bytes": ([b"x"] * NUM_ROWS, "  # bytes:", "unsupported type Binary"),
    "infinite": ([*RANDOM.random(NUM_ROWS - 1), float("inf")], "  # infinite: numeric", "infinite values"),
}


def frame_of(columns: dict[str, tuple[list, str, str]]) -> pl.DataFrame:
    return pl.DataFrame({name: values for name, (values, _, _) in columns.items()})


@pytest.mark.parametrize("kind", ["parquet", "csv", "ndjson"])
def test_each_column_is_guessed_as_an_engineer_would(tmp_path: Path, kind: str):
    columns = COLUMNS | (NATIVE if kind == "parquet" else {})
    lines = draft_of(tmp_path, frame_of(columns), kind).splitlines()
    assert lines[0] == f"# Drafted from the first 600 rows of a.{kind}. Read every line before use."
    assert lines[2].startswith("group: user_id ")
    assert "rows per value" in lines[2]
    guessed = [lines[1], *lines[4:]]
    assert len(guessed) == len(columns)
    for line, (name, (_, beginning, reason)) in zip(guessed, columns.items(), strict=True):
        assert line.startswith(beginning), name
        assert "  # " in line
        assert reason in line, line
        assert len(line.split("  # ")[-1]) > 5


@pytest.mark.parametrize("kind", ["parquet", "csv", "ndjson"])
def test_a_draft_prepares_its_own_file(tmp_path: Path, kind: str):
    draft_of(tmp_path, frame_of(COLUMNS), kind)
    registry = FeatureRegistry.from_yaml(tmp_path / "draft.yaml")
    info = prepare(registry, {"train": [tmp_path / f"a.{kind}"]}, tmp_path / "out")
    assert sum(split.rows for split in info.splits.values()) == NUM_ROWS


def test_a_suspicious_column_stays_with_a_warning(tmp_path: Path):
    random = np.random.default_rng(0)
    label = random.random(4000) < 0.5
    hint = label ^ (random.random(4000) < 0.03)
    draft = draft_of(
        tmp_path, pl.DataFrame({"label": label.astype(int), "hint": hint.astype(int), "x": choice([1, 2], 4000)})
    )
    (line,) = [line for line in draft.splitlines() if line.startswith(f"  hint: {INTEGER}")]
    assert "SUSPICIOUS: alone it reaches AUC 0.9" in line


def test_rare_values_prove_nothing():
    """900 users with two rows each would predict the label of the rows that their rates come from."""
    random = np.random.default_rng(3)
    labels = random.random(1800) < 0.3
    assert label_auc(pl.Series(np.arange(1800) // 2), labels) < 0.65
    assert label_auc(pl.Series(random.random(1800)), labels) < 0.6
    assert label_auc(pl.Series(labels.astype(int)), labels) == 1.0
    assert label_auc(pl.Series(np.where(labels, 1.5, None).tolist(), dtype=pl.Float64), labels) == 1.0
    assert label_auc(pl.Series(-labels.astype(float) - random.random(1800)), labels) > 0.99
    assert label_auc(pl.Series(["x"] * 1800), np.zeros(1800, dtype=bool)) == 0.5


def test_the_sample_is_the_head_of_the_file(tmp_path: Path):
    frame = pl.DataFrame({"label": [0, 1] * 100, "a": ["x", "y", "z", "z"] * 25 + ["late"] * 100})
    assert "first 100 rows" in draft_of(tmp_path, frame, sample_rows=100)
    assert "text, 3 values" in draft_registry(tmp_path / "a.parquet", sample_rows=100)
    assert "text, 4 values" in draft_registry(tmp_path / "a.parquet")
    with pytest.raises(InputError, match="sample_rows must be positive; found 0"):
        draft_registry(tmp_path / "a.parquet", sample_rows=0)


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        ({"label": [0, 1] * 40}, "found the label alone"),
        ({"label": [0, 1] * 40, "c": [3] * 80}, "found 'c': constant; add columns that are known before"),
        (
            {"label": [0, 1] * 40, "id": range(80), "x": [None] * 80},
            "found 'id': row identifier, 'x': column without",
        ),
    ],
)
def test_nothing_to_learn_from(tmp_path: Path, columns: dict, found: str):
    pl.DataFrame(columns).write_parquet(tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet: expected a column to learn from; ") as caught:
        draft_registry(tmp_path / "a.parquet")
    assert found in str(caught.value)


def test_no_rows_and_no_file(tmp_path: Path):
    pl.DataFrame({"label": [0], "a": ["x"]}).clear().write_parquet(tmp_path / "a.parquet")
    with pytest.raises(
        InputError, match=r"a\.parquet: expected rows; found none; draft the registry from another file"
    ):
        draft_registry(tmp_path / "a.parquet")
    with pytest.raises(InputError, match="no file matches"):
        draft_registry(tmp_path / "b.parquet")


NAMES = st.one_of(
    st.text(min_size=1, max_size=8),
    st.text(string.punctuation + " \n\t", min_size=1, max_size=4),
    st.sampled_from(
        ["no", "null", "~", "1", "1e3", "0x1f", "2024-01-01", "- a", "a: b", "a #b", "'", '"', "<<", "=", "x" * 90]
    ),
)
VALUES = st.one_of(
    st.lists(st.text(max_size=5) | st.none(), min_size=4, max_size=4),
    st.lists(st.integers(-(2**63), 2**63 - 1) | st.none(), min_size=4, max_size=4),
    st.lists(floats() | st.none(), min_size=4, max_size=4),
    st.lists(st.booleans() | st.none(), min_size=4, max_size=4),
    st.lists(st.lists(st.text(max_size=3), max_size=2), min_size=4, max_size=4),
)


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(NAMES, VALUES, min_size=1, max_size=5))
@example({"^a$": [1.5, 2.5, None, 3.5], "b": [0, 1, 0, 1]})
def test_any_file_gives_a_draft_that_loads_or_one_clear_line(tmp_path: Path, columns: dict[str, list]):
    frame = pl.DataFrame(columns, strict=False)
    try:
        draft = draft_of(tmp_path, frame)
    except InputError as error:
        refused = str(error)
        draft = ""
    if not draft:
        assert "expected a column to learn from" in refused
        return
    names = [feature.name for feature in FeatureRegistry.from_yaml(tmp_path / "draft.yaml").features]
    assert names == [name for name in frame.columns if name in names]
    assert len(draft.splitlines()) in (len(columns) + 4, len(columns) + 3)


FORMS = ["a", "Yes", "no", "True", "false", "", "NA", "nan", "inf", "-", "$5", "7,50 €", "1,234", "1.234", "12,5", "5%"]
FORMS += ["+7", "007", "128", "128.0", "0.5", "1e5", "12345678901234567.0", "18446744073709551616", "a:0.5|b:2", "1|2"]
FORMS += [
    "a;b",
    "x, y",
    "2017-11-07",
    "2017-11-07 9:30",
    "[1]",
    "1 234",
    "1'234",
    "0",
    "1",
    "-1",
    "1.0",
    " b ",
    "ü",
    "'q",
]


@pytest.mark.parametrize("kind", ["parquet", "csv", "ndjson"])
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.sampled_from(FORMS), min_size=1, max_size=4), min_size=1, max_size=4), st.randoms())
def test_prepare_reads_whatever_text_a_draft_was_made_from(tmp_path: Path, kind: str, pools: list, random):
    names = ["price", "status", "user_id", "event_time"]
    columns = {name: [random.choice(pool) for _ in range(60)] for name, pool in zip(names, pools, strict=False)}
    frame = pl.DataFrame({"click": [random.randrange(2) for _ in range(56)] + [0, 1] * 2, **columns})
    try:
        draft_of(tmp_path, frame, kind)
        prepare(
            FeatureRegistry.from_yaml(tmp_path / "draft.yaml"),
            {"train": [tmp_path / f"a.{kind}"]},
            tmp_path / "out",
            overwrite=True,
        )
    except InputError as error:
        refused = str(error)
    else:
        refused = ""
    assert not refused or "expected a column to learn from" in refused or "expected both labels" in refused
