"""Target statistics: a plain loop computes the same, no row sees its own label, and a planted problem gains by them."""

import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy.special import betaln

from features.encode import EncodedBatch, encode
from features.errors import InputError
from features.hashing import hash_text
from features.registry import FeatureRegistry
from recsys.config import Experiment
from recsys.dataset import Split
from recsys.evaluation.metrics import auc
from recsys.evaluation.predictions import Predictions
from recsys.runs.train import train_run
from recsys.target_statistics import STRENGTHS, FittedStatistics, fit_target_statistics, strength_of, value_columns
from tests.planted import write_dataset

REGISTRY = FeatureRegistry.of(
    weight="w",
    features={
        "user": "categorical",
        "price": {"type": "numeric", "transform": "none"},
        "tags": {"type": "categorical_list", "separator": "|"},
        "id": "categorical",
    },
)


def frame(num_rows: int, seed: int = 0) -> pl.DataFrame:
    """Rows with weights of 0 too, missing users, and empty, missing and repeating lists; every fourth row twice."""
    random = np.random.default_rng(seed)
    tags = ["a|b", "", None, "c", "a||a", "b|c|d"]
    rows = pl.DataFrame(
        {
            "user": [None if k == 3 else f"u{k}" for k in random.integers(0, 12, num_rows)],
            "price": random.normal(size=num_rows),
            "tags": [tags[k] for k in random.integers(0, len(tags), num_rows)],
            "id": [f"id{k}" for k in range(num_rows)],
            "w": random.integers(0, 4, num_rows) / 2,
            "label": random.integers(0, 2, num_rows),
        }
    )
    return pl.concat([rows, rows[::4].with_columns(label=1 - pl.col("label"))])


def split_of(directory: Path, rows: pl.DataFrame, registry: FeatureRegistry = REGISTRY, **options: Any) -> Split:
    return Split(
        write_dataset(directory, registry, {"train": rows, "valid": rows[:20]}, part_rows=50), "train", **options
    )


def bags_of(batch: EncodedBatch) -> list[dict[str, list[int]]]:
    """The tokens of each example, and the bits of its price."""
    bags: list[dict[str, list[int]]] = []
    for number in range(batch.num_examples):
        one = {name: batch.bag(name, number, number + 1)[0] for name in ("user", "tags", "id")}
        bits = np.float32(batch.dense[number, 0]).view(np.uint32)
        bags.append({name: tokens.tolist() for name, tokens in one.items()} | {"0": [int(bits)]})
    return bags


def fold_of(bag: dict[str, list[int]]) -> int:
    total = sum(mix(token ^ hash_text(name)) for name, tokens in bag.items() for token in tokens)
    return mix(total % 2**64) % 10


def features_of(bag: dict[str, list[int]]) -> list[tuple[str, list[int]]]:
    return [(name, tokens) for name, tokens in bag.items() if name != "0"]


def mix(value: int) -> int:
    for shift, multiplier in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        value = ((value ^ (value >> shift)) * multiplier) % 2**64
    return value ^ (value >> 31)


class Oracle:
    """Statistics by loops over rows and values."""

    def __init__(self, rows: pl.DataFrame) -> None:
        self.bags, weights, labels = bags_of(encode(rows, REGISTRY)), rows["w"].to_list(), rows["label"].to_list()
        self.sums: dict[Any, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self.values: dict[str, set[int]] = defaultdict(set)
        for bag, weight, label in zip(self.bags, weights, labels, strict=True):
            for name, tokens in features_of(bag):
                for token in tokens:
                    self.values[name].add(token)
                    for key in ((name, token), (name, token, fold_of(bag))):
                        self.sums[key][0] += weight
                        self.sums[key][1] += weight * label
        self.base = sum(w * y for w, y in zip(weights, labels, strict=True)) / sum(weights)
        self.strengths = {name: self.strength(name) for name in self.values}
        raw = np.array([self.raw(bag, is_training=True) for bag in self.bags])
        self.mean, std = raw.mean(axis=0), raw.std(axis=0)
        self.std = np.where(std < 1e-6, np.inf, np.maximum(std, 0.1))

    def strength(self, name: str) -> float:
        def likelihood(m: float) -> float:
            a, b, own = m * self.base, m * (1 - self.base), [self.sums[name, token] for token in self.values[name]]
            return sum(float(betaln(p + a, n - p + b) - betaln(a, b)) for n, p in own)

        return max(STRENGTHS.tolist(), key=likelihood)

    def raw(self, bag: dict[str, list[int]], *, is_training: bool) -> list[float]:
        columns: list[float] = []
        for name, tokens in features_of(bag):
            m, pairs = self.strengths[name], []
            for token in tokens:
                n, p = self.sums.get((name, token), (0.0, 0.0))
                if is_training:
                    own = self.sums[name, token, fold_of(bag)]
                    n, p = (10 / 9 * (whole - part) for whole, part in zip((n, p), own, strict=True))
                rate = (p + m * self.base) / (n + m)
                pairs.append((logit(rate) - logit(self.base), math.log1p(n)))
            columns += [sum(pair[k] for pair in pairs) / max(1, len(pairs)) for k in (0, 1)]
        return columns

    def columns(self, bags: list[dict[str, list[int]]], *, is_training: bool) -> Any:
        return (np.array([self.raw(bag, is_training=is_training) for bag in bags]) - self.mean) / self.std


def logit(rate: float) -> float:
    return math.log(rate / (1 - rate))


def test_columns_keep_their_level_after_training(tmp_path):
    """A feature of two values in 5,000 rows: counts hardly vary, and must not jump when the whole of train is seen."""
    rows = frame(4000).with_columns(user=pl.int_range(pl.len()) % 2, w=pl.lit(1.0))
    fitted, batch = fit_target_statistics(split_of(tmp_path, rows)), encode(rows, REGISTRY)
    training, later = (fitted.columns(batch, is_training=flag)[:, :2] for flag in (True, False))
    assert np.abs(training - later).max() < 1


@pytest.mark.parametrize("window_bytes", [1 << 29, 4000])
def test_columns_are_those_of_a_plain_loop(tmp_path, window_bytes):
    """Weights, lists, missing and unknown values; read at once, or in several windows."""
    rows, unknown = frame(160), frame(40, seed=1).with_columns(user=pl.lit("never seen"))
    fitted = fit_target_statistics(split_of(tmp_path, rows, window_bytes=window_bytes))
    oracle = Oracle(rows)
    found = fitted.columns(encode(rows, REGISTRY), is_training=True)
    assert found.dtype == np.float32
    assert np.abs(found - oracle.columns(oracle.bags, is_training=True)).max() < 1e-5
    for raw in (rows, unknown):
        batch = encode(raw, REGISTRY)
        expected = oracle.columns(bags_of(batch), is_training=False)
        assert np.abs(fitted.columns(batch, is_training=False) - expected).max() < 1e-5


def test_a_value_of_one_row_tells_nothing_in_training(tmp_path):
    """Also where the row is repeated; and as nothing can be learned from it, it tells nothing later."""
    rows = frame(160)
    fitted = fit_target_statistics(split_of(tmp_path, rows))
    for is_training in (True, False):
        assert (fitted.columns(encode(rows, REGISTRY), is_training=is_training)[:, 4:] == 0).all()


def test_labels_that_depend_on_nothing_stay_unpredictable(tmp_path):
    random = np.random.default_rng(5)
    registry = FeatureRegistry.of(features={"a": "categorical", "b": "categorical"})
    draws = {name: random.integers(0, 300, 3000) for name in ("a", "b")}
    rows = pl.DataFrame({**draws, "label": random.integers(0, 2, 3000)})
    fitted, labels = fit_target_statistics(split_of(tmp_path, rows, registry)), rows["label"].to_numpy()
    batch = encode(rows, registry)

    def auc_of_rates(*, is_training: bool) -> float:
        rates = fitted.columns(batch, is_training=is_training)[:, ::2].sum(axis=1)
        return auc(Predictions(labels.astype(np.float32), 1 / (1 + np.exp(-rates.astype(np.float64)))))

    assert auc_of_rates(is_training=True) < 0.53
    assert auc_of_rates(is_training=False) > 0.6


@pytest.mark.parametrize("base", [0.0, 1.0])
def test_labels_of_one_class_have_no_rates(base):
    """Weights of both classes can differ so much that one class is lost in rounding."""
    amounts = np.array([0.0, 5.0])
    columns = value_columns(amounts, base * amounts, base, strength_of(amounts, base * amounts, base))
    assert columns.tolist() == [[0, 0], [0, np.log1p(5)]]


def test_the_strength_follows_how_much_values_differ():
    amounts = np.full(200, 50.0)
    differing = np.random.default_rng(0).binomial(50, np.random.default_rng(1).beta(1, 1, 200)).astype(np.float64)
    equal = np.random.default_rng(0).binomial(50, 0.5, 200).astype(np.float64)
    assert strength_of(amounts, differing, 0.5) < 5
    assert strength_of(amounts, equal, 0.5) > 100


def test_numbers_alone_have_none(tmp_path):
    registry = FeatureRegistry.of(features={"price": "numeric"})
    with pytest.raises(InputError, match="need a categorical feature; found numeric ones alone; leave target_stat"):
        fit_target_statistics(split_of(tmp_path, frame(40), registry))


def test_only_a_fitted_one_trains(tmp_path):
    fitted = fit_target_statistics(split_of(tmp_path, frame(40)))
    with pytest.raises(AssertionError):
        FittedStatistics(fitted.totals).columns(encode(frame(40), REGISTRY), is_training=True)


def test_a_planted_problem_gains_by_them(tmp_path):
    """Few rows per value: the network alone cannot learn a vector for each."""
    random = np.random.default_rng(7)
    effects, values = random.normal(0, 2, 300), random.integers(0, 300, 3000)
    labels = random.random(3000) < 1 / (1 + np.exp(-effects[values]))
    noise = random.integers(0, 50, 3000)
    rows = pl.DataFrame({"value": values, "noise": noise, "label": labels.astype(np.uint8)})
    splits = {"train": rows[:1500], "valid": rows[1500:]}
    registry = FeatureRegistry.of(features={"value": "categorical", "noise": "categorical"})
    dataset = write_dataset(tmp_path, registry, splits)
    settings = {
        "name": "x",
        "model": {"name": "mlp", "hidden": [16]},
        "embedding": {"num_rows": 1000},
        "trainer": {"epochs": 3, "batch_size": 128},
    }
    found = {}
    for is_on in (False, True):
        experiment = Experiment.model_validate({**settings, "target_statistics": is_on})
        metrics = train_run(experiment, dataset, tmp_path / str(is_on), track=False, report=False)
        found[is_on] = metrics["valid"]["auc"]
    assert found[True] > found[False] + 0.05
