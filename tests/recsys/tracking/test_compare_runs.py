"""`muxrec compare`: which runs are one row, what their spread and their difference are, and the page."""

import io
import json
import re
import statistics
from html.parser import HTMLParser

import pytest
from rich.console import Console

from features.errors import InputError
from recsys.cli.options import console, wide
from recsys.report.text import result_table
from recsys.tracking.compare_page import LOCAL_UI, comparison_page
from recsys.tracking.compare_runs import (
    RunComparison,
    TrackedRun,
    as_plain,
    compare_runs,
    compared_columns,
    figure_text,
    runs_table,
    settings_of,
)
from recsys.tracking.store import ui_address
from recsys.tracking.tracker import Tracker

DATA = "d1"


def run_of(number: int, auc: float | None, *, seed: int = 1, status: str = "FINISHED", **params: str) -> TrackedRun:
    """A made-up run; `auc` is that of test, and validation is ahead of it by 0.01."""
    tags = {"stage": params.pop("stage", "train"), "dataset.digest": params.pop("data", DATA)}
    metrics = {} if auc is None else {"test/auc": auc, "val/auc": auc + 0.01, "perf/bundle_bytes": 1000.0 * number}
    return TrackedRun(
        run_id=f"{number:032x}",
        experiment_id="7",
        name=params.pop("name", "run"),
        status=status,
        started=number,
        params={"seed": str(seed), "name": "run", **params},
        metrics=metrics,
        tags=tags,
    )


def compared(*runs: TrackedRun, baseline: str | None = None) -> RunComparison:
    return compare_runs("films", "7", runs, baseline)


# Rows


def test_runs_that_differ_in_their_seed_are_one_row():
    runs = [run_of(seed, 0.7 + 0.01 * seed, seed=seed, width="4") for seed in (3, 1, 2)]
    other = run_of(9, 0.6, width="8")
    comparison = compared(*runs, other)
    first, second = comparison.rows
    assert [run.params["seed"] for run in first.runs] == ["1", "2", "3"]
    assert first.mean("test/auc") == pytest.approx(0.72)
    column = next(column for column in compared_columns() if column.metric == "test/auc")
    assert figure_text(first, column) == "0.7200 ± 0.0100"  # by hand: deviations -0.01, 0, 0.01 over n - 1 = 2
    assert figure_text(second, column) == "0.6000"
    assert list(comparison.rows[0].settings) == ["width"]
    assert settings_of(second) == ["  width=8"]


def test_the_same_run_twice_counts_once_and_the_last_one():
    (row,) = compared(run_of(2, 0.8), run_of(1, 0.7)).rows
    assert [run.run_id for run in row.runs] == [f"{2:032x}"]


def test_other_data_are_another_row_and_are_not_tested_against():
    mine, theirs = run_of(1, 0.7, name="mine"), run_of(2, 0.8, name="theirs", data="d2")
    comparison = compared(mine, theirs, baseline="mine")
    assert [row.name for row in comparison.rows] == ["theirs", "mine"]
    assert comparison.difference(comparison.rows[0]) is None
    assert [row.settings for row in comparison.rows] == [{"dataset digest": "d2"}, {"dataset digest": "d1"}]


def test_rows_come_by_validation_and_not_by_test():
    flattered = run_of(1, 0.9, width="1")._replace(metrics={"val/auc": 0.6, "test/auc": 0.9})
    assert [row.settings["width"] for row in compared(flattered, run_of(2, 0.7, width="2")).rows] == ["2", "1"]


def test_runs_without_an_end_and_sweeps_are_no_rows():
    runs = [run_of(1, 0.7), run_of(2, 0.7, seed=2, status="KILLED"), run_of(3, None, status="RUNNING", seed=3)]
    comparison = compared(*runs, run_of(4, 0.9, stage="sweep"))
    assert len(comparison.rows) == 1
    assert comparison.num_unfinished == 2
    with pytest.raises(InputError, match=r"films.*found 2 runs, none finished"):
        compared(*runs[1:])
    with pytest.raises(InputError, match="found no runs"):
        compared()


def test_a_run_without_params_is_a_row_too():
    foreign = run_of(1, 0.8)._replace(params={})
    comparison = compared(foreign, run_of(2, 0.7, width="4"))
    assert [row.name for row in comparison.rows] == [foreign.name, "run"]
    assert comparison.rows[0].settings == {"width": ""}


# Significance


def test_the_difference_is_tested_by_welch_over_seeds():
    """By hand: means 2 and 4, variances 1 and 4, n = 3: t = 2 / sqrt(5/3), 2.94 degrees of freedom, p = 0.2207."""
    ours = [run_of(seed, value, seed=seed, width="4") for seed, value in enumerate((1.0, 2.0, 3.0), 1)]
    theirs = [run_of(seed + 5, value, seed=seed, width="8") for seed, value in enumerate((2.0, 4.0, 6.0), 1)]
    comparison = compared(*ours, *theirs, baseline=ours[0].run_id[:32])
    ahead, base = comparison.rows
    assert comparison.baseline is base
    difference = comparison.difference(ahead)
    assert difference is not None
    assert difference.auc == pytest.approx(2.0)
    assert difference.p == pytest.approx(0.2207, abs=5e-4)
    assert comparison.difference(base) is None


def test_one_seed_has_a_difference_and_no_p():
    comparison = compared(run_of(1, 0.7, name="a"), run_of(2, 0.75, name="b", width="1"), baseline="a")
    difference = comparison.difference(comparison.rows[0])
    assert difference is not None
    assert difference.auc == pytest.approx(0.05)
    assert difference.p is None


def test_without_a_test_split_validation_is_what_is_tested():
    only_valid = run_of(1, 0.7)._replace(metrics={"val/auc": 0.71})
    assert compared(only_valid, run_of(2, 0.7, width="1")).metric == "val/auc"


@pytest.mark.parametrize(("wanted", "found"), [("nobody", "none of the rows"), ("run", "2 rows of that name")])
def test_a_baseline_has_to_be_one_row(wanted, found):
    with pytest.raises(InputError, match=f"expected one run '{wanted}' as the baseline; found {found}"):
        compared(run_of(1, 0.7), run_of(2, 0.7, width="1"), baseline=wanted)


def test_the_name_of_a_run_wins_over_the_beginning_of_an_id():
    other = run_of(1, 0.7, name="b")._replace(run_id="a" * 32)
    comparison = compared(other, run_of(2, 0.75, name="a", width="1"), baseline="a")
    assert comparison.baseline is not None
    assert comparison.baseline.name == "a"


# The page


class Page(HTMLParser):
    """Rows of cells, links, and what a page would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.values: list[list[str]] = []
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        own = dict(attrs)
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
            self.values.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self.values[-1].append(own.get("data-value") or "")
        elif tag == "a":
            self.links.append(own["href"] or "")
        self.fetched += [own[name] or "" for name in ("src", "srcset", "data") if name in own]
        self.fetched += [own["href"] or ""] if tag in ("link", "base", "image", "use") else []

    def handle_data(self, data: str) -> None:
        if (self.rows and "td" in self.open) or "th" in self.open:
            self.rows[-1][-1] += data.replace("\u200b", "")

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass


def test_the_page_has_every_row_and_fetches_nothing():
    runs = [run_of(seed, 0.7 + seed / 100, seed=seed, width="4") for seed in (1, 2)]
    text = comparison_page(compared(*runs, run_of(5, 0.6, width="8", name="small"), baseline="small"))
    page = Page(text)
    *folded, head, first, second = page.rows
    assert folded == [["dataset digest", "d1"]]
    assert head[1:] == ["run", "valid AUC", "test AUC", "bundle kB", "difference", "p", "seeds", "width"]
    assert first[2:7] == ["0.7250 ± 0.0071", "0.7150 ± 0.0071", "2", "+0.1150", ""]
    assert first[7:] == ["1 2", "4"]
    assert float(page.values[2][head.index("test AUC")]) == pytest.approx(0.715)
    assert second[5:7] == ["baseline", ""]
    assert {"1", "2"} <= {text for *_, text in texts_of(text)}  # the rows' numbers, beside their points
    assert [first[0], second[0]] == ["1", "2"]
    assert page.fetched == []
    assert "url(" not in text
    assert "@import" not in text
    assert "default-src 'none'" in text
    for run in (*runs, run_of(5, 0.6)):
        assert f"{LOCAL_UI}/#/experiments/7/runs/{run.run_id}?workflowType=machine_learning" in page.links
    assert all(link.startswith(LOCAL_UI) for link in page.links)


def test_the_figure_shows_quality_against_bytes():
    text = comparison_page(compared(run_of(1, 0.6, width="1"), run_of(100, 0.7, width="2")))
    places = [(float(x), float(y)) for x, y in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', text)]
    large, small = places  # by validation AUC
    assert small[0] < large[0]
    assert large[1] < small[1]  # the better one is further up
    assert "<svg" not in comparison_page(compared(run_of(1, 0.6)))  # one size shows nothing


def test_what_is_chosen_by_comes_first_and_what_is_equal_is_folded_away():
    own = run_of(1, 0.7, width="1", depth="3", l2="0")
    metrics = {**own.metrics, "test/logloss": 0.5, "test/ece": 0.01, "perf/table_bytes": 9.0}
    text = comparison_page(compared(own._replace(metrics=metrics), run_of(2, 0.6, width="2", depth="3", l2="0")))
    folded, _, rest = text.partition("</details>")
    rows = Page(rest).rows
    assert rows[0][1:] == [
        *("run", "valid AUC", "test AUC", "log loss", "bundle kB", "ECE", "table kB", "seeds", "width"),
    ]
    assert Page(folded.partition("<details>")[2]).rows == [["dataset digest", "d1"], ["depth", "3"], ["l2", "0"]]
    alone = Page(comparison_page(compared(run_of(1, 0.7, width="1")))).rows
    assert ["width", "1"] in alone  # of a single row every setting is equal
    assert alone[-2][-1] == "seeds"


def texts_of(page: str) -> list[tuple[float, float, float, str]]:
    """Texts of the figure as boxes of letters: left, right, height of the line, text."""
    found = []
    pattern = r'<text x="([-\d.]+)" y="([-\d.]+)" text-anchor="(\w+)">([^<]*)</text>'
    for x, y, side, text in re.findall(pattern, page):
        width = 6.0 * len(text)
        left = float(x) - {"start": 0.0, "middle": width / 2, "end": width}[side]
        found.append((left, left + width, float(y), text))
    return found


@pytest.mark.parametrize(("count", "least"), [(2, 2), (5, 5), (12, 12), (50, 30)])
def test_the_figure_has_axes_with_round_ticks_and_no_text_over_another(count, least):
    """Points in columns of equal size, two of them always close together."""
    runs = [
        run_of(10 * 2 ** (k % 4), 0.7 + 0.003 * (k // 2) + 0.0002 * k, name=f"run {k}", width=str(k))
        for k in range(count)
    ]
    runs = [run._replace(run_id=f"{k:032x}") for k, run in enumerate(runs)]
    page = comparison_page(compared(*runs))
    texts = texts_of(page)
    sizes = [text for *_, text in texts if text.endswith(" kB")]
    assert len(sizes) >= 2
    assert len([text for *_, text in texts if re.fullmatch(r"0\.\d+", text)]) >= 3
    assert all(re.fullmatch(r"[1-9](\.[1-9])?0* kB|[1-9]\d kB", text) for text in sizes)
    assert page.count('class="grid"') >= 5
    assert "size of the bundle" in page
    assert "test AUC</text>" in page
    assert sum(text.isdigit() for *_, text in texts) >= least
    for number, (left, right, line, _) in enumerate(texts):
        assert left >= 0
        assert right <= 920
        for other in texts[:number]:
            assert right <= other[0] or other[1] <= left or abs(line - other[2]) >= 9, (texts[number], other)


def test_bytes_of_no_account_are_no_difference():
    large = run_of(9, 0.7, width="9")
    nearly = run_of(1, 0.7, width="1")._replace(metrics={**large.metrics, "perf/bundle_bytes": 9001.0})
    assert "<svg" not in comparison_page(compared(nearly, large))


def test_names_cannot_write_into_the_page():
    evil = '<script>alert(1)</script>" onload="x'
    both = {evil: evil, "name": evil}
    runs = run_of(1, 0.7, width=evil, **both), run_of(20, 0.6, seed=2, **both)
    text = comparison_page(compared(*runs, baseline=runs[0].run_id))
    assert "<svg" in text
    assert "<script>alert" not in text
    assert 'onload="x' not in text
    assert text.count("<script>") == 1
    assert evil in "".join(cell for row in Page(text).rows for cell in row)


def test_the_ui_is_the_tracking_server_without_its_password(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@track.example:8443/ml")
    assert ui_address() == "https://track.example:8443/ml"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:secret@db/ml")
    assert ui_address() == LOCAL_UI


def test_the_terminal_says_what_was_left_out():
    table = runs_table(compared(run_of(1, 0.7), run_of(2, None, seed=2, status="FAILED")))
    assert "1 unfinished runs are left out" in str(table.title)
    assert table.row_count == 1


@pytest.mark.parametrize("width", [80, 100, 120, 160])
@pytest.mark.parametrize("baseline", ["a long name of a run", None])
def test_no_figure_is_cut_off_in_a_narrow_terminal(width, baseline):
    """Columns that do not fit are left out from the right, and the AUCs stay."""
    more = {"test/logloss": 0.5123, "perf/samples_per_s": 123_456.0, "perf/score_ms": 0.25}
    runs = [run_of(k, 0.7 + k / 777, seed=k % 3, width=str(k // 3), name="a long name of a run") for k in range(6)]
    runs = [
        run._replace(metrics={**run.metrics, **more}, name=f"{run.name}{' b' * (k // 3)}") for k, run in enumerate(runs)
    ]
    written = io.StringIO()
    Console(width=width, file=written).print(runs_table(compared(*runs, baseline=baseline), width))
    text = written.getvalue()
    shown = text.replace("\n", " ")
    assert "…" not in text
    assert ("0.2" in shown) >= (width == 160)
    table = text.partition("run ")[2].splitlines()
    assert max(len(line.rstrip()) for line in table) <= width
    assert re.search(r"AUC +AUC", shown)
    assert shown.count("±") >= 4
    assert (baseline is None) or ("difference" in shown and re.search(r" p\b", table[0]))


def test_brackets_in_a_result_are_no_markup(capsys):
    """A path `[/x]` would be the end of a markup that nothing began, and `[red]` would vanish."""
    for terminal in (console, wide(console)):
        terminal.print(result_table({"out": "a[/x]", "found": {"user[red]": 1}}))
        shown = capsys.readouterr().out
        assert "a[/x]" in shown
        assert "user[red]" in shown


# The command


@pytest.fixture
def store(tmp_path, monkeypatch) -> None:
    """A store with two experiments; `films` has three runs in two rows."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'store.db'}")
    for name, seed, width, auc in (("a", 1, 4, 0.7), ("a", 2, 4, 0.8), ("b", 1, 8, 0.6)):
        tracker = Tracker.start(experiment="films", name=name, tags={"stage": "train"}, key=f"{name}{seed}")
        tracker.client.log_param(tracker.run_id, "seed", seed)
        tracker.client.log_param(tracker.run_id, "width", width)
        tracker.log_metrics({"val/auc": auc, "test/auc": auc, "test/logloss": 0.5}, step=3)
        tracker.finish()


@pytest.mark.slow
def test_the_command_compares_an_experiment(store, muxrec, tmp_path):
    result = muxrec("compare", "--baseline", "b", "--json")  # the only experiment needs no name
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert [(row["name"], row["seeds"]) for row in found["rows"]] == [("a", 2), ("b", 1)]
    figures = found["rows"][0]["figures"]["test/auc"]
    assert figures["mean"] == pytest.approx(0.75)
    assert figures["spread"] == pytest.approx(statistics.stdev([0.7, 0.8]))
    assert found["rows"][0]["difference"]["auc"] == pytest.approx(0.15)
    shown = muxrec("compare", "films", "--out", tmp_path / "page.html")
    assert shown.code == 0, shown.err
    assert "0.7500 ± 0.0707" in shown.out
    assert len(Page((tmp_path / "page.html").read_text()).rows) == 3

    wrong = muxrec("compare", "film")
    assert wrong.code == 2
    assert wrong.err == (
        "muxrec: expected the name of an experiment; found 'film'; use one of films, Default\n"
    ) or wrong.err == ("muxrec: expected the name of an experiment; found 'film'; use one of Default, films\n")
    assert muxrec("compare", "a", "b", "c").code == 2


def test_plain_values_are_json():
    found = as_plain(compared(run_of(1, 0.7, name="a"), run_of(2, 0.75, name="b", width="1"), baseline="a"))
    assert json.loads(json.dumps(found)) == found
    assert found["rows"][0]["difference"] == {"auc": pytest.approx(0.05), "p": None}
