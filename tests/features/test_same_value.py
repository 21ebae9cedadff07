"""A value has the same token in every type, file format and path: each way to write it is compared with the others."""

import json
import math
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from features.dataset.fit import fit_registry
from features.encode import EncodedBatch, encode, encode_values
from features.io.frames import frame_of
from features.io.readers import read_chunks
from features.registry import FeatureRegistry

TRANSFORMS = ["standardize", "log1p", "none", "bucketize", "log_square"]
# Six digits, which float32 distinguishes. .1, .7 and 2.00000001 are those that float32 and float64 round differently.
VALUES = st.one_of(
    st.sampled_from([0.1, 0.2, 0.3, 0.7, 0.9, 1.1, 2.0, 2.1, 1e-3, 123.456]),
    st.integers(-999, 999).map(lambda n: n / 100),
    st.integers(-999_999, 999_999).map(float),
)
COLUMNS = st.lists(st.one_of(st.none(), VALUES), min_size=1, max_size=12).filter(
    lambda values: any(v is not None for v in values)
)
TYPES: dict[str, pl.DataType] = {
    "float32": pl.Float32(),
    "float64": pl.Float64(),
    "decimal": pl.Decimal(20, 4),
    "text": pl.String(),
    "integer": pl.Int64(),
}


def typed(values: list[float | None], kind: str) -> pl.Series:
    if kind == "text":
        return pl.Series("x", [None if value is None else repr(value) for value in values], dtype=pl.String)
    if kind == "decimal":
        texts = [None if value is None else Decimal(repr(value)).quantize(Decimal("1.0000")) for value in values]
        return pl.Series("x", texts, dtype=TYPES[kind])
    return pl.Series("x", values, dtype=pl.Float64).cast(TYPES[kind])


def by_every_path(column: pl.Series, registry: FeatureRegistry, directory: Path) -> dict[str, EncodedBatch]:
    """Encodings of a column as a frame, as files of each format, and as a request."""
    frame = column.to_frame()
    found = {"frame": encode(frame, registry)}
    frame.write_parquet(directory / "a.parquet")
    frame.write_csv(directory / "a.csv")
    # JSON has no decimals, and a float32 in it is the float64 that a client's `tolist()` makes of it.
    values = [float(value) if isinstance(value, Decimal) else value for value in column.to_list()]
    (directory / "a.ndjson").write_text(
        "\n".join(json.dumps({"x": None if value != value else value}) for value in values)
    )
    for name in ("a.parquet", "a.csv", "a.ndjson"):
        found[name] = encode(pl.concat(read_chunks(directory / name)), registry)
    found["request"] = encode_values({"x": values}, registry, len(values))
    found["pandas"] = encode(frame_of(pd.DataFrame({"x": column.to_list()}), registry.features), registry)
    return found


@pytest.mark.parametrize("transform", TRANSFORMS)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values=COLUMNS, train_as=st.sampled_from(["float32", "float64", "decimal", "text"]), num_buckets=st.integers(2, 9)
)
def test_a_number_is_one_value_however_it_is_typed(
    tmp_path: Path, transform: str, values: list[float | None], train_as: str, num_buckets: int
) -> None:
    feature = {"type": "numeric", "transform": transform, "num_buckets": num_buckets}
    draft = FeatureRegistry.of(features={"x": feature})
    registry = fit_registry(draft, lambda: [typed(values, train_as).to_frame()])
    expected = encode(typed(values, train_as).to_frame(), registry)
    are_integers = all(value is None or value.is_integer() for value in values)
    for kind in [name for name in TYPES if are_integers or name != "integer"]:
        for path, found in by_every_path(typed(values, kind), registry, tmp_path).items():
            for name, tokens in expected.tokens.items():
                assert tokens.tolist() == found.tokens[name].tolist(), (kind, path)
            # A float column is continuous: float32 input is off by its own rounding, 6e-8 of the number.
            fitted = getattr(registry.features[0], "fitted", None)
            scale = (max(abs(value or 0) for value in values) / (fitted.std or 1.0)) if fitted else 1.0
            np.testing.assert_allclose(found.dense, expected.dense, rtol=2e-6, atol=2e-7 * max(scale, 1.0))


def test_the_reported_buckets(tmp_path: Path) -> None:
    """A float32 column of .1 to .9: its float64, csv and ndjson twins had other buckets for .3, .6, .7 and so on."""
    values = [k / 10 for k in range(1, 10)]
    draft = FeatureRegistry.of(features={"x": {"type": "numeric", "transform": "bucketize"}})
    registry = fit_registry(draft, lambda: [pl.DataFrame({"x": pl.Series(values, dtype=pl.Float32)})])
    tokens = encode(pl.DataFrame({"x": pl.Series(values, dtype=pl.Float32)}), registry).tokens["x"]
    assert len(set(tokens.tolist())) == 9
    for kind in ("float64", "decimal", "text"):
        for path, found in by_every_path(typed(values, kind), registry, tmp_path).items():
            assert found.tokens["x"].tolist() == tokens.tolist(), (kind, path)


def test_one_large_integer_changes_no_other_bucket() -> None:
    values = [k / 10 for k in range(1, 10)] + [16_777_217.0]
    draft = FeatureRegistry.of(features={"x": {"type": "numeric", "transform": "bucketize"}})
    registry = fit_registry(draft, lambda: [pl.DataFrame({"x": values})])
    exact = encode(pl.DataFrame({"x": values}), registry).tokens["x"].tolist()
    rounded = encode(pl.DataFrame({"x": pl.Series(values, dtype=pl.Float32)}), registry).tokens["x"].tolist()
    assert exact[:-1] == rounded[:-1]
    assert len(set(exact)) == 10


def test_integers_beyond_float32_keep_their_buckets() -> None:
    """20170101 and the day after are one number in float32: a column of such integers is compared exactly."""
    days = [20170101 + day for day in range(28)]
    draft = FeatureRegistry.of(features={"x": {"type": "numeric", "transform": "bucketize"}})
    registry = fit_registry(draft, lambda: [pl.DataFrame({"x": days})])
    assert len(set(encode(pl.DataFrame({"x": days}), registry).tokens["x"].tolist())) == 28


IDS: dict[str, Any] = {
    "integers": pl.Series([128, -7, None, 0, 2**40]),
    "small integers": pl.Series([128, -7, None, 0, 2**40], dtype=pl.Int64).cast(pl.Int128),
    "floats": pl.Series([128.0, -7.0, None, 0.0, float(2**40)]),
    "not a number": pl.Series([128.0, -7.0, math.nan, -0.0, float(2**40)]),
    "decimals": pl.Series([Decimal("128.00"), Decimal(-7), None, Decimal(0), Decimal(2**40)], dtype=pl.Decimal(20, 2)),
    "texts": pl.Series(["128", "-7", None, "0", str(2**40)]),
    "texts of floats": pl.Series(["128.0", "-7.0", "", "0.0", f"{2**40}.0"]),
    "loose texts": pl.Series([" 128", "-7.", "NaN", "-0", f"+{2**40}"]),
}
FLAGS: dict[str, Any] = {
    "booleans": pl.Series([True, False, None]),
    "integers": pl.Series([1, 0, None]),
    "floats": pl.Series([1.0, 0.0, None]),
    "texts": pl.Series(["true", "false", None]),
    "texts of pandas": pl.Series(["True", "False", ""]),
    "texts of floats": pl.Series(["1.0", "0.0", None]),
    "letters": pl.Series(["T", "f", " "]),
    "words": pl.Series(["YES", "no", None]),
}


@pytest.mark.parametrize(
    ("value_type", "kind"), [*(("integer", kind) for kind in IDS), *(("boolean", kind) for kind in FLAGS)]
)
@pytest.mark.parametrize("is_list", [False, True])
def test_an_identifier_or_a_flag_is_one_value_however_it_is_written(
    tmp_path: Path, value_type: str, kind: str, is_list: bool
) -> None:
    columns = IDS if value_type == "integer" else FLAGS
    column: pl.Series = columns[kind].alias("x")
    name = "categorical_list" if is_list else "categorical"
    plain = FeatureRegistry.of(features={"x": name})
    registry = FeatureRegistry.of(features={"x": {"type": name, "value_type": value_type}})
    first: pl.Series = next(iter(columns.values())).alias("x")
    if is_list:
        expected = encode(pl.DataFrame({"x": first.reshape((-1, 1)).arr.to_list()}), plain).tokens["x"].tolist()
        lists = column.reshape((-1, 1)).arr.to_list()
        assert encode(pl.DataFrame({"x": lists}), registry).tokens["x"].tolist() == expected
        found = encode_values({"x": lists.to_list()}, registry, len(column))
        assert found.tokens["x"].tolist() == expected
        return
    expected = encode(first.to_frame(), plain).tokens["x"].tolist()
    assert encode_values({"x": column.to_list()}, registry, len(column)).tokens["x"].tolist() == expected
    if column.dtype == pl.Int128:
        return  # which parquet has not
    for path, found in by_every_path(column, registry, tmp_path).items():
        assert found.tokens["x"].tolist() == expected, path


@pytest.mark.parametrize("value_type", ["integer", "boolean"])
def test_texts_between_separators_are_values_too(value_type: str) -> None:
    feature = {"type": "categorical_list", "separator": "|", "value_type": value_type}
    registry = FeatureRegistry.of(features={"x": feature})
    loose, plain = (["1.0|0", "", None, "1"], ["1|0", "", None, "1"])
    if value_type == "boolean":
        plain = ["true|false", "", None, "true"]
    expected = encode(pl.DataFrame({"x": plain}), FeatureRegistry.of(features={"x": {**feature, "value_type": None}}))
    for found in (encode(pl.DataFrame({"x": loose}), registry), encode_values({"x": loose}, registry, 4)):
        assert found.tokens["x"].tolist() == expected.tokens["x"].tolist()
        assert found.lengths["x"].tolist() == [2, 0, 1, 1]


@pytest.mark.parametrize(
    ("value_type", "wrong"),
    [("integer", value) for value in ("x", "1.5", 1.5, "1e16", 2.0**53, "9007199254740993.0")]
    + [("boolean", value) for value in ("x", 2, "2", 0.5, "-1")],
)
def test_what_is_no_such_value_is_refused_alike_on_every_path(value_type: str, wrong: Any) -> None:
    registry = FeatureRegistry.of(features={"x": {"type": "categorical", "value_type": value_type}})
    messages = []
    for path in (
        lambda: encode(pl.DataFrame({"x": [None, wrong]}), registry),
        lambda: encode_values({"x": [None, wrong]}, registry, 2),
    ):
        with pytest.raises(ValueError, match="column 'x': expected") as caught:
            path()
        messages.append((str(caught.value), getattr(caught.value, "row", None)))
    assert messages[0] == messages[1]
    assert messages[0][1] == 1


def test_a_registry_without_the_later_settings_keeps_its_fingerprint() -> None:
    registry = FeatureRegistry.of(features={"a": "categorical", "b": "numeric", "c": "categorical_list"})
    assert not {"value_type", "decimal", "csv", "label_rule"} & set(registry.to_json().replace('"', " ").split())
    assert registry.fingerprint() == "59a09c875582de5052658be3692e7b8d"
