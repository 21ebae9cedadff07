"""The layout of the table: the order of slots, their salts, and the rows that each kind of table gives them."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from features.errors import InputError
from features.hashing import salt
from features.layout import TableLayout
from features.registry import FeatureRegistry
from features.table_kinds import Slot, split_rows
from tests.rows import shares_of

FEATURES = {
    "user": "categorical",
    "price": "numeric",
    "genres": {"type": "categorical_list", "probes": 3, "pooling": "sum"},
    "age": {"type": "numeric", "transform": "bucketize", "key": "years"},
}
VIEWS = {"main": ("age", "user", "genres"), "fs2": ("genres",), "fs1": ("user", "age")}


def layout_of(features: dict, views: dict, **settings: Any) -> TableLayout:
    registry = FeatureRegistry.of(features=features, seed=settings.pop("seed", 0))
    return TableLayout.of(registry, **{"num_rows": 100, "width": 4, "probes": 2, **settings}, views=views)


def test_slots_stand_by_view_then_registry_order_then_probe():
    layout = layout_of(FEATURES, VIEWS)
    assert [(slot.view, slot.feature, slot.probe) for slot in layout.slots] == [
        ("main", "user", 0),
        ("main", "user", 1),
        ("main", "genres", 0),
        ("main", "genres", 1),
        ("main", "genres", 2),
        ("main", "age", 0),
        ("main", "age", 1),
        ("fs2", "genres", 0),
        ("fs2", "genres", 1),
        ("fs2", "genres", 2),
        ("fs1", "user", 0),
        ("fs1", "user", 1),
        ("fs1", "age", 0),
        ("fs1", "age", 1),
    ]
    assert layout.view_widths == {
        "main": {"user": 8, "genres": 12, "age": 8},
        "fs2": {"genres": 12},
        "fs1": {"user": 8, "age": 8},
    }
    assert layout.embedded_width == 14 * 4
    assert layout.pooling == {"genres": "sum"}
    assert layout.positions_of("age") == [5, 6, 12, 13]
    assert layout.salts_of("age").tolist() == [layout.slots[position].salt for position in (5, 6, 12, 13)]


def test_salts_are_those_of_the_contract():
    layout = layout_of(FEATURES, VIEWS, seed=9)
    keys = {"age": "years", "user": "user", "genres": "genres"}
    for slot in layout.slots:
        assert slot == Slot(
            slot.view, slot.feature, slot.probe, salt(9, keys[slot.feature], slot.view, slot.probe), 0, 100, 100
        )
    assert len({slot.salt for slot in layout.slots}) == len(layout.slots)


def test_more_than_ten_probes_stay_in_numeric_order():
    layout = layout_of({"a": "categorical", "b": "categorical"}, {"main": ("a", "b")}, probes=13)
    assert [slot.probe for slot in layout.slots] == [*range(13), *range(13)]
    assert [slot.feature for slot in layout.slots] == ["a"] * 13 + ["b"] * 13


def test_another_order_of_the_registry_moves_positions_but_no_salt():
    backwards = dict(reversed(FEATURES.items()))
    one, other = layout_of(FEATURES, VIEWS), layout_of(backwards, VIEWS)
    assert [slot.feature for slot in other.slots[:7]] == ["age", "age", "genres", "genres", "genres", "user", "user"]
    assert sorted(one.slots) == sorted(other.slots)
    assert one.salts_of("user").tolist() == other.salts_of("user").tolist()
    assert one.positions_of("user") != other.positions_of("user")


def test_json_round_trip_keeps_the_order_of_views_and_features():
    layout = layout_of(FEATURES, VIEWS)
    again = TableLayout.model_validate_json(layout.model_dump_json())
    assert again == layout
    assert again.slots == layout.slots


def test_a_registry_of_numbers_alone_reads_no_rows():
    layout = layout_of({"price": "numeric"}, {"main": ()})
    assert (layout.slots, layout.embedded_width, layout.view_widths) == ((), 0, {"main": {}})


@pytest.mark.parametrize("name", ["price", "nobody"])
def test_a_view_reads_token_features_alone(name: str):
    with pytest.raises(
        InputError, match=f"a view reads token features of the registry; found '{name}'; use some of user"
    ):
        layout_of(FEATURES, {"main": ("user", name)})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_rows": 0}, "num_rows must be between 1 and 2147483648; found 0"),
        ({"num_rows": 2**31 + 1}, "num_rows must be between 1 and 2147483648; found 2147483649"),
        ({"width": 0}, "width and probes must be positive; found width 0 and probes 2"),
        ({"probes": -1}, "found width 4 and probes -1"),
    ],
)
def test_impossible_sizes_are_refused(settings: dict[str, int], message: str):
    with pytest.raises(InputError, match=message):
        layout_of(FEATURES, VIEWS, **settings)


def test_the_largest_table_is_possible():
    assert layout_of(FEATURES, VIEWS, num_rows=2**31).num_rows == 2**31


def test_a_layout_cannot_be_changed():
    with pytest.raises(ValidationError):
        layout_of(FEATURES, VIEWS).num_rows = 3


# Kinds of tables


COUNTS = {"user": 60, "genres": 9, "age": 31, "price": 5}


def test_a_unified_layout_is_written_as_before_there_were_kinds():
    document = layout_of(FEATURES, VIEWS).model_dump(mode="json")
    assert set(document) == {"num_rows", "width", "seed", "views", "keys", "pooling"}
    golden = json.loads((Path(__file__).parents[1] / "golden/bundle/manifest.json").read_text())["layout"]
    layout = TableLayout.model_validate(golden)
    assert layout.kind == "unified"
    assert json.dumps(layout.model_dump(mode="json")) == json.dumps(golden)


def test_hashed_ranges_are_shares_of_the_table_in_output_order():
    """103 rows over (user 60, genres 9, age 31), (genres 9), (user 60, age 31): 200 values, so 0.515 rows per value."""
    layout = layout_of(FEATURES, VIEWS, probes=3, kind="hashed", num_rows=103, num_values=COUNTS)
    assert layout.ranges == {
        ("main", "user"): (0, 31),  # 30.9
        ("main", "genres"): (31, 5),  # 4.635
        ("main", "age"): (36, 16),  # 15.965
        ("fs2", "genres"): (52, 4),  # 4.635, and all rows are given away
        ("fs1", "user"): (56, 31),  # 30.9
        ("fs1", "age"): (87, 16),  # 15.965
    }
    assert {(slot.first_row, slot.num_rows) for slot in layout.slots if slot.feature == "user"} == {(0, 31), (56, 31)}
    assert layout.num_values == {"user": 60, "genres": 9, "age": 31}
    assert layout.salts_of("user").tolist() == layout_of(FEATURES, VIEWS, probes=3).salts_of("user").tolist()


def test_collisionless_rows_follow_from_the_values():
    features = {**FEATURES, "genres": "categorical_list"}
    layout = layout_of(features, VIEWS, probes=1, kind="collisionless", num_values=COUNTS)
    assert layout.num_rows == (62 + 11 + 33) + 11 + (62 + 33)
    assert layout.ranges["fs2", "genres"] == (106, 11)
    assert layout_of({"price": "numeric"}, {"main": ()}, kind="collisionless", num_values={}).num_rows == 1


@pytest.mark.parametrize("kind", ["hashed", "collisionless"])
def test_other_kinds_survive_json(kind: str):
    features = {**FEATURES, "genres": "categorical_list"}
    layout = layout_of(features, VIEWS, probes=1, kind=kind, num_values=COUNTS)
    again = TableLayout.model_validate_json(layout.model_dump_json())
    assert again == layout
    assert again.slots == layout.slots


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"kind": "cuckoo"},
            "expected a kind of table; found 'cuckoo'; use one of unified, hashed, collisionless, quot",
        ),
        ({"kind": "hashed", "num_rows": 5}, "a row for each feature and view; found 5; set embedding.num_rows to 6 or"),
        ({"kind": "hashed", "num_values": {"user": 1}}, "a hashed table needs num_values of its features; found user"),
        ({"kind": "hashed", "num_values": None}, "a hashed table needs num_values of its features; found none"),
        ({"kind": "collisionless"}, "read by one probe; found 2 of 'user'; set embedding.probes=1 and embedding.width"),
        ({"kind": "collisionless", "probes": 1}, "read by one probe; found 3 of 'genres'"),
        ({"kind": "collisionless", "probes": 1, "num_values": {**COUNTS, "user": 2**31}}, "num_rows must be between"),
    ],
)
def test_tables_that_a_kind_cannot_have(settings: dict, message: str):
    with pytest.raises(InputError, match=message):
        layout_of(FEATURES, VIEWS, **{"num_values": COUNTS, **settings})


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "other"},
        {"kind": "unified"},
        {"num_rows": 99},
        {"num_values": {"user": 60, "genres": 9}},
        {"num_values": {"user": -1, "genres": 9, "age": 31}},
        {"views": {"main": {"user": 2, "genres": 1, "age": 1}}},
    ],
)
def test_a_written_layout_that_contradicts_itself_is_refused(changes: dict):
    features = {**FEATURES, "genres": "categorical_list"}
    layout = layout_of(features, {"main": tuple(COUNTS)[:3]}, probes=1, kind="collisionless", num_values=COUNTS)
    document = layout.model_dump(mode="json")
    assert TableLayout.model_validate(document) == layout
    with pytest.raises(ValidationError):
        TableLayout.model_validate({**document, **changes})


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=12), st.integers(0, 10**6))
def test_rows_are_split_by_largest_remainder(counts: list[int], more: int):
    num_rows = len(counts) + more
    sizes = split_rows(num_rows, counts)
    assert sizes == shares_of(num_rows, counts)
    assert sum(sizes) == num_rows
    assert min(sizes) >= 1
    for one, other in itertools.combinations(range(len(counts)), 2):
        if counts[one] > counts[other]:
            assert sizes[one] >= sizes[other]
