"""Labels in drafts: the column, the values that are 1, and the message if they are not clear."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from features.dataset.prepare import prepare
from features.errors import InputError
from features.infer.draft import draft_registry, infer_registry
from features.registry import FeatureRegistry
from tests.features.infer.drafts import draft_of

NUM_ROWS = 600
RANDOM = np.random.default_rng(11)


def choice(*values, share: float | None = None) -> list:
    """Random values; the first of them in `share` of the rows."""
    rest = [(1 - (share or 0)) / (len(values) - 1)] * (len(values) - 1)
    picked = RANDOM.choice(len(values), NUM_ROWS, p=None if share is None else [share, *rest])
    return [values[n] for n in picked]


def hotel() -> dict[str, list]:
    """Columns of the public set of hotel reservations."""
    return {
        "Booking_ID": [f"INN{n:05d}" for n in range(NUM_ROWS)],
        "no_of_adults": choice(1, 2, 3),
        "type_of_meal_plan": choice("Meal Plan 1", "Meal Plan 2", "Not Selected"),
        "required_car_parking_space": choice(1, 0, share=0.03),
        "arrival_year": choice(2017, 2018),
        "arrival_month": choice(*range(1, 13)),
        "arrival_date": choice(*range(1, 32)),
        "market_segment_type": choice("Online", "Offline"),
        "repeated_guest": choice(1, 0, share=0.03),
        "avg_price_per_room": RANDOM.gamma(9, 11, NUM_ROWS).tolist(),
        "booking_status": choice("Canceled", "Not_Canceled", share=0.33),
    }


def shop(yes: str, no: str) -> dict[str, list]:
    """Columns of the public set of online shoppers."""
    return {
        "Administrative_Duration": RANDOM.exponential(80, NUM_ROWS).tolist(),
        "Month": choice("Feb", "Mar", "May", "June"),
        "OperatingSystems": choice(*range(1, 9)),
        "VisitorType": choice("Returning_Visitor", "New_Visitor"),
        "Weekend": choice(yes, no, share=0.23),
        "Revenue": choice(yes, no, share=0.15),
    }


def others(**columns: list) -> dict[str, list]:
    """Columns that are no labels, around one of them."""
    return {
        "gender": choice("M", "F"),
        "smoker": choice("yes", "no"),
        **columns,
        "is_member": choice(0, 1),
        "marital_status": choice("Married", "Single"),
        "prev_click": choice(0, 1),
        "size": choice(*range(40)),
    }


CANCELED = (
    "label: {column: booking_status, positive: [Canceled]} # by its name and its values; 'Canceled' is 1, by its "
)
LABELS: dict[str, tuple[dict[str, list], str, str, str]] = {  # columns, the line, the label's column, what is 1 there
    "hotel": (
        hotel(),
        f"{CANCELED}meaning (to turn it round, `positive: [Not_Canceled]`)",
        "booking_status",
        "Canceled",
    ),
    "shop of R": (shop("TRUE", "FALSE"), "label: Revenue # by its name and its values; ", "Revenue", "true"),
    "shop of words": (shop("Yes", "No"), "label: Revenue # by its name and its values; ", "Revenue", "yes"),
    "signs": (others(label=choice(-1, 1)), "label: label # by its name; ", "label", "1"),
    "letters": (others(clicked=choice("t", "f")), "label: clicked # by its name; ", "clicked", "t"),
    "large letters": (others(churn=choice("Y", "N")), "label: churn # by its name and its values; ", "churn", "y"),
    "signs as text": (others(y=choice("-1", "1")), "label: y # by its name; ", "y", "1"),
    "floats": (others(Survived=choice(0.0, 1.0)), "label: Survived # by its name", "Survived", "1"),
    "above": (others(income=choice("<=50K", ">50K")), "label: {column: income, positive: ['>50K']}", "income", ">50k"),
    "unsubscribed": (
        others(outcome=choice("subscribed", "unsubscribed")),
        "label: {column: outcome, positive: [subscribed]}",
        "outcome",
        "subscribed",
    ),
    "rarer": (
        others(target=choice("b", "a", share=0.2)),
        "label: {column: target, positive: [b]} # by its name; 'b' is 1, A GUESS: the rarer (to turn it round, "
        "`positive: [a]`)",
        "target",
        "b",
    ),
    "numbers": (
        others(target=choice(1, 2)),
        "label: {column: target, at_least: 2} # by its name; 2 or more",
        "target",
        "2",
    ),
    "yes": (
        others(**{"Attrition, all": choice("Yes, he left", "No")}),
        "label: {column: 'Attrition, all', positive: ['Yes, he left']}",
        "Attrition, all",
        "yes, he left",
    ),
    "status": (
        {**others(), "loan_status": choice("Approved", "Rejected")},
        "positive: [Approved]",
        "loan_status",
        "approved",
    ),
}


@pytest.mark.parametrize("kind", ["parquet", "csv"])
@pytest.mark.parametrize("case", LABELS)
def test_the_true_label_is_named_and_prepared(tmp_path: Path, case: str, kind: str):
    columns, line, name, one = LABELS[case]
    draft = draft_of(tmp_path, pl.DataFrame(columns), kind)
    assert line in " ".join(draft.splitlines()[1].split())
    assert f"\n  {name}:" not in draft  # no feature
    texts = (
        pl.Series(columns[name]).cast(pl.Int64 if case == "floats" else pl.String).cast(pl.String).str.to_lowercase()
    )
    rate = (texts == one.lower()).mean()
    assert isinstance(rate, float)
    assert f"; {rate:.2%} ones" in draft.splitlines()[1]
    info = prepare(
        FeatureRegistry.from_yaml(tmp_path / "draft.yaml"), {"train": [tmp_path / f"a.{kind}"]}, tmp_path / "out"
    )
    assert sum(split.rows * split.label_rate for split in info.splits.values()) / NUM_ROWS == pytest.approx(rate)


@pytest.mark.parametrize(
    ("values", "threshold"),
    [
        ([1, 2, 3, 4, 5], 4),
        ([0.5 * n for n in range(1, 11)], 4),
        (list(range(1, 11)), 8),
        ([1.0, 2.0, 5.0], 4),
        ([1, 2, 3], 3),
    ],
)
@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_ratings_become_labels_by_a_threshold(tmp_path: Path, values: list, threshold: int, kind: str):
    columns = {
        "userId": choice(*range(50)),
        "movieId": choice(*range(90)),
        "gender": choice("F", "M"),
        "rating": choice(*values),
    }
    draft = draft_of(tmp_path, pl.DataFrame(columns), kind)
    rate = float(np.mean(np.array(columns["rating"]) >= threshold))
    line = (
        f"label: {{column: rating, at_least: {threshold}}} # a rating, by its name and its values; {threshold} or more"
    )
    assert line in " ".join(draft.splitlines()[1].split())
    assert f"{rate:.2%} ones" in draft.splitlines()[1]
    info = prepare(
        FeatureRegistry.from_yaml(tmp_path / "draft.yaml"), {"train": [tmp_path / f"a.{kind}"]}, tmp_path / "out"
    )
    assert sum(split.rows * split.label_rate for split in info.splits.values()) / NUM_ROWS == pytest.approx(rate)


def label_line(tmp_path: Path, columns: dict[str, list], **options) -> str:
    return " ".join(draft_of(tmp_path, pl.DataFrame(columns), **options).splitlines()[1].split())


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"a": ["x", "y"] * 9, "Clicked": [0, 1] * 9}, "label: Clicked # by its name; 50.00% ones"),
        (
            {"a": ["x", "y", "z"] * 6, "seen": [True, False, False] * 6},
            "label: seen # the only column of false and true; 33.3",
        ),
        ({"a": ["x", "y", "z"] * 6, "b": [1, 0, 0] * 6}, "label: b # the only column of 0 and 1; 33.33% ones"),
        (
            {"a": ["x", "y", "z"] * 6, "b": ["Yes", "No", "No"] * 6},
            "label: b # the only column of no and yes; 33.33% ones",
        ),
        ({"a": ["x", "y", "z"] * 6, "label": ["1", "0", "0"] * 6}, "label: label # by its name; 33.33% ones"),
        (
            {"a": [0, 1] * 9, "b": [1, 0] * 9},
            "label: label # NOT FOUND: draft again with `--label COLUMN`; it may be 'a', 'b'",
        ),
        (
            {"a": [0, 2] * 9},
            "# NOT FOUND: draft again with `--label COLUMN`; no column holds 0 and 1 alone; of two values are 'a'",
        ),
        (
            {"a": ["x", "y", "z"] * 6, "gender": ["M", "F"] * 9},
            "# NOT FOUND: draft again with `--label COLUMN`; no column holds 0 and",
        ),
        (
            {"a": ["x", "y", "z"] * 6, "vip": ["yes", "no"] * 9, "b": ["u", "v"] * 9},
            "# NOT FOUND: draft again with `--label COLUMN`; it may",
        ),
        (
            {"rating": [1, 2, 5] * 6, "vip": [0, 1] * 9},
            "# NOT FOUND: draft again with `--label COLUMN`; it may be 'vip', 'rating'",
        ),
        (
            {"avg_rating": [1, 2, 5] * 6, "b": ["x", "y", "z"] * 6},
            "# NOT FOUND: draft again with `--label COLUMN`; no column holds",
        ),
        (
            {"c": range(18), "Churn": [0, 1] * 9, "Survived": [1, 0] * 9, "d": range(18)},
            "`--label COLUMN`; it may be 'Churn', 'Survived'",
        ),
        (
            {"a": ["x", "y"] * 9, "label": [1, 5, 7] * 6},
            "# NOT FOUND: label holds 3 values (1, 5, 7); write `{column: label, ",
        ),
        (
            {"a": ["x", "y"] * 9, "y": [1.0, None] * 9},
            "# NOT FOUND: y holds 1 values (1); write `{column: y, at_least: NU",
        ),
        ({"a": ["x", "y", "z"] * 6, "click": [1, None, 0] * 6}, "50.00% ones; 33.3% MISSING: drop those rows"),
        ({"a": ["x", "y"] * 9, "click": [1, 0] * 9, "label": [0, 7] * 9}, "label: click # by its name; 50.00% ones"),
    ],
)
def test_what_counts_as_evidence(tmp_path: Path, columns: dict[str, list], expected: str):
    assert expected in label_line(tmp_path, columns)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("buy", "label: buy # as asked for; 66.67% ones"),
        (
            "rating",
            "label: {column: rating, at_least: 4} # as asked for; 4 or more is 1, the rest 0 (choose the threshold); ",
        ),
        ("spelled", "label: spelled # as asked for; 66.67% ones"),
        ("kind", "label: {column: kind, positive: [b]} # as asked for; 'b' is 1, A GUESS: the rarer"),
        ("sex", "label: {column: sex, positive: [Female]} # as asked for; 'Female' is 1, A GUESS: the rarer"),
        ("stay", "label: {column: stay, positive: [Canceled]} # as asked for; 'Canceled' is 1, by its meaning"),
        (
            "price",
            "label: price # as asked for; BUT it holds 18 values (0, 1, 2, 3, 4, ...): write `{column: price, ",
        ),
        ("tags", "label: tags # as asked for; BUT it holds List(String): write "),
    ],
)
def test_the_label_may_be_given(tmp_path: Path, name: str, expected: str):
    columns = {
        "a": ["x", "y"] * 9,
        "click": [0, 1] * 9,
        "buy": [1, 1, 0] * 6,
        "rating": [1, 2, 5] * 6,
        "kind": ["a", "a", "b"] * 6,
    }
    columns |= {"stay": ["Canceled", "No-Show", "Check-Out"] * 6, "price": range(18), "tags": [["u"]] * 18}
    columns |= {"sex": ["Male", "Male", "Female"] * 6, "spelled": ["YES", "Yes", "no"] * 6}
    assert expected in label_line(tmp_path, columns, label=name)
    with pytest.raises(InputError, match=r"a\.parquet: expected a column 'nope'; found columns a, click, buy, rating"):
        draft_registry(tmp_path / "a.parquet", label="nope")


def test_spellings_and_frames():
    frame = pl.DataFrame({"a": ["x", "y", "z"] * 6, "b": ["YES", "Yes", "no"] * 6})
    assert "  # the only column of no and yes; 66.67% ones" in draft_registry(frame)
    registry = infer_registry(pl.DataFrame(hotel()))
    assert registry.label == "booking_status"
    info = registry.to_json()
    assert FeatureRegistry.from_json(info) == registry
    assert "Canceled" in info
