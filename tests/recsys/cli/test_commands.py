"""The commands on a small planted problem: what they print, write, skip and repeat."""

import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import polars as pl
import pytest

from recsys.evaluation.metrics import METRICS
from recsys.models import MODELS
from tests.conftest import SMALL, read_scores


def test_train_writes_the_run_directory(run):
    metrics = json.loads((run / "metrics.json").read_text())
    assert set(metrics) == {"valid", "test", "perf"}
    assert set(metrics["test"]) == set(METRICS)
    assert metrics["perf"]["samples_per_s"] > 0
    assert len((run / "log.jsonl").read_text().splitlines()) == 2
    present = {path.name for path in run.iterdir()}
    assert {"experiment.yaml", "run.json", "registry.json", "checkpoint", "report", "bundle"} <= present
    assert {"curves.png", "roc.png", "reliability.png", "row_usage.png", "collisions.csv"} <= {
        path.name for path in (run / "report").iterdir()
    }


def test_a_finished_run_is_not_trained_again(run, dataset, muxrec):
    before = (run / "checkpoint" / "best.safetensors").stat().st_mtime_ns
    result = muxrec("train", "final_mlp", "--data", dataset, "--out", run, "--no-track", "--json", *SMALL)
    assert result.code == 0
    assert json.loads(result.out)["test"] == json.loads((run / "metrics.json").read_text())["test"]
    assert (run / "checkpoint" / "best.safetensors").stat().st_mtime_ns == before


def test_a_config_repeats_the_run_bit_for_bit(run, dataset, muxrec, tmp_path):
    arguments = ("--config", run / "experiment.yaml", "--data", dataset, "--out", tmp_path / "again", "--no-track")
    assert muxrec("train", *arguments, "--json").code == 0
    first, second = (json.loads((path / "metrics.json").read_text()) for path in (run, tmp_path / "again"))
    assert first["valid"] == second["valid"]
    assert first["test"] == second["test"]
    best = "checkpoint/best.safetensors"
    assert (run / best).read_bytes() == (tmp_path / "again" / best).read_bytes()


def test_another_seed_is_another_run(run, dataset, muxrec, tmp_path):
    config = ("--config", run / "experiment.yaml", "--data", dataset)
    arguments = ("--out", tmp_path / "r", "--no-track", "--no-report", "--json", "seed=9")
    assert muxrec("train", *config, *arguments).code == 0
    assert not (tmp_path / "r" / "report").exists()
    first, second = (json.loads((path / "metrics.json").read_text()) for path in (run, tmp_path / "r"))
    assert first["test"] != second["test"]


@pytest.mark.slow
@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.parametrize("optimizer", ["adam", "rowwise_adagrad"])
def test_every_model_trains_exports_and_scores(name, optimizer, dataset, project, muxrec, tmp_path):
    run, scores = tmp_path / "run", tmp_path / "scores"
    # One probe each: factorisation machines and field gates need features of equal width.
    sizes = ["embedding.num_rows=300", "embedding.width=4", "embedding.probes=1"]
    settings = ["trainer.epochs=1", f"embedding.optimizer={optimizer}", *sizes]
    result = muxrec("train", name, "--data", dataset, "--out", run, "--no-track", "--json", *settings)
    assert result.code == 0, result.err
    parity = muxrec("parity", run, run / "bundle", "--input", project / "test.parquet", "--json")
    assert parity.code == 0, parity.out
    assert json.loads(parity.out)["ids_equal"]
    result = muxrec("score", run / "bundle", "--input", project / "test.parquet", "--out", scores, "--json")
    assert json.loads(result.out)["rows"] == 500


def test_evaluate_prints_metrics_and_collisions(run, muxrec):
    result = muxrec("evaluate", run, "--split", "test", "--json")
    values = json.loads(result.out)
    expected = json.loads((run / "metrics.json").read_text())["test"]
    assert {key: values[key] for key in expected} == pytest.approx(expected)
    assert [row["feature"] for row in values["collisions"]["features"]] == ["f00", "f01", "f02", "f03", "l00"]
    text = muxrec("evaluate", run).out
    assert "f03" in text
    assert "% shared" in text


@pytest.mark.parametrize("table_dtype", ["fp32", "fp16", "int8", "int4", "int2"])
def test_export_verify_parity_and_score(table_dtype, run, project, muxrec, tmp_path):
    bundle, scores = tmp_path / "bundle", tmp_path / "scores"
    assert muxrec("export", run, "--out", bundle, "--table-dtype", table_dtype, "--json").code == 0
    assert muxrec("verify", bundle, "--json").code == 0
    parity = muxrec("parity", run, bundle, "--input", project / "test.parquet", "--json")
    values = json.loads(parity.out)
    assert values["ids_equal"]
    assert parity.code == (0 if table_dtype == "fp32" else 1)
    assert values["max_abs_diff"] < {"fp32": 1e-5, "fp16": 1e-3, "int8": 0.05, "int4": 0.2, "int2": 0.5}[table_dtype]
    arguments = ("--input", project / "test.parquet", "--out", scores, "--keep", "f00, label", "--json")
    assert muxrec("score", bundle, *arguments).code == 0
    scored = read_scores(scores)
    assert scored.columns == ["f00", "label", "score"]
    assert scored["f00"].equals(pl.read_parquet(project / "test.parquet")["f00"])
    assert (scores / "_SUCCESS").exists()


def test_scores_agree_with_the_metrics(run, project, muxrec, tmp_path):
    """The scored file, ranked by a double loop, has the AUC that the trainer reported."""
    arguments = ("--input", project / "test.parquet", "--out", tmp_path / "s", "--keep", "label", "--json")
    assert muxrec("score", run / "bundle", *arguments).code == 0
    scored = read_scores(tmp_path / "s")
    positive = scored.filter(pl.col("label") == 1)["score"].to_numpy()
    negative = scored.filter(pl.col("label") == 0)["score"].to_numpy()
    wins = np.sign(positive[:, None] - negative[None, :])
    expected = json.loads((run / "metrics.json").read_text())["test"]["auc"]
    assert (wins.mean() + 1) / 2 == pytest.approx(expected, abs=1e-4)


@pytest.mark.slow
def test_the_scoring_process_imports_no_torch_pandas_or_mlflow(run, project, tmp_path):
    arguments = ["score", run / "bundle", "--input", project / "test.parquet", "--out", tmp_path / "s", "--json"]
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "experiments", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert json.loads(done.stdout)["heavy_modules"] == []
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "polars" in imported
    assert not imported & {"torch", "torchrec", "pandas", "mlflow", "pyarrow", "matplotlib"}


@pytest.mark.slow
def test_a_tracked_run_can_be_found_loaded_and_scored_in_mlflow(run, dataset, project, muxrec, tmp_path):
    import mlflow

    out = tmp_path / "run"
    assert muxrec("train", "--config", run / "experiment.yaml", "--data", dataset, "--out", out, "--json").code == 0
    run_id = json.loads((out / "run.json").read_text())["mlflow_run_id"]
    mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])
    found = mlflow.get_run(run_id)
    assert found.info.status == "FINISHED"
    assert found.data.params["embedding.num_rows"] == "500"
    assert {name.partition("/")[0] for name in found.data.metrics} == {"train", "val", "test", "perf", "system"}
    assert found.data.metrics["test/auc"] == json.loads((out / "metrics.json").read_text())["test"]["auc"]
    assert {tag.value for item in found.inputs.dataset_inputs for tag in item.tags} == {"train", "valid", "test"}
    (model,) = mlflow.search_logged_models(experiment_ids=[found.info.experiment_id], output_format="list")
    raw = pl.read_parquet(project / "test.parquet").head(20)
    names = [column.name for column in model_columns(model.model_uri)]
    predicted = mlflow.pyfunc.load_model(model.model_uri).predict(raw.select(names).to_pandas())
    arguments = ("--input", project / "test.parquet", "--out", tmp_path / "s", "--json")
    assert muxrec("score", out / "bundle", *arguments).code == 0
    scores = read_scores(tmp_path / "s")["score"].head(20)
    np.testing.assert_allclose(predicted["probability"], scores, rtol=0, atol=1e-6)

    numbers = pd.DataFrame({"f00": [7, 8], "x00": [1, 2]})  # integers as categories, an integer number, absent columns
    texts = pd.DataFrame({"f00": ["7", "8"], "x00": [1.0, 2.0]})
    model = mlflow.pyfunc.load_model(model.model_uri)
    pd.testing.assert_frame_equal(model.predict(numbers), model.predict(texts))


def model_columns(uri: str):
    """Input columns of a logged model's signature."""
    import mlflow

    return mlflow.models.get_model_info(uri).signature.inputs


def test_a_store_from_the_environment_is_not_recorded(run, dataset, muxrec, tmp_path):
    """The store of the tests is in MLFLOW_TRACKING_URI, which may hold a password."""
    facts = json.loads((run / "run.json").read_text())
    assert facts["mlflow_tracking_uri"] is None


def test_an_empty_directory_is_used_and_no_other_file_is_left(dataset, muxrec, tmp_path):
    (tmp_path / "run").mkdir()
    arguments = ("--data", dataset, "--out", tmp_path / "run", "--no-track", "--json")
    settings = ("trainer.epochs=1", "model.hidden=[4]", "embedding.num_rows=50")
    assert muxrec("train", "mlp", *arguments, *settings).code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
