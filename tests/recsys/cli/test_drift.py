"""Drift against hand-computed indices: planted drift is found, and a resample of the training rows shows none."""

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from features.encode import EncodedBatch
from features.errors import InputError
from features.hashing import MISSING_TOKEN, hash_text, mix64
from features.layout import TableLayout
from features.registry import FeatureRegistry
from recsys.dataset import Split
from recsys.embedding.table import UnifiedEmbedding
from recsys.evaluation.predictions import Predictions
from recsys.training_profile import summarize_train, training_profile
from serving.bundle.bundle import Bundle
from serving.bundle.manifest import PriorCorrection
from serving.bundle.profile import (
    MAX_SAMPLE,
    MIN_ROWS,
    Distributions,
    FeatureProfile,
    ProfileBuilder,
    float_bins,
    read_distributions,
)
from serving.drift import FLOOR, MAJOR, MODERATE, chance_psi, drift_of, psi
from serving.scorer import Scorer
from tests.planted import write_dataset

REGISTRY = FeatureRegistry.of(
    features={"user": "categorical", "price": "numeric", "tags": {"type": "categorical_list", "separator": "|"}}
)


def batch(users: list[int], prices: list[float], tags: list[int]) -> EncodedBatch:
    return EncodedBatch(
        num_examples=len(users),
        tokens={"user": np.array(users, dtype=np.uint64), "tags": np.array(tags, dtype=np.uint64)},
        lengths={"tags": np.ones(len(users), dtype=np.int64)},
        dense=np.array(prices, dtype=np.float32)[:, None],
    )


def profile_of_users(users: list[int]) -> FeatureProfile:
    builder = ProfileBuilder(REGISTRY, num_rows=len(users))
    builder.add(batch(users, [0.0] * len(users), users))
    return builder.finish({"price": 0.0})["user"]


def test_psi_by_hand():
    expected, actual = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.3, 0.5])
    by_hand = (0.2 - 0.5) * math.log(0.2 / 0.5) + 0 + (0.5 - 0.2) * math.log(0.5 / 0.2)
    assert psi(expected, actual) == pytest.approx(by_hand)
    assert psi(actual, expected) == pytest.approx(by_hand)
    # An empty bin counts as FLOOR: (.1 - .0001) ln(.1 / .0001), and the rest.
    found = psi(np.array([0.0, 1.0]), np.array([0.1, 0.9]))
    assert found == pytest.approx((0.1 - FLOOR) * math.log(0.1 / FLOOR) + (0.9 - 1) * math.log(0.9))


def test_chance_is_what_95_of_100_samples_stay_below():
    random = np.random.default_rng(0)
    shares = np.array([0.1, 0.2, 0.3, 0.25, 0.15])
    below = 0
    for _ in range(1000):
        first, second = random.multinomial(4000, shares) / 4000, random.multinomial(1000, shares) / 1000
        below += psi(first, second) <= chance_psi(5, 4000, 1000)
    assert 920 <= below <= 975  # 950 expected, standard deviation 7


def test_bins_of_tokens_go_from_the_rarest_to_the_most_common():
    # Six values in separate buckets: 5, 20, 25, 50, 100 and 800 rows. With the least one rare, 995 rows are dealt.
    counts = {1: 5, 2: 20, 3: 25, 4: 50, 5: 100, 6: 800}
    profile = profile_of_users([user for user, count in counts.items() for _ in range(count)])
    assert profile.tokens is not None
    # Middles of their weight among 995: 10, 32.5, 70, 145, 595; tenths: 0, 0, 0, 1, 5.
    assert profile.tokens.shares == (0.0, 0.005, 0.095, 0.1, 0.8)
    assert profile.tokens.counts(np.array([5], dtype=np.uint64)).tolist() == [0, 0, 0, 1, 0]
    assert profile.tokens.counts(np.array([1, 999], dtype=np.uint64)).tolist() == [0, 2, 0, 0, 0]
    assert profile.tokens.counts(np.array([MISSING_TOKEN], dtype=np.uint64)).tolist() == [1, 0, 0, 0, 0]
    assert len(profile.tokens.labels) == 5


def test_the_bucket_is_the_documented_one():
    profile = profile_of_users([7] * 50)
    assert profile.tokens is not None
    salt = np.uint64(hash_text("muxrec training profile"))
    bucket = int(mix64(np.array([7], dtype=np.uint64) ^ salt)[0]) >> 54
    assert profile.tokens.bin_of_bucket.replace("0", "") == "1"
    assert profile.tokens.bin_of_bucket[bucket] == "1"


def test_fewer_than_ten_values_look_like_none():
    """The profile does not reveal whether a value of few rows was present."""
    common = [1] * 500
    with_few = profile_of_users(common + [2] * (MIN_ROWS - 1)).tokens
    without = profile_of_users(common).tokens
    assert with_few is not None
    assert without is not None
    assert with_few.bin_of_bucket == without.bin_of_bucket


def test_bins_of_floats_by_hand():
    values = np.arange(100, dtype=np.float32)
    bins = float_bins(values)
    assert bins.edges == tuple(float(edge) for edge in range(10, 100, 10))
    assert bins.shares == (0.0, *[0.1] * 10)
    # A missing value is 0 among the values, and is counted once.
    counts = bins.counts(np.array([0, 0, 0, 15, 99], dtype=np.float32), num_missing=2)
    assert counts.tolist() == [2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 1]
    assert len(bins.labels) == len(bins.shares)
    assert float_bins(np.full(50, 3.25)).edges == ()  # one value: no bins
    assert len(float_bins(np.arange(25) / 1.0).edges) == 1  # no bin has fewer than ten values


def test_a_negative_has_the_weight_of_those_it_represents():
    """One negative in ten is kept: 20 positives of user 1, 30 negatives of user 2, 15 missing negatives."""
    builder = ProfileBuilder(REGISTRY, num_rows=65)
    users = [1] * 20 + [2] * 30 + [MISSING_TOKEN] * 15
    prices = [1.0] * 20 + [2.0] * 30 + [0.0] * 15
    rows = replace(batch(users, prices, [1, 1] * 20 + [2] * 45), lengths={"tags": np.array([2] * 20 + [1] * 45)})
    builder.add(rows, np.array([1.0] * 20 + [10.0] * 45))
    found = builder.finish({"price": 15 / 65})
    tokens, floats, tags = found["user"].tokens, found["price"].floats, found["tags"].tokens
    assert tokens is not None
    assert floats is not None
    assert tags is not None
    # 20 + 300 + 150 rows; user 1 has 20 of the 320 that are not missing, so both users' middles: 10 and 170.
    assert tokens.shares == pytest.approx((150 / 470, 0.0, 20 / 470, 300 / 470), abs=1e-6)
    assert tokens.num_values == round(470**2 / (20 + 45 * 100))
    # Of 470 / 10 heaviest rows there are four bins of ten; quarters of the weight end at 0, 2 and 2.
    assert floats.edges == (2.0,)
    assert floats.shares == pytest.approx((150 / 470, 20 / 470, 300 / 470), abs=1e-6)
    # A value of a list has the weight of its row.
    assert tags.shares == pytest.approx((0.0, 0.0, 40 / 490, 450 / 490), abs=1e-6)


def test_nine_heavy_values_are_still_few():
    """Bins depend on the number of values, not on their weight."""
    builder = ProfileBuilder(REGISTRY, num_rows=59)
    users = [1] * 50 + [2] * (MIN_ROWS - 1)
    builder.add(batch(users, [0.0] * 50 + [1.0] * 9, users), np.full(59, 1000.0))
    tokens = builder.finish({})["user"].tokens
    assert tokens is not None
    assert set(tokens.bin_of_bucket) == {"0", "1"}
    assert tokens.bin_of_bucket.count("1") == 1
    heavy = np.ones(100)
    heavy[90:] = 100.0
    assert float_bins(np.arange(100), weights=heavy).edges == ()  # ten of the heaviest: no two bins of ten


def test_down_sampled_rows_have_the_profile_of_all(tmp_path: Path):
    """Train and valid with one negative in five, and scores that depend on the label."""
    random = np.random.default_rng(0)
    labels = (random.random(20_000) < 0.2).astype(int)
    rows = pl.DataFrame(
        {
            "label": labels,
            "user": np.where(random.random(20_000) < 0.2 + 0.6 * labels, "clicks", "looks"),
            "price": random.normal(size=20_000) + 2 * labels,
        }
    )
    registry = FeatureRegistry.of(features={"user": "categorical", "price": "numeric"})
    kept = rows.filter((labels == 1) | (random.random(20_000) < 0.2))
    profiles = []
    for name, frame, rate in (("whole", rows, 1.0), ("kept", kept, 0.2)):
        (tmp_path / name).mkdir()
        data = write_dataset(tmp_path / name, registry, {"train": frame, "valid": frame})
        layout = TableLayout.of(registry, num_rows=64, width=2, probes=1, views={"main": ("user",)})
        scores = 1 / (1 + np.exp(-frame["price"].to_numpy()))
        predictions = Predictions(frame["label"].to_numpy().astype(np.float32), scores, None, None)
        features, valid = summarize_train(Split(data, "train"), rate).features, Split(data, "valid")
        seen = np.zeros(64, dtype=bool)
        embedding = UnifiedEmbedding(layout)
        profiles.append(training_profile(features, valid, predictions, embedding, seen, negative_rate=rate))
    whole, sampled = profiles
    user = whole.features["user"].tokens
    assert user is not None
    assert sampled.features["user"].tokens is not None
    assert sampled.features["user"].tokens.shares == pytest.approx(user.shares, abs=0.02)
    assert sampled.features["user"].unseen == whole.features["user"].unseen == 1.0
    assert whole.score is not None
    assert sampled.score is not None
    assert sampled.score.edges == pytest.approx(whole.score.edges, abs=0.02)
    assert sampled.score.shares == pytest.approx(whole.score.shares, abs=0.02)


def test_a_partition_key_is_a_column(tmp_path: Path):
    """Drift of files below `key=value` directories is that of the same rows with these columns in the file."""
    golden = Bundle.open(Path(__file__).parents[2] / "golden" / "bundle")
    raw = golden.golden.drop("probability")
    builder = ProfileBuilder(golden.registry, len(raw))
    builder.add(Scorer(golden).encode(raw).examples)
    known = Distributions(features=builder.finish({})).model_dump(mode="json")
    scorer = Scorer(replace(golden, profile={**golden.profile, "distributions": known}))
    number = next(feature.name for feature in golden.registry.features if feature.type == "numeric")
    word = next(feature.name for feature in golden.registry.features if feature.type == "categorical")
    folder = tmp_path / "hive" / f"{number}=2.5" / f"{word}=a%20b"
    folder.mkdir(parents=True)
    raw.drop(number, word).write_parquet(folder / "x.parquet")
    raw.with_columns(pl.lit(2.5).alias(number), pl.lit("a b").alias(word)).write_parquet(tmp_path / "flat.parquet")
    flat = drift_of(scorer, [tmp_path / "flat.parquet"])
    in_path = drift_of(scorer, [tmp_path / "hive"])
    assert in_path.as_json() == {**flat.as_json(), "inputs": [str(tmp_path / "hive")]}
    assert {one.name for one in flat.drift if one.verdict == "major"} >= {number, word}
    (tmp_path / "hive" / f"{number}=2.5").rename(tmp_path / "hive" / f"{number}=old")
    with pytest.raises(InputError, match=rf"x.parquet.*column '{number}': expected a number; found 'old'"):
        drift_of(scorer, [tmp_path / "hive"])


def test_edges_are_rounded():
    values = np.random.default_rng(0).normal(size=1000) * 1234.56789
    for edge in float_bins(values).edges:
        assert edge == float(f"{edge:.4g}")


def test_floats_are_sampled_evenly_however_they_come():
    num_rows = 3 * MAX_SAMPLE
    values = np.arange(num_rows) % 1000 / 1000
    empty = np.zeros(0, dtype=np.uint64)
    whole, parts = ProfileBuilder(REGISTRY, num_rows), ProfileBuilder(REGISTRY, num_rows)
    dense = values.astype(np.float32)[:, None]
    for builder, cuts in ((whole, [0, num_rows]), (parts, [0, 1, 1000, 77_777, num_rows])):
        for start, stop in itertools.pairwise(cuts):
            tokens = {"user": empty, "tags": empty}
            part = EncodedBatch(num_examples=stop - start, tokens=tokens, lengths={}, dense=dense[start:stop])
            builder.add(part)
    one, other = whole.finish({})["price"], parts.finish({})["price"]
    assert one == other
    assert one.floats is not None
    assert one.floats.num_values == MAX_SAMPLE


def test_scores_are_corrected_in_their_order():
    score = float_bins(np.arange(1000) / 1000)
    before = Distributions(features={}, score=score)
    after = before.corrected(PriorCorrection(negative_rate=0.1)).score
    assert after is not None
    assert after.shares == score.shares
    assert after.edges[4] == pytest.approx(0.5 * 0.1 / (0.5 + 0.5 * 0.1), rel=1e-3)
    assert before.corrected(None) is before


def test_a_bundle_without_a_profile_says_what_to_do():
    with pytest.raises(InputError, match="bundle: expected a training profile; found a bundle without one; train"):
        read_distributions({"rows": 3}, "bundle")
    with pytest.raises(InputError, match="bundle: expected a training profile; found"):
        read_distributions({"distributions": {"features": 3}}, "bundle")


def rows_of(found: dict) -> dict[str, dict]:
    return {one["name"]: one for one in found["drift"]}


@pytest.mark.slow
def test_planted_drift_is_found_and_a_resample_is_none(run: Path, project: Path, muxrec, tmp_path: Path):
    raw = pl.read_parquet(project / "train.parquet")
    resample = raw.sample(2000, seed=1, with_replacement=True)
    resample.write_parquet(tmp_path / "same.parquet")
    page = tmp_path / "page.html"
    arguments = ("drift", run / "bundle", "--json", "--fail-above", MODERATE, "--out", page)
    result = muxrec(*arguments, "--input", tmp_path / "same.parquet")
    assert result.code == 0, result.err
    same = rows_of(json.loads(result.out))
    assert all(one["verdict"] == "stable" for name, one in same.items() if name != "(score)")

    # One feature has a new value in half of the rows, another is missing in 30 %, a number is shifted.
    index = pl.int_range(pl.len())
    moved = resample.with_columns(
        f00=pl.when(index % 2 == 0).then(pl.lit("never seen")).otherwise(pl.col("f00").cast(pl.String)),
        f01=pl.when(index % 10 < 3).then(None).otherwise(pl.col("f01")),
        x00=pl.col("x00") + 2 * raw["x00"].std(),
    )
    moved.write_parquet(tmp_path / "moved.parquet")
    result = muxrec(*arguments, "--input", tmp_path / "moved.parquet")
    assert result.code == 1
    found = rows_of(json.loads(result.out))
    assert {name for name, one in found.items() if one["verdict"] == "major"} >= {"f00", "f01", "x00"}
    assert all(found[name]["verdict"] == "stable" for name in ("f02", "f03", "l00"))
    assert found["f01"]["missing"][1] == pytest.approx(0.3 + 0.7 * raw["f01"].null_count() / len(raw), abs=0.02)
    assert found["f01"]["psi"] > MAJOR
    assert next(iter(found)) == "(score)"

    assert found["f00"]["moved"][0]["value"] == "never seen"
    assert found["f00"]["moved"][0]["now"] == pytest.approx(0.5)
    assert found["f01"]["moved"][0]["value"] == "(missing)"
    assert all(one["moved"] == [] for name, one in same.items() if name != "(score)")

    text = page.read_text()
    assert "<script" not in text
    assert "://" not in text
    assert "url(" not in text
    assert text.count("<section") == len(found)
    assert 'f00: <span style="color:#b3261e">major</span>' in text
    assert "never seen" in text


@pytest.mark.slow
def test_the_profile_in_the_bundle_is_small_and_that_of_the_training_rows(run: Path, project: Path):
    bundle = Bundle.open(run / "bundle")
    distributions = read_distributions(bundle.profile, "bundle")
    raw = pl.read_parquet(project / "train.parquet")
    assert list(distributions.features) == [feature.name for feature in bundle.registry.features]
    for name, one in distributions.features.items():
        assert sum(one.bins.shares) == pytest.approx(1, abs=1e-4)
        if name != "l00":
            assert one.bins.num_values == len(raw)
            assert one.bins.shares[0] == pytest.approx(raw[name].null_count() / len(raw), abs=1e-4)
    assert distributions.score is not None
    assert distributions.score.num_values == 500  # the validation rows
    assert (run / "bundle" / "profile.json").stat().st_size < 2_500 * (len(distributions.features) + 1)


@pytest.mark.slow
def test_an_export_keeps_the_profile_and_an_old_one_says_so(run: Path, project: Path, muxrec, tmp_path: Path):
    assert muxrec("export", run, "--out", tmp_path / "again", "--negative-rate", "0.5").code == 0
    first, again = Bundle.open(run / "bundle").profile, Bundle.open(tmp_path / "again").profile
    assert first["distributions"]["features"] == again["distributions"]["features"]
    middle = first["distributions"]["score"]["edges"][4]
    assert again["distributions"]["score"]["edges"][4] == pytest.approx(middle * 0.5 / (1 - middle * 0.5), rel=2e-3)
    golden = Path(__file__).parents[2] / "golden" / "bundle"
    result = muxrec("drift", golden, "--input", project / "test.parquet")
    assert result.code == 2
    assert "expected a training profile; found a bundle without one" in result.err
