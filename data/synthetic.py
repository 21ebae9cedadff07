"""Planted data: the true probability of every row is known, so a model can be compared with the best possible one.

    python -m data.synthetic --rows 1000000 --out work/synthetic [--numeric 1] [--lists 1]

N rows, F categorical features f00, f01, ... of V values each, drawn from a power law. The logit is

    BIAS + INTERACTION * s(f00) * s(f01) + main effects of f02 ... + effects of the numeric and list features.

s is a latent sign, +1 for exactly half of the probability mass and independent of everything else. f00 and f01 have no
main effects: neither alone predicts the label, so a linear model cannot use them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import polars as pl
import typer
from polars.io.plugins import register_io_source

from data import common
from features.arrays import Float64s
from features.dataset.info import DatasetSource
from features.errors import InputError
from features.hashing import hash_text, mix64
from features.infer.column_facts import auc

NOTICE = "made here, no terms"
CHUNK_ROWS = 65_536
EXPONENT = 1.1
"""Exponent of the power law: the value of rank k has a probability of about (k + 1)^-EXPONENT, normalised."""
BIAS = -1.0
INTERACTION = 1.5
MAIN_STD = 1.0
"""Standard deviation of the sum of all categorical main effects under uniformly drawn values."""
NUMERIC_SLOPE = 0.5
LIST_STD = 1.0
MAX_LIST_LENGTH = 4
TRUTH = "true_probability"

Ranks = npt.NDArray[np.uint64]


@dataclass(frozen=True, kw_only=True)
class Planted:
    """Settings that, with its number, determine a planted row; raises `InputError` for impossible sizes."""

    seed: int = 1
    num_features: int = 8
    """F, scalar categorical features; the first two have the interaction only."""
    num_distinct: int = 1000
    """V, values of each categorical or list feature."""
    num_numeric: int = 0
    """Numeric features x00, ...: log-normal; one value in twenty is missing and counts as 0."""
    num_lists: int = 0
    """List features l00, ...: 0 to 4 values joined with "|"; their effects are averaged."""

    def __post_init__(self) -> None:
        least = {"seed": 0, "num_features": 2, "num_distinct": 2, "num_numeric": 0, "num_lists": 0}
        for name, minimum in least.items():
            if getattr(self, name) < minimum:
                found = str(getattr(self, name))
                raise InputError(f"{name} must be at least {minimum}", found=found, remedy="give a larger number")

    @property
    def categorical_names(self) -> list[str]:
        """f00, f01, ..."""
        return [f"f{number:02d}" for number in range(self.num_features)]

    @property
    def list_names(self) -> list[str]:
        """l00, ..."""
        return [f"l{number:02d}" for number in range(self.num_lists)]

    @property
    def numeric_names(self) -> list[str]:
        """x00, ..."""
        return [f"x{number:02d}" for number in range(self.num_numeric)]

    @property
    def schema(self) -> dict[str, pl.DataType]:
        """Column to type, in the order of the files."""
        numbers = {name: pl.Float64() for name in [*self.numeric_names, TRUTH]}
        return {
            "label": pl.Int8(),
            **dict.fromkeys([*self.categorical_names, *self.list_names], pl.String()),
            **numbers,
        }

    @property
    def features(self) -> dict[str, str | dict[str, Any]]:
        """Features in the registry file; the true probability is not among them."""
        lists = {"type": "categorical_list", "separator": "|", "pooling": "mean"}
        numeric = {"type": "numeric", "transform": "log1p"}
        names = dict.fromkeys(self.categorical_names, "categorical")
        return {**names, **dict.fromkeys(self.list_names, lists), **dict.fromkeys(self.numeric_names, numeric)}


def planted_frame(num_rows: int, seed: int = 1, **sizes: int) -> pl.DataFrame:
    """The first `num_rows` planted rows of a seed: label, features, `true_probability`.

    `sizes` are the other fields of `Planted`. More rows of the same seed begin with the same rows.

    >>> planted_frame(3, num_features=2, num_distinct=10).columns
    ['label', 'f00', 'f01', 'true_probability']
    """
    planted = Planted(seed=seed, **sizes)
    return pl.concat([pl.DataFrame(schema=planted.schema), *planted_chunks(planted, 0, num_rows)])


def planted_chunks(planted: Planted, start: int, stop: int) -> Iterator[pl.DataFrame]:
    """Rows `start` to `stop` in frames of at most `CHUNK_ROWS`; a chunk depends only on the seed and its number."""
    for number in range(start // CHUNK_ROWS, -(-stop // CHUNK_ROWS)):
        first = number * CHUNK_ROWS
        rows = planted_chunk(planted, number)
        low = max(start - first, 0)
        yield rows.slice(low, min(stop - first, CHUNK_ROWS) - low)


def planted_chunk(planted: Planted, number: int) -> pl.DataFrame:
    """Chunk `number` [CHUNK_ROWS] of the infinite planted table."""
    rng = np.random.default_rng([planted.seed, number])
    columns: dict[str, pl.Series] = {}
    signs, logit = np.ones(CHUNK_ROWS), np.full(CHUNK_ROWS, BIAS)
    main_std = MAIN_STD / max(planted.num_features - 2, 1) ** 0.5
    for position, name in enumerate(planted.categorical_names):
        if position < 2:
            values, sign = _signed_values(planted, name, rng)
            signs *= sign
        else:
            values = power_law(rng, CHUNK_ROWS, planted.num_distinct)
            logit += main_std * _effects(planted, name, values)
        columns[name] = _texts(values)
    for name in planted.list_names:
        columns[name], effects = _list_feature(planted, name, rng)
        logit += LIST_STD * effects
    for name in planted.numeric_names:
        columns[name], effects = _numeric_feature(rng)
        logit += NUMERIC_SLOPE * effects
    probability = 1 / (1 + np.exp(-(logit + INTERACTION * signs)))
    label = rng.random(CHUNK_ROWS) < probability
    return pl.DataFrame({"label": label, **columns, TRUTH: probability}).cast({"label": pl.Int8})


def power_law(rng: np.random.Generator, num_rows: int, num_distinct: int) -> Ranks:
    """Ranks [N] in [0, V), by inversion: P(k) = (G(k + 1) - G(k)) / G(V) with G(x) = 1 - (x + 1)^(1 - EXPONENT)."""
    power = 1 - EXPONENT
    tail = 1 - rng.random(num_rows) * (1 - (num_distinct + 1.0) ** power)
    ranks = (tail ** (1 / power)).astype(np.uint64) - np.uint64(1)
    return np.minimum(ranks, np.uint64(num_distinct - 1))  # rounding may exceed the last rank


def _signed_values(planted: Planted, name: str, rng: np.random.Generator) -> tuple[Ranks, Float64s]:
    """Values [N] and their latent signs [N]: the values of a pair have equal probabilities and opposite signs."""
    pairs = power_law(rng, CHUNK_ROWS, planted.num_distinct // 2)
    second = rng.integers(0, 2, CHUNK_ROWS, dtype=np.uint64)
    flipped = np.where(_effects(planted, name, pairs) > 0, 1.0, -1.0)
    return pairs * np.uint64(2) + second, flipped * np.where(second == 1, 1.0, -1.0)


def _effects(planted: Planted, name: str, values: Ranks) -> Float64s:
    """Effect of each value [N], with variance 1 over the vocabulary; a function of seed, feature and value."""
    stream = np.uint64(hash_text(f"planted {planted.seed} {name}"))
    uniform = (mix64(mix64(values) ^ stream) >> np.uint64(11)).astype(np.float64) / 2**53
    return (2 * uniform - 1) * 3**0.5


def _texts(values: Ranks) -> pl.Series:
    """Texts "v0", "v1", ...: the same in every feature, so only the salts distinguish the features."""
    return pl.select("v" + pl.Series(values).cast(pl.String)).to_series()


def _list_feature(planted: Planted, name: str, rng: np.random.Generator) -> tuple[pl.Series, Float64s]:
    lengths = rng.integers(0, MAX_LIST_LENGTH + 1, CHUNK_ROWS)
    texts: list[pl.Expr] = []
    total = np.zeros(CHUNK_ROWS)
    for place in range(MAX_LIST_LENGTH):
        values = power_law(rng, CHUNK_ROWS, planted.num_distinct)
        is_present = place < lengths
        total += np.where(is_present, _effects(planted, name, values), 0.0)
        texts.append(pl.when(pl.Series(is_present)).then(_texts(values)))
    joined = pl.select(pl.concat_str(texts, separator="|", ignore_nulls=True)).to_series()
    return joined, total / np.maximum(lengths, 1)


def _numeric_feature(rng: np.random.Generator) -> tuple[pl.Series, Float64s]:
    amounts = np.round(np.exp(rng.standard_normal(CHUNK_ROWS)), 4)
    is_missing = rng.random(CHUNK_ROWS) < 0.05
    effects = np.log1p(np.where(is_missing, 0.0, amounts)) - 0.8  # 0.8, about the mean, keeps BIAS the mean logit
    return pl.Series(amounts).set(pl.Series(is_missing), None), effects


def write_raw(out: Path, *, num_rows: int, planted: Planted) -> common.RawDataset:
    """Write `out/raw` (8:1:1 in order, as the rows are independent) and `out/registry.yaml`, chunk by chunk."""
    if num_rows < 10:
        raise InputError("--rows must be at least 10", found=str(num_rows), remedy="give a larger number")
    edges = [0, num_rows * 8 // 10, num_rows * 9 // 10, num_rows]
    parts = {part: planted_rows(planted, edges[i], edges[i + 1]) for i, part in enumerate(common.PARTS)}
    rule = "in order 8:1:1; the rows are independent"
    source = DatasetSource(name="synthetic", source=f"data.synthetic {planted}", licence=NOTICE, split_rule=rule)
    return common.write_raw_dataset(out, parts, source=source, features=planted.features)


def planted_rows(planted: Planted, start: int, stop: int) -> pl.LazyFrame:
    """`planted_chunks` as a streaming query."""

    def chunks(
        columns: list[str] | None, predicate: pl.Expr | None, num_rows: int | None, _batch_size: int | None
    ) -> Iterator[pl.DataFrame]:
        end = stop if num_rows is None else min(stop, start + num_rows)
        for rows in planted_chunks(planted, start, end):
            wanted = rows if columns is None else rows.select(columns)
            yield wanted if predicate is None else wanted.filter(predicate)

    return register_io_source(chunks, schema=planted.schema)


def bayes(rows: pl.DataFrame) -> tuple[float, float]:
    """AUC and log loss of the true probabilities [N], which a model can only beat by luck.

    >>> rows = pl.DataFrame({"label": [0, 1, 0, 1], "true_probability": [0.2, 0.8, 0.5, 0.5]})
    >>> [round(value, 4) for value in bayes(rows)]
    [0.875, 0.4581]
    """
    is_one, truth = rows["label"].to_numpy() == 1, rows[TRUTH].to_numpy()
    return auc(truth, is_one), -float(np.log(np.where(is_one, truth, 1 - truth)).mean())


def main(
    out: common.Out,
    num_rows: Annotated[int, typer.Option("--rows", help="Rows of all parts together.")] = 100_000,
    num_features: Annotated[int, typer.Option("--features", help="Scalar categorical features.")] = 8,
    num_distinct: Annotated[int, typer.Option("--distinct", help="Values of each categorical feature.")] = 1000,
    num_numeric: Annotated[int, typer.Option("--numeric", help="Numeric features.")] = 0,
    num_lists: Annotated[int, typer.Option("--lists", help="List features.")] = 0,
    seed: Annotated[int, typer.Option("--seed", help="Seed of all rows and effects.")] = 1,
    overwrite: common.Overwrite = False,
) -> None:
    """Make planted data with known true probabilities."""
    scalars = {"num_features": num_features, "num_distinct": num_distinct}
    planted = Planted(seed=seed, **scalars, num_numeric=num_numeric, num_lists=num_lists)
    common.build(out, lambda: write_raw(out, num_rows=num_rows, planted=planted), notice=NOTICE, overwrite=overwrite)
    test = pl.scan_parquet(out / "raw" / "test.parquet").select("label", TRUTH).head(1_000_000).collect()
    best_auc, log_loss = bayes(test)
    print(f"best possible on {len(test):,} test rows: AUC {best_auc:.4f}, log loss {log_loss:.4f}")


if __name__ == "__main__":
    common.run(main)
