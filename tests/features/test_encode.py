"""Encoding: a batch equals its rows, columns may be missing, and all feature types have the same properties."""

import numpy as np
import polars as pl
import pytest

from features.encode import EncodedBatch, encode, encode_frame
from features.errors import InputError
from features.hashing import MISSING_TOKEN, hash_text
from features.registry import FeatureRegistry
from features.spec import FEATURE_TYPES, NumericFit

REGISTRY = FeatureRegistry.of(
    features={
        "price": {"type": "numeric", "transform": "standardize", "fitted": {"mean": 2, "std": 4}},
        "user": "categorical",
        "tags": "categorical_list",
        "words": {"type": "categorical_list", "separator": " "},
        "age": {"type": "numeric", "transform": "log_square"},
        "stock": {"type": "numeric", "transform": "log1p"},
    }
)
RAW = pl.DataFrame(
    {
        "stock": [0, 5, None, 70],
        "tags": [["x", "y"], None, [], ["z"]],
        "user": ["u", "", None, "v"],
        "words": ["a b c", "", None, "d"],
        "age": [1.0, None, 30.0, 2.5],
        "price": [2.0, float("nan"), 10.0, None],
        "unused": ["?", "?", "?", "?"],
    }
)


def token(text: str) -> int:
    return hash_text(text)


def test_a_batch_by_hand():
    batch = encode(RAW, REGISTRY)
    assert batch.num_examples == 4
    assert list(batch.tokens) == ["user", "tags", "words", "age"]
    assert batch.tokens["user"].tolist() == [token("u"), token(""), MISSING_TOKEN, token("v")]
    assert batch.tokens["tags"].tolist() == [token("x"), token("y"), MISSING_TOKEN, token("z")]
    assert batch.tokens["words"].tolist() == [token("a"), token("b"), token("c"), MISSING_TOKEN, token("d")]
    assert batch.tokens["age"].tolist() == [token("1"), MISSING_TOKEN, token("11"), token("0")]
    assert {name: lengths.tolist() for name, lengths in batch.lengths.items()} == {
        "tags": [2, 1, 0, 1],
        "words": [3, 0, 1, 1],
    }
    expected = [[0, 0], [0, np.log(6)], [2, 0], [0, np.log(71)]]
    np.testing.assert_allclose(batch.dense, np.array(expected, dtype=np.float32), rtol=1e-6)


def test_arrays_have_the_types_that_torch_and_onnx_take():
    batch = encode(RAW, REGISTRY)
    assert all(tokens.dtype == np.uint64 for tokens in batch.tokens.values())
    assert all(lengths.dtype == np.int64 for lengths in batch.lengths.values())
    assert batch.dense.dtype == np.float32
    assert batch.dense.flags.c_contiguous


def same(one: EncodedBatch, other: EncodedBatch) -> bool:
    return (
        one.num_examples == other.num_examples
        and all(np.array_equal(one.tokens[name], other.tokens[name]) for name in one.tokens)
        and all(np.array_equal(one.lengths[name], other.lengths[name]) for name in one.lengths)
        and np.array_equal(one.dense, other.dense)
    )


def joined(batches: list[EncodedBatch]) -> EncodedBatch:
    return EncodedBatch(
        num_examples=sum(batch.num_examples for batch in batches),
        tokens={name: np.concatenate([batch.tokens[name] for batch in batches]) for name in batches[0].tokens},
        lengths={name: np.concatenate([batch.lengths[name] for batch in batches]) for name in batches[0].lengths},
        dense=np.concatenate([batch.dense for batch in batches]),
    )


def test_a_batch_is_its_rows():
    assert same(encode(RAW, REGISTRY), joined([encode(RAW[row], REGISTRY) for row in range(len(RAW))]))


def test_rows_as_python_makes_them_are_the_same_rows():
    """A row of a request has no schema: a null column has type Null, and an integer may replace a float."""
    batches = [encode(pl.DataFrame([row]), REGISTRY) for row in RAW.to_dicts()]
    assert same(encode(RAW, REGISTRY), joined(batches))


def test_permuting_rows_permutes_the_lowered_frame():
    order = [2, 0, 3, 1]
    assert encode_frame(RAW[order], REGISTRY).equals(encode_frame(RAW, REGISTRY)[order])


def test_the_order_of_raw_columns_does_not_matter_and_the_registry_decides():
    encoded = encode_frame(RAW.select(sorted(RAW.columns)), REGISTRY)
    assert encoded.columns == [feature.name for feature in REGISTRY.features]
    assert encoded.equals(encode_frame(RAW, REGISTRY))


def test_a_missing_column_is_refused_or_reads_as_missing():
    with pytest.raises(
        InputError, match="expected a column 'user'; found columns stock, tags, words, age, price, unused"
    ):
        encode(RAW.drop("user"), REGISTRY)
    partial = encode(RAW.drop("user", "tags", "price"), REGISTRY, allow_missing=True)
    columns = [
        pl.Series("user", [None] * 4, dtype=pl.String),
        pl.Series("tags", [None] * 4, dtype=pl.List(pl.String)),
        pl.Series("price", [None] * 4, dtype=pl.Float64),
    ]
    assert same(partial, encode(RAW.with_columns(columns), REGISTRY))


def test_one_column_with_the_wrong_separator_gets_a_hint():
    with pytest.raises(InputError, match="found columns label;user; separate the fields by commas"):
        encode(pl.DataFrame({"label;user": ["1;u"]}), REGISTRY)


@pytest.mark.parametrize("raw", [pl.DataFrame(), RAW.clear(), pl.DataFrame({"other": pl.Series([], dtype=pl.Int64)})])
def test_no_rows(raw: pl.DataFrame):
    batch = encode(raw, REGISTRY, allow_missing=True)
    assert (batch.num_examples, batch.dense.shape) == (0, (0, 2))
    assert all(len(tokens) == 0 for tokens in batch.tokens.values())
    assert all(len(lengths) == 0 for lengths in batch.lengths.values())


def test_the_raw_frame_is_left_alone():
    before = RAW.clone()
    encode(RAW, REGISTRY, allow_missing=True)
    encode(RAW.drop("user"), REGISTRY, allow_missing=True)
    assert RAW.equals(before)
    assert RAW.columns == before.columns


def test_a_bad_value_is_refused():
    with pytest.raises(
        InputError, match="column 'user': expected categories: text, integers or booleans; found the num"
    ):
        encode(RAW.with_columns(user=pl.Series([1.0, 2.5, 3.0, 4.0])), REGISTRY)


# Every feature type with every kind of setting that changes its encoded form; a new type adds its lines.
VARIANTS = {
    "categorical": [{}],
    "categorical_list": [{}, {"separator": "|"}],
    "numeric": [
        {"transform": "none"},
        {"transform": "log1p"},
        {"transform": "log_square"},
        {"transform": "standardize", "fitted": NumericFit(mean=1.5, std=0.5)},
        {"transform": "bucketize", "fitted": NumericFit(mean=1.5, std=0.5, boundaries=(1.0, 2.0))},
    ],
}
VALUES = {"categorical": ["a", "b", None], "categorical_list": [["a"], [], None], "numeric": [1.25, -3.0, None]}
CASES = [(kind, number) for kind, variants in VARIANTS.items() for number in range(len(variants))]


def test_the_contract_covers_every_type():
    assert list(VARIANTS) == list(FEATURE_TYPES)


@pytest.fixture
def feature(request: pytest.FixtureRequest):
    kind, number = request.param
    return FEATURE_TYPES[kind](name="x", **VARIANTS[kind][number])


@pytest.fixture
def values(feature):
    if getattr(feature, "separator", None):
        return ["a|b", "", None]
    return VALUES[feature.type]


@pytest.mark.parametrize("feature", CASES, indirect=True)
class TestContract:
    """Properties of every feature type that training, batch scoring and serving rely on."""

    def registry(self, feature) -> FeatureRegistry:
        return FeatureRegistry(features=(feature,))

    def test_it_is_encoded_in_the_form_it_announces(self, feature, values):
        encoded = encode_frame(pl.DataFrame({"x": values}), self.registry(feature))
        assert encoded.columns == ["x"]
        assert encoded["x"].dtype in (pl.List(pl.UInt64), pl.UInt64, pl.Float32)
        assert encoded["x"].null_count() == 0
        assert feature.is_list == (encoded["x"].dtype == pl.List(pl.UInt64))
        assert feature.has_tokens == (encoded["x"].dtype != pl.Float32)

    def test_nulls_of_any_type_are_alike(self, feature, values):
        typed = pl.Series("x", values)[2:]
        assert typed.to_list() == [None]
        results = [
            encode_frame(pl.DataFrame({"x": column}), self.registry(feature))["x"].to_list()
            for column in (typed, pl.Series("x", [None], dtype=pl.Null))
        ]
        assert results[0] == results[1]
        (missing,) = results[0]
        assert missing == ([MISSING_TOKEN] if feature.is_list else MISSING_TOKEN if feature.has_tokens else missing)

    def test_a_null_column_alone_keeps_its_rows(self, feature, values):
        frame = pl.DataFrame({"x": pl.Series([None] * 5, dtype=pl.Null)})
        assert encode(frame, self.registry(feature)).num_examples == 5
        frame = pl.DataFrame({"other": [1] * 5})
        assert encode(frame, self.registry(feature), allow_missing=True).num_examples == 5

    def test_no_rows(self, feature, values):
        for column in (pl.Series("x", values).clear(), pl.Series("x", [], dtype=pl.Null)):
            encoded = encode_frame(pl.DataFrame({"x": column}), self.registry(feature))
            assert encoded.schema == encode_frame(pl.DataFrame({"x": values}), self.registry(feature)).schema
            assert len(encoded) == 0

    def test_it_lowers_row_by_row(self, feature, values):
        column = pl.Series("x", values)
        whole = encode_frame(pl.DataFrame({"x": column}), self.registry(feature))["x"].to_list()
        rows = [encode_frame(pl.DataFrame({"x": column[i : i + 1]}), self.registry(feature))["x"][0] for i in range(3)]
        assert whole == [row.to_list() if isinstance(row, pl.Series) else row for row in rows]

    def test_it_survives_json(self, feature, values):
        registry = self.registry(feature)
        assert FeatureRegistry.from_json(registry.to_json()).features == (feature,)

    def test_it_refuses_what_it_cannot_take_by_name(self, feature, values):
        with pytest.raises(InputError, match="column 'x': expected"):
            encode_frame(pl.DataFrame({"x": [{"a": 1}]}), self.registry(feature))
