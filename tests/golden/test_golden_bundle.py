"""One committed bundle that must load and score the same for ever: a change here is a change of the format."""

from pathlib import Path

import numpy as np
import pytest

from serving.bundle import Bundle
from serving.scorer import Scorer

BUNDLE = Path(__file__).parent / "bundle"
ROWS = [
    {"f00": "a", "f01": 1, "f02": None, "f03": "", "l00": "x|y", "x00": 1.5, "x01": -2, "x02": 30, "x03": 7},
    {"f00": "\u65e5\u672c"},
    {},
]
PROBABILITIES = [0.476292991, 0.364896744, 0.359535033]


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer(BUNDLE)


def test_it_opens_with_its_identity():
    assert Bundle.open(BUNDLE).model_id == "0849542c2b4c64bc"


def test_its_golden_rows_score_as_the_trainer_scored_them(scorer):
    assert scorer.verify() <= scorer.bundle.golden_tolerance


def test_these_rows_score_the_same_for_ever(scorer):
    tolerance = scorer.bundle.golden_tolerance
    np.testing.assert_allclose(scorer.score(ROWS, allow_missing=True), PROBABILITIES, rtol=0, atol=tolerance)


def test_it_names_no_machine():
    for path in BUNDLE.iterdir():
        content = path.read_bytes()
        assert b"site-packages" not in content
        assert str(Path.home()).encode() not in content
