"""Values that moved: the bounds of a bucket's share hold, and values that moved are named."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from features.encode import encode
from features.hashing import MISSING_TOKEN
from features.registry import FeatureRegistry
from features.spec import Numeric, NumericFit
from serving.bundle.profile import ProfileBuilder, TokenBins, bucket_of, float_bins
from serving.moved import BucketNames, Moved, moved_floats, moved_tokens, raw_edges


def bins_of(tokens: list[int]) -> TokenBins:
    """The profile of a feature of these tokens."""
    registry = FeatureRegistry.of(features={"one": "categorical"})
    builder = ProfileBuilder(registry, len(tokens))
    batch = encode(pl.DataFrame({"one": ["x"] * len(tokens)}), registry)
    builder.add(replace(batch, tokens={"one": np.array(tokens, dtype=np.uint64)}))
    bins = builder.finish({})["one"].tokens
    assert bins is not None
    return bins


def test_a_bucket_is_between_its_neighbours():
    """Shares .005, .02, .025, .05, .1 and .8: one rare value, three in the first bin, and two bins of one."""
    counts = {1: 5, 2: 20, 3: 25, 4: 50, 5: 100, 6: 800}
    bins = bins_of([user for user, count in counts.items() for _ in range(count)])
    low, high = bins.bounds()
    places = bucket_of(np.array([*counts, 999], dtype=np.uint64))
    # Bin 1 holds three values of .095 in all, and the next one begins at .1; one of them could have all of it.
    assert low[places].tolist() == [0, 0, 0, 0, 0.1, 0.8, 0]
    assert high[places].tolist() == [0.005, 0.095, 0.095, 0.095, 0.1, 0.8, 0.005]


@pytest.mark.parametrize("seed", range(20))
def test_no_bucket_is_outside_its_bounds(seed):
    random = np.random.default_rng(seed)
    num_values = int(random.integers(1, 400))
    counts = np.ceil(3000 * random.dirichlet(np.full(num_values, random.choice([0.05, 0.5, 5.0])))).astype(int)
    users = np.repeat(np.arange(1, num_values + 1, dtype=np.uint64), counts)
    bins = bins_of(users.tolist())
    low, high = bins.bounds()
    shares = np.bincount(bucket_of(users), minlength=1024) / len(users)
    assert (low <= shares + 2e-6).all()
    assert (high >= shares - 2e-6).all()


def moved_of(feature: dict, before: pl.Series, after: pl.Series) -> list[Moved]:
    """Values of a feature that moved between two columns, the second in chunks."""
    registry = FeatureRegistry.of(features={"one": feature})
    before, after = before.alias("one").to_frame(), after.alias("one").to_frame()
    registry = fit_registry(registry, before)
    builder = ProfileBuilder(registry, len(before))
    builder.add(encode(before, registry))
    bins = builder.finish({})["one"].tokens
    assert bins is not None
    names, missing = BucketNames(registry.features[0]), 0.0
    for chunk in after.iter_slices(1000):
        batch = encode(chunk, registry)
        names.add(chunk, batch)
        missing += float((batch.tokens["one"] == MISSING_TOKEN).sum())
    return moved_tokens(bins, names, missing)


def fit_registry(registry: FeatureRegistry, rows: pl.DataFrame) -> FeatureRegistry:
    """With quartiles as the edges of a bucketized feature."""
    (feature,) = registry.features
    if not isinstance(feature, Numeric):
        return registry
    edges = tuple(float(rows["one"].quantile(share) or 0.0) for share in (0.25, 0.5, 0.75))
    fitted = NumericFit(mean=0.0, std=1.0, boundaries=edges)
    return registry.model_copy(update={"features": (feature.model_copy(update={"fitted": fitted}),)})


def half(column: pl.Series, value: object) -> pl.Series:
    """Every second value replaced."""
    chosen = pl.Series([value], dtype=column.dtype)
    return pl.select(
        pl.when(pl.int_range(len(column)) % 2 == 0).then(pl.lit(chosen).first()).otherwise(column)
    ).to_series()


MANY = pl.Series([f"v{k % 40}" for k in range(4000)])
FEW = pl.Series([k % 4 for k in range(4000)])
CASES = {
    "text": ({"type": "categorical"}, MANY, half(MANY, "new"), "new", 0.5),
    "integer": ({"type": "categorical"}, FEW, half(FEW, 77), "77", 0.5),
    "float id": ({"type": "categorical"}, FEW.cast(pl.Float64), half(FEW, 77).cast(pl.Float64), "77", 0.5),
    "flag": ({"type": "categorical"}, FEW > 2, pl.Series([True] * 4000), "true", 1.0),
    "null": ({"type": "categorical"}, FEW, pl.Series([None] * 4000, dtype=pl.Int64), "(missing)", 1.0),
    "integer in text": (
        {"type": "categorical", "value_type": "integer"},
        FEW.cast(pl.Float64).cast(pl.String),
        half(FEW.cast(pl.String), "77.0"),
        "77",
        0.5,
    ),
    "integers in a text list": (
        {"type": "categorical_list", "value_type": "integer", "separator": "|"},
        FEW.cast(pl.String),
        pl.Series(["8.0|9|8"] * 1000),
        "8",
        2 / 3,
    ),
    "number in text": (
        {"type": "numeric", "transform": "bucketize", "decimal": ","},
        pl.Series(np.arange(4000.0)),
        pl.Series(["1500,5"] * 4000),
        "1000 to 2000",
        1.0,
    ),
    "text list": (
        {"type": "categorical_list", "separator": "|"},
        MANY + "|a||b",
        half(MANY + "|a||b", "x|x|x|new"),
        "x",
        1.5 / 4,
    ),
    "list": (
        {"type": "categorical_list"},
        (MANY + "|a").str.split("|"),
        pl.Series([[], ["x", None, "x"]] * 2000),
        "x",
        2 / 3,
    ),
    "bucketize": (
        {"type": "numeric", "transform": "bucketize"},
        pl.Series(np.arange(4000.0)),
        pl.Series(np.full(4000, 1500.0)),
        "1000 to 2000",
        1.0,
    ),
    "log_square": (
        {"type": "numeric", "transform": "log_square"},
        pl.Series(np.arange(4000.0) % 3),
        pl.Series(np.full(4000, 50)),
        "48.09 to 54.6",  # exp(sqrt(15)) to exp(sqrt(16)), and ln(50)^2 is 15.3
        1.0,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_value_that_moved_most_has_its_name(case):
    feature, before, after, name, share = CASES[case]
    first = moved_of(feature, before, after)[0]
    assert first.value in (name, f"{name} and others of its hash")
    assert first.now == pytest.approx(share)
    assert first.high < first.now


def test_what_no_row_has_is_said_without_a_name_and_what_stays_is_not_said():
    users = pl.Series(["left"] * 2000 + ["rest"] * 1000 + ["stays"] * 1000)
    (gone,) = [one for one in moved_of({"type": "categorical"}, users, users[2000:]) if one.now == 0]
    assert gone == Moved("(a value that no row has)", 0.0, 0.5, 0.5)
    for seed in range(10):
        assert moved_of({"type": "categorical"}, MANY, MANY.sample(1000, with_replacement=True, seed=seed)) == []


def test_ranges_of_a_number_are_those_of_raw_values():
    fitted = NumericFit(mean=1_000_000.0, std=2.0)
    price = Numeric(name="price", transform="standardize", fitted=fitted)
    assert raw_edges(price, (-1.0, 0.0, 0.5)) == (999_998.0, 1_000_000.0, 1_000_001.0)
    bins = float_bins(np.arange(100))
    first, *_ = moved_floats(bins, bins.labels, np.array([0, 500, *[0.0] * 9]))
    assert first == Moved("below 10", 1.0, 0.1, 0.1)


def test_of_few_rows_nothing_is_said():
    """Neither by chance nor by name: what the profile hides of training is hidden of today's rows too."""
    of_one = moved_of({"type": "categorical"}, MANY, pl.Series(["only"]))
    assert of_one == []
    nine = moved_of({"type": "categorical"}, MANY, pl.Series(["secret"] * 9))
    assert "secret" not in str(nine)
    assert moved_of({"type": "categorical"}, MANY, pl.Series(["known"] * 10))[0].value == "known"


def test_a_value_that_lost_rows_is_not_named_for_sure_where_buckets_are_crowded():
    """Of 3,000 values some have the bucket of the one that vanished."""
    before = pl.Series(["gone"] * 2000 + [f"v{k}" for k in range(2000)])
    after = pl.Series([f"w{k % 3000}" for k in range(30_000)])
    first = moved_of({"type": "categorical"}, before, after)[0]
    assert first.now < 0.01 < 0.5 <= first.low
    assert first.value == "(a value that no row has)" or first.value.endswith("of its hash")
