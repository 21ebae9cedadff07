"""The layout of the table: the order of slots, and salts of their own for every view, feature and probe."""

import pytest
from pydantic import ValidationError

from features.errors import InputError
from features.hashing import salt
from features.layout import Slot, TableLayout
from features.registry import FeatureRegistry

FEATURES = {
    "user": "categorical",
    "price": "numeric",
    "genres": {"type": "categorical_list", "probes": 3, "pooling": "sum"},
    "age": {"type": "numeric", "transform": "bucketize", "key": "years"},
}
VIEWS = {"main": ("age", "user", "genres"), "fs2": ("genres",), "fs1": ("user", "age")}


def layout_of(features: dict, views: dict, **settings: int) -> TableLayout:
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
        assert slot == Slot(slot.view, slot.feature, slot.probe, salt(9, keys[slot.feature], slot.view, slot.probe))
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
