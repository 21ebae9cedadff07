"""`muxrec score` as a command: rejected rows, registered models, MLflow, and engines for several machines."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from mlflow.tracking import MlflowClient

from recsys.tracking.logged_model import log_model
from recsys.tracking.model_registry import ModelRegistry
from recsys.tracking.scoring_run import metrics_of
from recsys.tracking.tracker import Tracker
from serving.bundle import Bundle
from serving.scorer import Scorer

ROOT = Path(__file__).parents[3]
GOLDEN = ROOT / "tests" / "golden" / "bundle"
Muxrec = Callable[..., Any]


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    """Four files of the golden rows in two partitions."""
    golden = pl.read_parquet(GOLDEN / "golden.parquet").drop("probability").with_row_index("row")
    for number in range(4):
        folder = tmp_path / "logs" / f"day={number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        golden.slice(number * 10, 20).write_parquet(folder / f"x{number}.parquet")
    return tmp_path / "logs"


def content(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def score(*more: object) -> list[object]:
    return ["score", GOLDEN, "--keep", "row,day", "--json", *more]


def test_limit_workers_and_the_report(muxrec: Muxrec, logs: Path, tmp_path: Path) -> None:
    result = muxrec(*score("--input", logs, "--out", tmp_path / "out", "--limit", 50, "--workers", 2))
    assert result.code == 0, result.err
    report = json.loads(result.out)
    assert (report["rows_in"], report["rows"], report["parts"], report["rows_rejected"]) == (50, 50, 3, 0)
    raw = pl.read_parquet(sorted(logs.rglob("*.parquet")), hive_partitioning=False).head(50)
    expected = {name: raw[name].null_count() / 50 for name in report["missing_rates"]}
    assert report["missing_rates"] == pytest.approx(expected)
    # A second run does nothing, and says so in its table.
    again = muxrec("score", GOLDEN, "--keep", "row,day", "--input", logs, "--out", tmp_path / "out", "--limit", 50)
    assert again.code == 0
    assert "parts made earlier" in again.out
    assert "rows scored" in again.out
    assert "heavy" not in again.out
    assert "in training" in again.out


def test_rejected_rows_are_one_line_and_exit_code_2(muxrec: Muxrec, logs: Path, tmp_path: Path) -> None:
    file = logs / "day=0" / "x0.parquet"
    pl.read_parquet(file).with_columns(x00=pl.when(pl.col("row") == 4).then(1e39).otherwise("x00")).write_parquet(file)
    arguments = score("--input", logs, "--out", tmp_path / "out")
    result = muxrec(*arguments)
    assert (result.code, result.out) == (2, "")
    (line,) = result.err.strip().splitlines()
    assert "expected at most 0.000% rejected rows; found 1 of 80 (1.250%), first" in line
    assert "x0.parquet: column 'x00'" in line
    assert not (tmp_path / "out" / "_SUCCESS").exists()
    assert muxrec(*arguments, "--max-rejected", "0.02").code == 0
    assert (tmp_path / "out" / "_SUCCESS").exists()


def test_a_registered_model_scores_like_its_bundle(
    muxrec: Muxrec, logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MUXREC_CACHE", str(tmp_path / "cache"))
    run_id = logged_golden("registered")
    registry = ModelRegistry.open()
    logged = registry.logged_model(run_id, Bundle.open(GOLDEN))
    assert logged is not None
    registry.set_alias("champion", registry.register("golden", logged, run_id, {}))
    for name, bundle in (("path", GOLDEN), ("uri", "models:/golden@champion")):
        assert muxrec("score", bundle, "--input", logs, "--out", tmp_path / name, "--json").code == 0
    assert content(tmp_path / "uri") == content(tmp_path / "path")
    refused = muxrec("score", "models:/golden@nobody", "--input", logs, "--out", tmp_path / "out")
    assert refused.code == 2
    assert not (tmp_path / "out").exists()


# --- MLflow -----------------------------------------------------------------------------------------------------------


def logged_golden(key: str) -> str:
    """Log the golden bundle as a model of a new run; returns the id of the run."""
    tracker = Tracker.start(experiment="golden", name="golden", tags={}, key=key)
    log_model(tracker, Bundle.open(GOLDEN))
    tracker.finish()
    return tracker.run_id


def test_a_tracked_job_is_one_run(muxrec: Muxrec, logs: Path, tmp_path: Path) -> None:
    result = muxrec(*score("--input", logs, "--out", tmp_path / "out", "--track"))
    assert result.code == 0, result.err
    report = json.loads(result.out)
    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    run = client.get_run(report["mlflow_run_id"])
    assert run.info.status == "FINISHED"
    assert client.get_experiment(run.info.experiment_id).name == "scoring"
    assert run.data.metrics == pytest.approx(metrics_of(report))
    for name in ("score/rows_in", "score/rows", "score/rows_rejected", "score/quantile/p50", "perf/rows_per_second"):
        assert name in run.data.metrics
    for feature in ("f00", "x03"):
        for kind in ("missing", "training_missing", "unseen"):
            assert f"{kind}/{feature}" in run.data.metrics
    assert run.data.tags["model_id"] == report["model_id"]
    assert run.data.params["bundle"] == str(GOLDEN)
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["_manifest.json"]


def test_the_report_has_the_rates_of_training_too(muxrec: Muxrec, run: Path, project: Path, tmp_path: Path) -> None:
    """A run of this version keeps both; the rates of its validation rows are the recorded ones."""
    result = muxrec("score", run / "bundle", "--input", project / "valid.parquet", "--out", tmp_path / "out", "--json")
    report = json.loads(result.out)
    tokens = {name: report["unseen_rates"][name] for name in ("f00", "f01", "f02", "f03", "l00")}
    assert report["training_unseen_rates"] == pytest.approx(tokens, abs=1e-4)
    profile = json.loads((run / "bundle" / "profile.json").read_text())
    assert report["training_missing_rates"] == profile["missing_rates"]


def test_a_store_out_of_reach_costs_no_score(
    muxrec: Muxrec, logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://user:secret@host")
    result = muxrec(*score("--input", logs, "--out", tmp_path / "out", "--track"))
    assert result.code == 2
    assert "the scores are complete; check MLFLOW_TRACKING_URI, and start again, which only logs them" in result.err
    assert "secret" not in result.err
    assert (tmp_path / "out" / "_SUCCESS").exists()


# --- several machines -------------------------------------------------------------------------------------------------

RAY = """
import glob, sys
import polars as pl, ray, ray.data
from experiments.__main__ import main
from serving.scorer import Scorer

class Score:
    def __init__(self, bundle):
        self.scorer = Scorer(bundle, num_threads=1)
    def __call__(self, table):
        return table.select(["row"]).append_column("score", [self.scorer.score(table)])

logs, bundle, out, frame = sys.argv[1:]
ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
sys.argv = ["muxrec", "score", bundle, "--input", logs, "--out", out, "--keep", "row,day", "--json"]
sys.argv += ["--engine", "ray", "--workers", "2"]
try:
    main()
except SystemExit as end:
    assert not end.code, end
raw = pl.read_parquet(sorted(glob.glob(logs + "/*/*.parquet")), hive_partitioning=False)
scored = ray.data.from_arrow(raw.to_arrow()).map_batches(
    Score, fn_constructor_args=[bundle], batch_format="pyarrow", compute=ray.data.ActorPoolStrategy(size=1)
)
pl.from_pandas(scored.to_pandas()).write_parquet(frame)
"""


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="no Ray; to have it: make -B env EXTRAS=train,server,ray,dev"
)
def test_ray_writes_the_same_bytes(muxrec: Muxrec, logs: Path, tmp_path: Path) -> None:
    """A local cluster of two workers: the job, and the Scorer in a Ray Data pipeline of the user's."""
    out, frame = tmp_path / "ray", tmp_path / "frame.parquet"
    command = [sys.executable, "-c", RAY, str(logs), str(GOLDEN), str(out), str(frame)]
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_DATA_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    assert muxrec(*score("--input", logs, "--out", tmp_path / "here")).code == 0
    assert content(out) == content(tmp_path / "here")
    expected = pl.read_parquet(f"{out}/**/part-*.parquet", hive_partitioning=False).sort("row", "score")
    found = pl.read_parquet(frame).sort("row", "score")
    assert found["row"].equals(expected["row"])
    assert np.abs((found["score"] - expected["score"]).to_numpy()).max() <= 1e-6  # batches of another size


def test_an_input_that_an_engine_cannot_read_is_one_line(muxrec: Muxrec, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ray" else found(name))
    result = muxrec("score", GOLDEN, "--input", "x.parquet", "--out", "out", "--engine", "ray")
    assert result.code == 2
    assert "--engine ray needs Ray; found no ray" in result.err


SPARK = """
import sys
import mlflow
from pyspark.sql import SparkSession

uri, logs, out = sys.argv[1:]
local = {"spark.ui.enabled": "false", "spark.driver.bindAddress": "127.0.0.1", "spark.driver.host": "127.0.0.1"}
spark = SparkSession.builder.master("local[2]").config(map=local).getOrCreate()
rows = spark.read.option("recursiveFileLookup", "true").parquet(logs)
score = mlflow.pyfunc.spark_udf(spark, uri, result_type="double", env_manager="local")
columns = [name for name in rows.columns if name != "row"]
rows.select("row", score(*columns).alias("score")).write.parquet(out)
"""


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("pyspark") is None or shutil.which("java") is None,
    reason="no pyspark, or no Java; to have both: apt-get install default-jre-headless; .venv/bin/pip3 install pyspark",
)
def test_spark_gives_the_same_scores(logs: Path, tmp_path: Path) -> None:
    uri = f"runs:/{logged_golden('spark')}/bundle"
    command = [sys.executable, "-c", SPARK, uri, str(logs), str(tmp_path / "out")]
    environment = {**os.environ, "PYSPARK_PYTHON": sys.executable}  # else its workers are the first python3 on the path
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    raw = pl.read_parquet(sorted(logs.rglob("*.parquet")), hive_partitioning=False)
    expected = raw.select("row", score=pl.Series(Scorer(GOLDEN, num_threads=1).score(raw))).sort("row")
    found = pl.read_parquet(tmp_path / "out" / "*.parquet").sort("row")
    assert found["row"].equals(expected["row"].cast(found["row"].dtype))
    assert np.abs((found["score"] - expected["score"]).to_numpy()).max() <= 1e-6
