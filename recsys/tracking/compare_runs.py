"""`muxrec compare`: the finished runs of an MLflow experiment side by side; runs that differ only in seed are one row.

Rows are in order of validation AUC. Choose by that: the test figures of a model that was chosen by them are too good.
"""

import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from rich.table import Table

from features.errors import InputError
from recsys.evaluation.metrics import METRICS
from recsys.evaluation.significance import p_text, spread, welch
from recsys.report.text import rich_table
from recsys.tracking.store import (
    connect_existing,
    experiment_of_environment,
    refuse_deleted_experiment,
    shown_uri,
    store_errors,
    tracking_uri,
)

NOT_SETTINGS = ("name", "seed")
"""Params that may differ between the runs of one row."""
MIN_NAME, WIDE = 18, 130
"""Characters: the least for a run's name, and the width of a table whose means and spreads share a line."""
DATA = "dataset digest"
"""Name of the digest's first characters among the settings."""
NUM_SHOWN_SETTINGS = 4


class Column(NamedTuple):
    """A figure to compare runs by."""

    metric: str
    """Name in MLflow."""
    title: str
    digits: int
    """Decimals, in units of `scale`."""
    scale: float = 1.0
    is_short: bool = False
    """True for figures in the terminal's table."""
    higher_is_better: bool | None = False


LEAD = ("val/auc", "test/auc", "test/logloss", "perf/bundle_bytes")
"""Figures that come first, right after the name."""
COSTS = (
    Column("perf/table_bytes", "table kB", 0, 1e3),
    Column("perf/samples_per_s", "samples/s", 0, is_short=True, higher_is_better=True),
    Column("perf/score_ms", "row ms", 2, is_short=True),
    Column("perf/score_100_ms", "100\u00a0rows ms", 2),
)


def compared_columns() -> list[Column]:
    """Figures that rows are chosen by, the other metrics of the test split, and the costs."""

    def metric(name: str, title: str = "{}", *, is_short: bool = False) -> Column:
        one = METRICS[name.partition("/")[2]]
        return Column(name, title.format(one.title), one.digits, 1.0, is_short, one.higher_is_better)

    return [
        metric("val/auc", "valid {}", is_short=True),
        metric("test/auc", "test {}", is_short=True),
        metric("test/logloss", is_short=True),
        Column("perf/bundle_bytes", "bundle kB", 0, 1e3, is_short=True),
        *(metric(f"test/{name}") for name in METRICS if f"test/{name}" not in LEAD),
        *COSTS,
    ]


class TrackedRun(NamedTuple):
    """A run in the store."""

    run_id: str
    experiment_id: str
    name: str
    status: str
    """RUNNING, FINISHED, FAILED or KILLED."""
    started: int
    """Milliseconds since 1970."""
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    """Last value of each metric."""
    tags: Mapping[str, str]


class Row(NamedTuple):
    """Runs that differ in their seed alone."""

    name: str
    settings: Mapping[str, str]
    """Params that differ between rows."""
    data: str
    runs: tuple[TrackedRun, ...]

    def values(self, metric: str) -> list[float]:
        """The metric of every run that has it."""
        return [run.metrics[metric] for run in self.runs if metric in run.metrics]

    def setting_texts(self) -> list[str]:
        """`key=value` of each setting that has a value."""
        return [f"{key}={value}" for key, value in self.settings.items() if value]

    def mean(self, metric: str) -> float | None:
        """Mean over seeds; None if no run has the metric."""
        values = self.values(metric)
        return statistics.fmean(values) if values else None


class AucDifference(NamedTuple):
    """A row's AUC minus the baseline's."""

    auc: float
    p: float | None
    """P-value of Welch's t-test; None with a single seed on either side."""


class RunComparison(NamedTuple):
    """The rows of an experiment."""

    experiment: str
    experiment_id: str
    rows: tuple[Row, ...]
    baseline: Row | None
    num_unfinished: int
    """Runs that are left out, as they have no final figures."""
    shared: Mapping[str, str]
    """Params that are the same in all rows."""

    @property
    def metric(self) -> str:
        """The metric of the differences: test AUC, or validation AUC where a run has no test split."""
        return "test/auc" if all(row.values("test/auc") for row in self.rows) else "val/auc"

    def difference(self, row: Row) -> AucDifference | None:
        """Difference from the baseline; None for the baseline itself, for other data, and without a baseline."""
        if self.baseline is None or row is self.baseline or row.data != self.baseline.data:
            return None
        ours, theirs = row.values(self.metric), self.baseline.values(self.metric)
        return AucDifference(statistics.fmean(ours) - statistics.fmean(theirs), welch(ours, theirs))

    def columns(self) -> list[Column]:
        """Columns in which some row has a figure."""
        return [column for column in compared_columns() if any(row.values(column.metric) for row in self.rows)]

    def setting_keys(self) -> list[str]:
        """Params that differ between rows."""
        return list(dict.fromkeys(key for row in self.rows for key in row.settings))


def tracked_runs(experiment: str | None = None) -> tuple[str, str, list[TrackedRun]]:
    """Name, id and runs of an experiment; None: the one of `MLFLOW_EXPERIMENT_NAME`, or the store's only one.

    Raises `InputError` for a store that does not answer, an unknown experiment, and several to choose from.
    """
    uri = tracking_uri()
    client = connect_existing(uri)
    with store_errors(f"cannot list experiments in {shown_uri(uri)}"):
        known = {one.name: one.experiment_id for one in client.search_experiments()}
        named = experiment_of_environment(client, "") if experiment is None else None
    wanted = experiment or (named.name if named else os.environ.get("MLFLOW_EXPERIMENT_NAME"))
    if wanted is None:
        # MLflow makes "Default" in every store.
        known = {name: number for name, number in known.items() if name != "Default"} or known
        wanted = next(iter(known)) if len(known) == 1 else ""
    if wanted not in known:
        refuse_deleted_experiment(client.get_experiment_by_name(wanted) if wanted else None)
        found = repr(wanted) if wanted else f"{len(known)} experiments"
        raise InputError("expected the name of an experiment", found=found, remedy=f"use one of {', '.join(known)}")
    import mlflow

    runs: Any = mlflow.search_runs([known[wanted]], output_format="list")
    found = [
        TrackedRun(
            *(run.info.run_id, run.info.experiment_id, run.info.run_name or run.info.run_id),
            *(run.info.status, run.info.start_time, run.data.params, run.data.metrics, run.data.tags),
        )
        for run in runs
    ]
    return wanted, known[wanted], found


def compare_runs(
    experiment: str, experiment_id: str, runs: Iterable[TrackedRun], baseline: str | None = None
) -> RunComparison:
    """Group runs into rows; `baseline` is a run's name, its id or the beginning of its id.

    Raises `InputError` if no run has finished, and for a baseline that matches no row or several.
    """
    trained = [run for run in runs if run.tags.get("stage") != "sweep"]
    finished = [run for run in trained if run.status == "FINISHED" and "val/auc" in run.metrics]
    if not finished:
        found = f"{len(trained)} runs, none finished" if trained else "no runs"
        expected, remedy = f"experiment {experiment!r}: expected finished runs", "train some with `muxrec train`"
        raise InputError(expected, found=found, remedy=remedy)
    groups: dict[Any, dict[str, TrackedRun]] = {}
    for run in sorted(finished, key=lambda run: run.started):
        own = tuple(sorted((key, value) for key, value in run.params.items() if key not in NOT_SETTINGS))
        # Equal settings, data and seed are a repetition of the same run: the last one counts.
        groups.setdefault((run.tags.get("dataset.digest", ""), own), {})[run.params.get("seed", "")] = run
    # Figures on different data are not comparable, so the digest is shown as a setting.
    settings = [{**dict(own), DATA: data[:8]} for data, own in groups]
    keys = dict.fromkeys(key for one in settings for key in one)
    varying = [key for key in keys if len({one.get(key) for one in settings}) > 1]
    rows = [
        Row(
            name=_name(list(members.values())),
            settings={key: own.get(key, "") for key in varying},
            data=data,
            runs=tuple(members[seed] for seed in sorted(members, key=lambda seed: (len(seed), seed))),
        )
        for own, ((data, _), members) in zip(settings, groups.items(), strict=True)
    ]
    shared = {key: value for key, value in settings[0].items() if key not in varying and value}
    rows.sort(key=lambda row: -(row.mean("val/auc") or 0.0))
    chosen = None if baseline is None else _baseline(rows, baseline)
    return RunComparison(experiment, experiment_id, tuple(rows), chosen, len(trained) - len(finished), shared)


def _name(runs: Sequence[TrackedRun]) -> str:
    names = dict.fromkeys(run.name for run in runs)
    return ", ".join(names) if len(names) < 3 else f"{next(iter(names))} and {len(names) - 1} more"


def _baseline(rows: Sequence[Row], wanted: str) -> Row:
    named = [row for row in rows if any(run.name == wanted for run in row.runs)]
    # A name first: a short one may be the beginning of another run's id.
    found = named or [row for row in rows if any(run.run_id.startswith(wanted) for run in row.runs)]
    if len(found) != 1:
        how_many = "none of the rows" if not found else f"{len(found)} rows of that name"
        remedy = "give the name of a run, or its id"
        raise InputError(f"expected one run {wanted!r} as the baseline", found=how_many, remedy=remedy)
    return found[0]


def figure_text(row: Row, column: Column) -> str:
    """Mean and spread between seeds."""
    mean = row.mean(column.metric)
    if mean is None:
        return ""
    between = spread(row.values(column.metric))
    shown = f"{mean / column.scale:,.{column.digits}f}"
    is_quality = column.metric.startswith(("val/", "test/"))
    return shown if between is None or not is_quality else f"{shown} ± {between / column.scale:.{column.digits}f}"


def runs_table(comparison: RunComparison, width: int = 160) -> Table:
    """The rows for a terminal of `width` characters, without the figures that do not fit; the page has all of them."""
    columns = {"seeds": [str(len(row.runs)) for row in comparison.rows]}
    short = [column for column in comparison.columns() if column.is_short]
    for column in short:
        texts = [figure_text(row, column) for row in comparison.rows]
        # In a narrow terminal the spread is below its mean.
        columns[column.title] = texts if width >= WIDE else [text.replace(" ±", "\n±") for text in texts]
    if comparison.baseline:
        differences = [difference_texts(comparison, row) for row in comparison.rows]
        columns |= {"difference": [text for text, _ in differences], "p": [text for _, text in differences]}
    for column in short[:1:-1]:
        if MIN_NAME + 2 + sum(map(_width, columns, columns.values())) > width:
            del columns[column.title]
    names = ["\n".join([row.name, *settings_of(row)]) for row in comparison.rows]
    headings = ["run", *(title.replace(" ", "\n") for title in columns)]
    table = rich_table(_title(comparison), headings, zip(names, *columns.values(), strict=True), folding=["run"])
    table.columns[0].min_width = MIN_NAME
    return table


def _width(title: str, cells: Sequence[str]) -> int:
    return 2 + max(len(line) for text in (title.replace(" ", "\n"), *cells) for line in text.split("\n"))


def settings_of(row: Row) -> list[str]:
    """The first of the row's settings, by the last part of their keys."""
    shown = [f"  {key.rpartition('.')[2]}={value}" for key, value in row.settings.items() if value]
    more = [f"  {len(shown) - NUM_SHOWN_SETTINGS} more"] if len(shown) > NUM_SHOWN_SETTINGS else []
    return [*shown[:NUM_SHOWN_SETTINGS], *more]


def difference_texts(comparison: RunComparison, row: Row) -> tuple[str, str]:
    """Difference and p for a table; "baseline" for the baseline itself."""
    if row is comparison.baseline:
        return "baseline", ""
    difference = comparison.difference(row)
    return (f"{difference.auc:+.4f}", p_text(difference.p)) if difference else ("other data", "")


def _title(comparison: RunComparison) -> str:
    title = f"{comparison.experiment}: {len(comparison.rows)} rows, by validation AUC; ± between seeds"
    if comparison.baseline:
        title += f"\ndifference of {comparison.metric} from {comparison.baseline.name}; p of Welch's t-test over seeds"
    left_out = comparison.num_unfinished
    return title + (f"\n{left_out} unfinished runs are left out" if left_out else "")


def as_plain(comparison: RunComparison) -> dict[str, Any]:
    """Every figure of every row, as plain values for JSON."""
    rows = []
    for row in comparison.rows:
        figures = {
            column.metric: {"mean": row.mean(column.metric), "spread": spread(row.values(column.metric))}
            for column in comparison.columns()
            if row.values(column.metric)
        }
        difference = comparison.difference(row)
        runs = [run.run_id for run in row.runs]
        own = {"name": row.name, "settings": dict(row.settings), "seeds": len(runs), "runs": runs, "figures": figures}
        rows.append({**own, "difference": difference._asdict() if difference else None})
    baseline = comparison.baseline.name if comparison.baseline else None
    about = {"experiment": comparison.experiment, "metric": comparison.metric, "baseline": baseline}
    return {**about, "shared_settings": dict(comparison.shared), "rows": rows}
