"""A new feature type is a class: columns, Python values, golden rows and examples of requests then agree about it."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal

import polars as pl
import pytest

from features.encode import encode, encode_values
from features.errors import InputError
from features.golden import golden_frame
from features.hashing import MISSING_TOKEN, hash_text
from features.registry import FeatureRegistry
from features.spec import Categorical, FeatureSpec, Probes
from serving.server.examples import example_rows
from tests.features.test_values import same


class Hour(FeatureSpec):
    """The hour of a time."""

    type: Literal["hour"] = "hour"
    probes: Probes | None = None

    def parse(self, column: pl.Series) -> pl.Series:
        return column.str.to_datetime(strict=False) if column.dtype == pl.String else column

    def check(self, column: pl.Series) -> None:
        if column.dtype not in (pl.Datetime, pl.Null):
            raise self.reject("a time", str(column.dtype), "cast it before")

    def normalize(self, column: pl.Series) -> pl.Series:
        return column.cast(pl.Datetime).dt.hour()

    def samples(self) -> Sequence[Any]:
        return ["2020-01-02 03:00:00", "2020-01-02 14:00:00"]


class Top(Categorical):
    """A category, or "other" if it is none of the known ones."""

    type: Literal["top"] = "top"  # type: ignore[assignment]
    known: tuple[str, ...] = ("a", "b")

    def normalize(self, column: pl.Series) -> pl.Series:
        texts = column.cast(pl.String)
        return texts.set(~texts.is_in(self.known).fill_null(True), "other")


def registry_of(*features: FeatureSpec) -> FeatureRegistry:
    """A registry with types that are not listed."""
    return FeatureRegistry.of(features={"x": "categorical"}).model_copy(update={"features": features})


REGISTRY = registry_of(Categorical(name="user"), Top(name="top"), Hour(name="at"))


def test_values_and_columns_agree():
    rows = {"user": ["7", None], "top": ["a", "z"], "at": [datetime(2020, 5, 6, 14), None]}
    batch = encode_values(rows, REGISTRY, 2)
    assert same(batch, encode(pl.DataFrame(rows), REGISTRY))
    assert batch.tokens["top"].tolist() == [hash_text("a"), hash_text("other")]
    assert batch.tokens["at"].tolist() == [hash_text("14"), MISSING_TOKEN]


def test_absent_and_wrong_values():
    assert encode_values({}, REGISTRY, 2).tokens["at"].tolist() == [MISSING_TOKEN] * 2
    for value in (7, {"a": 1}, object()):
        with pytest.raises(InputError, match="column 'at': expected a time") as caught:
            encode_values({"at": [None, value]}, REGISTRY, 2)
        assert caught.value.row == 1
    with pytest.raises(InputError, match="column 'top': expected categories"):
        encode_values({"top": [1.5]}, REGISTRY, 1)


def test_golden_rows_and_examples_of_requests():
    golden = golden_frame(REGISTRY, 64)
    assert set(golden["at"]) == {None, *REGISTRY.features[2].samples()}
    assert encode(golden, REGISTRY).num_examples == 64
    assert {row["at"] for row in example_rows(REGISTRY)} == set(REGISTRY.features[2].samples())
