"""The page of `muxrec drift`: its head, its pictures, and what moved."""

import re
from datetime import UTC, datetime

from serving.drift import Drift, DriftReport
from serving.drift_page import drift_page
from serving.moved import Moved


def report_of(*names: str, **about: object) -> DriftReport:
    """A made-up report of these features."""
    features = [
        Drift(
            name=name,
            psi=0.3,
            chance=0.01,
            unseen_psi=0.0,
            labels=["missing", "rare or new", name],
            expected=[0.0, 0.4, 0.6],
            actual=[0.0, 0.1, 0.9],
            missing=(0.0, 0.0),
            unseen=None,
            moved=[Moved(name, 0.9, 0.0, 0.6), Moved("x", 0.2, 0.1, 0.1), Moved("y", 0.0, 0.25, 0.5)],
        )
        for name in names
    ]
    known: dict = {"model": "mlp", "model_id": "0" * 16, "created_at": "2026-11-30T08:09:10+00:00", "dataset": "films"}
    known |= {"inputs": ["requests/*.csv"], "files": 31, "rows": 20, "training_rows": 6000}
    return DriftReport(**{**known, **about, "drift": features})


def test_the_page_says_what_was_compared_and_when():
    page = drift_page(report_of("user"), datetime(2026, 12, 1, 7, 30, tzinfo=UTC))
    text = " ".join(re.sub("<[^>]+>", " ", page.partition("<body>")[2]).split())
    for told in (
        "report written 2026-12-01 07:30 UTC",
        "rows compared 20, of requests/*.csv (files: 31)",
        "bundle written 2026-11-30 08:09 UTC",
        "trained on 6,000 rows of films",
        "moved most training now user below 60.0 % 90.0 % x 10.0 % 20.0 % y 25.0 to 50.0 % 0.0 %",
    ):
        assert told in text


def test_each_bin_has_a_bar_of_each_side():
    page = drift_page(report_of("user"))
    bars = [(kind, float(width)) for kind, width in re.findall(r'<div class="(\w+)" style="width:([0-9.]+)%"', page)]
    assert bars == [("expected", 44.4), ("actual", 11.1), ("expected", 66.7), ("actual", 100.0)]
    assert ">missing</td>" not in page, "a bin of nothing"
    assert "<td>60.00 %</td><td>90.00 %</td>" in page


def test_names_cannot_write_into_the_page():
    evil = '<script>alert(1)</script>" onload="x'
    page = drift_page(report_of(evil, inputs=[evil], dataset=evil, model=evil))
    assert "<script" not in page
    assert 'onload="x' not in page
    assert "default-src 'none'" in page
